"""A damaged or lost layer made again in its place, of its archive; and an archive fetched again from its registry.

In its place means: under the same id and number, so that the rows of layers and containers that stand on it stay true.
Nothing that stands on it may be mounted meanwhile: of overlay and aufs, whose mounts look into the layer, because they
would lose their files; of the others, which have their own copy of it, because what lies below may change (rule E1 of
`cowshed.storage.api`). Children of a driver that copies or snapshots keep what they have: each is checked by itself.
"""

from __future__ import annotations

import os

from cowshed.check.blobs import is_whole
from cowshed.check.contents import archive_of
from cowshed.errors import Busy, CowshedError, ImageError, NotFound
from cowshed.image.archives import Archives
from cowshed.image.blobs import BlobStore
from cowshed.image.manifest import Descriptor
from cowshed.layers import unused
from cowshed.layers.faults import step
from cowshed.state import images
from cowshed.state import layers as rows
from cowshed.state.leases import Lease
from cowshed.storage import api
from cowshed.storage.errors import InUse, LayerId, NoSpace, StorageError
from cowshed_linux import locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from cowshed.engine import Engine
    from cowshed.image.progress import Progress
    from cowshed.layers.layers import Layers
    from cowshed.state.rows import LayerRow
    from cowshed.state.store import Store

_WAIT = 15.0  # seconds for others who work on the layer
_PURGE_SECONDS = 600.0


def make_again(engine: Engine, row: LayerRow, progress: Progress) -> None:
    """Make a committed layer of an image again. It is not trusted until that is done: whoever needs it meanwhile, or
    after this process has died, makes another one.

    Raises InUse, naming who has it or what stands on it mounted; ImageError or NotFound if its archive is lost and
    cannot be fetched; NoSpace.
    """
    store = engine.store
    layers = engine.layers(row.driver)
    digest = archive_of(store, row)
    if not digest or row.diff_id is None:
        raise NotFound(f"no image lists the archive of layer {row.id[:12]} any more")
    with Lease(store, [digest]):
        if not is_whole(BlobStore(store.root), digest):
            fetch(engine, digest, progress)
        held = _claim(layers, row)
        try:
            with store.transaction() as tx:
                rows.distrust(tx, row.number)
            step("rebuild.distrusted")
            _make(layers, row, digest, row.diff_id, engine.settings.durability)
        finally:
            for name, byte in reversed(held):
                store.locks.release(name, byte)


def _claim(layers: Layers, row: LayerRow) -> list[tuple[str, int]]:
    """Take the bytes of the layer, and prove that neither it nor what stands on it is mounted."""
    store = layers.store
    held: list[tuple[str, int]] = []
    try:
        store.locks.take("layers", row.number, wait=_WAIT, what=f"layer {row.id[:12]}")
        held.append(("layers", row.number))
        for number in (*reversed(_above(store, row.number)), row.number):  # containers first: they have names
            try:
                unused.prove(store, layers.load(number), layers.driver)
            except InUse as error:
                names = store.query("select name from containers where number = ?", number)
                remedy = f"stop container {names[0][0]}" if names else error.remedy
                raise InUse(f"it cannot be made again now: {error}", layer=LayerId(row.id), remedy=remedy) from None
            held.append(("mounts", number))
    except BaseException:
        for name, byte in reversed(held):
            store.locks.release(name, byte)
        raise
    return held


def _above(store: Store, number: int) -> list[int]:
    """All layers that stand on one."""
    return [
        found
        for (found,) in store.query(
            "with recursive c(number) as (select number from layers where parent = ? "
            "union all select l.number from layers l join c on l.parent = c.number) select number from c",
            number,
        )
    ]


def _make(layers: Layers, row: LayerRow, digest: str, diff_id: str, durability: str) -> None:
    from cowshed.layers.unpack import unpack

    blobs, store = BlobStore(layers.store.root), layers.store
    old = layers.load(row.number)
    _require_room(layers, old, max(blobs.size(digest), 0))
    _purge(layers, row)  # before anything is gone: nobody else is at it
    layers.erase(old)
    _purge(layers, row)  # what is left of it has the same number (rule E3)
    step("rebuild.erased")
    active = api.Layer(LayerId(row.id), row.number, api.Kind.ACTIVE, old.parent)
    active = layers.prepare(active, api.LayerOptions(durable=False))
    store.locks.release("mounts", row.number)
    try:
        with layers.mounted(active, read_only=False) as tree:
            unpack(blobs.read(digest), tree, diff_id=diff_id, trailing=True)
    finally:
        store.locks.take("mounts", row.number, wait=_WAIT)
    step("rebuild.applied")
    durable = durability == "commit"
    new = api.Layer(active.id, active.number, api.Kind.COMMITTED, active.parent, active.data)
    data = layers.driver.commit(active, new, api.Durability.COMMIT if durable else api.Durability.NONE)
    step("rebuild.committed")
    with store.transaction() as tx:
        rows.set_committed(
            tx, row.number, driver=layers.name, chain_id=row.chain_id, diff_id=diff_id, data=data, durable=durable
        )
        rows.trust(tx, row.number)


def _require_room(layers: Layers, old: api.Layer, least: int) -> None:
    """Refuse to erase a layer where the new one cannot fit, which takes what the old one takes, and not less than its
    archive. NoSpace."""
    free = layers.driver.health().data_free
    try:
        needed = max(least, layers.usage(old).own)
    except (StorageError, OSError):
        needed = least  # it is so damaged that it cannot be measured
    if free is not None and needed > free:
        raise NoSpace(
            f"layer {old.id[:12]} is not made again: it takes {needed} bytes, and driver {layers.name} has {free} free",
            layer=old.id, remedy="free space there: cowshed storage df shows what takes it",
        )  # fmt: skip


def _purge(layers: Layers, row: LayerRow) -> None:
    if layers.purge(_PURGE_SECONDS) is None:
        raise Busy(
            f"layer {row.id[:12]}: another command deletes what is left over in driver {layers.name}",
            remedy="try again when it has ended",
        )


class _Aside:
    """`with _Aside(blobs, digest):` an archive that is damaged is out of the way of the one that is fetched; it comes
    back if none is: what it still has may be all that there is. Meanwhile it is locked, so that nobody takes it for
    what a dead command left."""

    def __init__(self, blobs: BlobStore, digest: str) -> None:
        self._blobs, self._digest, self._fd = blobs, digest, -1
        self._path = f"{os.path.dirname(blobs.staging_path())}/new.{os.getpid()}.{digest.rpartition(':')[2][:16]}"

    def __enter__(self) -> None:
        if is_whole(self._blobs, self._digest) is False:
            path = self._blobs.path(self._digest)
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            locks.lock_file(self._fd, wait=False)
            os.rename(path, self._path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd < 0:
            return
        try:
            if self._blobs.size(self._digest) < 0:
                os.rename(self._path, self._blobs.path(self._digest))
            else:
                os.unlink(self._path)
        finally:
            os.close(self._fd)


def fetch(engine: Engine, digest: str, progress: Progress) -> None:
    """Bring a blob again: of a layer, if it was dropped and one gives it, else from a registry that one of its images
    is named after. ImageError if none has it: then one that is damaged stays as it is."""
    blobs = BlobStore(engine.store.root)
    with Lease(engine.store, [digest]), _Aside(blobs, digest):
        if blobs.size(digest) < 0 and Archives(engine.store).restore(digest):
            return
        _fetch(engine, blobs, digest, progress)
        blobs.forget(digest)


def _fetch(engine: Engine, blobs: BlobStore, digest: str, progress: Progress) -> None:
    from cowshed.image import reference
    from cowshed.image.pull import Downloads
    from cowshed.registry.client import Client

    said = ""
    for image, names in images.list_all(engine.store):
        found = next((blob for blob in image.blobs if blob[0] == digest), None)
        for name in names if found is not None else ():
            assert found is not None
            parsed = reference.parse(name)
            blob = Descriptor(digest, found[2], found[1])
            settings = engine.settings.registries.get(parsed.registry) or {}
            try:
                with (
                    Client(parsed.registry, parsed.repository, settings) as client,
                    Downloads(blobs, client, [blob], progress, client.abort) as downloads,
                ):
                    downloads.start()
                    downloads.wait()
                return
            except (CowshedError, OSError) as error:
                said = said or f": {error}"
    raise ImageError(
        f"blob {digest[:19]} cannot be fetched{said or ': no image that lists it has a name'}",
        remedy="pull or load its image again",
    )
