"""What nobody needs any more, and by policy what nobody uses: first as a plan, then removed."""

from __future__ import annotations

from cowshed import log
from cowshed.errors import CowshedError
from cowshed.space import policy as policies
from cowshed.space.account import total
from cowshed.storage.api import ObjectKind
from cowshed.storage.errors import StorageError
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cowshed.engine import Engine
    from cowshed.space.inventory import Holder, Inventory, Unit
    from cowshed.space.policy import Policy
    from cowshed.state.rows import ImageRow


@record(frozen=True)
class Plan:
    images: tuple[str, ...]  # ids
    leftovers: tuple[Unit, ...]
    objects: tuple[tuple[str, int], ...]  # by driver: how many removed or half-made objects wait there, of unknown size
    size: int  # bytes that are expected back
    exact: bool

    def __bool__(self) -> bool:
        return bool(self.images or self.leftovers or self.objects)


def plan(engine: Engine, inventory: Inventory, policy: Policy, fits: Callable[[ImageRow], bool] | None) -> Plan:
    """What `collect` would do. Images go only if there is a policy or a filter (fits): of those that no container uses,
    named or not. policy.most is about all layers and archives."""
    leftovers = [unit for unit in inventory.units.values() if not inventory.holders_of(unit)]
    chosen: list[Holder] = []
    if policy or fits is not None:
        found = policies.images(inventory, policy, unused=True, fits=fits or (lambda image: True))
        taken = total(unit for unit in inventory.units.values() if unit.kind != "volume") - total(leftovers)
        chosen = policies.until_small(inventory, found, taken, policy.most)
    gone = [*leftovers, *inventory.freed_by(chosen)]
    exact = all(unit.exact for unit in gone)
    waiting = tuple(_waiting(engine, inventory))
    return Plan(tuple(id_ for _, id_ in chosen), tuple(leftovers), waiting, total(gone), exact and not waiting)


def _waiting(engine: Engine, inventory: Inventory) -> list[tuple[str, int]]:
    found = []
    for name in inventory.drivers:
        try:
            objects = list(engine.look(name).driver.scan())
        except (CowshedError, StorageError, OSError) as error:
            log.info(f"the objects of driver {name} cannot be listed: {error}")
            continue
        count = sum(
            each.kind is ObjectKind.TRASH
            or (each.kind in (ObjectKind.LAYER, ObjectKind.TEMP) and each.layer not in inventory.layers)
            for each in objects
        )
        if count:
            found.append((name, count))
    return found


def collect(engine: Engine, wanted: Plan) -> list[str]:
    """Carry a plan out: the images that are gone, in words. What is in use meanwhile stays."""
    from cowshed.container.prune import remove_leftovers, remove_orphans_everywhere
    from cowshed.image.remove import prune

    engine.freeing = True
    told = []
    if wanted.images:
        for each in prune(
            engine.store, unused=True, layers=engine.layers, fits=lambda image: image.id in wanted.images
        ):
            told += [f"untagged: {name}" for name in each.untagged]
            told += [f"deleted: {each.deleted}"] if each.deleted else []
    remove_orphans_everywhere(engine)
    remove_leftovers(engine)
    return told
