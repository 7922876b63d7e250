"""What each image, container and volume takes alone and shares, and what removing some of them would free."""

from __future__ import annotations

from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cowshed.space.inventory import Holder, Inventory, Unit


@record(frozen=True)
class Account:
    """One line of `storage df`. The sum of `own` over all lines is what the store takes."""

    kind: str  # image, container, volume, shared, leftover, work
    id: str
    name: str
    drivers: tuple[str, ...]
    own: int  # bytes that go with it alone (shared: bytes that several images need, once)
    shared: int  # bytes that it needs and others as well
    reclaimable: int  # bytes of own that nothing in use needs
    exact: bool  # no size was estimated, and none is missing


def accounts(inventory: Inventory) -> list[Account]:
    """Every image, container and volume, then what several images share, and what nobody needs.

    An image and the containers on it are no sharers: they cannot be without it.
    """
    owners: dict[Holder, list[Unit]] = {}
    sharers: dict[Holder, list[Unit]] = {}
    several: list[Unit] = []
    nobody: list[Unit] = []
    work: list[Unit] = []
    for unit in inventory.units.values():
        holders = inventory.holders_of(unit)
        masters = {h for h in holders if h[0] == "image"} or holders
        for holder in holders:
            (owners if masters == {holder} else sharers).setdefault(holder, []).append(unit)
        if not holders:
            nobody.append(unit)
        elif len(masters) > 1:
            several.append(unit)
        elif next(iter(masters))[0] in ("work", "conversion"):
            work.append(unit)
    found = []
    for holder in _all(inventory):
        own, shared = owners.get(holder, []), sharers.get(holder, [])
        found.append(_account(inventory, holder, own, shared))
    for kind, units, back in (("shared", several, False), ("work", work, False), ("leftover", nobody, True)):
        if units:
            size = total(units)
            found.append(
                Account(kind, "", counted(units), _drivers(units), size, 0, size if back else 0, _exact(units))
            )
    return found


def _all(inventory: Inventory) -> list[Holder]:
    return [
        *[("image", id_) for id_ in inventory.images],
        *[("container", id_) for id_ in inventory.containers],
        *[("volume", name) for name in inventory.volumes],
    ]


def _account(inventory: Inventory, holder: Holder, own: list[Unit], shared: list[Unit]) -> Account:
    kind, id_ = holder
    name = inventory.said(holder).partition(" ")[2]
    if kind == "image":
        name, free = ", ".join(inventory.names[id_]) or "<none>", not inventory.users_of(id_)
    elif kind == "container":
        free = inventory.states[id_] in ("created", "exited")
    else:
        free = not inventory.volumes[id_]
    size = total(own)
    units = own + shared
    return Account(kind, id_, name, _drivers(units), size, total(shared), size if free else 0, _exact(units))


def _drivers(units: Iterable[Unit]) -> tuple[str, ...]:
    return tuple(sorted({unit.driver for unit in units if unit.driver}))


def _exact(units: Iterable[Unit]) -> bool:
    return all(unit.exact for unit in units)


def total(units: Iterable[Unit]) -> int:
    """Bytes of units; those that could not be measured count nothing."""
    return sum(unit.size or 0 for unit in units)


def counted(units: Sequence[Unit]) -> str:
    """How many of each kind, in words."""
    kinds = [unit.kind for unit in units]
    return ", ".join(
        f"{kinds.count(kind)} {kind}{'s' * (kinds.count(kind) > 1)}"
        for kind in ("layer", "archive", "volume")
        if kind in kinds
    )


@record(frozen=True)
class Fate:
    """What becomes of one unit if some holders are removed."""

    unit: Unit
    freed: bool
    kept_by: tuple[str, ...]  # in words


def fates(inventory: Inventory, removed: Sequence[Holder]) -> list[Fate]:
    """Of all that these holders need, what would be freed without them, and who keeps the rest.

    An image goes only with all containers on it; a volume with those that use it.
    """
    gone = set(removed)
    stay: dict[Holder, Holder] = {}
    for holder in removed:
        kind, id_ = holder
        users = inventory.users_of(id_) if kind == "image" else []
        if kind == "volume":
            users = [("container", c.id) for c in inventory.containers.values() if c.number in inventory.volumes[id_]]
        for user in users:
            if user not in gone:
                stay[holder] = user
    gone -= stay.keys()
    found = []
    for unit in inventory.units.values():
        holders = inventory.holders_of(unit)
        if not holders & set(removed):
            continue
        left = sorted(holders - gone)
        # An image that stays for the sake of a container is no reason by itself: the container is.
        reasons = dict.fromkeys(inventory.said(stay.get(holder, holder)) for holder in left)
        found.append(Fate(unit, not left, tuple(reasons)))
    return found
