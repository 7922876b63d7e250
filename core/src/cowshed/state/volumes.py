"""Volumes in the store."""

from __future__ import annotations

from cowshed.errors import NotFound
from cowshed.state.rows import VolumeRow
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.state.store import Store, Transaction


def insert(tx: Transaction, row: VolumeRow) -> None:
    """Write a volume; one of that name that is there already stays as it is."""
    tx.execute(
        "insert or ignore into volumes values (?, ?, ?, ?)", row.name, row.created, row.anonymous, dumps(row.labels)
    )


def use(tx: Transaction, name: str, container: int) -> None:
    tx.execute("insert or ignore into volume_users values (?, ?)", name, container)


def delete(tx: Transaction, name: str) -> None:
    """Forget a volume; its directory is then to be deleted, which `loose` and `gone` keep account of."""
    tx.execute("delete from volumes where name = ?", name)


def delete_anonymous(tx: Transaction, container: int) -> None:
    """Forget the anonymous volumes that only this container uses."""
    rows = tx.execute(
        "select name from volumes join volume_users on volume = name where container = ? and anonymous = 1 "
        "and not exists (select 1 from volume_users other where other.volume = name and other.container != ?)",
        container,
        container,
    )
    for (name,) in rows:
        tx.execute("delete from volume_users where volume = ?", name)
        delete(tx, name)


def loose(store: Store) -> list[str]:
    """Names of forgotten volumes whose directories may still be there."""
    return [r[0] for r in store.query("select name from loose_volumes where name not in (select name from volumes)")]


def gone(tx: Transaction, names: list[str]) -> None:
    """The directories of these forgotten volumes are deleted."""
    for name in names:
        tx.execute("delete from loose_volumes where name = ?", name)


def list_all(store: Store) -> list[VolumeRow]:
    rows = store.query("select name, created, anonymous, labels from volumes order by name")
    return [VolumeRow(name, created, bool(anonymous), loads(labels)) for name, created, anonymous, labels in rows]


def find(store: Store | Transaction, name: str) -> VolumeRow:
    """NotFound."""
    run = store.query if hasattr(store, "query") else store.execute
    for row in run("select name, created, anonymous, labels from volumes where name = ?", name):
        return VolumeRow(row[0], row[1], bool(row[2]), loads(row[3]))
    raise NotFound(f"no such volume: {name}", remedy="cowshed volume ls lists them")


def users(store: Store, name: str) -> list[int]:
    return [r[0] for r in store.query("select container from volume_users where volume = ?", name)]
