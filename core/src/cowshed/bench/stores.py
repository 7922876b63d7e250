"""A driver's store as scenarios use it, kept to the rules of the interface as the engine keeps them, and the bare file
system in its place."""

from __future__ import annotations

import contextlib
import os

from cowshed.layers import changes
from cowshed.layers.host import EngineHost
from cowshed.layers.mapping import mapped
from cowshed.layers.mounting import detached, release
from cowshed.storage import api
from cowshed.storage.errors import LayerId
from cowshed.storage.kit.trees import remove_tree
from cowshed_linux import mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowshed.bench.scratch import FileSystem, Place
    from cowshed.storage.api import Options

_PURGE = 60.0  # seconds
BARE = "bare"


@contextlib.contextmanager
def _mine(_: LayerId) -> Iterator[bool]:
    """A claim that is always granted: no other process is at work in the store."""
    yield True


class Store:
    """One store of a driver, alone on its file system. Its ids and numbers are made here."""

    def __init__(self, plugin: api.DriverPlugin, root: str, options: Options) -> None:
        self.root, self._plugin, self._options = root, plugin, options
        self.trees: list[int] = []  # that are mounted by `tree` now
        self._host = EngineHost()
        self._number = 0
        self._id = plugin.init(root, options, self._host)
        self._driver: api.Driver | None = plugin.open(root, options, self._host, store=self._id)

    @property
    def driver(self) -> api.Driver:
        assert self._driver is not None
        return self._driver

    @property
    def capabilities(self) -> api.Capabilities:
        return self.driver.capabilities

    def open(self) -> None:
        self._driver = self._plugin.open(self.root, self._options, self._host, store=self._id)

    def close(self) -> None:
        """It can be opened again."""
        if self._driver is not None:
            driver, self._driver = self._driver, None
            driver.close()

    def discard(self) -> None:
        """Take away all that it made, outside its file system too."""
        self.close()
        self._plugin.destroy(self.root, self._options, self._host, store=self._id)
        remove_tree(self.root)

    # ------------------------------------------------------------ layers

    def plan(self, parent: api.Layer | None = None) -> api.Layer:
        """A layer that is to be prepared, here or in a child process."""
        self._number += 1
        return api.Layer(LayerId(os.urandom(16).hex()), self._number, api.Kind.ACTIVE, parent)

    def prepare(self, layer: api.Layer, *, quota: api.Quota | None = None) -> api.Layer:
        options = api.LayerOptions(quota=quota) if quota is not None else api.LayerOptions()
        data = self.driver.prepare(layer, options)
        return api.Layer(layer.id, layer.number, layer.kind, layer.parent, data)

    def new(self, parent: api.Layer | None = None, *, quota: api.Quota | None = None) -> api.Layer:
        """An active layer."""
        return self.prepare(self.plan(parent), quota=quota)

    def commit(self, active: api.Layer, *, durable: bool = False) -> api.Layer:
        new = api.Layer(active.id, active.number, api.Kind.COMMITTED, active.parent)
        data = self.driver.commit(active, new, api.Durability.COMMIT if durable else api.Durability.NONE)
        return api.Layer(new.id, new.number, new.kind, new.parent, data)

    def remove(self, layer: api.Layer) -> None:
        self.driver.remove(layer)

    def purge(self) -> int:
        """Delete what was removed; how many objects are left."""
        return self.driver.purge(_mine, _PURGE).objects_left

    @contextlib.contextmanager
    def tree(self, layer: api.Layer, *, read_only: bool = False, userns: int = -1) -> Iterator[int]:
        """The descriptor of a detached mount; with the ids of a user namespace, if there is one."""
        driver = self.driver
        if api.has_activation(driver):
            driver.activate(layer, read_only=read_only)
        try:
            plan = driver.mounts(layer, api.MountRequest(read_only))
            fd = detached(plan) if userns < 0 else mapped(plan, userns)
        finally:
            if api.has_activation(driver):
                driver.deactivate(layer)
        self.trees.append(fd)
        try:
            yield fd
        finally:
            self.trees.remove(fd)
            release(fd, plan)

    @contextlib.contextmanager
    def mount(self, layer: api.Layer, *, read_only: bool = False) -> Iterator[str]:
        """A path of this process, at which the layer is mounted."""
        with self.tree(layer, read_only=read_only) as fd:
            yield f"/proc/self/fd/{fd}"

    @contextlib.contextmanager
    def attached(self, layer: api.Layer) -> Iterator[str]:
        """A path in this process's mount namespace, for libraries that resolve links: those of a descriptor lead
        nowhere, or to the host's own root."""
        path = f"{self.root}-at"
        os.mkdir(path)
        try:
            with self.tree(layer) as fd:
                mount.attach(fd, path)
                try:
                    yield path
                finally:
                    mount.unmount(path, mount.MNT_DETACH)  # the descriptor is what holds it, to the end of the block
        finally:
            os.rmdir(path)

    def changes(self, base: api.Layer, top: api.Layer, lower: int, upper: int) -> changes.Difference:
        """What differs, found in the way that the driver has: `changes()`, its diff tree, or a walk of both trees."""
        driver = self.driver
        if api.has_changes(driver):
            return changes.of_candidates(lower, upper, driver.changes(base, top))
        if api.has_diff_tree(driver):
            tree = driver.diff_tree(top)
            fd = os.open(tree.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                return changes.of_diff_tree(lower, fd, tree.whiteout, tree.xattr_prefix)
            except changes.NotPlain:
                return changes.of_trees(lower, upper)
            finally:
                os.close(fd)
        return changes.of_trees(lower, upper)


class Bare:
    """The same work without a driver: layers are directories, and a child is its parent itself, changed in place."""

    trees = ()  # none is mounted

    def __init__(self, root: str) -> None:
        self.root = root
        self._number = 0
        self._removed: list[str] = []
        os.mkdir(root)

    def open(self) -> None:
        """Nothing is to be opened."""

    def close(self) -> None:
        """Nothing is open."""

    def discard(self) -> None:
        remove_tree(self.root)

    def new(self, parent: api.Layer | None = None, *, quota: api.Quota | None = None) -> api.Layer:
        self._number += 1
        layer = api.Layer(LayerId(f"{self._number}"), self._number, api.Kind.ACTIVE, parent)
        if parent is None:
            os.mkdir(self._directory(layer))
        return layer

    def commit(self, active: api.Layer, *, durable: bool = False) -> api.Layer:
        if durable:
            from cowshed.bench.meter import sync

            sync(self.root)
        return api.Layer(active.id, active.number, api.Kind.COMMITTED, active.parent)

    def remove(self, layer: api.Layer) -> None:
        if layer.parent is None:
            os.rename(self._directory(layer), f"{self._directory(layer)}.removed")
            self._removed.append(f"{self._directory(layer)}.removed")

    def purge(self) -> int:
        while self._removed:
            remove_tree(self._removed.pop())
        return 0

    @contextlib.contextmanager
    def tree(self, layer: api.Layer, *, read_only: bool = False) -> Iterator[int]:
        fd = os.open(self._directory(layer), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def mount(self, layer: api.Layer, *, read_only: bool = False) -> Iterator[str]:
        yield self._directory(layer)

    @contextlib.contextmanager
    def attached(self, layer: api.Layer) -> Iterator[str]:
        yield self._directory(layer)

    def _directory(self, layer: api.Layer) -> str:
        while layer.parent is not None:
            layer = layer.parent
        return f"{self.root}/{layer.id}"


class Subject:
    """What is compared: a driver, with options, on a file system; or the bare file system."""

    def __init__(
        self, name: str, driver: str, kind: str, system: FileSystem | Place, store: Store | Bare, verdict: str
    ) -> None:
        self.name, self.driver, self.kind = name, driver, kind
        self.system, self.store, self.verdict = system, store, verdict
        self.layers: dict[str, api.Layer] = {}  # a scenario's own, by its names
        self.digest = ""  # of what its last round made

    @property
    def bare(self) -> bool:
        return isinstance(self.store, Bare)

    @property
    def driven(self) -> Store:
        """Its store, for scenarios that have no control."""
        assert isinstance(self.store, Store)
        return self.store

    def cold(self) -> None:
        """What is read next comes from the device."""
        self.store.close()
        self.system.forget_caches()
        self.store.open()

    def settle(self) -> None:
        """Let what trails a change come to its end: removed layers, and what is to be written back."""
        self.store.purge()
        self.system.used()

    def discard(self) -> None:
        try:
            self.store.discard()
        finally:
            self.system.discard()
