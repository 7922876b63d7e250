"""User namespaces: as a plain user has them, and as what an id-mapped mount takes its map from."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import pkgutil
import signal
import sys
from collections.abc import Callable, Iterator

from cowshed.layers import mapping
from cowshed.storage import api
from cowshed_conformance import crash, marks
from cowshed_conformance.harness import Store
from cowshed_linux import mount, process

OUTER = 100_000  # what id 0 of the namespace is outside
MAP = ((0, OUTER, 65536),)
Map = tuple[tuple[int, int, int], ...]  # (inside, outside, how many) …


def as_plain_user(place: str, work: Callable[[str], object], ids: Map = MAP) -> None:
    """Do something in another process, as root of user and mount namespaces that are nobody outside, in a directory
    that is theirs. The way to it is the working directory: those above it belong to others."""
    _import_all()
    os.chown(place, ids[0][1], ids[0][1])
    with _child(ids, lambda: work("/proc/self/cwd"), place) as pid:
        crash.finish(pid)


def _import_all() -> None:
    """What a plain user may find nothing of: the source can lie in a directory that only root may enter."""
    drivers = {name.partition(".")[0] for name in sys.modules if name.startswith("cowshed_driver_")}
    for name in ("cowshed.storage", "cowshed.layers", *sorted(drivers)):
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            with contextlib.suppress(ImportError, OSError):  # of a driver whose library this host has not
                importlib.import_module(module.name)


@contextlib.contextmanager
def user_namespace(ids: Map = MAP) -> Iterator[int]:
    """The descriptor of a user namespace with these maps."""
    with _child(ids, signal.pause) as pid:
        try:
            fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _child(ids: Map, work: Callable[[], object], place: str = "/") -> Iterator[int]:
    """A process that does work in new namespaces, once its ids are mapped; waiting for it is the caller's."""
    told, tell = os.pipe()
    wait, go = os.pipe()

    def child() -> None:
        os.close(told)
        os.close(go)
        os.chdir(place)
        try:
            process.unshare(process.CLONE_NEWUSER | process.CLONE_NEWNS)
        except OSError as error:
            os.write(tell, str(error.errno).encode())
            return
        os.write(tell, b"0")
        os.close(tell)
        os.read(wait, 1)
        os.close(wait)
        os.setresgid(0, 0, 0)
        os.setgroups([])
        os.setresuid(0, 0, 0)
        mount.mount(None, "/", None, mount.REC | mount.PRIVATE)
        work()

    pid = crash.start(child)
    os.close(tell)
    os.close(wait)
    try:
        failed = int(os.read(told, 8) or b"-1")
        if failed:
            os.waitpid(pid, 0)
            why = os.strerror(failed) if failed > 0 else "the process ended"
            marks.skip("privilege", f"no user namespace can be made here: {why}")
        text = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in ids)
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
                file.write(text)
        os.write(go, b"1")
        yield pid
    finally:
        os.close(told)
        os.close(go)


@contextlib.contextmanager
def mapped(store: Store, layer: api.Layer, userns: int, *, read_only: bool = False) -> Iterator[str]:
    """A path at which a layer is mounted with the ids of a user namespace."""
    with store.activated(layer, read_only=read_only) as plan:
        fd = mapping.mapped(plan, userns)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def takes_maps(store: Store, layer: api.Layer, userns: int) -> bool:
    """Whether the kernel mounts a layer with mapped ids."""
    try:
        with mapped(store, layer, userns):
            return True
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP):
            raise
        return False
