"""What a pruning takes: of what nobody uses, all but the newest few, or the oldest until the rest is small enough."""

from __future__ import annotations

from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cowshed.space.inventory import Holder, Inventory, Unit
    from cowshed.state.rows import ContainerRow, ImageRow


@record(frozen=True)
class Policy:
    keep_last: int | None = None  # so many of the newest stay: images of each repository, containers
    most: int | None = None  # bytes: the oldest go, one after another, until no more is taken

    def __bool__(self) -> bool:
        return self.keep_last is not None or self.most is not None


def images(
    inventory: Inventory, policy: Policy, *, unused: bool, fits: Callable[[ImageRow], bool] = lambda image: True
) -> list[Holder]:
    """The images that no container uses and that a pruning takes, the ones that came here first before the others.
    unused: also those with names."""
    newest: dict[str, list[str]] = {}
    for image in sorted(inventory.images.values(), key=_came, reverse=True):
        for repository in {_repository(name) for name in inventory.names[image.id]} or {""}:
            newest.setdefault(repository, []).append(image.id)
    kept = {id_ for ids in newest.values() for id_ in ids[: policy.keep_last or 0]}
    found = [
        image
        for image in inventory.images.values()
        if (unused or not inventory.names[image.id])
        and image.id not in kept
        and not inventory.users_of(image.id)
        and fits(image)
    ]
    return [("image", image.id) for image in sorted(found, key=_came)]


def _came(image: ImageRow) -> tuple[int, int, str]:
    # Not when it was built, which many builders set to the epoch.
    return image.pulled, image.created, image.id


def _repository(name: str) -> str:
    return name.partition("@")[0] if "@" in name else name.rpartition(":")[0] or name


def containers(
    inventory: Inventory, policy: Policy, *, fits: Callable[[ContainerRow], bool] = lambda row: True
) -> list[Holder]:
    """The containers that do not run and that a pruning takes, those that ended first before the others."""
    idle = [row for row in inventory.containers.values() if inventory.states[row.id] in ("created", "exited")]
    idle.sort(key=lambda row: (row.finished or row.created, row.number))
    kept = {row.id for row in idle[len(idle) - min(policy.keep_last or 0, len(idle)) :]}
    return [("container", row.id) for row in idle if row.id not in kept and fits(row)]


def until_small(inventory: Inventory, candidates: Iterable[Holder], taken: int, most: int | None) -> list[Holder]:
    """Of candidates as many as it takes to come from taken to most bytes; all of them if that is None or too little.
    What they share comes back with the last of them. The inventory is measured."""
    left = {unit.key: set(inventory.holders_of(unit)) for unit in inventory.units.values()}
    needs: dict[Holder, list[Unit]] = {}
    for unit in inventory.units.values():
        for holder in left[unit.key]:
            needs.setdefault(holder, []).append(unit)
    chosen: list[Holder] = []
    for holder in candidates:
        if most is not None and taken <= most:
            break
        chosen.append(holder)
        for unit in needs.get(holder, ()):
            left[unit.key].discard(holder)
            taken -= 0 if left[unit.key] else unit.size or 0
    return chosen


def taken_by(inventory: Inventory, kind: str) -> list[Unit]:
    """What images take together, or containers that do not run."""
    masters = {("image", id_) for id_ in inventory.images}
    idle = {("container", id_) for id_, state in inventory.states.items() if state in ("created", "exited")}
    if kind == "image":
        return [unit for unit in inventory.units.values() if inventory.holders_of(unit) & masters]
    return [unit for unit in inventory.units.values() if (held := inventory.holders_of(unit)) and held <= idle]
