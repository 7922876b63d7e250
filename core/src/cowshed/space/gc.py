"""What nobody needs any more, and by policy what nobody uses: first as a plan, then removed."""

from __future__ import annotations

from cowshed import log
from cowshed.container import remains
from cowshed.errors import CowshedError
from cowshed.layers.check import is_rubbish
from cowshed.space import policy as policies
from cowshed.space.account import total
from cowshed.state import lost
from cowshed.storage.api import ObjectKind
from cowshed.storage.errors import StorageError
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cowshed.container.remains import Remains
    from cowshed.engine import Engine
    from cowshed.space.inventory import Holder, Inventory, Unit
    from cowshed.space.policy import Policy
    from cowshed.state.rows import ImageRow


@record(frozen=True)
class Plan:
    images: tuple[str, ...]  # ids
    leftovers: tuple[Unit, ...]
    objects: tuple[tuple[str, int], ...]  # by driver: how many removed or half-made objects wait there, of unknown size
    orphans: tuple[
        tuple[str, str], ...
    ]  # (driver, id) of layers that were removed and are there again, of unknown size
    remains: tuple[Remains, ...]  # outside of the drivers, of unknown size
    size: int  # bytes that are expected back
    exact: bool

    def __bool__(self) -> bool:
        return bool(self.images or self.leftovers or self.objects or self.orphans or self.remains)


def plan(engine: Engine, inventory: Inventory, policy: Policy, fits: Callable[[ImageRow], bool] | None) -> Plan:
    """What `collect` would do. Images go only if there is a policy or a filter (fits): of those that no container uses,
    named or not. policy.most is about all layers and archives."""
    sure, of_lost = lost.is_whole(engine.reader), lost.blobs(engine.reader)
    leftovers = [
        unit
        for unit in inventory.units.values()
        if not inventory.holders_of(unit) and (unit.kind != "archive" or (sure and unit.id not in of_lost))
    ]
    chosen: list[Holder] = []
    if policy or fits is not None:
        found = policies.images(inventory, policy, unused=True, fits=fits or (lambda image: True))
        taken = total(unit for unit in inventory.units.values() if unit.kind != "volume") - total(leftovers)
        chosen = policies.until_small(inventory, found, taken, policy.most)
    gone = [*leftovers, *inventory.freed_by(chosen)]
    exact = all(unit.exact for unit in gone)
    waiting, orphans = _waiting(engine, inventory)
    left = remains.look(engine.reader, engine.settings.run_root)
    exact = exact and not waiting and not orphans and not left
    return Plan(
        tuple(id_ for _, id_ in chosen), tuple(leftovers), tuple(waiting), tuple(orphans), tuple(left), total(gone),
        exact,
    )  # fmt: skip


def _waiting(engine: Engine, inventory: Inventory) -> tuple[list[tuple[str, int]], list[tuple[str, str]]]:
    """What drivers delete at their next purge, counted by driver; and the layers that no row knows and that are of no
    worth, by driver and id."""
    waiting: list[tuple[str, int]] = []
    orphans: list[tuple[str, str]] = []
    for name in inventory.drivers:
        try:
            objects = list(engine.look(name).driver.scan())
        except (CowshedError, StorageError, OSError) as error:
            log.info(f"the objects of driver {name} cannot be listed: {error}")
            continue
        unknown = [each for each in objects if each.layer not in inventory.layers]
        count = sum(each.kind is ObjectKind.TRASH for each in objects)
        count += sum(each.kind is ObjectKind.TEMP for each in unknown)
        if count:
            waiting.append((name, count))
        orphans += [(name, each.layer) for each in unknown if each.layer and is_rubbish(engine.reader, name, each)]
    return waiting, orphans


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
    if wanted.remains:
        remains.clear(engine.store, engine.settings.run_root, wanted.remains)
    return told
