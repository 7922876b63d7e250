"""Containers in the store."""

from __future__ import annotations

from cowshed.errors import Ambiguous, Conflict, NotFound
from cowshed.state.rows import ContainerRow
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.state.store import Store, Transaction

_COLUMNS = (
    "number, id, name, image_id, image_ref, driver, state, created, config, started, finished, pid, exit_code, error, "
    "oom, restarts, wanted, labels, runtime"
)
_JSON = ("config", "labels", "runtime")


def _row(values: tuple[Any, ...]) -> ContainerRow:
    cells = list(values)
    cells[8], cells[14], cells[17], cells[18] = loads(cells[8]), bool(cells[14]), loads(cells[17]), loads(cells[18])
    return ContainerRow(*cells)


_KEPT = {
    "name",
    "image_id",
    "image_ref",
    "driver",
    "config",
    "labels",
    "runtime",
}  # that a record says and an update can change


def insert(tx: Transaction, row: ContainerRow) -> None:
    """Conflict if the name is taken."""
    taken = tx.execute("select id from containers where name = ?", row.name)
    if taken:
        raise Conflict(
            f"the container name {row.name} is in use by {taken[0][0][:12]}",
            remedy="remove that one, or choose another",
        )
    values = [getattr(row, name) for name in _COLUMNS.split(", ")]
    values[8], values[17], values[18] = dumps(row.config), dumps(row.labels), dumps(row.runtime)
    tx.execute(f"insert into containers ({_COLUMNS}) values ({', '.join('?' * len(values))})", *values)


def update(tx: Transaction, number: int, **fields: Any) -> None:
    names = ", ".join([f"{name} = ?" for name in fields])
    values = [dumps(value) if name in _JSON else value for name, value in fields.items()]
    tx.execute(f"update containers set {names} where number = ?", *values, number)
    if _KEPT & fields.keys():
        tx.record("containers", tx.execute("select id from containers where number = ?", number)[0][0])


def delete(tx: Transaction, number: int) -> None:
    tx.execute("delete from volume_users where container = ?", number)
    tx.execute("delete from containers where number = ?", number)


def get(store: Store | Transaction, number: int) -> ContainerRow | None:
    run = store.query if hasattr(store, "query") else store.execute
    rows = run(f"select {_COLUMNS} from containers where number = ?", number)
    return _row(rows[0]) if rows else None


def find(store: Store, name: str) -> ContainerRow:
    """By full name, full id, or a prefix of an id that fits one container. NotFound, Ambiguous."""
    wanted = name.removeprefix("/")
    rows = store.query(f"select {_COLUMNS} from containers where name = ? or id = ?", wanted, wanted)
    if not rows and wanted and all(c in "0123456789abcdef" for c in wanted):
        rows = store.query(f"select {_COLUMNS} from containers where id >= ? and id < ?", wanted, wanted + "g")
        if len(rows) > 1:
            raise Ambiguous(f"{name} fits {len(rows)} containers", remedy="give more of the id")
    if not rows:
        raise NotFound(f"no such container: {name}", remedy="cowshed ps -a lists them")
    return _row(rows[0])


def exact(store: Store, id_: str) -> ContainerRow | None:
    rows = store.query(f"select {_COLUMNS} from containers where id = ?", id_)
    return _row(rows[0]) if rows else None


def list_all(store: Store) -> list[ContainerRow]:
    """Newest first."""
    return [_row(r) for r in store.query(f"select {_COLUMNS} from containers order by created desc, number desc")]


def to_restart(store: Store) -> list[int]:
    """Numbers of those that are said to run and have a restart policy."""
    rows = store.query(
        "select number from containers where state = 'running' and json_extract(config, '$.restart') != 'no'"
    )
    return [number for (number,) in rows]


def of_image(store: Store, image_id: str) -> list[ContainerRow]:
    return [_row(r) for r in store.query(f"select {_COLUMNS} from containers where image_id = ?", image_id)]


def record_of(row: ContainerRow, layer: str, parent: str | None) -> dict[str, Any]:
    """What containers/ID/record says (`cowshed.state.records`): ids of its layer, and of the one below that."""
    return {
        "number": row.number, "name": row.name, "image": row.image_id, "reference": row.image_ref,
        "driver": row.driver, "created": row.created, "config": row.config, "labels": row.labels,
        "runtime": row.runtime, "layer": layer, "parent": parent,
    }  # fmt: skip
