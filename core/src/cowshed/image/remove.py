"""Taking names from images, and images from the store (`tag`, `untag`, `rmi`, `image prune`)."""

from __future__ import annotations

from cowshed import log
from cowshed.errors import BadUsage, Conflict, CowshedError, NotFound
from cowshed.image import mounts, reference
from cowshed.image.blobs import BlobStore
from cowshed.image.inspect import repository
from cowshed.layers.faults import step
from cowshed.state import images
from cowshed.state.layers import loose_drivers
from cowshed.storage.errors import StorageError
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cowshed.layers.layers import Layers
    from cowshed.state.rows import ContainerRow, ImageRow
    from cowshed.state.store import Store

_PURGE_SECONDS = 1.0


@record(frozen=True)
class Removed:
    """What a removal did."""

    untagged: tuple[str, ...]  # familiar names
    deleted: str  # id of the image, "" if none is gone
    freed: int  # bytes of blobs


def tag(store: Store, image: ImageRow, name: str) -> str:
    """Give an image another name, which it takes from an image that had it; the familiar name. BadUsage."""
    parsed = reference.parse(name)
    if parsed.digest:
        raise BadUsage(f"{name!r} names a digest, which cannot be given", remedy="write NAME[:TAG]")
    with store.transaction() as tx:
        images.tag(tx, parsed.name, image.id)
    return parsed.familiar


def untag(store: Store, name: str) -> None:
    """Take a name away; the image stays. NotFound."""
    parsed = reference.parse(name)
    if images.by_name(store, parsed.name) is None:
        raise NotFound(f"no image is named {name}", remedy="cowshed images lists them")
    with store.transaction() as tx:
        images.untag(tx, parsed.name)


def remove(
    store: Store,
    image: ImageRow,
    said: str,
    *,
    force: bool,
    layers: Callable[[str], Layers],
    running: Callable[[ContainerRow], bool],
) -> Removed:
    """Remove an image as `rmi` does; `said` is what the user called it, `layers(driver)` opens a driver's layers.

    By a name that is not its last one: only that name goes. By its id while names of several repositories point to
    it: Conflict unless force. While it is mounted: Conflict. While containers use it: Conflict, unless force and none
    of them runs; then the names go, and the image itself stays without a name until its containers are gone.
    """
    from cowshed.state import containers

    names = images.names(store, image.id)
    name = as_name(said, names)
    if name and len(names) > 1:
        with store.transaction() as tx:
            images.untag(tx, name)
        return Removed((reference.familiar(name),), "", 0)
    if not name and len({repository(n) for n in names}) > 1 and not force:
        raise Conflict(
            f"image {image.id[7:19]} has names in several repositories: {', '.join(map(reference.familiar, names))}",
            remedy="remove them by name, or use --force",
        )
    mounts.refuse_mounted(store, image)
    with store.transaction() as tx:
        users = containers.of_image(store, image.id)
        active = next((user for user in users if running(user)), None)
        if active is not None:
            raise Conflict(f"image {said} is used by the running container {active.name}", remedy="stop it first")
        if users and not force:
            raise Conflict(f"image {said} is used by container {users[0].name}", remedy="remove it, or use --force")
        for each in names:
            images.untag(tx, each)
        if not users:
            images.delete(tx, image.id)
    untagged = tuple(map(reference.familiar, names))
    if users:
        return Removed(untagged, "", 0)
    step("rmi.forgotten")
    return Removed(untagged, image.id, _clean(store, [image], layers))


def prune(
    store: Store,
    *,
    unused: bool,
    layers: Callable[[str], Layers],
    fits: Callable[[ImageRow], bool] = lambda image: True,
) -> tuple[Removed, ...]:
    """Remove the images without a name that no container uses, if they fit; with `unused`, also those with names.
    What broken downloads left goes as well."""
    from cowshed.state import containers

    gone: list[tuple[ImageRow, list[str]]] = []
    mounts.clean(store)
    mounted = mounts.mounted(store)
    with store.transaction() as tx:
        for image, names in images.list_all(store):
            if (names and not unused) or not fits(image) or image.id in mounted:
                continue
            if containers.of_image(store, image.id):
                continue
            images.delete(tx, image.id)
            gone.append((image, names))
    freed = _clean(store, [image for image, _ in gone], layers) + BlobStore(store.root).prune_partials(limit=0)
    done = [Removed(tuple(map(reference.familiar, names)), image.id, 0) for image, names in gone]
    return (*done, Removed((), "", freed))


def as_name(said: str, names: list[str]) -> str:
    """The canonical name that the user meant, "" if it was an id."""
    try:
        name = reference.parse(said).name
    except BadUsage:
        return ""
    return name if name in names else ""


def _clean(store: Store, gone: list[ImageRow], layers: Callable[[str], Layers]) -> int:
    """Remove what only these images stood on: layers in every driver, then blobs. Bytes of blobs freed. A driver that
    fails keeps its own, which the next removal tries again, and is told."""
    if not gone:
        return 0
    for driver in loose_drivers(store):
        try:
            held = layers(driver)
            held.remove_unreferenced()
            step("rmi.layers")
            held.purge(_PURGE_SECONDS)
        except (CowshedError, StorageError, OSError) as error:
            log.warn(f"the image's layers in driver {driver} stay for now: {error}")
    blobs = BlobStore(store.root)
    return blobs.collect(store) + blobs.prune_partials()
