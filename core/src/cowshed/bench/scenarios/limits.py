"""What size limits cost, and what a full disk does."""

from __future__ import annotations

import errno
import os

from cowshed.bench.meter import sync
from cowshed.bench.samples import Sample
from cowshed.bench.scenario import Scenario, Wrong
from cowshed.bench.scenarios.life import committed
from cowshed.bench.trees import Recipe, digest
from cowshed.storage import api
from cowshed.storage.errors import Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.bench.stores import Subject

_NEVER = api.Quota(bytes=1 << 40)
_MIB = 1 << 20


class Quota(Scenario):
    name, workloads, title = "quota", ("W16",), "Size limits"
    text = (
        "Files are written and synced in a layer with a limit that is never reached, and without one; a child is "
        "created with and without. The file systems have quota: by project on ext4 and xfs, simple ones on btrfs."
    )
    quota = True
    quick = {"files": 300}
    full = {"files": 2000}

    def setup(self, it: Subject) -> None:
        if it.driven.capabilities.quota is api.QuotaScope.NONE:
            raise Unsupported("there are no size limits here: see the options of the driver, and of the kernel")
        it.layers["image"] = committed(it, Recipe().many("image", 500, 60))
        it.settle()

    def round(self, it: Subject) -> None:
        files, store = self.sizes["files"], it.driven
        for limited in self.chance.sample([False, True], 2):
            key, title, limit = ("with", "with a limit", _NEVER) if limited else ("without", "without a limit", None)
            versus = "without" if limited else ""
            child = self.row(f"child/{key}", f"a child, {title}", versus=f"child/{versus}" * limited)
            write = self.row(
                f"write/{key}",
                f"{files} files of 16 KiB written and synced, {title}",
                versus=f"write/{versus}" * limited,
            )
            with self.timed(it, child):
                layer = store.new(it.layers["image"], quota=limit)
            with store.mount(layer) as root, self.timed(it, write, device=True):
                Recipe().many("data", files, 16 << 10).write(root)
                sync(root)  # which may be a file system of its own
            store.remove(layer)
            it.settle()

    def verify(self, it: Subject) -> str:
        layer = it.driven.new(it.layers["image"], quota=_NEVER)
        with it.driven.mount(layer) as root:
            Recipe().many("data", self.sizes["files"], 16 << 10).write(root)
            return digest(root)

    def expected(self) -> str:
        whole = Recipe().many("image", 500, 60)
        whole.files.update(Recipe().many("data", self.sizes["files"], 16 << 10).files)
        return whole.digest()


class Full(Scenario):
    name, workloads, title = "full", ("W18",), "A full disk"
    text = (
        "A container fills a small file system: it must be told so (ENOSPC or EDQUOT, nothing else), and when its "
        "layer is removed, others must be able to write again. The time until 1 MiB can be written and synced."
    )
    quick = None
    full = {}
    size = 320 << 20
    rounds = 5

    def setup(self, it: Subject) -> None:
        it.layers["image"] = committed(it, Recipe().many("image", 100, 60))
        it.settle()

    def round(self, it: Subject) -> None:
        store, data = it.driven, os.urandom(4 * _MIB)
        layer, other = store.new(it.layers["image"]), store.new(it.layers["image"])
        with store.mount(layer) as root:
            code = _fill(f"{root}/filling", data, self.size)
        if code not in (errno.ENOSPC, errno.EDQUOT):
            raise Wrong(f"a full disk gives {errno.errorcode.get(code, code)}")
        with self.timed(it, self.row("recovery", "from full until 1 MiB is written and synced")):
            store.remove(layer)
            store.purge()
            with store.mount(other) as root:
                _write_when_possible(f"{root}/after", data[:_MIB])
        store.remove(other)
        it.settle()
        self.record(it, self.row("used", "in use afterwards", "bytes"), Sample(float(it.system.used())))


def _fill(path: str, data: bytes, size: int) -> int:
    """Write until there is an error; its number."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for _ in range(2 * size // len(data)):
            os.write(fd, data)
            os.fdatasync(fd)
    except OSError as error:
        return error.errno or 0
    finally:
        os.close(fd)
    raise Wrong("twice as much was written as the file system has")


def _write_when_possible(path: str, data: bytes) -> None:
    for _ in range(100):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            if os.write(fd, data) == len(data):
                os.fsync(fd)
                return
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        finally:
            os.close(fd)
        sync(os.path.dirname(path))
    raise Wrong("nothing can be written after the layer that filled the disk is removed")
