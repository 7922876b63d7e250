"""A small engine for the suite: one store, ids and numbers, mounts. It keeps the rules E1 to E4 of the interface."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Self

from cowshed.layers.host import EngineHost
from cowshed.layers.mounting import detached, release
from cowshed.storage import api
from cowshed.storage.errors import LayerId, StorageError
from cowshed.storage.kit.trees import remove_tree
from cowshed_conformance import steps
from cowshed_conformance import tree as trees
from cowshed_conformance.marks import SLOWDOWN
from cowshed_conformance.target import Target
from cowshed_linux import capabilities, files, mount


class SuiteHost(EngineHost):
    """The engine's host, with every effect named, so that cases can stop a driver at each of them."""

    def __init__(self, at: Callable[[str], None] | None = None) -> None:
        super().__init__()
        self.at = at  # called with each name; may kill, raise, or note
        self.names: list[str] = []

    def _reach(self, name: str) -> None:
        self.names.append(name)
        if self.at is not None:
            self.at(name)

    def step(self, name: str) -> None:
        self._reach(name)
        super().step(name)

    def sync(self, fd: int) -> None:
        self._reach("host.sync")
        files.syncfs(fd)
        self._reach("host.synced")

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        ok: Collection[int] = (0,),
        mounts: Sequence[tuple[api.MountPlan, str]] = (),
    ) -> api.CompletedRun:
        self._reach("host.run")
        return super().run(argv, timeout=timeout, ok=ok, mounts=mounts)

    def mounted(self, plan: api.MountPlan) -> contextlib.AbstractContextManager[api.MountedTree]:
        self._reach("host.mounted")
        return super().mounted(plan)

    def progress(self, text: str, done: int, total: int | None) -> None:
        self._reach("host.progress")
        super().progress(text, done, total)


def new_id() -> LayerId:
    return LayerId(os.urandom(16).hex())


@contextlib.contextmanager
def mine(_: LayerId) -> Iterator[bool]:
    """A claim that is always granted: no other process is at work."""
    yield True


class Store:
    """One store of the driver under test."""

    def __init__(self, target: Target, root: str, host: SuiteHost | None = None) -> None:
        self.target, self.root, self.host = target, root, host or SuiteHost()
        self.number = 0
        self.id = target.plugin.init(root, target.at(root), self.host)
        self.driver = self.open()
        trees.granularity = max(trees.granularity, self.driver.capabilities.time_granularity)

    # ------------------------------------------------------------ the store

    def open(self, host: api.Host | None = None, root: str = "") -> api.Driver:
        root = root or self.root
        return self.target.plugin.open(root, self.target.at(root), host or self.host, store=self.id)

    def reopen(self) -> None:
        self.driver.close()
        self.driver = self.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.close()

    def discard(self) -> None:
        with contextlib.suppress(StorageError, OSError):
            self.driver.close()
        with contextlib.suppress(StorageError, OSError):
            self.target.plugin.destroy(self.root, self.target.at(self.root), self.host, store=self.id)
        remove_tree(self.root)

    @property
    def capabilities(self) -> api.Capabilities:
        return self.driver.capabilities

    # ------------------------------------------------------------ layers

    def plan(self, parent: api.Layer | None = None) -> api.Layer:
        """A layer that is to be prepared."""
        self.number += 1
        return api.Layer(new_id(), self.number, api.Kind.ACTIVE, parent)

    def prepare(self, layer: api.Layer, options: api.LayerOptions | None = None) -> api.Layer:
        data = self.driver.prepare(layer, options or api.LayerOptions())
        return api.Layer(layer.id, layer.number, layer.kind, layer.parent, data)

    def new(self, parent: api.Layer | None = None, *changes: steps.Step) -> api.Layer:
        """An active layer, changed."""
        layer = self.prepare(self.plan(parent))
        if changes:
            self.change(layer, *changes)
        return layer

    def committed(self, active: api.Layer, parent: api.Layer | None = None) -> api.Layer:
        """What an active layer is to become: the same layer, under the same id and number, as the engine does it."""
        return api.Layer(active.id, active.number, api.Kind.COMMITTED, parent or active.parent)

    def commit(
        self,
        active: api.Layer,
        new: api.Layer | None = None,
        durability: api.Durability = api.Durability.NONE,
    ) -> api.Layer:
        new = new or self.committed(active)
        data = self.driver.commit(active, new, durability)
        return api.Layer(new.id, new.number, new.kind, new.parent, data)

    def layer(self, *changes: steps.Step, parent: api.Layer | None = None) -> api.Layer:
        """A committed layer: what lies in parent, changed."""
        return self.commit(self.new(parent, *changes))

    def change(self, layer: api.Layer, *changes: steps.Step) -> None:
        with self.mount(layer) as root:
            steps.do(root, *changes)

    # ------------------------------------------------------------ looking

    def mounts(self, layer: api.Layer, *, read_only: bool = False) -> api.MountPlan:
        return self.driver.mounts(layer, api.MountRequest(read_only))

    @contextlib.contextmanager
    def activated(
        self, layer: api.Layer, *, read_only: bool = False, driver: api.Driver | None = None
    ) -> Iterator[api.MountPlan]:
        """The plan of a layer that is activated meanwhile, if the driver needs that: mount it before the block ends."""
        driver = driver or self.driver
        if api.has_activation(driver):
            driver.activate(layer, read_only=read_only)
        try:
            yield driver.mounts(layer, api.MountRequest(read_only))
        finally:
            if api.has_activation(driver):
                driver.deactivate(layer)

    def detached(self, layer: api.Layer, *, read_only: bool = False, driver: api.Driver | None = None) -> int:
        """The descriptor of a detached mount. read_only is only asked of the driver, never enforced here."""
        with self.activated(layer, read_only=read_only, driver=driver) as plan:
            return detached(plan)

    @contextlib.contextmanager
    def tree(self, layer: api.Layer, *, read_only: bool = False, driver: api.Driver | None = None) -> Iterator[int]:
        """The same, until the block ends, in which the layer may have been removed."""
        with self.activated(layer, read_only=read_only, driver=driver) as plan:
            fd = detached(plan)
        try:
            yield fd
        finally:
            release(fd, plan)

    @contextlib.contextmanager
    def mount(self, layer: api.Layer, *, read_only: bool = False, driver: api.Driver | None = None) -> Iterator[str]:
        """A path, of this process only, at which the layer is mounted."""
        with self.tree(layer, read_only=read_only, driver=driver) as fd:
            yield f"/proc/self/fd/{fd}"

    @contextlib.contextmanager
    def attached(self, layer: api.Layer) -> Iterator[str]:
        """A path at which the layer is mounted in this process's namespace, as in a container's. From there the mount
        can be cloned for a further user, which before Linux 6.15 a detached one cannot."""
        place = tempfile.mkdtemp(prefix="attached-", dir=os.path.dirname(self.root))
        try:
            with self.tree(layer) as fd:
                mount.attach(fd, place)
                try:
                    yield place
                finally:
                    mount.unmount(place, mount.MNT_DETACH)  # `fd` holds it still
        finally:
            os.rmdir(place)

    def look(self, layer: api.Layer, *, driver: api.Driver | None = None) -> dict[str, trees.Node]:
        with self.mount(layer, read_only=True, driver=driver) as root:
            return trees.read(root)

    def read(self, layer: api.Layer, path: steps.Path) -> bytes:
        with self.mount(layer, read_only=True) as root:
            return steps.read(root, path)

    def scan(self, kind: api.ObjectKind | None = None) -> list[api.StoredObject]:
        return [found for found in self.driver.scan() if kind is None or found.kind is kind]

    def living(self) -> set[tuple[LayerId, api.Kind]]:
        """The layers that scan() shows."""
        found: set[tuple[LayerId, api.Kind]] = set()
        for it in self.driver.scan():
            if it.kind is api.ObjectKind.LAYER:
                assert it.layer is not None, f"scan() shows a layer without its id: {it}"
                assert it.layer_kind is not None, f"scan() shows a layer without its kind: {it}"
                found.add((it.layer, it.layer_kind))
        return found

    def has(self, layer: api.Layer) -> bool:
        return (layer.id, layer.kind) in self.living()

    def purge(self, budget: float = 30 * SLOWDOWN) -> api.PurgeResult:
        return self.driver.purge(mine, budget)

    def purge_all(self) -> None:
        result = self.purge()
        assert result.objects_left == 0, f"purge() left {result.objects_left} objects: {self.leftovers()}"

    def leftovers(self) -> list[str]:
        """Objects that are no layers."""
        return [f"{x.kind.value} {x.name}" for x in self.driver.scan() if x.kind is not api.ObjectKind.LAYER]


def directory_of(plan: api.MountPlan) -> str:
    """The directory of the host in which a layer's own files lie, "" if there is none."""
    last = plan.steps[-1]
    if isinstance(last, api.Bind):
        return last.source if isinstance(last.source, str) else ""
    if isinstance(last, api.Overlay):
        own = last.upper or last.lowers[0]
        return own if isinstance(own, str) else ""
    return last.branches[0] if isinstance(last, api.Aufs) else ""


def usage(store: Store, layer: api.Layer) -> int:
    """Bytes that are the layer's own, after writing back: allocation may be delayed until then."""
    sync(store.root)
    return store.driver.usage(layer).own


@contextlib.contextmanager
def held_to_limits() -> Iterator[None]:
    """Write as a container does: capabilities(7) lets CAP_SYS_RESOURCE override disk quota limits."""
    held, resource = capabilities.permitted(), capabilities.bits(["CAP_SYS_RESOURCE"])
    capabilities.set_all(held & ~resource, held, 0, 0)
    try:
        yield
    finally:
        capabilities.set_all(held, held, 0, 0)


def sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        files.syncfs(fd)
    finally:
        os.close(fd)
