"""What the store takes on its disk by kind of thing, as docker sums it up, and how much of it would come back."""

from __future__ import annotations

from cowshed.space.account import total
from cowshed.space.inventory import Inventory
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.engine import Engine
    from cowshed.space.inventory import Unit


@record(frozen=True)
class Used:
    kind: str
    total: int
    active: int
    size: int  # bytes
    reclaimable: int


def usage(engine: Engine) -> tuple[Used, ...]:
    """Images (their layers in the drivers), the archives that they came in, containers, volumes."""
    found = Inventory(engine).measure()
    running = [c for c in found.containers.values() if found.states[c.id] == "running"]
    used = {c.image_id for c in found.containers.values()} & found.images.keys()
    busy = {row.id for c in running for row in found.chain_of(c.number)[:1]}
    needed = {row.id for c in found.containers.values() for row in found.chain_of(c.number)}
    counted = {digest for id_ in used for digest, _, _ in found.images[id_ or ""].blobs}
    mounted = {name for name, users in found.volumes.items() if users}
    layers = [unit for unit in found.units.values() if unit.kind == "layer"]
    committed = [unit for unit in layers if found.layers[unit.id].kind == "committed"]
    active = [unit for unit in layers if found.layers[unit.id].kind != "committed"]
    archives = [unit for unit in found.units.values() if unit.kind == "archive"]
    volumes = [unit for unit in found.units.values() if unit.kind == "volume"]
    return (
        Used("Images", len(found.images), len(used), *_sums(committed, needed)),
        Used("Archives", len(archives), sum(unit.id in counted for unit in archives), *_sums(archives, counted)),
        Used("Containers", len(found.containers), len(running), *_sums(active, busy)),
        Used("Local Volumes", len(volumes), len(mounted), *_sums(volumes, mounted)),
    )


def _sums(units: list[Unit], kept: set[str]) -> tuple[int, int]:
    return total(units), total(unit for unit in units if unit.id not in kept)
