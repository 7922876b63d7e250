"""storage df, tree, why, gc, dedup, convert, accept, rollback."""

from __future__ import annotations

from cowshed.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container

    from cowshed.cli.parser import Values
    from cowshed.engine import Engine
    from cowshed.image.archives import Fate
    from cowshed.space.inventory import Inventory


def df(engine: Engine, said: Values) -> int:
    from cowshed.space.inventory import Inventory

    inventory = Inventory(engine)
    if said["operands"]:
        return _fates(inventory, said)
    from cowshed.space.account import accounts

    rows = [
        {
            "Type": each.kind, "ID": _id(each.id, said), "Name": each.name, "Drivers": ",".join(each.drivers),
            "Own": output.size(each.own), "Shared": output.size(each.shared),
            "Reclaimable": output.size(each.reclaimable), "Exact": _yes(each.exact), "OwnBytes": each.own,
            "SharedBytes": each.shared, "ReclaimableBytes": each.reclaimable,
        }
        for each in accounts(inventory.measure())
    ]  # fmt: skip
    columns = ("Type", "Name", "Drivers", "Own", "Shared", "Reclaimable", "Exact")
    output.listing(rows, columns, said.format, what="storage df")
    return 0


def _fates(inventory: Inventory, said: Values) -> int:
    """What removing the things that are named would free, unit by unit."""
    from cowshed.space.account import fates, total

    removed = [inventory.find(text) for text in said["operands"]]
    found = fates(inventory.measure(), removed)
    rows = [
        {
            "Type": fate.unit.kind, "ID": _id(fate.unit.id, said), "Driver": fate.unit.driver,
            "Size": "?" if fate.unit.size is None else output.size(fate.unit.size), "Exact": _yes(fate.unit.exact),
            "Freed": _yes(fate.freed), "KeptBy": ", ".join(fate.kept_by), "SizeBytes": fate.unit.size or 0,
        }
        for fate in found
    ]  # fmt: skip
    output.listing(rows, ("Type", "ID", "Driver", "Size", "Exact", "Freed", "KeptBy"), said.format, what="storage df")
    if not said.format:
        freed = [fate.unit for fate in found if fate.freed]
        about = "" if all(unit.exact for unit in freed) else "about "
        which = ", ".join(dict.fromkeys(map(inventory.said, removed)))
        print(f"Removing {which} would free {about}{output.size(total(freed))}")
    return 0


def tree(engine: Engine, said: Values) -> int:
    from cowshed.space.inventory import Inventory
    from cowshed.space.tree import branches

    inventory = Inventory(engine)
    only = _layers_of(inventory, said["operands"])
    inventory.measure()
    rows = []
    for branch in branches(inventory, only) if only or not said["operands"] else ():
        row, unit = branch.row, inventory.units["layer", branch.row.id]
        names = [*branch.images, *([f"container {branch.container}"] if branch.container else [])]
        rows.append(
            {
                "Layer": branch.drawn + _id(row.id, said), "Driver": row.driver, "Kind": row.kind,
                "Own": "?" if unit.size is None else output.size(unit.size), "Exact": _yes(unit.exact),
                "Names": ", ".join(names), "ID": _id(row.id, said), "Number": row.number, "Parent": row.parent,
                "Depth": branch.depth, "ChainID": row.chain_id or "", "DiffID": row.diff_id or "",
                "OwnBytes": unit.size, "Images": list(branch.images), "Container": branch.container,
            }
        )  # fmt: skip
    output.listing(rows, ("Layer", "Driver", "Kind", "Own", "Exact", "Names"), said.format, what="storage tree")
    return 0


def _layers_of(inventory: Inventory, names: list[str]) -> set[str]:
    """Ids of the layers that what is named stands on."""
    holders = {inventory.find(text) for text in names}
    return {key[1] for key, by in inventory.holders.items() if key[0] == "layer" and by & holders}


def why(engine: Engine, said: Values) -> int:
    from cowshed.errors import NotFound
    from cowshed.space.inventory import Inventory
    from cowshed.space.tree import chains

    inventory = Inventory(engine)
    text = said["operands"][0]
    try:
        wanted = {inventory.find_layer(text).id}
    except NotFound:
        wanted = _layers_of(inventory, [text])
    rows = []
    for id_, row in inventory.layers.items():
        if id_ not in wanted:
            continue
        found = chains(inventory, row) or [("nothing: the next storage gc removes it",)]
        rows += [
            {"Layer": id_[:12], "Driver": row.driver, "KeptBy": " > ".join(words), "Chain": list(words)}
            for words in found
        ]
    output.listing(rows, ("Layer", "Driver", "KeptBy"), said.format, what="storage why")
    return 0


def gc(engine: Engine, said: Values) -> int:
    from cowshed.cli import pruning
    from cowshed.space import gc as collector
    from cowshed.space.inventory import Inventory

    policy, fits = pruning.policy(said), None
    if said.filter:
        from cowshed.image.listing import prunable

        fits = prunable(said.filter, moment=output.moment)
    inventory = Inventory(engine).measure()
    plan = collector.plan(engine, inventory, policy, fits)
    told = {
        "Images": [inventory.said(("image", id_)).partition(" ")[2] for id_ in plan.images],
        "Layers": [f"{unit.driver} {unit.id}" for unit in plan.leftovers if unit.kind == "layer"],
        "Archives": [unit.id for unit in plan.leftovers if unit.kind == "archive"],
        "Orphans": [f"{driver} {id_}" for driver, id_ in plan.orphans],
        "Remains": [f"{each.path} {each.what}" for each in plan.remains],
        "Objects": [f"{driver}: {count} that wait for their deletion" for driver, count in plan.objects],
    }
    dropped = _droppable(engine, said, plan.images) if said.archives else []
    told["Archives that can be made again"] = [fate.digest for fate in dropped]
    size = plan.size + sum(fate.size for fate in dropped)
    if not pruning.planned(told, size, exact=plan.exact and not dropped, said=said):
        return 0
    pruning.tell("Images", collector.collect(engine, plan))
    for title in ("Layers", "Archives", "Orphans", "Remains", "Objects"):
        pruning.tell(title, told[title])
    gone: dict[str, int] = {}
    if dropped:
        from cowshed.image.archives import Archives

        gone = Archives(engine.store).drop(dropped)
    pruning.tell("Archives that can be made again", list(gone))
    pruning.tell_freed(plan.size + sum(gone.values()))
    return 0


def _droppable(engine: Engine, said: Values, leaving: Container[str]) -> list[Fate]:
    """The archives that would be dropped, of images that stay. What is only shown tells also which are kept and why."""
    from cowshed.image.archives import Archives

    fates = Archives(engine.reader).fates(without=leaving)
    kept = [fate for fate in fates if fate.packing is None]
    if kept and said.dry_run:
        lines = [f"{fate.digest} ({output.size(fate.size)}): {fate.why}" for fate in kept]
        print("Would keep Archives:", *lines, "", sep="\n")
    return [fate for fate in fates if fate.packing is not None]


def dedup(engine: Engine, said: Values) -> int:
    """Every driver that the store has layers in is looked at; if files can share blocks in none, that is an error."""
    from cowshed.space import sharing
    from cowshed.state import drivers
    from cowshed.storage.errors import Unsupported

    rows, refused = [], []
    for name in said["operands"] or drivers.names(engine.reader):
        why, found = "", sharing.Shared(0, 0, 0, 0)
        try:
            found = sharing.share(engine, name, dry_run=bool(said.dry_run))
        except Unsupported as error:
            refused.append(error)
            why = str(error)
        rows.append(
            {
                "Driver": name, "Layers": found.layers, "Files": found.files, "Same": found.same,
                "Size": output.size(found.bytes), "Bytes": found.bytes, "Why": why,
            }
        )  # fmt: skip
    if refused and len(refused) == len(rows):
        raise refused[0]
    columns = ("Driver", "Layers", "Files", "Same", "Size", *(("Why",) if refused else ()))
    output.listing(rows, columns, said.format, what="storage dedup")
    return 0


def convert(engine: Engine, said: Values) -> int:
    from cowshed.cli import converting

    return converting.convert(engine, said)


def accept(engine: Engine, said: Values) -> int:
    from cowshed.cli import converting

    return converting.accept(engine, said)


def rollback(engine: Engine, said: Values) -> int:
    from cowshed.cli import converting

    return converting.rollback(engine, said)


def _id(id_: str, said: Values) -> str:
    return id_ if said.no_trunc else id_.rpartition(":")[2][:12]


def _yes(value: bool) -> str:
    return "yes" if value else "no"
