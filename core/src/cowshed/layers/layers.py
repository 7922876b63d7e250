"""The layers of one driver in one store: made, committed, removed so that a crash at any instruction loses nothing.

Every change is written down before it begins (journal row), done by the driver (idempotent by id), and written down
as done. The byte of the layer's number is held from before the first to after the last; so a journal row whose byte is
free belongs to a dead process, and `cowshed.layers.journal` repeats or undoes it.
"""

from __future__ import annotations

import os

from cowshed.errors import StoreError
from cowshed.layers import unused
from cowshed.layers.faults import step
from cowshed.layers.mounting import counted, release, settled
from cowshed.state import journal as journal_rows
from cowshed.state import layers as rows
from cowshed.storage import api
from cowshed.storage.errors import InUse, LayerId, Unsupported
from cowshed_linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from cowshed.layers.activation import WrittenBack
    from cowshed.state.store import Store, Transaction


_PURGE_SECONDS = 0.2


class Layers:
    """For one thread. `reserve` or `begin` takes a layer's byte; `publish`, `abandon` or the caller lets it go."""

    def __init__(self, store: Store, name: str, driver: api.Driver) -> None:
        self.store, self.name, self.driver = store, name, driver
        self._to_sync: list[int] = []  # descriptors of the file systems that are written to, opened before

    # ------------------------------------------------------------ looking

    def load(self, number: int) -> api.Layer:
        """A layer with its whole chain. StoreError if the database does not know it."""
        layer: api.Layer | None = None
        for n, id_, kind, data in reversed(rows.chain(self.store, number)):
            layer = api.Layer(LayerId(id_), n, api.Kind(kind), layer, data)
        if layer is None:
            raise StoreError(f"there is no layer {number}", remedy="cowshed system check")
        return layer

    def by_chain_id(self, chain_id: str) -> api.Layer | None:
        """The committed layer that realises a chain id, or None. One that a power cut may have cut is not trusted."""
        row = rows.by_chain(self.store, self.name, chain_id)
        if row is None or not (row.durable or row.boot_id == process.boot_id()):
            return None
        return self.load(row.number)

    # ------------------------------------------------------------ making

    def reserve(self, tx: Transaction, parent: api.Layer | None, op: str, *, id_: str | None = None) -> api.Layer:
        """Inside a transaction: a new number, its bytes, the row of an active layer and its journal row.

        With op "prepare" or "run" it is a container's layer, and the byte of `containers` is taken as well. The bytes
        are free again if the transaction fails. Busy if another command is removing the parent, StoreError if there is
        no number left.
        """
        names = ("layers",) if op == "apply" else ("containers", "layers")
        number = rows.next_number(tx)
        while not tx.take_new(names, number):
            number = rows.next_number(tx)
        layer = api.Layer(LayerId(id_ or os.urandom(16).hex()), number, api.Kind.ACTIVE, parent)
        below = parent.number if parent else None
        rows.insert_active(tx, number, layer.id, self.name, below, boot_id=process.boot_id(), created=_now())
        journal_rows.begin(tx, number, op)
        return layer

    def prepare(self, layer: api.Layer, options: api.LayerOptions | None = None) -> api.Layer:
        """Let the driver make a reserved layer. StorageError, OSError."""
        step("layers.prepare.begin")
        data = self.driver.prepare(layer, options or api.LayerOptions())
        step("layers.prepare.end")
        return api.Layer(layer.id, layer.number, layer.kind, layer.parent, data) if data else layer

    def begin(self, parent: api.Layer | None) -> api.Layer:
        """A new active layer to apply an archive to (journal: apply, undone if this process dies)."""
        self._open_to_sync()
        with self.store.transaction() as tx:
            layer = self.reserve(tx, parent, "apply")
        step("layers.begin.written")
        try:
            return self.prepare(layer)
        except BaseException:
            self.abandon(layer)
            raise

    def reserve_chain(self, parent: api.Layer | None, count: int) -> list[api.Layer]:
        """What `begin` writes down, for count layers on top of each other: one transaction, and none is prepared yet.

        Each but the first says of its parent only what was reserved: give it the sealed one before it is prepared.
        """
        self._open_to_sync()
        reserved: list[api.Layer] = []
        with self.store.transaction() as tx:
            for _ in range(count):
                parent = self.reserve(tx, parent, "apply")
                reserved.append(parent)
        step("layers.begin.written")
        return reserved

    def seal(self, active: api.Layer, durability: api.Durability = api.Durability.NONE) -> api.Layer:
        """Commit without a row, and by itself without durability: the next layer of a pull may stand on it.

        The caller has closed every descriptor of its mount: an open one keeps the mount alive, and the kernel calls
        what happens at the next layer undefined.
        """
        new = api.Layer(active.id, active.number, api.Kind.COMMITTED, active.parent, active.data)
        data = self.driver.commit(active, new, durability)
        step("layers.seal.end")
        return api.Layer(new.id, new.number, new.kind, new.parent, data)

    def publish(
        self,
        sealed: Iterable[tuple[api.Layer, str, str]],
        durability: str,
        more: Callable[[Transaction], None],
    ) -> None:
        """Make sealed layers (with chain id and diff id) known, with the caller's own rows in the same transaction;
        with durability "commit" after one sync of every file system that was written to. Their bytes are released."""
        layers = list(sealed)
        durable = durability == "commit" and bool(layers)
        if durable:
            self._sync()
        self._close_to_sync()
        step("layers.publish.synced")
        with self.store.transaction() as tx:
            for layer, chain_id, diff_id in layers:
                rows.set_committed(
                    tx, layer.number, driver=self.name, chain_id=chain_id, diff_id=diff_id, data=layer.data,
                    durable=durable,
                )  # fmt: skip
                journal_rows.end(tx, layer.number)
            more(tx)
        step("layers.publish.written")
        for layer, _, _ in layers:
            self.store.locks.release("layers", layer.number)

    def abandon(self, *layers: api.Layer) -> None:
        """Undo layers that were begun and are not published, the highest first. Their bytes are held, and released."""
        for layer in layers:
            self.erase(layer)
        with self.store.transaction() as tx:
            for layer in layers:
                rows.delete(tx, layer.number)
        for layer in layers:
            self.store.locks.release("layers", layer.number)

    def finish(self, tx: Transaction, layer: api.Layer) -> None:
        """The layer's journal row is done with; the caller releases the byte after the transaction."""
        journal_rows.end(tx, layer.number)
        if layer.data:
            rows.set_data(tx, layer.number, layer.data)

    def commit(
        self,
        active: api.Layer,
        *,
        chain_id: str | None = None,
        diff_id: str | None = None,
        durability: api.Durability = api.Durability.COMMIT,
    ) -> api.Layer:
        """Turn an active layer, whose byte is held, into a committed one of the same id and number (journal: commit,
        redone after a crash). Raises InUse if anything has it mounted."""
        with self.store.transaction() as tx:
            args = {"chain_id": chain_id, "diff_id": diff_id, "durability": int(durability)}
            journal_rows.begin(tx, active.number, "commit", args)
        step("layers.commit.intended")
        try:
            return self.complete_commit(active, chain_id=chain_id, diff_id=diff_id, durability=durability)
        except InUse:
            with self.store.transaction() as tx:
                journal_rows.end(tx, active.number)
            raise

    def complete_commit(
        self, active: api.Layer, *, chain_id: str | None, diff_id: str | None, durability: api.Durability
    ) -> api.Layer:
        """The part of `commit` after its intent was written: repeated by whoever finds that intent."""
        new = api.Layer(active.id, active.number, api.Kind.COMMITTED, active.parent, active.data)
        unused.prove(self.store, active, self.driver)
        try:
            data = self.driver.commit(active, new, durability)
        finally:
            self.store.locks.release("mounts", active.number)
        step("layers.commit.done")
        with self.store.transaction() as tx:
            rows.set_committed(
                tx, active.number, driver=self.name, chain_id=chain_id, diff_id=diff_id, data=data,
                durable=durability >= api.Durability.COMMIT,
            )  # fmt: skip
            journal_rows.end(tx, active.number)
        return api.Layer(new.id, new.number, new.kind, new.parent, data)

    def _open_to_sync(self) -> None:
        """Open the file systems of driver and blobs, before the first write: syncfs tells errors only since then."""
        if self._to_sync:
            return
        seen: set[int] = set()
        for path in (f"{self.store.root}/drivers/{self.name}", f"{self.store.root}/blobs"):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            device = os.fstat(fd).st_dev
            if device in seen:
                os.close(fd)
                continue
            seen.add(device)
            self._to_sync.append(fd)

    def _sync(self) -> None:
        from cowshed_linux import files

        try:
            for fd in self._to_sync:
                files.syncfs(fd)
        finally:
            self._close_to_sync()

    def _close_to_sync(self) -> None:
        for fd in self._to_sync:
            os.close(fd)
        self._to_sync.clear()

    def snapshot(self, active: api.Layer) -> Snapshot:
        """`with layers.snapshot(active) as copy:` a committed copy of a layer, mounted or not, as it is at this moment.

        Nobody else works on the layer meanwhile, which is the caller's to see to. Raises what a driver that claims
        live snapshots may: Unsupported, TooDeep, NoSpace.
        """
        return Snapshot(self, active)

    # ------------------------------------------------------------ removing

    def intend_removal(self, tx: Transaction, number: int, *, with_volumes: bool = False) -> None:
        """Write down that a layer, and the container that it belongs to, is about to be removed."""
        journal_rows.begin(tx, number, "remove", {"volumes": with_volumes})

    def remove(self, layer: api.Layer, wait: float | None = None, shown: unused.Shown | None = None) -> None:
        """Prove the layer unused (shown: `unused.prove`) and let the driver remove it; rows are the caller's. Its byte
        is held. InUse."""
        unused.prove(self.store, layer, self.driver, wait, shown)
        try:
            if layer.kind is api.Kind.COMMITTED:
                self.erase(layer)  # a power cut may have taken the driver's commit back, and kept its row
            else:
                self.driver.remove(layer)
        finally:
            self.store.locks.release("mounts", layer.number)
        step("layers.remove.end")

    def remove_unreferenced(self, wait: float | None = None) -> None:
        """Remove the layers that nothing stands on any more: of images that were removed, and what dead commands left.
        One that is in use for longer than `wait` seconds stays until the next time."""
        from cowshed.layers.purge import sweep

        sweep(self, wait)

    def purge(self, budget: float) -> api.PurgeResult | None:
        """Delete what removals left, for about budget seconds; None if another process is at it."""
        from cowshed.layers.purge import purge

        return purge(self, budget)

    def erase(self, layer: api.Layer) -> None:
        """Remove whatever the driver may have of a half-made layer, in either state."""
        for kind in (api.Kind.ACTIVE, api.Kind.COMMITTED):
            self.driver.remove(api.Layer(layer.id, layer.number, kind, layer.parent, layer.data))

    # ------------------------------------------------------------ mounting

    def mounted(self, layer: api.Layer, *, read_only: bool) -> Mounted:
        """`with layers.mounted(layer, read_only=True) as fd:` a detached mount, its `mounts` byte held meanwhile."""
        return Mounted(self, layer, read_only)

    def mount(self, layer: api.Layer, *, read_only: bool) -> int:
        """A detached mount of a layer, of which the caller knows that it may be mounted: whoever mounts one does it
        here. What the driver had to activate for it is held by nothing but the mount afterwards."""
        driver = self.driver
        if not api.has_activation(driver):
            return counted(self.plan(layer, read_only=read_only), self.name)
        from cowshed.layers import activation

        return activation.mount(
            self.store, driver, layer, lambda: counted(self.plan(layer, read_only=read_only), self.name),
            read_only=read_only,
        )  # fmt: skip

    def written_back(self, layer: api.Layer, root: int) -> WrittenBack | None:
        """Who tells whether all is stored that is written to a layer, which is mounted at root, from now on; None where
        others on the same file system see to that."""
        if not api.has_activation(self.driver):
            return None
        from cowshed.layers.activation import WrittenBack

        return WrittenBack(self.driver, layer, root)

    def settled(self, layer: api.Layer) -> str:
        """The directory into which something is to be written (`cowshed.layers.aufs.settle`) before a writable mount of
        the layer ends; "" if nothing is."""
        return "" if api.has_activation(self.driver) else settled(self.plan(layer, read_only=False))

    def plan(self, layer: api.Layer, *, read_only: bool) -> api.MountPlan:
        return self.driver.mounts(layer, api.MountRequest(read_only=read_only))

    def usage(self, layer: api.Layer) -> api.Usage:
        """What the layer takes, as its driver measures it. StorageError, OSError."""
        driver = self.driver
        if not api.has_activation(driver):
            return driver.usage(layer)
        from cowshed.layers.activation import Reserved

        with Reserved(self.store, driver, layer):  # the driver may have to mount it
            return driver.usage(layer)

    # ------------------------------------------------------------ after a crash

    def repair(self, number: int, op: str) -> bool:
        """Redo or undo one journal row whose byte the caller holds; True if the layer is gone and its rows are to be
        deleted."""
        from cowshed.layers.journal import repair

        return repair(self, number, op)

    def check(self, *, deep: bool = False) -> Iterator[api.Finding]:
        """Where the database and the driver's objects disagree, and what the driver finds wrong with its layers."""
        from cowshed.layers.check import check

        return check(self, deep=deep)


class Mounted:
    """A detached mount of a layer while the block lasts. A committed layer may be looked at by several at once.

    At the end of the block NoSpace and StoreError are raised if something that was written in it is lost.
    """

    def __init__(self, layers: Layers, layer: api.Layer, read_only: bool) -> None:
        self._layers, self._layer, self._read_only = layers, layer, read_only
        self._written: WrittenBack | None = None

    def __enter__(self) -> int:
        layers, layer = self._layers, self._layer
        if not layers.store.locks.try_take("mounts", layer.number, shared=layer.kind is api.Kind.COMMITTED):
            raise InUse(f"layer {layer.id[:12]} is mounted by another command", layer=layer.id)
        try:
            self._plan: api.MountPlan | None = None
            if not api.has_activation(layers.driver):
                self._plan = layers.plan(layer, read_only=self._read_only)
                self._fd = counted(self._plan, layers.name)
            else:
                self._fd = layers.mount(layer, read_only=self._read_only)
                try:
                    self._written = None if self._read_only else layers.written_back(layer, self._fd)
                except BaseException:
                    os.close(self._fd)
                    raise
        except BaseException:
            layers.store.locks.release("mounts", layer.number)
            raise
        return self._fd

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            try:
                if self._written is not None:
                    self._written.__exit__(kind, error, trace)
            finally:
                if self._plan is None:
                    os.close(self._fd)
                else:
                    release(self._fd, self._plan)
        finally:
            self._layers.store.locks.release("mounts", self._layer.number)


class Snapshot:
    """A copy of an active layer that is gone at the end of the block, or undone by the next command (journal: apply) if
    this process dies."""

    def __init__(self, layers: Layers, active: api.Layer) -> None:
        self._layers, self._active = layers, active

    def __enter__(self) -> api.Layer:
        layers, active = self._layers, self._active
        if not api.has_live_snapshot(layers.driver):
            raise Unsupported(f"driver {layers.name} has no live snapshots", layer=active.id)
        with layers.store.transaction() as tx:
            self._reserved = new = layers.reserve(tx, active.parent, "apply")
        step("layers.snapshot.written")
        try:
            copy = api.Layer(new.id, new.number, api.Kind.COMMITTED, active.parent)
            data = layers.driver.snapshot(active, copy, api.Durability.NONE)
        except BaseException:
            layers.abandon(new)
            raise
        step("layers.snapshot.done")
        return api.Layer(copy.id, copy.number, copy.kind, copy.parent, data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._layers.abandon(self._reserved)
        self._layers.purge(_PURGE_SECONDS)


def _now() -> int:
    from time import time_ns

    return time_ns()
