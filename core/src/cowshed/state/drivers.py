"""The drivers that this store has been used with."""

from __future__ import annotations

from cowshed.state.rows import DriverRow
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.state.store import Store, Transaction


def get(store: Store, name: str) -> DriverRow | None:
    rows = store.query("select name, store, options, remembered from drivers where name = ?", name)
    return DriverRow(rows[0][0], rows[0][1], loads(rows[0][2]), loads(rows[0][3])) if rows else None


def names(store: Store) -> list[str]:
    return [r[0] for r in store.query("select name from drivers order by name")]


def insert(tx: Transaction, row: DriverRow) -> None:
    """Write a driver down; one that another command has written meanwhile stays as it is."""
    tx.execute(
        "insert or ignore into drivers values (?, ?, ?, ?)",
        row.name, row.store, dumps(row.options), dumps(row.remembered),
    )  # fmt: skip
    tx.record("drivers", row.name)


def set_remembered(tx: Transaction, name: str, remembered: dict[str, Any]) -> None:
    tx.execute("update drivers set remembered = ? where name = ?", dumps(remembered), name)
