"""What nobody needs any more: the leftovers of removals, and committed layers that nothing stands on."""

from __future__ import annotations

from cowshed.layers.faults import step
from cowshed.state import journal
from cowshed.state import layers as rows
from cowshed.state.locks import chain_byte
from cowshed.storage.errors import InUse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from cowshed.layers.layers import Layers
    from cowshed.state.store import Store
    from cowshed.storage import api


def purge(layers: Layers, budget: float) -> api.PurgeResult | None:
    """Let the driver delete trash and what dead calls left, for about budget seconds; None if another process is at
    it."""
    store = layers.store
    if not store.locks.exclude("gc"):
        return None
    try:
        return layers.driver.purge(lambda id_: Claim(store, id_), budget)
    finally:
        store.locks.let_go("gc")


class Claim:
    """Holds the byte of the layer with this id while a temporary object of it is deleted; false if a call owns it."""

    def __init__(self, store: Store, id_: str) -> None:
        row = rows.by_id(store, id_)
        self._locks, self._number = store.locks, row.number if row is not None else None
        self._taken = False

    def __enter__(self) -> bool:
        if self._number is None:
            return True  # no row: no call can own it, as rows are written before calls begin
        if self._locks.mine("layers", self._number):
            return False
        self._taken = self._locks.try_take("layers", self._number)
        return self._taken

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._number is not None and self._taken:
            self._locks.release("layers", self._number)


def sweep(layers: Layers, wait: float | None = None) -> int:
    """Remove the committed layers that no image, layer or unfinished work stands on; how many.

    That is the layers of images that were removed, those that a dead removal left, and those that gave their chain id
    up to a newer twin. The database keeps account of them, so that the others cost nothing. Ones that another command
    looks at for longer than `wait` seconds are left to the next sweep.
    """
    gone = 0
    tried: set[int] = set()
    while True:
        found = [n for n in rows.loose(layers.store, layers.name) if n not in tried]
        if not found:
            return gone
        for number in found:  # removing one may free the one below
            tried.add(number)
            gone += _remove(layers, number, wait)


def _remove(layers: Layers, number: int, wait: float | None) -> bool:
    store = layers.store
    if store.locks.mine("layers", number) or not store.locks.try_take("layers", number):
        return False
    try:
        row = rows.get(store, number)
        if row is None:
            return False
        byte = chain_byte(layers.name, row.chain_id) if row.chain_id else None
        if byte is not None and (store.locks.mine("chains", byte) or not store.locks.try_take("chains", byte)):
            return False  # a pull is about to build on it
        try:
            return _remove_locked(layers, number, wait, durable=row.durable)
        finally:
            if byte is not None:
                store.locks.release("chains", byte)
    finally:
        store.locks.release("layers", number)


def _remove_locked(layers: Layers, number: int, wait: float | None, *, durable: bool) -> bool:
    store = layers.store
    layer = layers.load(number)
    with store.transaction() as tx:
        if not rows.is_loose(tx, number):
            return False
        journal.begin(tx, number, "remove")
    step("sweep.intended")
    try:
        layers.remove(layer, wait)
        if not durable:
            layers.erase(layer)  # after a power cut it may be active again
    except InUse:
        with store.transaction() as tx:
            journal.end(tx, number)
        return False
    with store.transaction() as tx:
        rows.delete(tx, number)
    return True
