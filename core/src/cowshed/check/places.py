"""Containers, volumes, records, mounts, and the run directory: rows against files."""

from __future__ import annotations

import os
import time

from cowshed.check import database, objects, rebuild
from cowshed.check.findings import NOTE, WARNING, Finding
from cowshed.container import remains, state
from cowshed.layers.check import of_container
from cowshed.monitor import client
from cowshed.state import containers, conversions, drivers, images, journal, records, volumes
from cowshed.state import layers as rows
from cowshed_linux.mounts import Mount
from cowshed_runtime.fastjson import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowshed.engine import Engine
    from cowshed.state.rows import ContainerRow
    from cowshed.state.store import Store

_LOOKS, _BETWEEN = 5, 0.02  # seconds
_ANONYMOUS = 64  # hexadecimal digits of the name of a volume that nobody named


def look(engine: Engine) -> Iterator[Finding]:
    yield from _containers(engine)
    yield from _ownerless(engine)
    yield from _volumes(engine)
    yield from _records(engine)
    yield from mounts(engine)
    yield from _run(engine)


def _containers(engine: Engine) -> Iterator[Finding]:
    store = engine.store
    known = {row.id: row for row in containers.list_all(store)}
    for id_ in sorted({*os.listdir(f"{store.root}/containers")} - known.keys()):
        record = records.read(records.path(store.root, "containers", id_))
        layer = str(record.get("layer")) if record is not None else ""
        if record is not None and rows.by_id(store, layer) is not None:
            text = f"the database has lost container {record.get('name')}, of which containers/{id_} tells"
            yield Finding("container.lost-row", id_, text, repair="write its row again", data={"record": record})
            continue
        if record is not None:
            there = _is_in_driver(engine, record.get("driver"), layer)
            if there:
                continue  # which the look at the drivers tells
        else:
            there = _is_in_some_driver(engine, id_[:32])
        text = f"containers/{id_} belongs to no container"
        if there is False:
            yield Finding("container.folder", id_, text, WARNING, "delete it")
        else:
            remedy = "its layer may be there: bring its driver back, or cowshed storage rescue"
            yield Finding("container.folder", id_, f"{text} that the database knows", WARNING, remedy=remedy)
    for row in known.values():
        if row.state not in ("creating", "removing") and not store.locks.held("containers", row.number):
            yield from _container(engine, row)


def _container(engine: Engine, row: ContainerRow) -> Iterator[Finding]:
    store = engine.store
    layer = rows.get(store, row.number)
    who = f"container {row.name}"
    if layer is None:
        record = records.read(records.path(store.root, "containers", row.id))
        if record is None:
            repair = f"forget {who}: what was written in it is lost"
            yield Finding("container.no-layer", row.id, f"{who} has no layer in the database", repair=repair)
        return
    if layer.driver != row.driver:
        text = f"{who}: its layer is in driver {layer.driver}, and it says {row.driver}"
        yield Finding("container.contradiction", row.id, text, repair="take what the layer says")
    wrong = _configuration(f"{engine.folder(row)}/config.json")
    if wrong:
        text = f"{who}: its configuration is {wrong}"
        yield Finding("container.config", row.id, text, repair="make it again from what was asked for")
    yield from _monitor(engine, row)


def _configuration(path: str) -> str:
    try:
        with open(path, "rb") as file:
            value = loads(file.read())
    except FileNotFoundError:
        return "missing"
    except ValueError:
        return "damaged"
    return "" if isinstance(value, dict) and isinstance(value.get("process"), dict) else "damaged"


def _monitor(engine: Engine, row: ContainerRow) -> Iterator[Finding]:
    if row.state != "running" or engine.store.locks.held("monitors", row.number):
        return
    place = engine.place(row)
    if client.exit_record(place) is None and state.alive(place):
        text = f"container {row.name} runs without its monitor, which was killed"
        yield Finding("container.monitor", row.id, text, remedy="stop it, or remove it with -f")


def _ownerless(engine: Engine) -> Iterator[Finding]:
    store = engine.store
    alone = store.query(
        "select number, id, driver from layers where kind = 'active' and diff_id is null "
        "and not exists (select 1 from containers where containers.number = layers.number) "
        "and not exists (select 1 from journal where journal.number = layers.number) "
        "and not exists (select 1 from converted where number = layer)"
    )
    for number, id_, driver in alone:
        if store.locks.held("layers", number) or journal.get(store, number) is not None:
            continue
        if not of_container(store.root, id_):
            text = f"driver {driver}: layer {id_} is writable and of no container"
            if _is_in_driver(engine, driver, id_) is False:
                yield Finding("layer.ownerless", id_, text, WARNING, "forget it: it is not there", driver=driver)
            else:
                yield Finding("layer.ownerless", id_, text, remedy=objects.RESCUE, driver=driver)


def _volumes(engine: Engine) -> Iterator[Finding]:
    store = engine.store
    known = {volume.name for volume in volumes.list_all(store)}
    there = {*os.listdir(f"{store.root}/volumes")}
    for name in sorted(there - known - {*volumes.loose(store)}):
        text = f"volumes/{name} belongs to no volume"
        yield Finding("volume.unknown", name, text, WARNING, "write it down as a volume")
    for name in sorted(known - there):
        if _is_filled(engine, name):
            text = f"volume {name}: its directory is missing"
            yield Finding("volume.missing", name, text, repair="make it again, empty: what was in it is lost")


def _is_filled(engine: Engine, name: str) -> bool:
    """Whether a volume must have a directory by now: some container that has it is made, and none is being made."""
    states = engine.store.query(
        "select state from containers join volume_users on container = number where volume = ?", name
    )
    return bool(states) and all(each != "creating" for (each,) in states)


def _records(engine: Engine) -> Iterator[Finding]:
    store = engine.store
    expected = records.all_wanted(store)
    for kind, name in _wrong_records(store, expected):
        if not _is_wrong_itself(store, kind, name):
            what = f"the record of {kind[:-1]} {name.removeprefix('sha256:')[:32]}"
            if os.path.exists(records.path(store.root, kind, name)):
                yield Finding(
                    "record.wrong", f"{kind}/{name}", f"{what} does not say what the database says", WARNING,
                    "write it again", data={"record": (kind, name)},
                )  # fmt: skip
            else:
                yield Finding(
                    "record.missing", f"{kind}/{name}", f"{what} is missing", NOTE, "write it again",
                    data={"record": (kind, name)},
                )  # fmt: skip
    listed = {records.path(store.root, kind, name) for kind, name in expected}
    for kind in records.KINDS:
        for name in records.there(store.root, kind):
            if f"{records.folder(store.root)}/{kind}/{name}" in listed:
                continue
            yield from _left_record(engine, kind, name)
    for row in containers.list_all(store):
        yield from _container_record(engine, row)


def _wrong_records(store: Store, expected: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of these records that do not say what the database says, at none of some looks: they follow what is
    committed, and an image's names may change all the time."""
    wrong = expected
    for n in range(_LOOKS):
        if n and wrong:
            time.sleep(_BETWEEN)
        wrong = [
            (kind, name)
            for kind, name in wrong
            if records.read(records.path(store.root, kind, name)) != records.wanted(store, kind, name)
        ]
    return wrong


def _is_wrong_itself(store: Store, kind: str, name: str) -> bool:
    """Whether the row contradicts itself, which is told of it: then its record may be right."""
    if kind == "images":
        image = images.exact(store, name)
        return image is not None and bool(database.wrong_with(image))
    row = rows.by_id(store, name) if kind == "layers" else None
    return row is not None and objects.contradicts(store, row)


def _left_record(engine: Engine, kind: str, name: str) -> Iterator[Finding]:
    store = engine.store
    full = f"sha256:{name}" if kind == "images" else name
    data = {"record": (kind, full)}
    value = records.read(records.path(store.root, kind, name))
    if kind == "images" and rebuild.image_of(value, full) is not None:
        text = f"the database has lost image {name[:12]}, of which there is a record"
        yield Finding("image.lost-row", full, text, repair="write its row again", data=data)
        return
    if kind == "lists" and (said := rebuild.list_of(value, name)) is not None:
        text = f"the database has lost list {said[0]}, of which there is a record"
        yield Finding("list.lost-row", said[0], text, repair="write its row again", data={"document": said[1]})
        return
    if kind == "layers" and value is not None and _is_in_driver(engine, value.get("driver"), name) is not False:
        return  # which the look at the drivers tells
    if kind == "drivers":
        if name in {each.name for each in conversions.leaving(store)} or objects.is_store(store, name):
            return  # which the look at the drivers tells
        text = f"the database has lost driver {name}, of which there is a record, and its store is not there"
        remedy = f"bring its disk back; if it is gone for good, delete records/drivers/{name}"
        yield Finding("driver.unknown", name, text, WARNING, remedy=remedy)
        return
    yield Finding(
        "record.left", f"{kind}/{full}", f"the record of {kind[:-1]} {name[:32]} is of nothing that is there", WARNING,
        "delete it", data=data,
    )  # fmt: skip


def _is_in_driver(engine: Engine, driver: object, id_: str) -> bool | None:
    """Whether a driver holds a layer; None if nobody knows: it cannot be opened, or has lost its row."""
    from cowshed.errors import CowshedError
    from cowshed.storage.errors import StorageError

    if not isinstance(driver, str) or not driver:
        return False
    root = engine.store.root
    if drivers.get(engine.store, driver) is None:
        traces = (f"{root}/drivers/{driver}", records.path(root, "drivers", driver))
        return None if any(map(os.path.exists, traces)) else False
    try:
        return any(found.layer == id_ for found in engine.layers(driver).driver.scan())
    except (CowshedError, StorageError, OSError):
        return None


def _is_in_some_driver(engine: Engine, id_: str) -> bool | None:
    """The same of all that there are traces of. A container's layer has the first digits of its id."""
    if not set(id_) <= set("0123456789abcdef"):
        return False
    root = engine.store.root
    stores = [name for name in os.listdir(f"{root}/drivers") if objects.is_store(engine.store, name)]
    names = {*drivers.names(engine.store), *stores, *records.there(root, "drivers")}
    found = [_is_in_driver(engine, name, id_) for name in sorted(names)]
    return True if True in found else None if None in found else False


def _container_record(engine: Engine, row: ContainerRow) -> Iterator[Finding]:
    layer = rows.get(engine.store, row.number)
    if row.state in ("creating", "removing") or layer is None or not os.path.isdir(engine.folder(row)):
        return
    if layer.driver != row.driver or objects.contradicts(engine.store, layer):
        return  # then its record may be right
    path = records.path(engine.store.root, "containers", row.id)
    if records.read(path) == records.wanted(engine.store, "containers", row.id):
        return
    there = os.path.exists(path)
    text = f"the record of container {row.name} {'does not say what the database says' if there else 'is missing'}"
    yield Finding(
        "record.wrong" if there else "record.missing", f"containers/{row.id}", text, WARNING if there else NOTE,
        "write it again", data={"record": ("containers", row.id)},
    )  # fmt: skip


def mounts(engine: Engine) -> Iterator[Finding]:
    """What shows a layer in this mount namespace: the engine's own mounts are in no namespace, or in a container's."""
    locks = engine.store.locks
    ids = dict(engine.store.query("select id, number from layers"))
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        lines = file.readlines()
    if not ids or len(lines) > 100_000:
        return
    for line in lines:
        found = next((id_ for id_ in ids if id_ in line), "")
        if found and not any(locks.held(name, ids[found]) for name in ("containers", "layers", "mounts", "monitors")):
            point = Mount(line).point
            text = f"layer {found} is mounted at {point}, and by no command"
            yield Finding("mount.stale", found, text, WARNING, "unmount it", data={"point": point})


def _run(engine: Engine) -> Iterator[Finding]:
    store = engine.store
    for name in _listed(f"{store.run}/active"):
        if name.isdigit() and not store.locks.held("activations", int(name)):
            text = f"layer {name} was left active by a command that died"
            yield Finding("run.active", name, text, WARNING, "deactivate it")
    for name in remains.directories(store):
        text = f"the run directory has c/{name}, which is of no container"
        pid = state.alive(f"{store.run}/c/{name}")
        if pid:
            yield Finding("run.left", name, f"{text}, and process {pid} of it lives", remedy=f"kill {pid}")
        else:
            yield Finding("run.left", name, text, WARNING, "delete it")


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def is_anonymous(name: str) -> bool:
    """Whether a volume's name is one that nobody gave."""
    return len(name) == _ANONYMOUS and all(c in "0123456789abcdef" for c in name)
