"""What the prune commands share: the question, the removal of containers and volumes, and what is told of it."""

from __future__ import annotations

import os
import sys

from cowshed import log
from cowshed.cli import output
from cowshed.container import lifecycle, listing, state
from cowshed.errors import Conflict, NotFound
from cowshed.filters import grouped
from cowshed.state import containers, volumes
from cowshed.storage.errors import StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cowshed.engine import Engine
    from cowshed.state.rows import VolumeRow


def agreed(what: str) -> bool:
    """Whether the user, asked, says yes."""
    sys.stderr.write(f"WARNING! This will remove {what}.\nAre you sure you want to continue? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def fitting(engine: Engine, filters: list[str]) -> listing.Test:
    return listing.fitting(engine, grouped(filters, listing.PRUNE_FILTERS), moment=output.moment)


def remove_containers(engine: Engine, fits: listing.Test) -> tuple[list[str], int]:
    """Remove the containers that do not run and fit: their ids, and the bytes that came back."""
    engine.freeing = True
    removed, freed = [], 0
    for row in containers.list_all(engine.store):
        now = state.now(engine, row)
        if now.state not in ("created", "exited") or not fits(row, now):
            continue
        try:
            size = own_size(engine, row.driver, row.number)
            lifecycle.remove(engine, row, force=False, with_volumes=False)
        except (Conflict, NotFound):
            continue  # started or removed meanwhile
        except StorageError as error:
            log.warn(f"container {row.name} stays: {error}")
            continue
        removed.append(row.id)
        freed += size
    return removed, freed


def own_size(engine: Engine, driver: str, number: int) -> int:
    """The bytes that a container has written into its root."""
    layers = engine.layers(driver)
    return layers.usage(layers.load(number)).own


def remove_volumes(engine: Engine, fits: Callable[[VolumeRow], bool]) -> tuple[list[str], int]:
    """Remove the volumes that no container has and that fit: their names, and the bytes that came back."""
    from cowshed.storage.kit.trees import measure_tree

    engine.freeing = True
    removed, freed = [], 0
    for row in volumes.list_all(engine.store):
        if not fits(row):
            continue
        path = f"{engine.store.root}/volumes/{row.name}"
        size = measure_tree(path)[0] if os.path.isdir(path) else 0
        with engine.store.transaction() as tx:
            if tx.execute("select 1 from volume_users where volume = ?", row.name):
                continue
            volumes.delete(tx, row.name)
        removed.append(row.name)
        freed += size
    lifecycle.remove_loose_volumes(engine)
    return removed, freed


def tell(what: str, removed: list[str]) -> None:
    if removed:
        print(f"Deleted {what}:", *removed, "", sep="\n")


def tell_freed(freed: int) -> None:
    print(f"Total reclaimed space: {output.size(freed)}")
