"""What drivers hold against what the database says of it, in both directions, and what drivers say of themselves."""

from __future__ import annotations

import os

from cowshed.check.findings import ERROR, NOTE, WARNING, Finding, twice
from cowshed.errors import CowshedError
from cowshed.layers.check import recorded
from cowshed.layers.health import warn_of_health
from cowshed.state import conversions, drivers, images, records
from cowshed.state import layers as rows
from cowshed.storage import api
from cowshed.storage.errors import StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowshed.engine import Engine
    from cowshed.layers.layers import Layers
    from cowshed.state.rows import LayerRow
    from cowshed.state.store import Store

REBUILD = "make it again from its archive"
TAKE = "take what the driver says"
_ORPHAN = "remove it"
RESCUE = (
    "it may be a container's: cowshed storage rescue takes out what can be read, then storage repair --remove-layer ID"
)


def look(engine: Engine, *, deep: bool) -> Iterator[Finding]:
    store = engine.store
    known = drivers.names(store)
    for name in known:
        try:
            held = engine.layers(name)
            warn_of_health(held)
            for found in held.check(deep=deep):
                yield from _of_driver(engine, held, found)
            yield from twice(lambda held=held: _contradictions(held))  # type: ignore[misc]
        except (CowshedError, StorageError, OSError) as error:
            yield Finding(
                "driver.unusable", name, f"driver {name}: cannot be opened: {error}",
                remedy=getattr(error, "remedy", ""), driver=name,
            )  # fmt: skip
    yield from twice(lambda: _unknown(store))


def _unknown(store: Store) -> Iterator[Finding]:
    leaving = {each.name for each in conversions.leaving(store)}
    for name in sorted({*os.listdir(f"{store.root}/drivers")} - {*drivers.names(store)} - leaving):
        if is_store(store, name):  # else it was only tried
            remedy = "cowshed storage repair --rebuild-database, if it holds layers of this store"
            text = f"drivers/{name} is of no driver that the database knows"
            yield Finding("driver.unknown", name, text, WARNING, remedy=remedy)


def is_store(store: Store, name: str) -> bool:
    """Whether a driver's store is there."""
    return os.path.exists(f"{store.root}/drivers/{name}/store")


def _of_driver(engine: Engine, layers: Layers, found: api.Finding) -> Iterator[Finding]:
    """What `layers.check` and the driver tell, with what this store can do about it."""
    name = layers.name
    text = f"driver {name}: {found.text}"
    if found.code == "orphan":
        stored = found.found
        lost = recorded(engine.store.root, name, stored) if stored is not None else None
        if lost is not None:
            what = f"driver {name}: the database has lost layer {found.layer}, which lies in {lost['where']}"
            yield Finding(
                "layer.lost-row", found.layer or "", what, repair="write its row again", driver=name, data=lost
            )
            return
        if stored is not None and stored.kind is api.ObjectKind.LAYER and stored.layer_kind is not api.Kind.COMMITTED:
            what = f"driver {name}: layer {found.layer} is writable, and neither the database nor a record knows it"
            if any(id_.startswith(found.layer or "-") for id_ in os.listdir(f"{engine.store.root}/containers")):
                what += ": it is of the container whose directory has its id"
            yield Finding("layer.unknown", found.layer or "", what, remedy=RESCUE, driver=name, data={"found": stored})
            return
        data = {"found": stored}
        yield Finding("object.orphan", found.layer or "", text, WARNING, _ORPHAN, driver=name, data=data)
    elif found.code == "unfinished":
        yield Finding("journal.unfinished", found.text.split()[1].rstrip(":"), text, WARNING, found.repair, driver=name)
    elif found.code in ("missing", "kind", "suspect", "unusable"):
        yield _of_layer(engine, layers, found, text)
    else:
        severity = ERROR if found.layer is not None else WARNING
        of = found.layer or (found.found.name if found.found is not None else "")
        remedy = "" if found.repair else layer_remedy(engine.store, found.layer)
        yield Finding(
            f"driver.{found.code.partition('.')[2] or found.code}", of, text, severity, found.repair,
            remedy=remedy, driver=name, data={"finding": found},
        )  # fmt: skip


def _of_layer(engine: Engine, layers: Layers, found: api.Finding, text: str) -> Finding:
    code = f"layer.{found.code}"
    row = rows.by_id(engine.store, found.layer or "")
    severity = WARNING if found.code == "suspect" else ERROR
    if row is not None and found.code == "kind" and (row.kind == "active") is (row.diff_id is not None):
        return Finding(code, row.id, text, severity, TAKE, driver=layers.name)
    if row is not None and row.kind == "committed" and row.diff_id is not None:
        return Finding(code, row.id, text, severity, REBUILD, driver=layers.name)
    if row is not None and row.kind == "committed" and not _stands_on(engine, row):
        return Finding(code, row.id, text, severity, "forget it: nothing stands on it", driver=layers.name)
    if row is not None and row.kind == "active" and found.code == "missing":
        names = engine.store.query("select name from containers where number = ?", row.number)
        who = f"container {names[0][0]}" if names else "the layer"
        return Finding(
            code, row.id, text, severity, f"forget {who}: what was written in it is lost", driver=layers.name
        )
    return Finding(
        code, found.layer or "", text, severity, remedy=layer_remedy(engine.store, found.layer), driver=layers.name
    )


def _stands_on(engine: Engine, row: LayerRow) -> bool:
    return bool(engine.store.query("select 1 from layers where parent = ?", row.number))


def layer_remedy(store: Store, layer: str | None) -> str:
    names = store.query("select name from containers join layers using (number) where layers.id = ?", layer or "")
    return f"copy what can be read out of it (cowshed cp), and remove container {names[0][0]}" if names else ""


def unverified(row: LayerRow, why: str) -> Finding:
    return Finding("layer.unverified", row.id, f"layer {row.id} is not verified: {why}", NOTE, driver=row.driver)


def _contradictions(layers: Layers) -> Iterator[Finding]:
    store = layers.store
    for row in rows.list_all(store, layers.name):
        if store.locks.held("layers", row.number) or not contradicts(store, row):
            continue
        if row.parent is not None and rows.get(store, row.parent) is None:
            continue  # which the look at the database tells
        text = (
            f"driver {layers.name}: layer {row.id} does not follow from layer {row.parent}, which is said to be below"
        )
        parent = recorded_parent(store, row)
        yield Finding(
            "layer.contradiction", row.id, text, driver=layers.name, data={"parent": parent},
            repair="" if parent is None else "take what its record says",
            remedy="" if parent is not None else layer_remedy(store, row.id),
        )  # fmt: skip


def contradicts(store: Store, row: LayerRow) -> bool:
    """Whether the row of a layer cannot be true: what it stands on is unknown, its chain id does not follow from that;
    or of a container's, it does not stand on its image."""
    below = rows.get(store, row.parent) if row.parent is not None else None
    if below is None and row.parent is not None:
        return True
    if row.kind == "active":
        top = store.query(
            "select top_chain from images join containers on image_id = images.id where containers.number = ?",
            row.number,
        )
        chain = below.chain_id or "" if below is not None else ""
        return bool(top) and bool(chain or below is None) and top[0][0] != chain
    if row.chain_id is None or row.diff_id is None or (below is not None and below.chain_id is None):
        return False
    above = below.chain_id if below is not None else None
    return row.chain_id != (images.chain_ids((above, row.diff_id))[-1] if above else row.diff_id)


def recorded_parent(store: Store, row: LayerRow) -> str | None:
    """The id of the layer that its record says it stands on, "" for none; None if no record helps."""
    path = records.path(store.root, "layers", row.id)
    if row.kind == "active":
        found = store.query("select id from containers where number = ?", row.number)
        path = records.path(store.root, "containers", found[0][0]) if found else path
    record = records.read(path)
    if record is None:
        return None
    parent = record.get("parent")
    if parent is None:
        return ""
    return parent if isinstance(parent, str) and rows.by_id(store, parent) is not None else None
