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

_BATCH = 256  # layers that are claimed at once


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
        tried.update(found)
        for n in range(0, len(found), _BATCH):  # removing some may free those below
            gone += _remove(layers, found[n : n + _BATCH], wait)


def _remove(layers: Layers, numbers: list[int], wait: float | None) -> int:
    """Remove those of these layers that nobody works on: one look at all mount tables serves them together."""
    store = layers.store
    claimed: list[tuple[str, int]] = []
    try:
        mine = [number for number in numbers if _claim(layers, number, claimed)]
        with store.transaction() as tx:
            mine = [number for number in mine if rows.is_loose(tx, number)]
            for number in mine:
                journal.begin(tx, number, "remove")
        step("sweep.intended")
        return _remove_claimed(layers, mine, wait) if mine else 0
    finally:
        for name, byte in reversed(claimed):
            store.locks.release(name, byte)


def _claim(layers: Layers, number: int, claimed: list[tuple[str, int]]) -> bool:
    locks = layers.store.locks

    def take(name: str, byte: int) -> bool:
        if (name, byte) in claimed:
            return True  # two chain ids may have the same byte
        if locks.mine(name, byte) or not locks.try_take(name, byte):
            return False
        claimed.append((name, byte))
        return True

    if not take("layers", number):
        return False
    row = rows.get(layers.store, number)
    # Whoever holds the byte of its chain id is a pull that is about to build on it.
    return row is not None and (not row.chain_id or take("chains", chain_byte(layers.name, row.chain_id)))


def _remove_claimed(layers: Layers, numbers: list[int], wait: float | None) -> int:
    from cowshed.layers.unused import Shown

    shown = Shown()
    gone: list[int] = []
    left = list(numbers)  # written down as about to go, and not tried yet, or in use
    try:
        for number in numbers:
            try:
                layers.remove(layers.load(number), wait, shown)
            except InUse:
                continue
            except BaseException:
                left.remove(number)  # it may be half removed: whoever comes next repeats it
                raise
            left.remove(number)
            gone.append(number)
    finally:
        with layers.store.transaction() as tx:
            for number in gone:
                rows.delete(tx, number)
            for number in left:
                journal.end(tx, number)
    return len(gone)
