"""What the store takes on its disk, and how much of it would come back."""

from __future__ import annotations

import os

from cowshed import log
from cowshed.container import state
from cowshed.errors import CowshedError
from cowshed.image.blobs import BlobStore
from cowshed.state import containers, drivers, layers, volumes
from cowshed.storage.errors import StorageError
from cowshed.storage.kit.trees import measure_tree
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.engine import Engine
    from cowshed.layers.layers import Layers


@record(frozen=True)
class Used:
    kind: str
    total: int
    active: int
    size: int  # bytes
    reclaimable: int


def usage(engine: Engine) -> tuple[Used, ...]:
    """Images (their layers in the drivers), the archives that they came in, containers, volumes. Every layer is
    measured by its driver, which may walk its tree; those of a driver that cannot be opened are left out."""
    store = engine.store
    rows = containers.list_all(store)
    running = {row.number for row in rows if state.now(engine, row).state == "running"}
    needed = {number for row in rows for number, _, _, _ in layers.chain(store, row.number)}
    images = [r[0] for r in store.query("select id from images")]
    used = {row.image_id for row in rows}
    layer_sizes: dict[int, int] = {}
    container_sizes: dict[int, int] = {}
    for name in drivers.names(store):
        try:
            held = engine.layers(name)
        except (CowshedError, StorageError, OSError) as error:
            log.warn(f"the layers of driver {name} are left out: it cannot be opened: {error}")
            continue
        warn_of_health(held)
        for row in layers.list_all(store, name):
            try:
                size = held.usage(held.load(row.number)).own
            except (StorageError, OSError):
                continue  # removed meanwhile, or missing, which `system check` tells
            (layer_sizes if row.kind == "committed" else container_sizes)[row.number] = size
    blobs = BlobStore(store.root)
    archives = {digest: max(blobs.size(digest), 0) for digest in blobs.digests()}
    counted = {r[0] for r in store.query("select digest from image_blobs join containers on image = image_id")}
    held_volumes = volumes.list_all(store)
    volume_sizes = {v.name: _tree(f"{store.root}/volumes/{v.name}") for v in held_volumes}
    mounted = {v.name for v in held_volumes if volumes.users(store, v.name)}
    return (
        Used("Images", len(images), len(used & set(images)), *_sums(layer_sizes, needed)),
        Used("Archives", len(archives), len(counted & archives.keys()), *_sums(archives, counted)),
        Used("Containers", len(rows), len(running), *_sums(container_sizes, running)),
        Used("Local Volumes", len(held_volumes), len(mounted), *_sums(volume_sizes, mounted)),
    )


def warn_of_health(held: Layers) -> None:
    """Tell what a driver has to say of its back end: a pool that is nearly full, or was made for trying out."""
    for reason in held.driver.health().reasons:
        log.warn(f"driver {held.name}: {reason.text}" + (f": {reason.remedy}" if reason.remedy else ""))


def _sums(sizes: dict[int, int] | dict[str, int], kept: set[int] | set[str]) -> tuple[int, int]:
    return sum(sizes.values()), sum(size for key, size in sizes.items() if key not in kept)


def _tree(path: str) -> int:
    return measure_tree(path)[0] if os.path.isdir(path) else 0
