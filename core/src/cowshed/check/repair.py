"""Repairing what a check has found: a plan of typed steps, each done by itself.

A step is one finding of the check and what is done about it (`Finding.repair`). Steps are done in the order of
`PHASES`: what others need comes first. A step that fails is told and stops no other, but one that would delete what a
lost image may need; the check that follows says what is left.
"""

from __future__ import annotations

import os

from cowshed.check import blobs, database, files, making, rebuild
from cowshed.check.findings import Finding
from cowshed.check.objects import TAKE
from cowshed.container import lifecycle, recovery, remains, state
from cowshed.errors import Ambiguous, Conflict, CowshedError, NotFound, StoreError
from cowshed.layers.check import is_rubbish, recorded, remove_unknown
from cowshed.state import containers, conversions, images, layers, lists, records, volumes
from cowshed.state.rows import VolumeRow
from cowshed.storage import api
from cowshed.storage.errors import StorageError
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cowshed.engine import Engine
    from cowshed.image.progress import Progress
    from cowshed.state.rows import LayerRow

# Codes, or beginnings of codes that end with a dot, in the order in which they are repaired.
PHASES = (
    "file.", "mount.stale", "database.old", "image.lost-row", "image.damaged", "image.tables", "list.lost-row",
    "layer.lost-row",
    "volume.unknown", "database.reference", "layer.contradiction", "container.lost-row", "container.contradiction",
    "journal.unfinished", "run.", "blob.missing", "blob.size", "blob.damaged", "blob.recipe", "layer.",
    "object.orphan", "driver.",
    "container.", "volume.", "blob.", "record.",
)  # fmt: skip
# What is not done after an image could not be brought back: it would take away what that one may need.
_ON_IMAGES = frozenset(
    (
        "database.reference", "blob.unlisted", "object.orphan", "container.folder", "record.left", "layer.ownerless",
        "layer.unknown",
    )
)  # fmt: skip
_UNKNOWN = ("layer.unknown", "layer.ownerless")
_DELETE = "delete it: what was written in it is lost"
_PURGE_SECONDS = 60.0
_WAIT = 15.0  # seconds for another command that works on a layer


@record(frozen=True)
class Done:
    """What became of a step: error is "" if it was done."""

    finding: Finding
    error: str


def plan(findings: Iterable[Finding]) -> list[Finding]:
    """Those that can be repaired, in the order in which they are."""
    return sorted((finding for finding in findings if finding.repair), key=_phase)


def removing(findings: Iterable[Finding], layers_: Iterable[str]) -> list[Finding]:
    """The findings, in which the unknown layers of these ids, or of what they begin with, are to be deleted: such a
    layer may hold what a container has written, so that only its name asks for that. NotFound, Ambiguous."""
    found = list(findings)
    for text in layers_:
        fits = [n for n, each in enumerate(found) if each.code in _UNKNOWN and each.object.startswith(text) and text]
        if not fits:
            raise NotFound(f"no check finds an unknown layer {text}", remedy="cowshed storage check tells their ids")
        if len({found[n].object for n in fits}) > 1:
            raise Ambiguous(f"{text} fits {len(fits)} unknown layers", remedy="give more of the id")
        for n in fits:
            each = found[n]
            found[n] = Finding(
                each.code, each.object, each.text, each.severity, _DELETE, driver=each.driver, data=each.data
            )  # fmt: skip
    return found


def _phase(finding: Finding) -> int:
    for n, wanted in enumerate(PHASES):
        if finding.code == wanted or (wanted.endswith(".") and finding.code.startswith(wanted)):
            return n
    return len(PHASES)


def repair(engine: Engine, steps: Iterable[Finding], progress: Progress) -> Iterator[Done]:
    """Do the steps of a plan; what became of each, as it is done."""
    lost = False
    for finding in steps:
        try:
            if lost and finding.code in _ON_IMAGES:
                raise Conflict("an image could not be brought back, of which it may be", remedy="repair that first")
            _step(engine, finding, progress)
        except (CowshedError, StorageError, OSError) as error:
            lost = lost or finding.code == "image.lost-row"
            remedy = getattr(error, "remedy", "")
            yield Done(finding, f"{error}: {remedy}" if remedy else str(error))
        else:
            yield Done(finding, "")


def _step(engine: Engine, finding: Finding, progress: Progress) -> None:
    if finding.code.startswith("file."):
        files.repair(engine.settings.root, finding)
        return
    handle = _STEPS.get(finding.code)
    if handle is not None:
        handle(engine, finding)
    elif finding.code in ("blob.missing", "blob.size", "blob.damaged", "blob.recipe"):
        making.fetch(engine, finding.object, progress)
    elif finding.code in ("layer.missing", "layer.kind", "layer.suspect", "layer.unusable", "layer.content"):
        _layer(engine, finding, progress)
    elif finding.code.startswith("driver."):
        driver = engine.layers(finding.driver).driver
        if api.has_self_check(driver):
            driver.repair(finding.data["finding"])
    else:
        raise StoreError(f"nothing is known to repair {finding.code}")


# ---------------------------------------------------------------- the database


def _old(engine: Engine, finding: Finding) -> None:
    with engine.store.transaction() as tx:
        tx.execute("update meta set value = ? where key = 'next'", finding.data["next"])
        tx.execute("insert or replace into meta values ('given', ?)", finding.data["given"])


def _reference(engine: Engine, finding: Finding) -> None:
    table = finding.data["table"]
    with engine.store.transaction() as tx:
        if table == "containers":
            tx.execute(
                "update containers set image_id = null where image_id is not null and image_id not in "
                "(select id from images)"
            )
        else:
            tx.execute(f"delete from {table} where {database.DEPENDENT[table]}")  # noqa: S608 - of the names there


def _image(engine: Engine, finding: Finding) -> None:
    store = engine.store
    value = records.read(records.path(store.root, "images", finding.object))
    image = rebuild.image_of(value, finding.object)
    if image is None or value is None:
        raise Conflict("its record is damaged or missing too", remedy="cowshed rmi it, and pull it again")
    with store.transaction() as tx:
        tx.execute("delete from chains where image = ?", image.id)
        images.restore(tx, image)
        rebuild.give_names(tx, image.id, value)


def _tables(engine: Engine, finding: Finding) -> None:
    image = images.by_id(engine.store, finding.object)
    with engine.store.transaction() as tx:
        tx.execute("delete from chains where image = ?", image.id)
        images.restore(tx, image)


def _lost_list(engine: Engine, finding: Finding) -> None:
    with engine.store.transaction() as tx:
        lists.put(tx, finding.object, finding.data["document"])


def _lost_layer(engine: Engine, finding: Finding) -> None:
    value, kind = finding.data["record"], finding.data["kind"]
    with engine.store.transaction() as tx:
        if kind == "active":
            named = tx.execute("select id from containers where number = ?", value.get("number"))
            if named and str(named[0][0]) == finding.data["container"]:
                done = rebuild.insert_layer(tx, finding.object, kind, value)
                conversions.found_again(tx, finding.data["container"], value["number"])
            else:
                done = rebuild.restore_container(tx, finding.data["container"], value)
        else:
            done = rebuild.insert_layer(tx, finding.object, kind, value)
    if not done:
        raise Conflict("what it stands on is lost, or its number is another's by now")


def _contradiction(engine: Engine, finding: Finding) -> None:
    with engine.store.transaction() as tx:
        below = tx.execute("select number from layers where id = ?", finding.data["parent"])
        number = below[0][0] if below else None
        tx.execute("update layers set parent = ? where id = ?", number, finding.object)


def _lost_container(engine: Engine, finding: Finding) -> None:
    with engine.store.transaction() as tx:
        done = rebuild.restore_container(tx, finding.object, finding.data["record"])
    if not done:
        raise Conflict("its name or its number is another's by now")


def _container_driver(engine: Engine, finding: Finding) -> None:
    with engine.store.transaction() as tx:
        tx.execute(
            "update containers set driver = (select driver from layers where layers.number = containers.number) "
            "where id = ?",
            finding.object,
        )


# ---------------------------------------------------------------- layers


def _layer(engine: Engine, finding: Finding, progress: Progress) -> None:
    row = layers.by_id(engine.store, finding.object)
    if row is None:
        return  # another command has removed it
    if finding.repair == TAKE:
        _take_kind(engine, row)
        return
    if row.kind == "active":
        _forget_container(engine, row.number, row.driver, row.id)
    elif row.diff_id is None:
        _remove_layer(engine, row.number)
    else:
        making.make_again(engine, row, progress)


def _take_kind(engine: Engine, row: LayerRow) -> None:
    """A layer with a diff id is an image's, one without a container's: what the driver says, or else it would be no
    finding of this repair."""
    kind = "active" if row.diff_id is None else "committed"
    with engine.store.transaction() as tx:
        tx.execute("update layers set kind = ? where number = ?", kind, row.number)
        tx.execute("delete from loose_layers where number not in (select number from bare_layers)")


def _forget_container(engine: Engine, number: int, driver: str, layer: str) -> None:
    """A container whose layer is lost, with its directory; its volumes stay. Nobody works on it meanwhile. Conflict if
    it runs, or if its layer is there by now."""
    store = engine.store
    store.locks.take("containers", number, wait=_WAIT, what=f"layer {layer[:12]}")
    try:
        row = containers.get(store, number)
        if row is not None and state.now(engine, row).state == "running":
            raise Conflict(f"container {row.name} runs", remedy="stop it first")
        if any(found.layer == layer for found in engine.layers(driver).driver.scan()):
            raise Conflict(f"driver {driver}: layer {layer} is there", remedy="check again")
        if row is not None and layers.get(store, number) is not None:
            lifecycle.remove(engine, row, force=False, with_volumes=False)
        elif row is not None:
            lifecycle.forget(engine, row, with_volumes=False)
        else:
            _remove_layer(engine, number)
    finally:
        store.locks.release("containers", number)


def _remove_layer(engine: Engine, number: int) -> None:
    store = engine.store
    row = layers.get(store, number)
    if row is None:
        return
    held = engine.layers(row.driver)
    store.locks.take("layers", number, wait=_WAIT, what=f"layer {row.id[:12]}")
    try:
        with store.transaction() as tx:
            held.intend_removal(tx, number)
        held.remove(held.load(number))
        with store.transaction() as tx:
            layers.delete(tx, number)
    finally:
        store.locks.release("layers", number)
    held.purge(_PURGE_SECONDS)


def _ownerless(engine: Engine, finding: Finding) -> None:
    row = layers.by_id(engine.store, finding.object)
    if row is None:
        return
    if finding.repair != _DELETE:
        _forget_container(engine, row.number, row.driver, row.id)
    elif containers.get(engine.store, row.number) is None:
        _remove_layer(engine, row.number)


def _unknown_layer(engine: Engine, finding: Finding) -> None:
    """Delete a layer that nobody knows, and the directory of the container that its id tells. InUse."""
    held, found = engine.layers(finding.driver), finding.data["found"]
    if layers.by_id(engine.store, found.layer) is not None or recorded(engine.store.root, held.name, found) is not None:
        raise Conflict(f"layer {found.layer} is known by now", remedy="check again")
    remove_unknown(held, found)
    held.purge(_PURGE_SECONDS)
    for id_ in os.listdir(f"{engine.store.root}/containers"):
        if id_.startswith(found.layer):
            _container_folder(engine, Finding("container.folder", id_, ""))


def _orphan(engine: Engine, finding: Finding) -> None:
    """Remove what no row knows. Who makes a layer has written its row before."""
    held, found = engine.layers(finding.driver), finding.data["found"]
    if found.layer is not None and layers.by_id(engine.store, found.layer) is not None:
        return
    if found.kind is api.ObjectKind.LAYER:
        if not is_rubbish(engine.store, held.name, found):
            raise Conflict(f"layer {found.layer} may be of worth", remedy="cowshed storage check tells what it is")
        remove_unknown(held, found)
    held.purge(_PURGE_SECONDS)


def _unfinished(engine: Engine, finding: Finding) -> None:
    recovery.recover(engine)


# ---------------------------------------------------------------- containers, volumes, the rest


def _no_layer(engine: Engine, finding: Finding) -> None:
    row = containers.find(engine.store, finding.object)
    _forget_container(engine, row.number, row.driver, row.id[:32])


def _config(engine: Engine, finding: Finding) -> None:
    lifecycle.configure_again(engine, containers.find(engine.store, finding.object))


def _container_folder(engine: Engine, finding: Finding) -> None:
    from cowshed.storage.kit.trees import remove_tree

    if not engine.store.query("select 1 from containers where id = ?", finding.object):
        remove_tree(f"{engine.store.root}/containers/{finding.object}")


def _unknown_volume(engine: Engine, finding: Finding) -> None:
    import time

    from cowshed.check.places import is_anonymous

    with engine.store.transaction() as tx:
        volumes.insert(tx, VolumeRow(finding.object, time.time_ns(), is_anonymous(finding.object), {}))


def _missing_volume(engine: Engine, finding: Finding) -> None:
    os.makedirs(f"{engine.store.root}/volumes/{finding.object}", mode=0o700, exist_ok=True)
    os.makedirs(f"{engine.store.root}/volumes/{finding.object}/_data", mode=0o755, exist_ok=True)


def _record(engine: Engine, finding: Finding) -> None:
    records.refresh(engine.store, [finding.data["record"]])


def _unmount(engine: Engine, finding: Finding) -> None:
    from cowshed.check.places import mounts
    from cowshed_linux import mount

    if finding.key in [found.key for found in mounts(engine)]:
        mount.unmount(finding.data["point"])


def _run(engine: Engine, finding: Finding) -> None:
    from cowshed.layers import activation
    from cowshed.storage.kit.trees import remove_tree

    if finding.code == "run.active":
        activation.recover(engine.store, engine.layers)
    elif finding.object in remains.directories(engine.store):
        path = f"{engine.store.run}/c/{finding.object}"
        if state.alive(path):
            raise Conflict(f"a process of {path} lives", remedy="end it first")
        remove_tree(path)


def _left_blob(engine: Engine, finding: Finding) -> None:
    blobs.remove_left(engine.store, finding)


_STEPS: dict[str, Callable[[Engine, Finding], None]] = {
    "database.old": _old,
    "database.reference": _reference,
    "image.damaged": _image,
    "image.lost-row": _image,
    "image.tables": _tables,
    "list.lost-row": _lost_list,
    "layer.lost-row": _lost_layer,
    "layer.contradiction": _contradiction,
    "layer.ownerless": _ownerless,
    "layer.unknown": _unknown_layer,
    "object.orphan": _orphan,
    "journal.unfinished": _unfinished,
    "container.lost-row": _lost_container,
    "container.contradiction": _container_driver,
    "container.no-layer": _no_layer,
    "container.config": _config,
    "container.folder": _container_folder,
    "volume.unknown": _unknown_volume,
    "volume.missing": _missing_volume,
    "record.wrong": _record,
    "record.missing": _record,
    "record.left": _record,
    "mount.stale": _unmount,
    "run.active": _run,
    "run.left": _run,
    "blob.unlisted": _left_blob,
    "blob.stray": _left_blob,
    "blob.left": _left_blob,
}
