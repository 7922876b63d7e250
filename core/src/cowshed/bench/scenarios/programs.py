"""Programs that are in the image: how long until one is ready, and until another user's ids are those of its files."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

from cowshed.bench.scenario import Scenario, Wrong
from cowshed.bench.scenarios.life import committed
from cowshed.bench.trees import Recipe, digest
from cowshed.storage.kit.copying import Contents
from cowshed_runtime import mappings
from cowshed_runtime.errors import LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from cowshed.bench.stores import Store, Subject
    from cowshed.storage import api

_READY = b"ready\n"
_WORK = """
import email.parser, http.server, json, sqlite3
print("ready", flush=True)
"""
# What the same work has read: its own modules, and what the kernel and the loader have mapped for it (proc(5), maps)
_FILES = (
    _WORK
    + """
import sys
found = {getattr(module, name, None) for module in list(sys.modules.values()) for name in ("__file__", "__cached__")}
found |= {line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if "/" in line}
print(sorted(name for name in found if name and name.startswith("/")))
"""
)
_PYTHON = ("-S", "-B", "-c")


class Ready(Scenario):
    name, workloads, title = "ready", ("W22",), "Until a program of the image is ready"
    text = (
        "A layer is created and mounted, and a program in it, the Python of this host, imports what a small service "
        "would and says that it is ready: with cold caches, as after a boot, and again with warm ones. What it needs "
        "is some hundred files, read in pieces."
    )
    control = True
    quick = None
    full = {"layers": 10}

    def plan(self) -> None:
        self._program = os.path.realpath(sys.executable)
        self._environment = {"PYTHONHOME": sys.base_prefix, "PATH": os.defpath}
        said = subprocess.run(
            [self._program, *_PYTHON, _FILES], env=self._environment, capture_output=True, check=True
        ).stdout.decode()
        found = {name for name in ast.literal_eval(said.splitlines()[1]) if os.path.isfile(name)}
        libraries = sorted({os.path.dirname(name) for name in found if ".so" in os.path.basename(name)})
        self._environment["LD_LIBRARY_PATH"] = ":".join(libraries)
        self._links = _links(libraries, found)
        with open(self._program, "rb") as file:
            found.add(_interpreter(file.read(4096)))
        self._files = sorted(found)

    def setup(self, it: Subject) -> None:
        layer = it.store.new()
        contents = Contents()
        with it.store.mount(layer) as root:
            for name in self._files:
                _copy(contents, name, f"{root}{name}")
            for name, target in self._links.items():
                os.link(f"{root}{target}", f"{root}{name}")
        top = it.store.commit(layer)
        for n in range(1, self.sizes["layers"]):
            more = Recipe()
            more.add(f"layer-{n}", 60, number=n)
            top = committed(it, more, top)
        it.layers["image"] = top
        it.settle()

    def round(self, it: Subject) -> None:
        it.cold()
        self._start(it, "cold", "the first line, cold")
        self._start(it, "warm", "the first line, warm")

    def _start(self, it: Subject, key: str, title: str) -> None:
        row = self.row(key, title, versus="" if key == "cold" else "cold", use=("containers",))
        with self.timed(it, row, device=key == "cold"):
            layer = it.store.new(it.layers["image"])
            with it.store.tree(layer) as root:
                said = _run(root, self._program, self._environment)
        it.store.remove(layer)
        it.store.purge()
        if said != _READY:
            raise Wrong(f"the program says {said[-200:]!r}")

    def verify(self, it: Subject) -> str:
        with it.store.mount(it.store.new(it.layers["image"])) as root:
            return digest(root)


def _links(folders: list[str], files: set[str]) -> dict[str, str]:
    """Other names of libraries, by which programs ask for them: the kernel tells of files only."""
    found = {}
    for folder in folders:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink() and os.path.realpath(entry.path) in files and entry.path not in files:
                    found[entry.path] = os.path.realpath(entry.path)
    return found


def _interpreter(head: bytes) -> str:
    """The name of the loader that an ELF file asks for (elf(5), PT_INTERP)."""
    bits = head[4] == 2
    start, size, count = (
        int.from_bytes(head[at : at + width], sys.byteorder)
        for at, width in (((32, 8), (54, 2), (56, 2)) if bits else ((28, 4), (42, 2), (44, 2)))
    )
    for at in range(start, start + size * count, size):
        if int.from_bytes(head[at : at + 4], sys.byteorder) == 3:
            where = at + (8 if bits else 4)
            offset = int.from_bytes(head[where : where + (8 if bits else 4)], sys.byteorder)
            return head[offset : head.index(0, offset)].decode()
    raise Wrong("the Python of this host is linked statically")


def _copy(contents: Contents, source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(source, "rb") as one, open(target, "wb") as other:
        status = os.fstat(one.fileno())
        contents.copy(one.fileno(), other.fileno(), status.st_size)
        os.fchmod(other.fileno(), status.st_mode & 0o777)


def _run(root: int, program: str, environment: dict[str, str]) -> bytes:
    """What the program says, whose root the tree is, up to its end."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become(root, writing, program, environment)
    os.close(writing)
    with open(reading, "rb") as said:
        text = said.read()
    os.waitpid(pid, 0)
    return text


def _become(root: int, output: int, program: str, environment: dict[str, str]) -> NoReturn:
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.fchdir(root)
        os.chroot(".")
        os.execve(program, [program, *_PYTHON, _WORK], environment)  # noqa: S606 - no shell is the point
    except OSError as error:
        os.write(output, str(error).encode())
    finally:
        os._exit(127)


class Ids(Scenario):
    name, workloads, title = "ids", ("W17",), "Other ids for the files of an image"
    text = (
        "The root of a container is nobody on the host: the files of its image get other owners. A mount maps them, "
        "whatever their number (mount_setattr(2), MOUNT_ATTR_IDMAP); an engine that cannot have that changes the owner "
        "of each."
    )
    quick = {"files": 500}
    full = {"files": 5000}

    def setup(self, it: Subject) -> None:
        it.layers["image"] = committed(it, Recipe().many("image", self.sizes["files"], 1024))
        it.settle()

    def round(self, it: Subject) -> None:
        store, files = it.driven, self.sizes["files"]
        ways = ("chown", "map") if store.capabilities.idmapped_mounts else ("chown",)
        for way in ways:
            title = f"{files} files, {'each gets another owner' if way == 'chown' else 'mapped by the mount'}"
            layer = store.new(it.layers["image"])
            row = self.row(way, title, versus="chown" if way == "map" else "", use=("containers",))
            with self.timed(it, row, device=True):
                owner = self._mapped(store, layer) if way == "map" else self._given(store, layer)
            if owner != _OWNER:
                raise Wrong(f"a file belongs to {owner}, and should to {_OWNER}")
            store.remove(layer)
            it.settle()

    def _mapped(self, store: Store, layer: api.Layer) -> int:
        """The owner that a file has then."""
        try:
            userns = mappings.namespace(_MAP, _MAP)
        except LaunchError as error:
            raise Wrong(str(error)) from None
        try:
            with store.tree(layer, userns=userns) as tree:
                return os.stat("image/0/0", dir_fd=tree).st_uid
        finally:
            os.close(userns)

    def _given(self, store: Store, layer: api.Layer) -> int:
        with store.tree(layer) as tree:
            _give(f"/proc/self/fd/{tree}")
            return os.stat("image/0/0", dir_fd=tree).st_uid


_OWNER = 100_000
_MAP = [(0, _OWNER, 65536)]  # the first ids of a namespace are those from _OWNER on


def _give(root: str) -> None:
    for folder, _, names in os.walk(root):
        os.chown(folder, _OWNER, _OWNER)
        for name in names:
            os.chown(f"{folder}/{name}", _OWNER, _OWNER, follow_symlinks=False)
