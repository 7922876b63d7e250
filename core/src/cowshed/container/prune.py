"""Giving space back: containers that do not run, images and volumes that nobody uses, what dead commands left."""

from __future__ import annotations

from cowshed import log
from cowshed.container import lifecycle, remains, state
from cowshed.errors import CowshedError
from cowshed.image import mounts
from cowshed.image.archives import Archives
from cowshed.image.remove import prune as prune_images
from cowshed.layers.check import remove_orphans
from cowshed.state import containers, drivers, volumes
from cowshed.storage.errors import StorageError
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.engine import Engine
    from cowshed.image.remove import Removed

_PURGE_SECONDS = 60.0


@record(frozen=True)
class Pruned:
    containers: tuple[str, ...]  # ids
    volumes: tuple[str, ...]
    images: tuple[Removed, ...]


def prune(engine: Engine, *, all_images: bool, with_volumes: bool) -> Pruned:
    """Remove containers that do not run, then images without a name (all_images: that no container uses), and with
    `with_volumes` the anonymous volumes that no container uses. One that is in use meanwhile stays."""
    gone = []
    for row in containers.list_all(engine.store):
        if state.now(engine, row).state not in ("created", "exited"):
            continue
        try:
            lifecycle.remove(engine, row, force=False, with_volumes=with_volumes)
        except (CowshedError, StorageError):
            continue  # started, or being removed, by another command
        gone.append(row.id)
    images = prune_images(engine.store, unused=all_images, layers=engine.layers)
    dropped = _prune_volumes(engine) if with_volumes else ()
    remove_orphans_everywhere(engine)
    remove_leftovers(engine)
    remains.clear(engine.store, engine.settings.run_root)
    return Pruned(tuple(gone), dropped, images)


def remove_orphans_everywhere(engine: Engine) -> None:
    """The layers of every driver that the database does not know. A driver that cannot be opened keeps its own."""
    for name in drivers.names(engine.store):
        try:
            remove_orphans(engine.layers(name))
        except (CowshedError, StorageError, OSError) as error:
            log.info(f"driver {name} keeps what it may have too much: {error}")


def _prune_volumes(engine: Engine) -> tuple[str, ...]:
    store = engine.store
    dropped = []
    with store.transaction() as tx:
        for volume in volumes.list_all(store):
            if volume.anonymous and not volumes.users(store, volume.name):
                volumes.delete(tx, volume.name)
                dropped.append(volume.name)
    lifecycle.remove_loose_volumes(engine)
    return tuple(dropped)


def remove_leftovers(engine: Engine) -> None:
    """What dead commands left: layers and blobs that nobody counts on, and what drivers keep for their purge. A driver
    that cannot be opened keeps its own; one that fails is told, and stops no other."""
    for name in drivers.names(engine.store):
        try:
            layers = engine.layers(name)
        except (CowshedError, StorageError, OSError):
            continue
        try:
            layers.remove_unreferenced()
            layers.purge(_PURGE_SECONDS)
        except (CowshedError, StorageError, OSError) as error:
            log.warn(f"driver {name} cannot remove all that is left over: {error}")
    mounts.clean(engine.store)
    blobs = Archives(engine.store)
    blobs.collect(engine.store, everything=True)
    blobs.tidy()
    blobs.prune_partials()
