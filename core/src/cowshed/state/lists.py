"""Indexes that are put together here, by name."""

from __future__ import annotations

from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.state.store import Store, Transaction


def get(store: Store, name: str) -> dict[str, Any] | None:
    rows = store.query("select document from lists where name = ?", name)
    return dict(loads(rows[0][0])) if rows else None


def put(tx: Transaction, name: str, document: dict[str, Any]) -> None:
    tx.execute("insert or replace into lists values (?, ?)", name, dumps(document))
    tx.record("lists", name)


def delete(tx: Transaction, name: str) -> bool:
    """False if there was none."""
    tx.record("lists", name)
    return bool(tx.execute("delete from lists where name = ? returning name", name))


def names(store: Store) -> list[str]:
    return [row[0] for row in store.query("select name from lists order by name")]
