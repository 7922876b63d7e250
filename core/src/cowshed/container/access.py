"""Reaching what is inside a container while it runs, or does not.

The `containers` byte is held meanwhile: nobody starts, removes or changes the container. A layer that is mounted is
never mounted a second time where its driver forbids that: the living mount is cloned out of the container's namespace.
"""

from __future__ import annotations

import errno
import os
from functools import partial

from cowshed import log
from cowshed.container import state
from cowshed.errors import Conflict, NotFound
from cowshed.layers.faults import step
from cowshed.monitor import client
from cowshed.state import containers
from cowshed.storage.api import Consistency
from cowshed.storage.errors import NoSpace, TooDeep, Unsupported
from cowshed_linux import files, mount, process
from cowshed_runtime.cgroup import freezer
from cowshed_runtime.cgroup.group import Group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import Any, TypeVar

    from cowshed.engine import Engine
    from cowshed.layers.difference import LayerDifference
    from cowshed.layers.layers import Layers
    from cowshed.state.rows import ContainerRow
    from cowshed.storage.api import Layer

    T = TypeVar("T")

_PATIENCE = 15.0  # seconds for another command that works on the container


class Held:
    """`with Held(engine, row) as held:` the container stays what it is. held.running tells whether it runs; it may end
    on its own. NotFound if it has gone, Conflict if it is in no state to be looked at, Busy."""

    def __init__(self, engine: Engine, row: ContainerRow) -> None:
        self._engine, self.row = engine, row
        self.running = False

    def __enter__(self) -> Held:
        engine, row = self._engine, self.row
        engine.store.locks.take("containers", row.number, wait=_PATIENCE, what=f"container {row.name}")
        try:
            there = containers.get(engine.store, row.number)
            if there is None or there.id != row.id:
                raise NotFound(f"container {row.name} was removed meanwhile")
            found = state.now(engine, there)
            if found.state in ("creating", "removing"):
                raise Conflict(f"container {row.name} is being made or removed", remedy="try again")
            self.running = found.state == "running"
            left = [] if self.running else Group(row.id).processes()
            if left:
                raise Conflict(
                    f"process {left[0]} of container {row.name} lives on without its monitor", remedy=f"kill {left[0]}"
                )
        except BaseException:
            engine.store.locks.release("containers", row.number)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.store.locks.release("containers", self.row.number)

    def mount_points(self) -> list[bytes]:
        """Where the container has something mounted, which makes empty files and directories in its layer."""
        from cowshed.container import lifecycle

        config = lifecycle.config_of(self._engine, self.row)
        return [os.fsencode(each["destination"].strip("/")) for each in config.get("mounts") or ()]

    def difference(self, *, pause: bool = False) -> AbstractContextManager[LayerDifference]:
        """What the container has changed, to be used as a context: of one moment, if it runs and its driver can take a
        snapshot, or if it is paused; else it is read while the container may write."""
        from cowshed.layers.difference import LayerDifference

        hidden = self.mount_points()
        return Moment(self._engine, self, partial(LayerDifference, hidden=hidden), pause=pause)

    def tree(self, *, pause: bool = False) -> AbstractContextManager[int]:
        """The root of the container's own tree, without what is mounted in it, to be read: of one moment as the
        difference is."""
        from cowshed.layers.difference import LayerTree

        return Moment(self._engine, self, LayerTree, pause=pause)

    def root(self, *, mounts: bool = False) -> int:
        """A detached copy of the running container's root mount, with mounts of all that it has mounted below as well.
        Conflict if it has just ended."""
        return root_of(self._engine, self.row, mounts=mounts)

    @property
    def sandboxed(self) -> bool:
        """Whether the running container's first process does not show what the container has mounted below its root:
        it is a sandbox of another runtime."""
        return self.row.runtime["name"] != "native" and sandbox(self._engine, self.row) != ("", "")


def root_of(engine: Engine, row: ContainerRow, *, mounts: bool = False) -> int:
    """As Held.root, for a container that nothing holds."""
    found = client.running(engine.place(row))
    ended = Conflict(f"container {row.name} has just ended", remedy="try again")
    if found is None:
        raise ended
    pid, started, _ = found
    place, root = f"/proc/{pid}/ns/mnt", "/"
    if row.runtime["name"] != "native":
        kept, inside = sandbox(engine, row)
        if kept:
            place, root, mounts = kept, inside, False
    try:
        namespace = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise ended from None
    try:
        if process.start_time(pid) != started:
            raise ended
        return process.aside(namespace, lambda: mount.clone(root, recursive=mounts))
    except (ProcessLookupError, FileNotFoundError):
        raise ended from None
    finally:
        os.close(namespace)


def sandbox(engine: Engine, row: ContainerRow) -> tuple[str, str]:
    """(a mount namespace, a path in it) where the container's root is, if its first process has another one, as that of
    a sandbox has; ("", "") if it has the container's. Conflict if its monitor, which keeps that namespace, was
    killed."""
    from cowshed.runtimes import choice

    value, found = choice.running(engine, row), client.running(engine.place(row))
    if found is None:
        return "", ""
    namespace, inside = f"/proc/{value.get('monitor')}/fd/{value.get('space')}", f"{value['folder']}/{row.id}/rootfs"
    try:
        shown = os.stat(f"/proc/{found[0]}/root")
    except FileNotFoundError:
        return "", ""  # it has just ended
    try:
        fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            kept = process.aside(fd, lambda: os.stat(inside))
        finally:
            os.close(fd)
    except OSError:
        raise Conflict(
            f"the root of container {row.name} cannot be reached: its monitor was killed", remedy="stop it first"
        ) from None
    return ("", "") if os.path.samestat(shown, kept) else (namespace, inside)


class Moment:
    """`with held.difference() as difference:` the changes of a container, and their archive; or its tree.

    A snapshot that the driver freezes the file system for is of one moment by itself. One as after a power cut is taken
    while the container is paused, and after a sync: what was written before is in it. Both let the container go on
    before anything is read. Without snapshots it is paused for as long as it is read.
    """

    def __init__(self, engine: Engine, held: Held, look: Callable[..., Any], *, pause: bool) -> None:
        """look(layers, layer, live=…) gives the context of what is looked at (`cowshed.layers.difference`)."""
        self._engine, self._held, self._look = engine, held, look
        self._pause = pause and held.running
        self._entered: list[AbstractContextManager[object]] = []

    def __enter__(self) -> Any:
        held = self._held
        layers = self._engine.layers(held.row.driver)
        layer = layers.load(held.row.number)
        try:
            if held.running and layers.driver.capabilities.live_snapshot is not Consistency.NONE:
                copy = self._snapshot(layers, layer)
                if copy is not None:
                    return self._enter(self._look(layers, copy))
            if self._pause:
                self._enter(Frozen(held.row.id, held.row.name))
                step("difference.frozen")
            live = held.root if held.running else None
            return self._enter(self._look(layers, layer, live=live))
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._entered:
            self._entered.pop().__exit__(kind, error, trace)

    def _enter(self, context: AbstractContextManager[T]) -> T:
        entered = context.__enter__()
        self._entered.append(context)
        return entered

    def _snapshot(self, layers: Layers, layer: Layer) -> Layer | None:
        """A copy of the running container's layer; None if the driver cannot make one just now."""
        consistency = layers.driver.capabilities.live_snapshot
        try:
            if consistency is Consistency.FILE_SYSTEM:
                copy = self._enter(layers.snapshot(layer))
            elif self._pause:
                with Frozen(self._held.row.id, self._held.row.name):
                    copy = self._synced(layers, layer)
            else:
                copy = self._synced(layers, layer)
        except (Unsupported, TooDeep, NoSpace) as error:
            log.info(f"container {self._held.row.name} is read while it runs: {error}")
            return None
        paused = "" if consistency is Consistency.FILE_SYSTEM else ", paused" if self._pause else ", not paused"
        log.info(f"container {self._held.row.name} is read from a snapshot ({consistency.value} consistency{paused})")
        return copy

    def _synced(self, layers: Layers, layer: Layer) -> Layer:
        root = self._held.root()
        try:
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)  # it is one of O_PATH
            try:
                files.syncfs(fd)
            finally:
                os.close(fd)
        finally:
            os.close(root)
        return self._enter(layers.snapshot(layer))


class Frozen:
    """`with Frozen(id, name):` nothing of the container runs. A child process lets it go on if this one is killed. One
    that is paused stays so. Conflict if it cannot be paused."""

    def __init__(self, id_: str, name: str) -> None:
        self._group, self._called = Group(id_), name
        self._stands = False

    def __enter__(self) -> Frozen:
        self._stands = freezer.frozen(self._group)
        if self._stands:
            return self
        guarded, self._alive = os.pipe()
        self._guard = os.fork()
        if self._guard == 0:
            _guard(guarded, self._group)
        os.close(guarded)
        try:
            freezer.freeze(self._group)
        except OSError as error:
            self._end()
            if error.errno not in (errno.ENOENT, errno.ETIMEDOUT):
                raise
            raise Conflict(
                f"container {self._called} cannot be paused: {error.strerror or error}",
                remedy="stop it first, or commit it with --pause=false",
            ) from None
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._stands:
            self._end()

    def _end(self) -> None:
        try:
            freezer.thaw(self._group)
        finally:
            os.close(self._alive)
            os.waitpid(self._guard, 0)


def _guard(watched: int, group: Group) -> None:
    """Wait in a forked child until the other end of a pipe is closed, by its owner or by its death."""
    try:
        os.setsid()  # a signal to the command's process group is not for this one
        # The command's locks and its connections must not live on in here.
        process.close_range(0, watched - 1)
        process.close_range(watched + 1)
        os.read(watched, 1)
        freezer.thaw(group)
    finally:
        os._exit(0)
