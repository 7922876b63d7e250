"""What was begun and is not known to have ended: one row for each layer that is being worked on.

The row is written before the work, with the byte of the layer's number held, and deleted after it. A row whose byte is
free belongs to a process that died.
"""

from __future__ import annotations

from cowshed.state.rows import JournalRow
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.state.store import Store, Transaction


def begin(tx: Transaction, number: int, op: str, args: dict[str, Any] | None = None) -> None:
    """Write down that op begins; a later intent for the same layer replaces an earlier one."""
    tx.execute("insert or replace into journal (number, op, args) values (?, ?, ?)", number, op, dumps(args or {}))


def end(tx: Transaction, number: int) -> None:
    tx.execute("delete from journal where number = ?", number)


def get(store: Store, number: int) -> JournalRow | None:
    rows = store.query(
        "select j.number, j.op, j.args, l.driver from journal j join layers l using (number) where j.number = ?", number
    )
    return JournalRow(rows[0][0], rows[0][1], loads(rows[0][2]), rows[0][3]) if rows else None


def list_all(store: Store) -> list[JournalRow]:
    """Children before their parents: a layer is always written before those that stand on it."""
    rows = store.query(
        "select j.number, j.op, j.args, l.driver from journal j cross join layers l using (number) "  # the few first
        "order by l.created desc, l.number desc"
    )
    return [JournalRow(number, op, loads(args), driver) for number, op, args, driver in rows]
