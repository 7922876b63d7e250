"""Everything that can still be read, written elsewhere: for a store that is damaged, or on a disk that has become
read-only.

    DIR/images                  an OCI layout (image-spec image-layout.md), which `cowshed load -i` and others read
    DIR/containers/NAME.tar     the whole tree of a container, as its archive
    DIR/containers/NAME.json    what it was asked for, and its OCI configuration
    DIR/containers/ID.json      the same of one that nothing tells the layer of
    DIR/volumes/NAME.tar        what a volume holds
    DIR/layers/DRIVER.ID.tar    what a layer holds that belongs to none of these; of one whose parent is not known, and
                                that lies in a directory of its own, what it changed

The store is not written to. Its database is read from a copy, which is completed by what lies beside it; one that
cannot be read is made again from that in a scratch directory. A file that is not whole is called NAME.part.
"""

from __future__ import annotations

import hashlib
import os

from cowshed.check import rebuild
from cowshed.check.blobs import is_whole
from cowshed.check.files import is_store
from cowshed.container import state
from cowshed.errors import Conflict, CowshedError, StoreError
from cowshed.image import manifest as manifests
from cowshed.image.archives import Archives
from cowshed.layers import archive, changes
from cowshed.layers.driver import open_driver
from cowshed.layers.layers import Layers
from cowshed.state import containers, drivers, images, making, records
from cowshed.state import layers as rows
from cowshed.state import volumes as volume_rows
from cowshed.state.locks import Locks
from cowshed.storage import api
from cowshed.storage.errors import StorageError
from cowshed.storage.record import record
from cowshed_linux import files
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from cowshed.engine import Engine
    from cowshed.state.rows import ContainerRow, ImageRow
    from cowshed.state.store import Store


@record(frozen=True)
class Saved:
    """One thing that was to be saved: error is "" if it is whole."""

    kind: str  # image, container, volume, layer, driver
    name: str
    error: str


def rescue(engine: Engine, target: str, told: Callable[[str], None] = lambda text: None) -> Iterator[Saved]:
    """Write what can be read to the directory target, which must be empty; each thing as it is done.

    Raises Conflict if something lies at target, StoreError if nothing can be read, OSError if it cannot be written.
    """
    if not is_store(engine.settings.root):
        raise StoreError(f"there is no store at {engine.settings.root}", remedy="name the right --root")
    os.makedirs(target, mode=0o700, exist_ok=True)
    if os.listdir(target):
        raise Conflict(f"{target} is not empty", remedy="name a new directory")
    settings = engine.settings
    scratch = f"{settings.run_root}/rescue.{os.getpid()}"
    os.makedirs(f"{scratch}/locks", mode=0o700, exist_ok=True)
    try:
        store = _opened(engine, scratch, told)
        try:
            yield from _Rescue(engine, store, target, told).run()
        finally:
            store.close()
    finally:
        from cowshed.storage.kit.trees import remove_tree

        remove_tree(scratch)


def _opened(engine: Engine, scratch: str, told: Callable[[str], None]) -> Store:
    """The store, by a copy of its database, or by one that is made again."""
    settings = engine.settings
    try:
        store = making.read_copy(settings.root, settings.run_root)
        wrong = [text for (text,) in store.query("pragma integrity_check") if text != "ok"]
        if wrong:
            store.close()
            raise StoreError(f"the database is damaged: {wrong[0]}")
        store.writable, store.recording = True, False  # it is this command's alone
    except StoreError as error:
        told(f"{error}: it is made again from what lies beside it")
        store = making.make_again(settings.root, settings.run_root, rebuild.identity(settings.root), beside=scratch)
    try:
        if not os.access(f"{settings.root}/locks", os.W_OK):  # a disk that is read-only: nobody else can work there
            store.locks = Locks(f"{scratch}/locks")
        for line in rebuild.fill(store, settings, rescuing=True).lost:
            told(line)
    except BaseException:
        store.close()
        raise
    return store


class _Rescue:
    def __init__(self, engine: Engine, store: Store, target: str, told: Callable[[str], None]) -> None:
        self._engine, self._store, self._target, self._told = engine, store, target, told
        self._layers: dict[str, Layers] = {}
        self._blobs = Archives(store, self._held)
        self._written: dict[str, int] = {}  # digest → size of what the layout has

    def run(self) -> Iterator[Saved]:
        for folder in ("images/blobs/sha256", "containers", "volumes"):
            os.makedirs(f"{self._target}/{folder}", mode=0o700)
        self._listed: list[dict[str, Any]] = []
        for image, names in images.list_all(self._store):
            yield self._saved("image", names[0] if names else image.id, self._image, image, names)
        index = {"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "manifests": self._listed}
        _write(f"{self._target}/images/index.json", dumps(index).encode())
        _write(f"{self._target}/images/oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        for row in containers.list_all(self._store):
            yield self._saved("container", row.name, self._container, row)
        known = {row.id for row in containers.list_all(self._store)}
        for id_ in sorted(os.listdir(f"{self._store.root}/containers")):
            if id_ not in known:
                yield self._saved("container", id_, self._container_alone, id_)
        for volume in volume_rows.list_all(self._store):
            yield self._saved("volume", volume.name, self._volume, volume.name)
        for name in drivers.names(self._store):
            yield from self._of_nobody(name)
        for folder in ("images/blobs/sha256", "images", "containers", "volumes", "layers", ""):
            if os.path.isdir(f"{self._target}/{folder}"):
                files.sync_directory(f"{self._target}/{folder}")

    def _of_nobody(self, driver: str) -> Iterator[Saved]:
        """The layers that a driver holds and no image, container, conversion or running command has."""
        try:
            held = self._held(driver)
            objects = [found for found in held.driver.scan() if found.kind is api.ObjectKind.LAYER and found.layer]
        except (CowshedError, StorageError, OSError) as error:
            yield Saved("driver", driver, f"what it holds that nobody knows cannot be told: {error}")
            return
        owned = {
            id_
            for (id_,) in self._store.query(
                "select id from layers where kind = 'committed' or number in (select number from containers) "
                "or number in (select number from journal) or number in (select layer from converted)"
            )
        }
        for found in sorted(objects, key=lambda each: str(each.layer)):
            if found.layer not in owned:
                os.makedirs(f"{self._target}/layers", mode=0o700, exist_ok=True)
                yield self._saved("layer", str(found.layer), self._layer_alone, held, found)

    def _saved(self, kind: str, name: str, work: Callable[..., None], *what: Any) -> Saved:
        self._told(f"{kind} {name}")
        try:
            work(*what)
        except (CowshedError, StorageError, OSError, ValueError, TypeError, KeyError) as error:
            return Saved(kind, name, str(error))
        return Saved(kind, name, "")

    def _held(self, driver: str) -> Layers:
        if driver not in self._layers:
            opened = open_driver(self._store, driver, self._engine.settings.options_of(driver))
            self._layers[driver] = Layers(self._store, driver, opened)
        return self._layers[driver]

    # ------------------------------------------------------------ images

    def _image(self, image: ImageRow, names: list[str]) -> None:
        """An image's blobs and its entries of the layout's index. A layer whose archive is lost is packed again from a
        driver: the image has another id then."""
        described, diff_ids = [], list(image.diff_ids)
        for n, (digest, media_type, size) in enumerate(image.blobs):
            if is_whole(self._blobs, digest):
                self._put(digest, size, self._blobs.read(digest))
            else:
                digest, size = self._packed(image.chain_ids[n], digest)
                diff_ids[n], media_type = digest, manifests.OCI_LAYER
            described.append({"mediaType": media_type, "digest": digest, "size": size})
        manifest, config = image.manifest, image.config
        if diff_ids != list(image.diff_ids):
            value = loads(config)
            value["rootfs"]["diff_ids"] = diff_ids
            config = dumps(value).encode()
            about = {"mediaType": manifests.OCI_CONFIG, "digest": _digest(config), "size": len(config)}
            made = {"schemaVersion": 2, "mediaType": manifests.OCI_MANIFEST, "config": about, "layers": described}
            manifest = dumps(made).encode()
        for data in (config, manifest):
            self._put(_digest(data), len(data), [data])
        kind = image.media_type if manifest is image.manifest else manifests.OCI_MANIFEST
        entry = {"mediaType": kind, "digest": _digest(manifest), "size": len(manifest)}
        named = [{**entry, "annotations": {"org.opencontainers.image.ref.name": name}} for name in names]
        self._listed += named or [entry]

    def _packed(self, chain_id: str, lost: str) -> tuple[str, int]:
        """The archive of a layer, from the first driver that can read it: its digest and size."""
        from cowshed.layers.difference import LayerDifference

        why = "no driver has the layer"
        for name in [row[0] for row in self._store.query("select name from drivers order by name")]:
            try:
                row = rows.by_chain(self._store, name, chain_id)
                if row is None:
                    continue
                held = self._held(name)
                with LayerDifference(held, held.load(row.number)) as difference:
                    return self._new(difference.stream())
            except (CowshedError, StorageError, OSError) as error:
                why = str(error)
        raise StoreError(f"blob {lost[:19]} is lost, and so is its layer: {why}")

    def _new(self, pieces: Iterator[bytes]) -> tuple[str, int]:
        path, found = f"{self._target}/images/blobs/sha256/new", hashlib.sha256()

        def seen() -> Iterator[bytes]:
            for piece in pieces:
                found.update(piece)
                yield piece

        size = _whole(path, seen())
        digest = f"sha256:{found.hexdigest()}"
        os.rename(path, f"{self._target}/images/blobs/sha256/{found.hexdigest()}")
        self._written[digest] = size
        return digest, size

    def _put(self, digest: str, size: int, pieces: Any) -> None:
        if digest not in self._written:
            _whole(f"{self._target}/images/blobs/{digest.replace(':', '/')}", pieces)
            self._written[digest] = size

    # ------------------------------------------------------------ containers and volumes

    def _container(self, row: ContainerRow) -> None:
        self._about(row.id, row.name, containers.record_of(row, "", None))
        if state.alive(f"{self._store.run}/c/{row.id[:32]}"):
            raise Conflict(f"it runs: cowshed stop {row.name}, and save again; or cowshed cp")
        held = self._held(row.driver)
        with held.mounted(held.load(row.number), read_only=True) as root:
            self._tree(root, f"{self._target}/containers/{row.name}.tar")

    def _container_alone(self, id_: str) -> None:
        self._about(id_, id_, records.read(records.path(self._store.root, "containers", id_)))
        raise StoreError("its layer is not known: if it is there it is among the layers; what was asked for is saved")

    def _about(self, id_: str, name: str, record: dict[str, Any] | None) -> None:
        about = {"record": record, "configuration": None}
        try:
            with open(f"{self._store.root}/containers/{id_}/config.json", "rb") as file:
                about["configuration"] = loads(file.read())
        except (OSError, ValueError) as error:
            self._told(f"container {name}: its configuration cannot be read: {error}")
        _write(f"{self._target}/containers/{name}.json", dumps(about).encode())

    def _layer_alone(self, held: Layers, found: api.StoredObject) -> None:
        """Its parent is known if the driver tells it, or its row."""
        assert found.layer is not None
        target = f"{self._target}/layers/{held.name}.{found.layer}.tar"
        row = rows.by_id(self._store, found.layer)
        below = rows.by_id(self._store, found.parent) if found.parent is not None else None
        if row is not None:
            layer = held.load(row.number)
        else:
            parent = held.load(below.number) if below is not None else None
            kind = found.layer_kind or api.Kind.ACTIVE
            layer = api.Layer(found.layer, found.number or 0, kind, parent, found.data)
        if row is None and below is None and api.has_diff_tree(held.driver):
            fd = os.open(held.driver.diff_tree(layer).directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._tree(fd, target)
            finally:
                os.close(fd)
        else:
            with held.mounted(layer, read_only=True) as root:
                self._tree(root, target)

    def _volume(self, name: str) -> None:
        fd = os.open(f"{self._store.root}/volumes/{name}/_data", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._tree(fd, f"{self._target}/volumes/{name}.tar")
        finally:
            os.close(fd)

    def _tree(self, root: int, path: str) -> None:
        _whole(path, archive.stream(changes.of_trees(None, root), root))


def _whole(path: str, pieces: Iterable[bytes]) -> int:
    """Write a file that has its name when it is whole and durable; how many bytes it has."""
    with open(f"{path}.part", "wb") as file:
        for piece in pieces:
            file.write(piece)
        size = file.tell()
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.part", path)
    return size


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _write(path: str, data: bytes) -> None:
    files.write_atomically(path, data)
