"""Everything that can still be read, written elsewhere: for a store that is damaged, or on a disk that has become
read-only.

    DIR/images                  an OCI layout (image-spec image-layout.md), which `cowshed load -i` and others read
    DIR/containers/NAME.tar     the whole tree of a container, as its archive
    DIR/containers/NAME.json    what it was asked for, and its OCI configuration
    DIR/volumes/NAME.tar        what a volume holds

The store is not written to. Its database is read from a copy; one that cannot be read is made again, from what lies
beside it, in a scratch directory.
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
from cowshed.image.blobs import BlobStore
from cowshed.layers import archive, changes
from cowshed.layers.driver import open_driver
from cowshed.layers.layers import Layers
from cowshed.state import containers, images, making
from cowshed.state import layers as rows
from cowshed.state import volumes as volume_rows
from cowshed.state.locks import Locks
from cowshed.storage.errors import StorageError
from cowshed.storage.record import record
from cowshed_linux import files
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from cowshed.engine import Engine
    from cowshed.state.rows import ContainerRow, ImageRow
    from cowshed.state.store import Store


@record(frozen=True)
class Saved:
    """One thing that was to be saved: error is "" if it is whole."""

    kind: str  # image, container, volume
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
    except StoreError as error:
        told(f"{error}: it is made again from what lies beside it")
        store = making.make_again(settings.root, settings.run_root, rebuild.identity(settings.root), beside=scratch)
        for line in rebuild.fill(store, settings, init=False).lost:
            told(line)
    if not os.access(f"{settings.root}/locks", os.W_OK):  # a disk that is read-only: nobody else can work there
        store.locks = Locks(f"{scratch}/locks")
    return store


class _Rescue:
    def __init__(self, engine: Engine, store: Store, target: str, told: Callable[[str], None]) -> None:
        self._engine, self._store, self._target, self._told = engine, store, target, told
        self._blobs = BlobStore(store.root)
        self._layers: dict[str, Layers] = {}
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
        for volume in volume_rows.list_all(self._store):
            yield self._saved("volume", volume.name, self._volume, volume.name)

    def _saved(self, kind: str, name: str, work: Callable[..., None], *what: Any) -> Saved:
        self._told(f"{kind} {name}")
        try:
            work(*what)
        except (CowshedError, StorageError, OSError, ValueError) as error:
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
        with open(path, "wb") as file:
            for piece in pieces:
                found.update(piece)
                file.write(piece)
            size = file.tell()
        digest = f"sha256:{found.hexdigest()}"
        os.rename(path, f"{self._target}/images/blobs/sha256/{found.hexdigest()}")
        self._written[digest] = size
        return digest, size

    def _put(self, digest: str, size: int, pieces: Any) -> None:
        if digest not in self._written:
            with open(f"{self._target}/images/blobs/{digest.replace(':', '/')}", "wb") as file:
                for piece in pieces:
                    file.write(piece)
            self._written[digest] = size

    # ------------------------------------------------------------ containers and volumes

    def _container(self, row: ContainerRow) -> None:
        folder = f"{self._store.root}/containers/{row.id}"
        about = {"record": containers.record_of(row, "", None), "configuration": None}
        try:
            with open(f"{folder}/config.json", "rb") as file:
                about["configuration"] = loads(file.read())
        except (OSError, ValueError) as error:
            self._told(f"container {row.name}: its configuration cannot be read: {error}")
        _write(f"{self._target}/containers/{row.name}.json", dumps(about).encode())
        if state.alive(f"{self._store.run}/c/{row.id[:32]}"):
            raise Conflict(f"it runs: cowshed stop {row.name}, and save again; or cowshed cp")
        held = self._held(row.driver)
        with held.mounted(held.load(row.number), read_only=True) as root:
            self._tree(root, f"{self._target}/containers/{row.name}.tar")

    def _volume(self, name: str) -> None:
        fd = os.open(f"{self._store.root}/volumes/{name}/_data", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._tree(fd, f"{self._target}/volumes/{name}.tar")
        finally:
            os.close(fd)

    def _tree(self, root: int, path: str) -> None:
        with open(path, "wb") as file:
            for piece in archive.stream(changes.of_trees(None, root), root):
                file.write(piece)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _write(path: str, data: bytes) -> None:
    files.write_atomically(path, data, durable=False)
