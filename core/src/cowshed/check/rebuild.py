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

from cowshed.check.database import wrong_with
from cowshed.errors import Busy, CowshedError, ImageError, StoreError
from cowshed.image import config as configs
from cowshed.image import manifest as manifests
from cowshed.layers.host import make as make_host
from cowshed.state import containers, drivers, images, making, records, volumes
from cowshed.state import layers as rows
from cowshed.state.rows import ContainerRow, DriverRow, ImageRow, VolumeRow
from cowshed.storage import options, registry
from cowshed.storage.errors import StorageError
from cowshed.storage.record import record
from cowshed_linux import locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from cowshed.config.settings import Settings
    from cowshed.state.store import Store, Transaction
    from cowshed.storage import api


@record(frozen=True)
class Rebuilt:
    """What was found again, and what was lost, a line each."""

    drivers: int
    images: int
    layers: int
    containers: int
    volumes: int
    lost: tuple[str, ...]


def rebuild(settings: Settings) -> Rebuilt:
    """Make STORE/db.sqlite again; the old one is kept beside it as lost-N.sqlite. Busy if other commands write to the
    store or a container of it runs, StoreError if nothing is left to make it from."""
    root = settings.root
    for name in ("drivers", "blobs", "containers"):
        if not os.path.isdir(f"{root}/{name}"):
            raise StoreError(f"{root} is no store: it has no {name}", remedy="name the right --root")
    os.makedirs(f"{root}/locks", mode=0o700, exist_ok=True)
    fd = locks.open_file(f"{root}/locks/store")
    try:
        if not locks.lock_file(fd, wait=False):
            raise Busy(f"other commands use the store at {root}", remedy="try again when they have ended")
        _refuse_running(root)
        _put_aside(root)
        os.close(fd)
        fd = -1
        store = making.make_again(root, settings.run_root, identity(root))
        try:
            return fill(store, settings)
        finally:
            store.close()
    finally:
        if fd >= 0:
            os.close(fd)


def _refuse_running(root: str) -> None:
    """A monitor holds its byte for life (`cowshed.state.locks`)."""
    fd = locks.open_file(f"{root}/locks/monitors")
    try:
        for id_ in os.listdir(f"{root}/containers"):
            value = records.read(records.path(root, "containers", id_))
            if value is not None and isinstance(value.get("number"), int) and locks.byte_is_locked(fd, value["number"]):
                raise Busy(f"container {value.get('name')} runs", remedy="end it first: kill its monitor")
    finally:
        os.close(fd)


def _put_aside(root: str) -> None:
    for n in range(1 << 16):
        if not os.path.lexists(f"{root}/lost-{n}.sqlite"):
            break
    for suffix in ("", "-wal", "-shm"):
        try:
            os.rename(f"{root}/db.sqlite{suffix}", f"{root}/lost-{n}.sqlite{suffix}")
        except FileNotFoundError:
            continue


def identity(root: str) -> str:
    """The store's own, after which its run directory is named; a new one if it is lost."""
    said = (records.read(f"{records.folder(root)}/store") or {}).get("store")
    good = isinstance(said, str) and len(said) == 32 and all(c in "0123456789abcdef" for c in said)
    return str(said) if good else os.urandom(16).hex()


def fill(store: Store, settings: Settings) -> Rebuilt:
    """Write down all that is found."""
    lost: list[str] = []
    opened = _drivers(store, settings, lost)
    found = {image.id: (image, names) for image, names in _images(store, lost)}
    with store.transaction() as tx:
        for image, names in found.values():
            images.insert(tx, image)
            for name in names:
                if not tx.execute("select 1 from tags where name = ?", name):
                    images.tag(tx, name, image.id)
    layers = _layers(store, opened, lost)
    made = _containers(store, opened, lost)
    kept = adopt_volumes(store)
    _counters(store)
    for driver in opened.values():
        driver.close()
    return Rebuilt(len(opened), len(found), layers, made, kept, tuple(lost))


# ---------------------------------------------------------------- drivers


def _drivers(store: Store, settings: Settings, lost: list[str]) -> dict[str, api.Driver]:
    opened: dict[str, api.Driver] = {}
    for name in sorted(os.listdir(f"{store.root}/drivers")):
        root = f"{store.root}/drivers/{name}"
        if not os.path.isdir(root) or not os.listdir(root):
            continue
        try:
            plugin, where = registry.load(name)
            said = records.read(records.path(store.root, "drivers", name)) or {}
            fixed = said.get("options")
            chosen = options.check(plugin, {**(fixed if isinstance(fixed, dict) else {}), **settings.options_of(name)})
            identity = plugin.init(root, chosen, make_host())  # the identity of the store that is there
            driver = plugin.open(root, chosen, make_host(), store=identity)
        except (CowshedError, StorageError, OSError) as error:
            lost.append(f"driver {name} cannot be opened, and its layers stay unknown: {error}")
            continue
        with store.transaction() as tx:
            drivers.insert(tx, DriverRow(name, identity, options.fixed(plugin, chosen), registry.as_dict(where)))
        opened[name] = driver
    return opened


# ---------------------------------------------------------------- images


def _images(store: Store, lost: list[str]) -> list[tuple[ImageRow, list[str]]]:
    """From the records, and from manifests and configurations among the blobs."""
    found: dict[str, tuple[ImageRow, list[str]]] = {}
    for name in records.there(store.root, "images"):
        value = records.read(records.path(store.root, "images", name))
        image = image_of(value, f"sha256:{name}")
        if image is None or value is None:
            lost.append(f"the record of image {name[:12]} is damaged: pull the image again")
            continue
        found[image.id] = image, [n for n in value.get("names") or () if isinstance(n, str)]
    return list(found.values())


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


def _layers(store: Store, opened: Mapping[str, api.Driver], lost: list[str]) -> int:
    """The committed layers that a record tells of and a driver holds, each after the one that it stands on."""
    values = {}
    for id_ in records.there(store.root, "layers"):
        value = records.read(records.path(store.root, "layers", id_))
        if value is not None:
            values[id_] = value
    held = {
        (name, found.layer): found
        for name, driver in opened.items()
        for found in driver.scan()
        if found.layer is not None and found.kind.value == "layer"
    }
    count = 0
    for id_ in _parents_first(values):
        found = held.get((str(values[id_].get("driver")), id_))  # type: ignore[arg-type]
        if found is None or found.layer_kind is None or found.layer_kind.value != "committed":
            continue
        with store.transaction() as tx:
            count += insert_layer(tx, id_, "committed", values[id_])
    for (name, id_), found in sorted(held.items(), key=lambda item: item[0]):
        if found.layer_kind is not None and found.layer_kind.value == "committed" and rows.by_id(store, id_) is None:
            lost.append(f"layer {id_} of driver {name} has no record: storage repair removes it")
    return count


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


def _containers(store: Store, opened: Mapping[str, api.Driver], lost: list[str]) -> int:
    count = 0
    held = {
        (name, found.layer)
        for name, driver in opened.items()
        for found in driver.scan()
        if found.layer_kind is not None and found.layer_kind.value == "active" and found.kind.value == "layer"
    }
    for id_ in sorted(os.listdir(f"{store.root}/containers")):
        value = records.read(records.path(store.root, "containers", id_))
        if value is None:
            lost.append(f"containers/{id_} has no record: what was asked for it is lost")
            continue
        if (value.get("driver"), value.get("layer")) not in held:
            lost.append(f"container {value.get('name')} has lost its layer")
            continue
        with store.transaction() as tx:
            if restore_container(tx, id_, value):
                count += 1
            else:
                lost.append(f"container {value.get('name')} cannot be written down: what it stands on is lost")
    return count


def restore_container(tx: Transaction, id_: str, value: Mapping[str, Any]) -> bool:
    """Write the rows of a container and of its layer as its record tells them."""
    layer, number = str(value.get("layer")), value.get("number")
    if not tx.execute("select 1 from layers where id = ?", layer) and not insert_layer(tx, layer, "active", value):
        return False
    name, asked = str(value.get("name")), value.get("config")
    if not isinstance(number, int) or not isinstance(asked, dict):
        return False
    if tx.execute("select 1 from containers where name = ? or id = ? or number = ?", name, id_, number):
        return False
    image = value.get("image")
    if image is not None and not tx.execute("select 1 from images where id = ?", image):
        image = None
    containers.insert(
        tx,
        ContainerRow(
            number, id_, name, image, str(value.get("reference") or ""), str(value["driver"]), "created",
            int(value.get("created") or 0), asked, labels=dict(value.get("labels") or {}),
        ),
    )  # fmt: skip
    for kind, source, _, said in asked.get("mounts") or ():
        if kind == "volume":
            volumes.insert(tx, VolumeRow(source, time.time_ns(), "anonymous" in said, {}))
            volumes.use(tx, source, number)
    return True


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


def by_record(store: Store, kind: str, name: str, insert: Callable[[Transaction, Mapping[str, Any]], bool]) -> bool:
    """Write a row that was lost as its record tells it; false if that is not possible."""
    value = records.read(records.path(store.root, kind, name))
    if value is None:
        return False
    with store.transaction() as tx:
        return insert(tx, value)
