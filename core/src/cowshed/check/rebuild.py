"""A database made again from what is left beside it: what drivers hold, the records, the blobs, and the directories of
containers and volumes.

Nothing on the disk is changed but the database. What cannot be told any more is said: an image's layer without a record
is left to the driver (the next check tells of it, and it is made again from its archive when it is needed); a container
without a record has lost what was asked for.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import contextmanager

from cowshed import log
from cowshed.check.database import wrong_with
from cowshed.errors import Busy, Conflict, CowshedError, ImageError, NoSpace, StoreError
from cowshed.image import config as configs
from cowshed.image import manifest as manifests
from cowshed.layers.faults import step
from cowshed.layers.host import make as make_host
from cowshed.state import containers, conversions, drivers, images, lists, making, origins, records, sqlite, volumes
from cowshed.state import layers as rows
from cowshed.state.rows import ContainerRow, DriverRow, ImageRow, VolumeRow
from cowshed.state.store import Store, connect
from cowshed.storage import options, registry
from cowshed.storage.errors import StorageError
from cowshed.storage.kit.trees import remove_tree
from cowshed.storage.record import record
from cowshed_linux import files, locks
from cowshed_runtime.cgroup.group import Group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from cowshed.config.settings import Settings
    from cowshed.state.store import Transaction
    from cowshed.storage import api

_WAIT = 30.0  # seconds for another command to open a driver's store
_SCRATCH = "rebuild.new"  # in the store's root: the new database becomes the old one's by a rename


@record(frozen=True)
class Rebuilt:
    """What was found again, and what was lost, a line each."""

    drivers: int
    images: int
    layers: int
    containers: int
    volumes: int
    lost: tuple[str, ...]


def rebuild(settings: Settings, *, replace_whole: bool = False, without_missing: bool = False) -> Rebuilt:
    """Make STORE/db.sqlite again; the old one is kept beside it as lost-N.sqlite. It is replaced when the new one is
    whole: until then nothing of the store has changed.

    replace_whole: although the old one can be read and is whole. without_missing: although drivers that it had are not
    there now, and what they hold is forgotten. Busy if other commands write to the store or a container of it runs,
    Conflict without these consents, StoreError if nothing is left to make it from."""
    root = settings.root
    for name in ("drivers", "blobs", "containers"):
        if not os.path.isdir(f"{root}/{name}"):
            raise StoreError(f"{root} is no store: it has no {name}", remedy="name the right --root")
    os.makedirs(f"{root}/locks", mode=0o700, exist_ok=True)
    fd = locks.open_file(f"{root}/locks/store")
    try:
        if not locks.lock_file(fd, wait=False):
            raise Busy(f"other commands use the store at {root}", remedy="try again when they have ended")
        making.make_places(root)
        _refuse_running(root)
        scratch = f"{root}/{_SCRATCH}"
        made, place = f"{scratch}/whole.sqlite", f"{root}/db.sqlite"
        if os.path.exists(made) and not os.path.exists(place):
            # A command was killed between the two renames: this is the only one that knows what it has carried over.
            os.rename(made, place)
            files.sync_directory(root)
            replace_whole = True
        if not replace_whole and _is_whole(settings):
            raise Conflict(
                f"the database of {root} can be read and is whole: what only it knows would be lost",
                remedy="cowshed storage repair puts single rows right; or add --replace-whole",
            )
        remove_tree(scratch)
        os.mkdir(scratch, 0o700)
        try:
            done = _made_beside(settings, scratch, strict=not without_missing)
            step("rebuild.filled")
            os.rename(f"{scratch}/db.sqlite", made)
            files.sync_directory(scratch)
            _put_aside(root)
            step("rebuild.aside")
            os.rename(made, place)
            files.sync_directory(root)
        finally:
            if os.path.exists(place):  # else the new one may be all that there is
                remove_tree(scratch)
        _write_records(settings)
        return done
    finally:
        os.close(fd)


def _is_whole(settings: Settings) -> bool:
    """Whether the database that is there says all that it said, of whatever version it is."""
    if not os.path.exists(f"{settings.root}/db.sqlite"):
        return False
    try:
        db = making.copy_of(settings.root, settings.run_root)
    except StoreError:
        return False
    try:
        return bool(db.execute("pragma integrity_check").fetchall() == [("ok",)])
    except sqlite.Error:
        return False
    finally:
        db.close()


def _made_beside(settings: Settings, scratch: str, *, strict: bool) -> Rebuilt:
    """Fill a database in the directory scratch, and make it durable."""
    store = making.make_again(settings.root, settings.run_root, identity(settings.root), beside=scratch)
    try:
        store.query("pragma synchronous = off")  # nobody has it until it is whole and synced
        done = fill(store, settings, strict=strict)
        store.query("pragma wal_checkpoint(truncate)")
    finally:
        store.close()
    with open(f"{scratch}/db.sqlite", "rb") as file:
        os.fsync(file.fileno())
    return done


def _write_records(settings: Settings) -> None:
    """What was found is what the records say from now on. The lock of the store is held."""
    store = Store(settings.root, settings.run_root, connect(f"{settings.root}/db.sqlite", write=True), writable=True)
    try:
        boxes = [("containers", id_) for (id_,) in store.query("select id from containers")]
        records.refresh(store, [*records.all_wanted(store), *boxes])
    finally:
        store.close()


def _refuse_running(root: str) -> None:
    """A monitor holds its byte for life, whoever has a layer mounted that of its number (`cowshed.state.locks`). The
    records may be lost or wrong, so that they only tell names."""
    names: dict[int, str] = {}
    for id_ in sorted(os.listdir(f"{root}/containers")):
        value = records.read(records.path(root, "containers", id_)) or {}
        name = str(value.get("name") or id_[:12])
        if isinstance(value.get("number"), int):
            names[value["number"]] = name
        left = Group(id_).processes()
        if left:
            raise Busy(f"container {name} runs: process {left[0]} is one of it", remedy=f"stop it, or kill {left[0]}")
    for file, what in (("monitors", "runs"), ("mounts", "is mounted")):
        fd = locks.open_file(f"{root}/locks/{file}")
        try:
            number = locks.first_locked(fd)
        finally:
            os.close(fd)
        if number is not None:
            who = f"container {names[number]}" if number in names else f"layer number {number}"
            raise Busy(f"{who} {what}", remedy="stop it, or end who has it; kill its monitor if that is not possible")


def _put_aside(root: str) -> None:
    """The database last, and without a log if it can be read: a kill in between parts nothing."""
    try:
        db = connect(f"{root}/db.sqlite", write=True)
        try:
            db.execute("pragma wal_checkpoint(truncate)")
        finally:
            db.close()
    except (StoreError, NoSpace, Busy, sqlite.Error) as error:
        log.info(f"the old database cannot be brought up to date: {error}")
    suffixes = ("-wal", "-shm", "")
    there = [suffix for suffix in suffixes if os.path.lexists(f"{root}/db.sqlite{suffix}")]
    n = 0
    while any(os.path.lexists(f"{root}/lost-{n}.sqlite{suffix}") for suffix in {"", *there}):
        n += 1
    for suffix in there:
        os.rename(f"{root}/db.sqlite{suffix}", f"{root}/lost-{n}.sqlite{suffix}")
    files.sync_directory(root)


def identity(root: str) -> str:
    """The store's own, after which its run directory is named; a new one if it is lost."""
    said = (records.read(f"{records.folder(root)}/store") or {}).get("store")
    good = isinstance(said, str) and len(said) == 32 and all(c in "0123456789abcdef" for c in said)
    return str(said) if good else os.urandom(16).hex()


def fill(store: Store, settings: Settings, *, strict: bool = False, rescuing: bool = False) -> Rebuilt:
    """Write down all that is found and has no row yet.

    strict: Conflict if a driver that has a record is not there, or cannot tell what it holds. rescuing: nothing but
    this database is written to. Else a driver's store without a record is asked for its identity in the only way there
    is, which makes a store."""
    lost: list[str] = []
    held = _drivers(store, settings, lost, strict=strict, init=not rescuing)
    found = 0
    for image, value in _images(store, lost):
        if images.exact(store, image.id) is not None:
            continue
        with _each(lost, f"image {image.id[7:19]}"), store.transaction() as tx:
            images.insert(tx, image)
            give_names(tx, image.id, value)
            found += 1
    _lists(store, lost)
    layers = _layers(store, held, lost)
    made = _containers(store, held, lost)
    kept = adopt_volumes(store)
    if not rescuing:
        _carry(store, settings, held, lost)
    _counters(store)
    return Rebuilt(len(held), found, layers, made, kept, tuple(lost))


@contextmanager
def _each(lost: list[str], what: str) -> Iterator[None]:
    """One record that is not what it should be is told, and the others are read."""
    try:
        yield
    except (ValueError, TypeError, KeyError, OverflowError, StoreError) as error:
        lost.append(f"the record of {what} is damaged: {type(error).__name__}: {error}")


# ---------------------------------------------------------------- drivers


def _drivers(
    store: Store, settings: Settings, lost: list[str], *, strict: bool, init: bool
) -> dict[str, list[api.StoredObject]]:
    """What each driver that can be opened holds."""
    held: dict[str, list[api.StoredObject]] = {}
    missing = []
    recorded = set(records.there(store.root, "drivers"))
    for name in sorted({*os.listdir(f"{store.root}/drivers"), *recorded}):
        root = f"{store.root}/drivers/{name}"
        if not os.path.isdir(root) or not os.listdir(root):
            if name in recorded:
                missing.append(f"driver {name} has a record and nothing at {root}: is its disk mounted?")
            continue
        try:
            held[name] = _objects(store, settings, name, root, init=init)
        except (CowshedError, StorageError, OSError, ValueError, TypeError, KeyError) as error:
            missing.append(f"driver {name} cannot tell what it holds, and its layers stay unknown: {error}")
    if missing and strict:
        raise Conflict("; ".join(missing), remedy="bring it back; or add --without-missing, and what it holds is lost")
    lost += missing
    return held


def _objects(store: Store, settings: Settings, name: str, root: str, *, init: bool) -> list[api.StoredObject]:
    plugin, where = registry.load(name)
    known = drivers.get(store, name)
    if known is not None:
        said: dict[str, Any] = {"store": known.store, "options": known.options}
    else:
        said = records.read(records.path(store.root, "drivers", name)) or {}
    fixed, identity = said.get("options"), said.get("store")
    chosen = options.again(plugin, fixed if isinstance(fixed, dict) else {}, settings.options_of(name))
    if not isinstance(identity, str) or not identity:
        if not init:
            raise StoreError("the record of its identity is lost")
        identity = plugin.init(root, chosen, make_host())  # the identity of the store that is there
    if not store.locks.exclude(f"driver.{name}", wait=_WAIT):
        raise Busy(f"the {name} store is being opened by another command", remedy="try again")
    try:
        driver = plugin.open(root, chosen, make_host(), store=identity)  # type: ignore[arg-type]
    finally:
        store.locks.let_go(f"driver.{name}")
    try:
        found = list(driver.scan())
    finally:
        driver.close()
    with store.transaction() as tx:
        drivers.insert(tx, DriverRow(name, identity, options.fixed(plugin, chosen), registry.as_dict(where)))
    return found


# ---------------------------------------------------------------- images


def _images(store: Store, lost: list[str]) -> list[tuple[ImageRow, dict[str, Any]]]:
    """From the records, and from manifests and configurations among the blobs."""
    found: dict[str, tuple[ImageRow, dict[str, Any]]] = {}
    for name in records.there(store.root, "images"):
        value = records.read(records.path(store.root, "images", name))
        image = image_of(value, f"sha256:{name}")
        if image is None or value is None:
            lost.append(f"the record of image {name[:12]} is damaged: pull the image again")
            continue
        found[image.id] = image, value
    return list(found.values())


def _lists(store: Store, lost: list[str]) -> None:
    for file in records.there(store.root, "lists"):
        found = list_of(records.read(f"{records.folder(store.root)}/lists/{file}"), file)
        if found is None:
            lost.append(f"the record of list {file[:12]} is damaged: cowshed manifest create begins it again")
        elif lists.get(store, found[0]) is None:
            with store.transaction() as tx:
                lists.put(tx, *found)


def list_of(value: Mapping[str, Any] | None, file: str) -> tuple[str, dict[str, Any]] | None:
    """The name and the document that the record of a list tells, if it is whole: where it lies follows from its
    name."""
    name, document = (value or {}).get("name"), (value or {}).get("document")
    if not isinstance(name, str) or records.file_of_list(name) != file or not isinstance(document, dict):
        return None
    index, origins = document.get("index"), document.get("from")
    entries = index.get("manifests") if isinstance(index, dict) else None
    if not isinstance(entries, list) or not isinstance(origins, dict):
        return None
    good = all(isinstance(entry, dict) and isinstance(entry.get("digest"), str) for entry in entries)
    return (name, document) if good else None


def give_names(tx: Transaction, image_id: str, value: Mapping[str, Any]) -> None:
    """Give an image the names of its record that no other has by now, and the origins."""
    digests = value.get("digests")
    known = digests if isinstance(digests, dict) else {}
    for name in value.get("names") or ():
        if isinstance(name, str) and not tx.execute("select 1 from tags where name = ?", name):
            images.tag(tx, name, image_id, str(known.get(name) or ""))
    origins.restore(tx, image_id, value.get("origins"))


def image_of(value: Mapping[str, Any] | None, id_: str) -> ImageRow | None:
    """The image that a record tells of, if it has its digests."""
    from cowshed.image.resolve import describe

    if value is None:
        return None
    try:
        manifest, config = records.bytes_of(value.get("manifest")), records.bytes_of(value.get("config"))
        parsed = manifests.parse_manifest(manifests.document(manifest, "the manifest"))
        image = describe(manifest, str(value.get("media_type") or manifests.OCI_MANIFEST), parsed, config)
        configs.check(manifests.document(config, "the configuration"), len(parsed.layers))
    except (ValueError, ImageError):
        return None
    if image.id != id_ or hashlib.sha256(config).hexdigest() != id_[7:] or wrong_with(image):
        return None
    pulled = value.get("pulled")
    return ImageRow(
        image.id, image.manifest_digest, image.manifest, image.media_type, image.config, image.diff_ids,
        image.chain_ids, image.blobs, image.platform, image.size, image.created,
        pulled if isinstance(pulled, int) else image.pulled,
    )  # fmt: skip


# ---------------------------------------------------------------- layers and containers


def _layers(store: Store, held: Mapping[str, Sequence[api.StoredObject]], lost: list[str]) -> int:
    """The committed layers that a record tells of and a driver holds, each after the one that it stands on."""
    values = {}
    for id_ in records.there(store.root, "layers"):
        value = records.read(records.path(store.root, "layers", id_))
        if value is not None:
            values[id_] = value
    there = _of_kind(held, "committed")
    count = 0
    for id_ in _parents_first(values):
        if (str(values[id_].get("driver")), id_) in there:
            with _each(lost, f"layer {id_}"), store.transaction() as tx:
                count += insert_layer(tx, id_, "committed", values[id_])
    for name, id_ in sorted(there):
        if rows.by_id(store, id_) is None:
            lost.append(f"layer {id_} of driver {name} has no record that fits: storage check tells of it")
    return count


def _of_kind(held: Mapping[str, Sequence[api.StoredObject]], kind: str) -> set[tuple[str, str]]:
    """(driver, id) of the layers of a kind that drivers hold."""
    return {
        (name, str(each.layer))
        for name, objects in held.items()
        for each in objects
        if each.layer is not None and each.kind.value == "layer"
        and each.layer_kind is not None and each.layer_kind.value == kind
    }  # fmt: skip


def _parents_first(values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    ordered: dict[str, None] = {}

    def add(id_: str) -> None:
        way: list[str] = []
        while id_ in values and id_ not in ordered and id_ not in way:
            way.append(id_)
            id_ = str(values[id_].get("parent"))
        ordered.update(dict.fromkeys(reversed(way)))

    for id_ in sorted(values):
        add(id_)
    return list(ordered)


def insert_layer(tx: Transaction, id_: str, kind: str, value: Mapping[str, Any]) -> bool:
    """Write the row of a layer as its record tells it; false if what it stands on is not there, or its number or its
    chain id is another's."""
    parent = value.get("parent")
    below = tx.execute("select number from layers where id = ?", parent) if parent is not None else [(None,)]
    number = value.get("number")
    if not below or not isinstance(number, int) or not 0 < number <= rows.LAST_NUMBER:
        return False
    if tx.execute("select 1 from layers where number = ? or id = ?", number, id_):
        return False
    chain = value.get("chain_id") if kind == "committed" else None
    if chain and tx.execute("select 1 from layers where driver = ? and chain_id = ?", value.get("driver"), chain):
        chain = None  # a twin has it
    rows.restore(
        tx, number, id_, str(value["driver"]), kind, below[0][0], chain_id=chain,
        diff_id=value.get("diff_id") if kind == "committed" else None, data=value.get("data") or {},
        created=int(value.get("created") or 0),
    )  # fmt: skip
    return True


def _containers(store: Store, held: Mapping[str, Sequence[api.StoredObject]], lost: list[str]) -> int:
    count = 0
    there = _of_kind(held, "active")
    for id_ in sorted(os.listdir(f"{store.root}/containers")):
        if containers.exact(store, id_) is not None:
            continue
        value = records.read(records.path(store.root, "containers", id_))
        if value is None:
            lost.append(f"containers/{id_} has no record: what was asked for it is lost")
            continue
        if (str(value.get("driver")), str(value.get("layer"))) not in there:
            lost.append(f"container {value.get('name')} has lost its layer")
            continue
        with _each(lost, f"container {id_[:12]}"), store.transaction() as tx:
            why = _obstacle(tx, id_, value)
            if not why and restore_container(tx, id_, value):
                count += 1
            else:
                lost.append(f"container {value.get('name')} cannot be written down: {why or 'its layer is not known'}")
    return count


def _obstacle(tx: Transaction, id_: str, value: Mapping[str, Any]) -> str:
    """Why the rows of a container cannot be written as its record tells them, "" if nothing is seen."""
    number = value.get("number")
    if not isinstance(number, int) or not isinstance(value.get("config"), dict):
        return "its record is damaged"
    for sql, what in (
        ("select id from containers where id = ?", id_), ("select id from containers where number = ?", number),
        ("select id from containers where name = ?", str(value.get("name"))),
    ):  # fmt: skip
        for (other,) in tx.execute(sql, what):
            return f"{what} is container {other[:12]} already"
    for (other,) in tx.execute("select id from layers where number = ? and id != ?", number, str(value.get("layer"))):
        return f"its number {number} is that of layer {other}"
    parent = value.get("parent")
    if parent is not None and not tx.execute("select 1 from layers where id = ?", parent):
        return f"layer {parent}, which it stands on, is lost"
    return ""


def restore_container(tx: Transaction, id_: str, value: Mapping[str, Any]) -> bool:
    """Write the rows of a container and of its layer as its record tells them; false if that is not possible."""
    layer = str(value.get("layer"))
    if _obstacle(tx, id_, value):
        return False
    if not tx.execute("select 1 from layers where id = ?", layer) and not insert_layer(tx, layer, "active", value):
        return False
    number, asked, image = value["number"], value["config"], value.get("image")
    conversions.found_again(tx, id_, number)
    if image is not None and not tx.execute("select 1 from images where id = ?", image):
        image = None
    containers.insert(
        tx,
        ContainerRow(
            number, id_, str(value.get("name")), image, str(value.get("reference") or ""), str(value["driver"]),
            "created", int(value.get("created") or 0), asked, labels=dict(value.get("labels") or {}),
            runtime=dict(value.get("runtime") or {"name": "native"}),
        ),
    )  # fmt: skip
    for kind, source, _, said in asked.get("mounts") or ():
        if kind == "volume":
            volumes.insert(tx, VolumeRow(source, time.time_ns(), "anonymous" in said, {}))
            volumes.use(tx, source, number)
    return True


def _carry(store: Store, settings: Settings, held: Mapping[str, Sequence[api.StoredObject]], lost: list[str]) -> None:
    """A conversion that waits to be accepted or rolled back, of which no record tells: from the old database, if that
    can be read. With the first layers of containers, whose records tell of the second ones."""
    try:
        old = making.read_copy(settings.root, settings.run_root)
    except (StoreError, NoSpace):
        return
    try:
        conversion, done = conversions.get(old), conversions.list_all(old)
        if conversion is None:
            return
        there = _of_kind(held, "active")
        noted = 0
        with store.transaction() as tx:
            for each in done:
                row = rows.get(old, each.layer)
                twin = _twin(tx, old, each, conversion.target)
                if row is None or twin is None:
                    continue
                if each.container is not None and (row.driver, row.id) in there:
                    below = rows.get(old, row.parent) if row.parent is not None else None
                    insert_layer(tx, row.id, "active", {
                        "driver": row.driver, "number": row.number, "parent": below.id if below is not None else None,
                        "data": row.data, "created": row.created,
                    })  # fmt: skip
                if tx.execute("select 1 from layers where number = ? and id = ?", row.number, row.id):
                    conversions.note(tx, row.number, twin, made=each.made, digest=each.digest, container=each.container)
                    noted += 1
            if noted and tx.execute("select 1 from drivers where name = ?", conversion.target):
                conversions.begin(tx, conversion)
            else:
                conversions.end(tx)
        if noted < len(done):
            lost.append(f"of the conversion to {conversion.target} {len(done) - noted} layers cannot be rolled back")
    except (StoreError, ValueError, TypeError) as error:
        lost.append(f"whether a conversion waits to be accepted: the old database cannot tell: {error}")
    finally:
        old.close()


def _twin(tx: Transaction, old: Store, each: conversions.Converted, target: str) -> int | None:
    """The number of what takes the place of a converted layer, if it is there: of a container's its own, whose rows the
    old database may have lost."""
    if each.container is not None:
        found = tx.execute("select number from containers where id = ? and driver = ?", each.container, target)
        return found[0][0] if found else None
    row = rows.get(old, each.twin) if each.twin is not None else None
    there = row is not None and tx.execute("select 1 from layers where number = ? and id = ?", row.number, row.id)
    return row.number if row is not None and there else None


def adopt_volumes(store: Store) -> int:
    """Write down the volumes whose directories are there; how many there are."""
    from cowshed.check.places import is_anonymous

    with store.transaction() as tx:
        for name in sorted(os.listdir(f"{store.root}/volumes")):
            volumes.insert(tx, VolumeRow(name, time.time_ns(), is_anonymous(name), {}))
    return len(volumes.list_all(store))


def _counters(store: Store) -> None:
    """Numbers are given away behind the last one that anything has, or that was noted."""
    noted, beyond = store.noted_numbers()
    highest = int(store.query("select max(number) from layers")[0][0] or 0)
    with store.transaction() as tx:
        tx.execute("update meta set value = ? where key = 'next'", max(beyond, highest + 1))
        tx.execute("insert or replace into meta values ('given', ?)", max(noted, highest))
