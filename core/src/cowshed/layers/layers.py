"""The layers of one driver in one store: made, committed, removed so that a crash at any instruction loses nothing.

Every change is written down before it begins (journal row), done by the driver (idempotent by id), and written down
as done. The byte of the layer's number is held from before the first to after the last; so a journal row whose byte is
free belongs to a dead process, and `recover` repeats or undoes it by the policy of its kind:

    prepare, commit, remove   redo: the driver is called again
    run, apply                undo: what was half made goes away
"""

from __future__ import annotations

import os

from cowshed.errors import StoreError
from cowshed.layers import unused
from cowshed.layers.faults import step
from cowshed.layers.mounting import detached
from cowshed.storage import api
from cowshed.storage.errors import InUse, LayerId, StorageError
from cowshed_linux import process
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from cowshed.state.store import Store, Transaction

_LAST_NUMBER = (1 << 24) - 1


class Layers:
    def __init__(self, store: Store, name: str, driver: api.Driver) -> None:
        self.store, self.name, self.driver = store, name, driver

    # ------------------------------------------------------------ looking

    def load(self, number: int) -> api.Layer:
        """A layer with its whole chain. StoreError if the database does not know it."""
        rows = self.store.query(
            "with recursive c(number, id, kind, parent, data) as ("
            " select number, id, kind, parent, data from layers where number = ?"
            " union all select l.number, l.id, l.kind, l.parent, l.data from layers l join c on l.number = c.parent)"
            " select number, id, kind, data from c",
            number,
        )
        if not rows:
            raise StoreError(f"there is no layer {number}", remedy="cowshed system check")
        layer: api.Layer | None = None
        for n, id_, kind, data in reversed(rows):
            layer = api.Layer(LayerId(id_), n, api.Kind(kind), layer, loads(data))
        assert layer is not None
        return layer

    def by_chain_id(self, chain_id: str) -> api.Layer | None:
        """The committed layer that realises a chain id, or None. One that a power cut may have cut is not trusted."""
        rows = self.store.query(
            "select number, durable, boot_id from layers where driver = ? and chain_id = ? and kind = 'committed'",
            self.name,
            chain_id,
        )
        if not rows or not (rows[0][1] or rows[0][2] == process.boot_id()):
            return None
        return self.load(rows[0][0])

    # ------------------------------------------------------------ making

    def reserve(self, tx: Transaction, parent: api.Layer | None, op: str, *, id_: str | None = None) -> api.Layer:
        """Inside a transaction: a new number, its byte, the row of an active layer and its journal row."""
        number = self._next_number(tx)
        layer = api.Layer(LayerId(id_ or os.urandom(16).hex()), number, api.Kind.ACTIVE, parent)
        tx.execute(
            "insert into layers (number, id, driver, kind, parent, boot_id, created) "
            "values (?, ?, ?, 'active', ?, ?, ?)",
            number, layer.id, self.name, parent.number if parent else None, process.boot_id(), _now(),
        )  # fmt: skip
        tx.execute("insert into journal (number, op) values (?, ?)", number, op)
        return layer

    def _next_number(self, tx: Transaction) -> int:
        """The next number that no row and no byte is of; a command whose transaction failed may still hold one."""
        number = int(tx.execute("select value from meta where key = 'next'")[0][0])
        while True:
            if number > _LAST_NUMBER:
                number = 1
            free = not tx.execute("select 1 from layers where number = ?", number)
            if free and self.store.locks.try_take("layers", number):
                break
            number += 1
        tx.execute("update meta set value = ? where key = 'next'", number + 1)
        return number

    def prepare(self, layer: api.Layer, options: api.LayerOptions | None = None) -> api.Layer:
        """Let the driver make a reserved layer."""
        step("layers.prepare.begin")
        data = self.driver.prepare(layer, options or api.LayerOptions())
        step("layers.prepare.end")
        return api.Layer(layer.id, layer.number, layer.kind, layer.parent, data) if data else layer

    def begin(self, parent: api.Layer | None) -> api.Layer:
        """A new active layer to apply an archive to (journal: apply, undone if this process dies)."""
        with self.store.transaction() as tx:
            layer = self.reserve(tx, parent, "apply")
        return self.prepare(layer)

    def seal(self, active: api.Layer) -> api.Layer:
        """Commit without durability and without a row: the next layer of a pull may stand on it."""
        new = api.Layer(active.id, active.number, api.Kind.COMMITTED, active.parent, active.data)
        data = self.driver.commit(active, new, api.Durability.NONE)
        step("layers.seal.end")
        return api.Layer(new.id, new.number, new.kind, new.parent, data)

    def publish(
        self, sealed: Iterable[tuple[api.Layer, str, str]], durability: str, rows: Callable[[Transaction], None]
    ) -> None:
        """Make sealed layers (with chain id and diff id) durable by one sync, then known, with the caller's own rows
        in the same transaction. Their bytes are released."""
        layers = list(sealed)
        durable = durability == "commit"
        if durable and layers:
            fd = os.open(f"{self.store.root}/drivers/{self.name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
                from cowshed_linux import files

                files.syncfs(fd)
            finally:
                os.close(fd)
        step("layers.publish.synced")
        with self.store.transaction() as tx:
            for layer, chain_id, diff_id in layers:
                # A twin that a power cut made suspect gives its name up; it goes when nothing stands on it.
                tx.execute("update layers set chain_id = null where driver = ? and chain_id = ?", self.name, chain_id)
                tx.execute(
                    "update layers set kind = 'committed', chain_id = ?, diff_id = ?, data = ?, durable = ? "
                    "where number = ?",
                    chain_id, diff_id, dumps(dict(layer.data)), int(durable), layer.number,
                )  # fmt: skip
                tx.execute("delete from journal where number = ?", layer.number)
            rows(tx)
        step("layers.publish.written")
        for layer, _, _ in layers:
            self.store.locks.release("layers", layer.number)

    def abandon(self, layer: api.Layer) -> None:
        """Undo a layer that was begun and is not published. Its byte is held."""
        self.erase(layer)
        with self.store.transaction() as tx:
            self.forget(tx, layer.number)
        self.store.locks.release("layers", layer.number)

    def finish(self, tx: Transaction, layer: api.Layer) -> None:
        """The layer's journal row is done with; the caller releases the byte after the transaction."""
        tx.execute("delete from journal where number = ?", layer.number)
        if layer.data:
            tx.execute("update layers set data = ? where number = ?", dumps(dict(layer.data)), layer.number)

    # ------------------------------------------------------------ removing

    def intend_removal(self, tx: Transaction, number: int) -> None:
        tx.execute("insert or replace into journal (number, op) values (?, 'remove')", number)

    def remove(self, layer: api.Layer) -> None:
        """Prove the layer unused and let the driver remove it; rows are the caller's. Its byte is held. InUse."""
        unused.prove(self.store, layer.number, layer.id)
        try:
            self.driver.remove(layer)
        finally:
            self.store.locks.release("mounts", layer.number)
        step("layers.remove.end")

    @staticmethod
    def forget(tx: Transaction, number: int) -> None:
        """Delete the rows of a layer that the driver has removed."""
        tx.execute("delete from journal where number = ?", number)
        tx.execute("delete from layers where number = ?", number)

    def remove_unreferenced(self, chains: Iterable[str]) -> None:
        """Remove the layers of these chain ids (top first) that no image, layer or container stands on any more."""
        for chain in chains:
            rows = self.store.query("select number from layers where driver = ? and chain_id = ?", self.name, chain)
            if not rows:
                continue
            number = rows[0][0]
            if not self.store.locks.try_take("layers", number):
                return  # somebody stands on it or works on it; so is everything below
            try:
                layer = self.load(number)
                with self.store.transaction() as tx:
                    used = tx.execute("select 1 from chains where chain_id = ?", chain) or tx.execute(
                        "select 1 from layers where parent = ?", number
                    )
                    if used:
                        return
                    self.intend_removal(tx, number)
                try:
                    self.remove(layer)
                except InUse:
                    with self.store.transaction() as tx:
                        tx.execute("delete from journal where number = ?", number)
                    return
                with self.store.transaction() as tx:
                    self.forget(tx, number)
            finally:
                self.store.locks.release("layers", number)

    def purge(self, budget: float) -> api.PurgeResult | None:
        """Delete what removals left, for about budget seconds; None if another process is at it."""
        from cowshed_linux import locks

        fd = self.store.locks.file("gc")
        if not locks.lock_file(fd, wait=False):
            return None
        try:
            return self.driver.purge(lambda id_: _Claim(self.store, id_), budget)
        finally:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_UN)

    # ------------------------------------------------------------ mounting

    def mounted(self, layer: api.Layer, *, read_only: bool) -> _Mounted:
        """`with layers.mounted(layer, read_only=True) as fd:` a detached mount, its `mounts` byte held meanwhile."""
        return _Mounted(self, layer, read_only)

    def plan(self, layer: api.Layer, *, read_only: bool, volatile: bool = False) -> api.MountPlan:
        return self.driver.mounts(layer, api.MountRequest(read_only=read_only, volatile=volatile))

    # ------------------------------------------------------------ after a crash

    def erase(self, layer: api.Layer) -> None:
        """Remove whatever the driver may have of a half-made layer, in either state."""
        for kind in (api.Kind.ACTIVE, api.Kind.COMMITTED):
            self.driver.remove(api.Layer(layer.id, layer.number, kind, layer.parent, layer.data))

    def repair(self, number: int, op: str) -> bool:
        """Redo or undo one journal row whose byte the caller holds; False if it cannot be now."""
        layer = self.load(number)
        try:
            if op == "remove":
                self.remove(layer)
            elif op in ("apply", "run", "prepare"):
                unused.prove(self.store, number, layer.id)
                self.store.locks.release("mounts", number)
                self.erase(layer)
            else:
                raise StorageError(f"journal entry {op} of layer {number} is not known")
        except InUse:
            return False
        return True


class _Claim:
    """Holds the byte of the layer with this id while a temporary object of it is deleted."""

    def __init__(self, store: Store, id_: str) -> None:
        rows = store.query("select number from layers where id = ?", id_)
        self._store, self._number = store, rows[0][0] if rows else None

    def __enter__(self) -> bool:
        if self._number is None:
            return True  # no row: no call can own it, as rows are written before calls begin
        self._taken = self._store.locks.try_take("layers", self._number)
        return self._taken

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._number is not None and self._taken:
            self._store.locks.release("layers", self._number)


class _Mounted:
    def __init__(self, layers: Layers, layer: api.Layer, read_only: bool) -> None:
        self._layers, self._layer, self._read_only = layers, layer, read_only

    def __enter__(self) -> int:
        plan = self._layers.plan(self._layer, read_only=self._read_only)
        self._locked = self._layer.kind is api.Kind.ACTIVE
        if self._locked and not self._layers.store.locks.try_take("mounts", self._layer.number):
            raise InUse(f"layer {self._layer.id[:12]} is mounted by another command", layer=self._layer.id)
        try:
            self._fd = detached(plan)
        except BaseException:
            if self._locked:
                self._layers.store.locks.release("mounts", self._layer.number)
            raise
        return self._fd

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        if self._locked:
            self._layers.store.locks.release("mounts", self._layer.number)


def _now() -> int:
    from time import time_ns

    return time_ns()
