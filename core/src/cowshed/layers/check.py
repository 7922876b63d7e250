"""Do the database and the back end agree? Read only: what is found is told, nothing is repaired."""

from __future__ import annotations

import os

from cowshed import log
from cowshed.layers.unused import Shown
from cowshed.state import journal, records
from cowshed.state import layers as rows
from cowshed.storage import api
from cowshed.storage.errors import Damaged, InUse, LayerId, NotFound
from cowshed_linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from cowshed.layers.layers import Layers
    from cowshed.state.rows import LayerRow
    from cowshed.state.store import Store


def check(layers: Layers, *, deep: bool = False) -> Iterator[api.Finding]:
    """Every object of the driver against the rows, both ways; then what the driver says of its own layers, if it can
    check itself, with deep of all that is in them. Layers that a living command works on are left out: what is told was
    there at two looks."""
    first = list(_look(layers, deep=deep))
    again = {(finding.code, finding.text) for finding in _look(layers, deep=deep)} if first else set()
    for finding in first:
        if (finding.code, finding.text) in again:
            yield finding


def remove_orphans(layers: Layers) -> int:
    """Remove the driver's layers that no row knows and that are rubbish: removed before a power cut that brought them
    back. How many. The others stay, and are told."""
    count = 0
    for finding in list(check(layers)):
        found = finding.found
        if finding.code != "orphan" or found is None or found.kind is not api.ObjectKind.LAYER or found.layer is None:
            continue
        if not is_rubbish(layers.store, layers.name, found):
            log.warn(
                f"driver {layers.name}: layer {found.layer}, which the database does not know, stays: cowshed storage "
                "check tells what it may be"
            )
            continue
        remove_unknown(layers, found)
        count += 1
    return count


def is_rubbish(store: Store, driver: str, found: api.StoredObject) -> bool:
    """Whether a layer that no row knows is of no worth: it is committed, so that nothing was written but what an image
    has; no record tells of it (it would have lost its row); and the database is not older than what lies beside it."""
    return (
        found.kind is api.ObjectKind.LAYER
        and found.layer_kind is api.Kind.COMMITTED
        and store.noted_numbers()[0] <= int(store.value("given") or 0)
        and recorded(store.root, driver, found) is None
    )


def recorded(root: str, driver: str, found: api.StoredObject) -> dict[str, Any] | None:
    """What a record says of a layer that only the driver knows: then it has lost its row. None if nothing does."""
    if found.layer is None or found.layer_kind is None:
        return None
    record = records.read(records.path(root, "layers", found.layer))
    if record is not None and record.get("driver") == driver:
        return {"where": f"{driver} and in its record", "record": record, "kind": "committed"}
    id_ = of_container(root, found.layer)
    record = records.read(records.path(root, "containers", id_)) if id_ else None
    if record is not None and record.get("driver") == driver:
        return {
            "where": f"{driver} and in its container's record", "record": record, "kind": "active", "container": id_
        }  # fmt: skip
    return None


def of_container(root: str, layer: str) -> str:
    """The id of the container whose record says that it has this layer, "" if none does."""
    for id_ in sorted(os.listdir(f"{root}/containers")):
        record = records.read(records.path(root, "containers", id_))
        if record is not None and record.get("layer") == layer:
            return id_
    return ""


def remove_unknown(layers: Layers, found: api.StoredObject) -> None:
    """Remove a layer that no row knows. InUse if a mount namespace shows it: it has no number whose byte could tell."""
    assert found.layer is not None
    assert found.layer_kind is not None
    pid = Shown().by([found.layer.encode()])
    if pid:
        text = f"layer {found.layer}, which the database does not know, is mounted by process {pid}"
        raise InUse(text, layer=found.layer, remedy=f"end process {pid}")
    layers.driver.remove(api.Layer(found.layer, found.number or 0, found.layer_kind, None, found.data))


def _look(layers: Layers, *, deep: bool) -> Iterator[api.Finding]:
    told: set[str | None] = set()
    for finding in _objects_and_rows(layers):
        told.add(finding.layer)
        yield finding
    if api.has_self_check(layers.driver):
        known = [row for row in rows.list_all(layers.store, layers.name) if not _busy(layers, row)]
        for finding in layers.driver.check([layers.load(row.number) for row in known], deep=deep):
            if finding.layer is None or finding.layer not in told:
                yield finding


def _objects_and_rows(layers: Layers) -> Iterator[api.Finding]:
    store, name = layers.store, layers.name
    objects = list(layers.driver.scan())  # before the rows: what is made meanwhile is then in the rows, not missing
    known = {row.id: row for row in rows.list_all(store, name)}
    loaded = _loaded(known.values())
    there: dict[str, set[api.Kind | None]] = {}
    for found in objects:
        if found.kind is api.ObjectKind.LAYER and found.layer is not None:
            there.setdefault(found.layer, set()).add(found.layer_kind)
        if found.kind in (api.ObjectKind.LAYER, api.ObjectKind.TEMP) and (
            found.layer is None or found.layer not in known
        ):
            if found.layer is not None and rows.by_id(store, found.layer) is not None:
                continue
            goes = found.kind is api.ObjectKind.TEMP or is_rubbish(store, name, found)
            yield api.Finding(
                "orphan", f"{found.kind.value} {found.name} belongs to no layer", found.layer, found,
                repair="cowshed system prune removes it" if goes else "",
            )  # fmt: skip
    for row in known.values():
        if _busy(layers, row) or rows.get(store, row.number) != row:
            continue
        found_here = list(_of_row(layers, row, there.get(row.id, set())))
        yield from found_here or _of_mount(layers, loaded[row.number])
    for entry in journal.list_all(store):
        mounted = store.locks.held("monitors", entry.number) or store.locks.held("mounts", entry.number)
        if entry.driver == name and not mounted and not store.locks.held("layers", entry.number):
            text = f"layer {entry.number}: {entry.op} was begun and not ended"
            yield api.Finding("unfinished", text, repair="the next command that writes redoes or undoes it")


def _loaded(known: Iterable[LayerRow]) -> dict[int, api.Layer]:
    """The layers of these rows by number, each with its chain."""
    waiting = {row.number: row for row in known}
    loaded: dict[int, api.Layer] = {}
    for number in waiting:
        way = []
        at: int | None = number
        while at is not None and at not in loaded and at in waiting and at not in way:
            way.append(at)
            at = waiting[at].parent
        for n in reversed(way):
            row = waiting[n]
            below = loaded.get(row.parent) if row.parent is not None else None
            loaded[n] = api.Layer(LayerId(row.id), n, api.Kind(row.kind), below, row.data)
    return loaded


def _of_mount(layers: Layers, layer: api.Layer) -> Iterator[api.Finding]:
    """A layer that is there, and of which the driver has lost what it would be mounted from."""
    try:
        layers.driver.mounts(layer, api.MountRequest(read_only=True))
    except (NotFound, Damaged) as error:
        yield api.Finding("unusable", f"layer {layer.id} cannot be mounted: {error}", layer.id)


def _busy(layers: Layers, row: LayerRow) -> bool:
    return layers.store.locks.held("layers", row.number) or journal.get(layers.store, row.number) is not None


def _of_row(layers: Layers, row: LayerRow, there: set[api.Kind | None]) -> Iterator[api.Finding]:
    id_ = LayerId(row.id)
    if not there:
        yield api.Finding("missing", f"layer {row.id} is missing", id_)
    elif api.Kind(row.kind) not in there and None not in there:
        found = ", ".join(sorted(kind.value for kind in there if kind is not None))
        yield api.Finding("kind", f"layer {row.id} is {row.kind} in the database and {found} on disk", id_)
    if row.kind == "committed" and not row.durable and row.boot_id != process.boot_id():
        yield api.Finding(
            "suspect", f"layer {row.id} was written in an earlier boot and never made durable", id_,
            repair="it is made again from its blob before its next use",
        )  # fmt: skip
