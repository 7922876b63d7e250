"""Layers in the store. Who may call: whoever holds the byte of the layer's number, but for reading."""

from __future__ import annotations

from cowshed import log
from cowshed.errors import Busy, StoreError
from cowshed.state.rows import LayerRow
from cowshed_linux import process
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cowshed.state.store import Store, Transaction

LAST_NUMBER = (1 << 24) - 1
_COLUMNS = "number, id, driver, kind, parent, chain_id, diff_id, data, durable, boot_id, created"


_LOOSE = (
    "from loose_layers join layers using (number) "
    "where not exists (select 1 from journal where journal.number = loose_layers.number)"
)


def _row(values: tuple[Any, ...]) -> LayerRow:
    cells = list(values)
    cells[7], cells[8] = loads(cells[7]), bool(cells[8])
    return LayerRow(*cells)


def next_number(tx: Transaction) -> int:
    """A number that no layer and no container has; the counter moves on, so numbers come again as late as can be.

    The caller takes its bytes (`Transaction.take_new`), and asks for the next one if a dying command still holds them.
    """
    counted = dict(tx.execute("select key, value from meta where key in ('next', 'given')"))
    number, given = int(counted["next"]), int(counted.get("given", 0))
    noted, beyond = tx.store.noted_numbers()
    if noted > given:
        log.warn(
            f"the database of {tx.store.root} is older than what lies beside it: {noted - given} layers were made "
            "since (cowshed storage check tells which)"
        )
        number, given = beyond, noted
    for _ in range(LAST_NUMBER):
        if number > LAST_NUMBER:
            number = 1
        if not tx.execute(
            "select 1 from layers where number = ? union all select 1 from containers where number = ?", number, number
        ):
            tx.execute("update meta set value = ? where key = 'next'", number + 1)
            tx.execute("insert or replace into meta values ('given', ?)", given + 1)
            tx.note_numbers(given + 1, number + 1)
            return number
        number += 1
    raise StoreError(f"all {LAST_NUMBER} layer numbers are in use", remedy="remove containers or images")


def insert_active(
    tx: Transaction, number: int, id_: str, driver: str, parent: int | None, *, boot_id: str, created: int
) -> None:
    """Write a new active layer. Busy if its parent is gone or going: another command is removing it."""
    if parent is not None and not tx.execute(
        "select 1 from layers where number = ? and kind = 'committed' or number = ? and exists "
        "(select 1 from journal where journal.number = layers.number and op = 'apply')",
        parent,
        parent,
    ):
        raise Busy(f"layer {parent}, which the new one stands on, was removed meanwhile", remedy="try again")
    if parent is not None and tx.execute("select 1 from journal where number = ? and op = 'remove'", parent):
        raise Busy(f"layer {parent}, which the new one stands on, is being removed", remedy="try again")
    tx.execute(
        "insert into layers (number, id, driver, kind, parent, boot_id, created) values (?, ?, ?, 'active', ?, ?, ?)",
        number, id_, driver, parent, boot_id, created,
    )  # fmt: skip


def set_committed(
    tx: Transaction, number: int, *, driver: str, chain_id: str | None, diff_id: str | None, data: Mapping[str, Any],
    durable: bool,
) -> None:  # fmt: skip
    """Mark a layer committed. A twin that had its chain id gives it up, and goes when nothing stands on it."""
    if chain_id is not None:
        twins = tx.execute(
            "update layers set chain_id = null where driver = ? and chain_id = ? and number != ? returning id",
            driver, chain_id, number,
        )  # fmt: skip
        for (id_,) in twins:
            tx.record("layers", id_)
    tx.execute(
        "update layers set kind = 'committed', chain_id = ?, diff_id = ?, data = ?, durable = ? where number = ?",
        chain_id, diff_id, dumps(dict(data)), int(durable), number,
    )  # fmt: skip
    if diff_id is not None:
        tx.record("layers", tx.execute("select id from layers where number = ?", number)[0][0])


def distrust(tx: Transaction, number: int) -> None:
    """A layer is about to be made again: until `trust` it is used for nothing new, as if a power cut had cut it."""
    tx.execute("update layers set durable = 0, boot_id = '' where number = ?", number)


def trust(tx: Transaction, number: int) -> None:
    """The layer was made in this boot."""
    tx.execute("update layers set boot_id = ? where number = ?", process.boot_id(), number)


def restore(
    tx: Transaction, number: int, id_: str, driver: str, kind: str, parent: int | None, *, chain_id: str | None,
    diff_id: str | None, data: Mapping[str, Any], created: int,
) -> None:  # fmt: skip
    """Write the row of a layer that is there and that the database has lost. Whoever calls knows that it is whole, or
    checks it: it counts as durable."""
    tx.execute(
        f"insert into layers ({_COLUMNS}) values (?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?)",
        number, id_, driver, kind, parent, chain_id, diff_id, dumps(dict(data)), process.boot_id(), created,
    )  # fmt: skip
    tx.execute("insert into loose_layers select number from bare_layers where number = ?", number)
    if diff_id is not None:
        tx.record("layers", id_)


def set_data(tx: Transaction, number: int, data: Mapping[str, Any]) -> None:
    tx.execute("update layers set data = ? where number = ?", dumps(dict(data)), number)


def delete(tx: Transaction, number: int) -> None:
    """Forget a layer and what was begun with it. StoreError if another layer stands on it."""
    tx.execute("delete from journal where number = ?", number)
    for id_, diff_id in tx.execute("delete from layers where number = ? returning id, diff_id", number):
        if diff_id is not None:
            tx.record("layers", id_)
    tx.execute("delete from loose_layers where number = ?", number)


def chain(store: Store, number: int) -> list[tuple[int, str, str, dict[str, Any]]]:
    """(number, id, kind, data) of a layer, its parent, … down to the base; empty if the layer is not known."""
    rows = store.query(
        "with recursive c(number, id, kind, parent, data) as ("
        " select number, id, kind, parent, data from layers where number = ?"
        " union all select l.number, l.id, l.kind, l.parent, l.data from layers l join c on l.number = c.parent)"
        " select number, id, kind, data from c",
        number,
    )
    return [(n, id_, kind, loads(data)) for n, id_, kind, data in rows]


def get(store: Store | Transaction, number: int) -> LayerRow | None:
    run = store.query if hasattr(store, "query") else store.execute
    rows = run(f"select {_COLUMNS} from layers where number = ?", number)
    return _row(rows[0]) if rows else None


def by_id(store: Store, id_: str) -> LayerRow | None:
    rows = store.query(f"select {_COLUMNS} from layers where id = ?", id_)
    return _row(rows[0]) if rows else None


def by_chain(store: Store, driver: str, chain_id: str) -> LayerRow | None:
    """The committed layer that realises a chain id and is not being removed."""
    rows = store.query(
        f"select {_COLUMNS} from layers where driver = ? and chain_id = ? and kind = 'committed' "
        "and not exists (select 1 from journal where journal.number = layers.number and op = 'remove')",
        driver,
        chain_id,
    )
    return _row(rows[0]) if rows else None


def list_all(store: Store, driver: str) -> list[LayerRow]:
    return [_row(r) for r in store.query(f"select {_COLUMNS} from layers where driver = ? order by number", driver)]


def loose(store: Store, driver: str) -> list[int]:
    """Numbers of the committed layers that no image, layer or unfinished work stands on, newest first."""
    return [r[0] for r in store.query(f"select number {_LOOSE} and driver = ? order by number desc", driver)]


def loose_drivers(store: Store) -> list[str]:
    """The drivers that have such layers."""
    return [r[0] for r in store.query(f"select distinct driver {_LOOSE}")]


def is_loose(tx: Transaction, number: int) -> bool:
    """Whether nothing stands on a layer and nobody works on it; if something does, it is loose no more."""
    if tx.execute("select 1 from journal where number = ?", number):
        return False
    if tx.execute("select 1 from bare_layers where number = ?", number):
        return True
    tx.execute("delete from loose_layers where number = ?", number)
    return False
