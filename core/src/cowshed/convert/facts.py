"""What a plan is made from: the store's rows, what its drivers can, and what their layers take."""

from __future__ import annotations

import os

from cowshed.container import limits, state
from cowshed.convert import plan
from cowshed.errors import BadUsage, CowshedError, NotFound
from cowshed.state import containers, drivers, images
from cowshed.state import layers as rows
from cowshed.storage import api
from cowshed.storage.errors import StorageError
from cowshed.storage.kit import places
from cowshed_linux import process
from cowshed_runtime.cgroup.group import Group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cowshed.engine import Engine
    from cowshed.state.rows import ContainerRow, LayerRow
    from cowshed.state.store import Store

_BYTES_PER_INODE = 20_000  # of root file systems, for drivers that do not count inodes
_PACE = "convert.pace"  # of the table meta: how long the last conversion took, by what was expected of it


def wanted(
    engine: Engine, names: Sequence[str], *, images_: bool = False, containers_: bool = False, lossy: bool = False
) -> plan.Wanted:
    """What a user's words name. BadUsage if they name nothing, NotFound, Ambiguous."""
    if not (names or images_ or containers_):
        raise BadUsage(
            "it is not said what to convert", remedy="--all, --images, --containers, or names of images and containers"
        )
    of_images, of_containers = [], []
    for name in names:
        try:
            of_containers.append(containers.find(engine.reader, name).id)
        except NotFound:
            of_images.append(engine.image(name).id)
    return plan.Wanted(images_, containers_, tuple(of_images), tuple(of_containers), lossy)


def gather(engine: Engine, target: str, *, measured: bool = True) -> plan.Facts:
    """Facts for a plan. measured: with what layers take, which drivers may have to walk trees for.

    The target is opened if the store has it, and else only probed: looking makes nothing. Raises as `open_driver` does;
    Unsupported if the target is unusable here.
    """
    store = engine.reader
    names = drivers.names(store)
    there: dict[str, plan.Place] = {}
    broken: dict[str, str] = {}
    for name in names:
        try:
            there[name] = _place(engine, name)
        except (CowshedError, StorageError, OSError) as error:
            if name == target:
                raise
            broken[name] = f"driver {name} cannot be opened: {error}"
    committed = [row for name in there for row in rows.list_all(store, name) if row.kind == "committed"]
    chains = _chains_of(committed)
    links = _links(engine, target, committed, chains, measured=measured)
    boxes = tuple(_box(engine, row, chains, broken, measured=measured) for row in reversed(containers.list_all(store)))
    tops = {image.id: image.chain_ids[-1] for image, _ in images.list_all(store) if image.chain_ids}
    pace = store.value(_PACE)
    place = there.get(target) or _probed(engine, target)
    return plan.Facts(place, {**there, target: place}, links, tops, boxes, float(pace or 1.0))


def _place(engine: Engine, name: str) -> plan.Place:
    driver = engine.look(name).driver
    return _at(engine, name, driver.capabilities, driver.health().data_free)


def _probed(engine: Engine, name: str) -> plan.Place:
    from cowshed.errors import Unsupported
    from cowshed.layers.host import make as make_host
    from cowshed.storage import options, registry

    plugin, _ = registry.load(name)
    chosen = options.check(plugin, engine.settings.options_of(name))
    report = plugin.probe(f"{engine.reader.root}/drivers/{name}", chosen, make_host())
    if report.capabilities is None or report.verdict is api.Verdict.UNUSABLE:
        reason = next((r for r in report.reasons if r.verdict is report.verdict), api.Reason("", "it does not say why"))
        raise Unsupported(f"driver {name} cannot be used here: {reason.text}", remedy=reason.remedy)
    free = None
    if report.capabilities.granularity is not api.Granularity.BLOCK:  # else it lies on devices of its own
        status = os.statvfs(engine.reader.root)
        free = status.f_bavail * status.f_frsize
    return _at(engine, name, report.capabilities, free)


def _at(engine: Engine, name: str, can: api.Capabilities, free: int | None) -> plan.Place:
    path = places.nearest_directory(f"{engine.reader.root}/drivers/{name}")
    return plan.Place(name, can, os.stat(path).st_dev, places.file_system_name(path), free)


def _chains_of(committed: Sequence[LayerRow]) -> dict[int, str]:
    """The chain id of each committed layer, by number. From its diff ids: one that gave its chain id up to a newer twin
    is known by them still."""
    by_number = {row.number: row for row in committed}
    found: dict[int, str] = {}
    for row in committed:
        way = []
        at: LayerRow | None = row
        while at is not None and at.number not in found:
            way.append(at)
            at = by_number.get(at.parent) if at.parent is not None else None
        below = found[at.number] if at is not None else ""
        for one in reversed(way):
            below = images.chain_id(below, one.diff_id) if one.diff_id else f"layer {one.id}"
            found[one.number] = below
    return found


def _links(
    engine: Engine, target: str, committed: Sequence[LayerRow], chains: dict[int, str], *, measured: bool
) -> dict[str, plan.Link]:
    sources: dict[str, list[plan.Source]] = {}
    twins: dict[str, int] = {}
    said: dict[str, tuple[str, str]] = {}
    for row in committed:
        chain = chains[row.number]
        said[chain] = row.diff_id or "", chains[row.parent] if row.parent is not None else ""
        trusted = row.durable or row.boot_id == process.boot_id()
        if row.driver == target:
            if row.chain_id is not None and trusted:
                twins[chain] = row.number
            continue
        size, inodes = _usage(engine, row.driver, row.number) if measured else (0, 0)
        sources.setdefault(chain, []).append(plan.Source(row.number, row.driver, size, inodes, trusted))
    return {
        chain: plan.Link(chain, diff, below, tuple(sources.get(chain, ())), twins.get(chain))
        for chain, (diff, below) in said.items()
    }


def _usage(engine: Engine, driver: str, number: int) -> tuple[int, int]:
    layers = engine.look(driver)
    used = layers.usage(layers.load(number))
    return used.own, used.own // _BYTES_PER_INODE if used.inodes is None else used.inodes


def _box(
    engine: Engine, row: ContainerRow, chains: dict[int, str], broken: dict[str, str], *, measured: bool
) -> plan.Box:
    now = state.now(engine, row)
    obstacle = broken.get(row.driver, "")
    if not obstacle and now.state in ("creating", "removing"):
        obstacle = f"it is {now.state}"
    elif not obstacle and now.state != "running" and Group(row.id).processes():
        obstacle = "a process of it lives on without its monitor: remove it, or kill that"
    layer = rows.get(engine.reader, row.number)
    below = chains.get(layer.parent, "") if layer is not None and layer.parent is not None else ""
    size, inodes = 0, 0
    if measured and not obstacle and now.state != "running":
        size, inodes = _usage(engine, row.driver, row.number)
    quota = limits.options(row.config["storage_opt"]).quota if "storage_opt" in row.config else api.Quota()
    return plan.Box(
        row.number, row.id, row.name, row.driver, now.state == "running", below, size, inodes, quota, obstacle
    )


def learn(store: Store, expected: float, taken: float) -> None:
    """Keep how long a conversion took, in seconds, for what the next plan says."""
    before = float(store.value(_PACE) or 1.0)
    pace = min(max(before * taken / expected, 0.01), 100.0)
    with store.transaction() as tx:
        tx.execute("insert or replace into meta values (?, ?)", _PACE, pace)
