"""The tree of a container as the container sees it, for a command outside: its root with its volumes in their places.

A running one is looked at through a copy of all its mounts. For one that does not run, or that runs in a sandbox, its
layer is mounted in a namespace of this command's own, and its volumes there. Where it would have a file system of the
kernel or in memory, there is an empty one that cannot be written: what were put below it would never be seen again.
"""

from __future__ import annotations

import os
import stat

from cowshed.container import lifecycle
from cowshed_linux import mount, process
from cowshed_linux.paths import open_in_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    from cowshed.container.access import Held
    from cowshed.engine import Engine
    from cowshed.layers.activation import WrittenBack
    from cowshed.storage.api import MountPlan

_PATH = os.O_PATH


class View:
    """`with View(engine, held) as root:` a descriptor to resolve paths beneath (openat2(2) RESOLVE_IN_ROOT).

    At the end of the block NoSpace and StoreError are raised if something that was written in it is lost.
    """

    def __init__(self, engine: Engine, held: Held) -> None:
        self._engine, self._held = engine, held
        self._fds: list[int] = []
        self._plan: MountPlan | None = None  # of the first of them, if it is this command's own mount
        self._mounted = 0  # number of the layer whose byte is held
        self._written: WrittenBack | None = None

    def __enter__(self) -> int:
        try:
            if self._held.running and not self._held.sandboxed:
                self._fds.append(self._held.root(mounts=True))
                return self._fds[0]
            return self._assembled()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._written is not None:
                self._written.__exit__(kind, error, trace)
        finally:
            self._close()

    def _close(self) -> None:
        for fd in reversed(self._fds[1 if self._plan else 0 :]):
            os.close(fd)
        try:
            if self._plan:
                from cowshed.layers.mounting import release

                release(self._fds[0], self._plan)
        finally:
            self._fds.clear()
            self._plan = None
            if self._mounted:
                self._engine.store.locks.release("mounts", self._mounted)
                self._mounted = 0

    def _assembled(self) -> int:
        engine, row = self._engine, self._held.row
        if self._held.running:
            root = self._held.root()
            self._fds.append(root)
        else:
            root = self._own_mount()
        mounts = lifecycle.config_of(engine, row)["mounts"]
        # Any directory does: only this thread's namespace, which nobody else enters, has the mount there.
        place = engine.folder(row)

        def assemble() -> None:
            mount.attach(root, place)
            for each in mounts:
                self._mount(root, each)
            if row.config.get("read_only"):
                mount.set_attributes(root, mount.ATTR_RDONLY)
            # While it is open the namespace lives, and with it the mounts below the root.
            self._fds.append(os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))

        process.aside(-1, assemble)
        return root

    def _own_mount(self) -> int:
        """The layer's, which nobody else has mounted."""
        engine, row = self._engine, self._held.row
        layers = engine.layers(row.driver)
        layer = layers.load(row.number)
        engine.store.locks.take("mounts", row.number, wait=1.0, what=f"container {row.name}")
        self._mounted = row.number
        root = layers.mount(layer, read_only=False)
        self._fds.append(root)
        self._written = layers.written_back(layer, root)
        if layers.settled(layer):
            self._plan = layers.plan(layer, read_only=False)
        return root

    def _mount(self, root: int, each: dict[str, Any]) -> None:
        bound = each.get("type") == "bind"
        source = str(each.get("source", ""))
        if bound:
            try:
                is_folder = stat.S_ISDIR(os.stat(source).st_mode)
                tree = mount.clone(source, recursive=True)
            except OSError:
                return  # it has gone; the container will not start without it
        else:
            is_folder = True
            tree = mount.file_system("tmpfs", "empty", [("size", "4k")], mount.ATTR_RDONLY)
        try:
            at = _target(root, each["destination"].encode(errors="surrogateescape"), folder=is_folder)
            if at < 0:
                return
            try:
                if bound and "ro" in (each.get("options") or ()):
                    mount.set_attributes(tree, mount.ATTR_RDONLY, recursive=True)
                mount.attach(tree, at=at)
            finally:
                os.close(at)
        finally:
            os.close(tree)


def _target(root: int, path: bytes, *, folder: bool) -> int:
    """The place of a mount, made if it is missing, as it will be when the container starts; -1 if it cannot be."""
    try:
        return open_in_root(root, path, _PATH)
    except FileNotFoundError:
        pass
    parts = path.strip(b"/").split(b"/")
    above = open_in_root(root, b"/", _PATH)
    try:
        for n, part in enumerate(parts):
            last = n + 1 == len(parts)
            try:
                if last and not folder:
                    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=above))
                else:
                    os.mkdir(part, 0o755, dir_fd=above)
            except FileExistsError:
                pass  # a directory, or a link to one, on the way
            below = open_in_root(root, b"/".join(parts[: n + 1]), _PATH)
            os.close(above)
            above = below
    except OSError:
        os.close(above)
        return -1  # below a file system that is not there now, or a link that leads nowhere
    return above
