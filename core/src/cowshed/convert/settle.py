"""How a conversion ends: accepted, and the first layers go; or rolled back, and all is as it was before.

Either is one transaction, and from then on what is not needed any more is what a dead command might have left: it is
removed here, and by the next command that writes if this one dies.
"""

from __future__ import annotations

from contextlib import ExitStack

from cowshed import log
from cowshed.container import state
from cowshed.container.access import Held
from cowshed.convert.execute import Alone
from cowshed.convert.plan import mask
from cowshed.errors import Busy, Conflict, CowshedError, NotFound
from cowshed.layers import digest
from cowshed.layers.faults import step
from cowshed.state import containers, conversions, records
from cowshed.state import layers as rows
from cowshed.storage import api
from cowshed.storage.errors import InUse, LayerId, StorageError
from cowshed.storage.record import record
from cowshed_linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from cowshed.engine import Engine
    from cowshed.layers.layers import Layers
    from cowshed.state.conversions import Conversion, Converted
    from cowshed.state.rows import ContainerRow
    from cowshed.state.store import Transaction

_PURGE_SECONDS = 3600.0  # to give the space back of what was removed
_PATIENCE = 15.0  # seconds for another command that works on a container


@record(frozen=True)
class Outlook:
    """What accepting or rolling back does."""

    target: str
    sources: tuple[str, ...]  # drivers
    layers: int  # of images, that lose their place
    containers: tuple[str, ...]  # names of those that were converted
    gone: int  # of those that were removed since
    kept: tuple[str, ...]  # why something stays where it is
    refused: tuple[str, ...]
    unproven: frozenset[int] = frozenset()  # first layers of pairs of which the one to be kept is not there


def _refuse_lost(engine: Engine, done: list[Converted]) -> None:
    """Conflict if the database has lost a container that was converted, or its layer: that is not one that was removed,
    and what it has must not go with those."""
    numbers = {row.id: row.number for row in containers.list_all(engine.reader)}
    for each in done:
        if each.container is None:
            continue
        number = numbers.get(each.container)
        value = records.read(records.path(engine.reader.root, "containers", each.container))
        if (value is not None and number is None) or (number is not None and rows.get(engine.reader, number) is None):
            name = (value or {}).get("name") or each.container[:12]
            raise Conflict(
                f"the database has lost rows of container {name}, which was converted", remedy="cowshed storage repair"
            )


def pending(engine: Engine) -> Conversion:
    """NotFound if there is none."""
    found = conversions.get(engine.reader)
    if found is None:
        raise NotFound("no conversion waits to be accepted", remedy="cowshed storage convert --to DRIVER begins one")
    return found


# ---------------------------------------------------------------- accept


def outlook_of_acceptance(engine: Engine) -> Outlook:
    conversion, done = pending(engine), conversions.list_all(engine.reader)
    _refuse_lost(engine, done)
    sources = _sources(conversion, done)
    names, gone = _boxes(engine, done)
    kept = [
        f"container {row.name} stays on driver {row.driver}, with the layers that it stands on"
        for row in containers.list_all(engine.reader)
        if row.driver in sources
    ]
    twins = [(conversion.target, each.twin, each.container is None) for each in done if each.twin is not None]
    unproven = _unproven(engine, twins)
    stay = frozenset(each.layer for each in done if each.twin in unproven)
    kept += [
        f"layer {_name(engine, each.layer)} stays on driver {each.driver}: its twin {unproven[each.twin]}"
        for each in done
        if each.twin is not None and each.twin in unproven
    ]
    return Outlook(
        conversion.target, sources, len(_replaced(engine, done, stay)),
        tuple(row.name for row in names if row.number not in {each.twin for each in done if each.layer in stay}),
        gone, tuple(kept), (), stay,
    )  # fmt: skip


def _unproven(engine: Engine, needed: Iterable[tuple[str, int, bool]]) -> dict[int, str]:
    """Of layers (driver, number, whether it is an image's) that are to be the only ones: by number, what is wrong with
    those that are not there, not durable, or cannot be mounted. What opening and scanning the drivers raises."""
    found: dict[int, str] = {}
    by_driver: dict[str, list[tuple[int, bool]]] = {}
    for driver, number, of_image in needed:
        by_driver.setdefault(driver, []).append((number, of_image))
    for driver, numbers in by_driver.items():
        layers = engine.look(driver)
        there = {each.layer: each.layer_kind for each in layers.driver.scan() if each.kind is api.ObjectKind.LAYER}
        for number, of_image in numbers:
            why = _wrong_with(layers, number, api.Kind.COMMITTED if of_image else api.Kind.ACTIVE, there)
            if why:
                found[number] = why
    return found


def _wrong_with(layers: Layers, number: int, wanted: api.Kind, there: Mapping[LayerId | None, api.Kind | None]) -> str:
    chain = [rows.get(layers.store, n) for n, *_ in rows.chain(layers.store, number)]
    if not chain or chain[0] is None or api.Kind(chain[0].kind) is not wanted:
        return f"is not in driver {layers.name}"
    for n, row in enumerate(chain):  # a driver may plan a mount without a look at what is far below
        kind = api.Kind.COMMITTED if n else wanted
        which = f"stands on layer {row.id}, which " if n and row is not None else ""
        if row is None or LayerId(row.id) not in there:
            return f"{which}is not in driver {layers.name}"
        if there[LayerId(row.id)] not in (kind, None):
            return f"{which}is not {kind.value} in driver {layers.name}"
        if kind is api.Kind.COMMITTED and not (row.durable or row.boot_id == process.boot_id()):
            return f"{which}may have been cut by a power cut"
    if layers.store.locks.held("mounts", number):
        return ""  # somebody has it mounted at this moment
    try:
        layer = layers.load(number)
        if not api.has_activation(layers.driver):
            layers.plan(layer, read_only=True)
        else:
            with layers.mounted(layer, read_only=True):
                pass
    except InUse:
        return ""
    except (CowshedError, StorageError, OSError) as error:
        return f"cannot be mounted: {error}"
    return ""


def _name(engine: Engine, number: int) -> str:
    row = rows.get(engine.reader, number)
    return row.id if row is not None else str(number)


def _replaced(engine: Engine, done: list[Converted], stay: frozenset[int]) -> list[int]:
    """The layers of images that are not needed any more where they were. What stays keeps those that it stands on."""
    below = {number for layer in stay for number, *_ in rows.chain(engine.reader, layer)}
    found = {each.layer for each in done if each.container is None and each.twin is not None}
    return _alone(engine, found - below)


def _made(engine: Engine, done: list[Converted], unproven: Collection[int] = ()) -> list[int]:
    """The layers of images that were made for the conversion, and that no image that came since stands on. unproven:
    first layers that are not there any more, whose twins stay with those that they stand on."""
    made = {each.twin: each.layer for each in done if each.container is None and each.made and each.twin is not None}
    below = {
        number for twin, layer in made.items() if layer in unproven for number, *_ in rows.chain(engine.reader, twin)
    }
    return _alone(engine, made.keys() - below)


def _alone(engine: Engine, numbers: set[int]) -> list[int]:
    """Those of these layers on which no other image's layer stands."""
    store = engine.reader
    found = {number: rows.get(store, number) for number in numbers}
    others: set[int] = set()
    for driver in {row.driver for row in found.values() if row is not None}:
        there = {row.number: row for row in rows.list_all(store, driver) if row.kind == "committed"}
        for row in there.values():
            at = row.parent if row.number not in numbers else None
            while at is not None and at not in others and at in there:
                others.add(at)
                at = there[at].parent
    return sorted(numbers - others)


def accept(engine: Engine) -> Outlook:
    """Let the first layers go of which the twins are proved to be there, and the stores of drivers that hold nothing
    then. What stays is told, and waits to be accepted or rolled back. Busy, StorageError: the rest is done by the next
    command. StoreError if the records of what was converted cannot be written: nothing is let go."""
    outlook = outlook_of_acceptance(engine)
    done = conversions.list_all(engine.store)
    old = [each.layer for each in done if each.container is not None and each.layer not in outlook.unproven]
    given_up = _replaced(engine, done, outlook.unproven)
    records.make_durable(engine.store, _recorded(engine, outlook.target, done))

    def write(tx: Transaction) -> None:
        conversions.give_up(tx, given_up)
        conversions.remove(tx, old)
        conversions.may_leave(tx, [*outlook.sources, outlook.target])
        conversions.end(tx, outlook.unproven)

    _settle(engine, old, write, "accept")
    _clear(engine, outlook.sources)
    return outlook


def _recorded(engine: Engine, target: str, done: list[Converted]) -> list[tuple[str, str]]:
    """(kind, name) of the records that tell of what takes the place of the first layers."""
    found = [("drivers", target)]
    for each in done:
        twin = rows.get(engine.store, each.twin) if each.twin is not None else None
        if twin is not None:
            found.append(("containers", each.container) if each.container is not None else ("layers", twin.id))
    return found


# ---------------------------------------------------------------- roll back


def outlook_of_return(engine: Engine, *, lossy: bool = False) -> Outlook:
    """lossy: what containers have written since is given up."""
    conversion, done = pending(engine), conversions.list_all(engine.reader)
    _refuse_lost(engine, done)
    rows_, gone = _boxes(engine, done)
    by_id = {each.container: each for each in done if each.container is not None}
    first = [(each.driver, each.layer, each.container is None) for each in done if each.twin is not None]
    unproven = _unproven(engine, first)
    refused = []
    for row in rows_:
        layer = by_id[row.id].layer
        why = f"cannot go back: its layer {_name(engine, layer)} {unproven[layer]}" if layer in unproven else ""
        why = why or _work_since(engine, conversion, by_id[row.id], row, lossy=lossy)
        if why:
            refused.append(f"container {row.name} {why}")
    twins = {each.twin for each in done}
    kept = [
        f"container {row.name}, made since, stays on driver {row.driver} with what it stands on"
        for row in containers.list_all(engine.reader)
        if row.driver == conversion.target and row.id not in by_id and _stands_on(engine, row, twins)
    ]
    kept += [
        f"layer {_name(engine, each.layer)} {unproven[each.layer]}: its twin stays on driver {conversion.target}"
        for each in done
        if each.container is None and each.made and each.layer in unproven
    ]
    return Outlook(
        conversion.target, _sources(conversion, done),
        len(_made(engine, done, unproven)),
        tuple(row.name for row in rows_), gone, tuple(kept), tuple(refused), frozenset(unproven),
    )  # fmt: skip


def refuse(outlook: Outlook) -> None:
    """Conflict if a container cannot go back."""
    if outlook.refused:
        more = f", and {len(outlook.refused) - 1} more" if len(outlook.refused) > 1 else ""
        raise Conflict(
            f"{outlook.refused[0]}{more}",
            remedy="stop it; what was written since is given up with --lossy, or kept by accepting",
        )


def roll_back(engine: Engine, *, lossy: bool = False) -> Outlook:
    """Give every container the layer back that it had, and let the layers go that were made. Conflict if that layer is
    not there, if one runs or, unless lossy, has changed since; and what `Held` raises."""
    conversion, done = pending(engine), conversions.list_all(engine.store)
    boxes = [each for each in done if each.container is not None]
    with ExitStack() as held:
        for row in _boxes(engine, done)[0]:
            held.enter_context(Held(engine, row))
        outlook = outlook_of_return(engine, lossy=lossy)  # only now is it certain
        refuse(outlook)
        back = [(each.twin, each.layer, each.driver) for each in boxes if each.twin is not None]
        gone = [each.layer for each in boxes if each.twin is None]  # of containers that were removed since
        made = _made(engine, done, outlook.unproven)

        def write(tx: Transaction) -> None:
            for twin, layer, driver in back:
                conversions.switch(tx, twin, layer, driver)
            conversions.remove(tx, [*[twin for twin, _, _ in back], *gone])
            conversions.give_up(tx, made)
            if conversion.fresh:
                conversions.may_leave(tx, [conversion.target])
            conversions.end(tx)

        _settle(engine, [*[twin for twin, _, _ in back], *gone], write, "rollback")
    _clear(engine, [conversion.target, *outlook.sources])
    return outlook


def _work_since(engine: Engine, conversion: Conversion, each: Converted, row: ContainerRow, *, lossy: bool) -> str:
    """Why a container cannot go back, "" if it can."""
    if state.now(engine, row).state == "running":
        return "runs"
    if lossy:
        return ""
    layers, source = engine.look(conversion.target), engine.look(each.driver)
    leave_out = mask(source.driver.capabilities, layers.driver.capabilities, lossy=conversion.lossy)
    with layers.mounted(layers.load(row.number), read_only=True) as root:
        same = digest.of_tree(root, leave_out).value == each.digest
    return "" if same else "has written something since, which rolling back would lose"


def _stands_on(engine: Engine, row: ContainerRow, layers: Iterable[int | None]) -> bool:
    return any(number in set(layers) for number, *_ in rows.chain(engine.reader, row.number))


# ---------------------------------------------------------------- both


def _sources(conversion: Conversion, done: list[Converted]) -> tuple[str, ...]:
    return tuple(sorted({*conversion.sources, *[each.driver for each in done]}))


def _boxes(engine: Engine, done: list[Converted]) -> tuple[list[ContainerRow], int]:
    """The converted containers that are still there, and how many are not."""
    by_id = {row.id: row for row in containers.list_all(engine.reader)}
    ids = [each.container for each in done if each.container is not None]
    return [by_id[id_] for id_ in ids if id_ in by_id], sum(1 for id_ in ids if id_ not in by_id)


def _settle(engine: Engine, numbers: list[int], write: Callable[[Transaction], None], name: str) -> None:
    """Write the end of the conversion down, with the removal of these active layers, and remove them. Busy."""
    store = engine.store
    held: list[int] = []
    try:
        for number in numbers:
            store.locks.take("layers", number, wait=_PATIENCE, what=f"layer {number}")
            held.append(number)
        with store.transaction() as tx:
            write(tx)
        step(f"{name}.written")
        for number in numbers:
            row = rows.get(store, number)
            assert row is not None
            layers = engine.layers(row.driver)
            try:
                layers.remove(layers.load(number))
            except InUse:
                continue  # somebody has it mounted by hand; the next command that writes tries again
            step(f"{name}.removed")
            with store.transaction() as tx:
                rows.delete(tx, number)
    finally:
        for number in held:
            store.locks.release("layers", number)


def _clear(engine: Engine, names: Iterable[str]) -> None:
    """Remove what nothing stands on any more in these drivers, destroy the stores that hold nothing, and give the space
    of the others back."""
    for name in names:
        engine.layers(name).remove_unreferenced()
    step("settle.swept")
    finish_leaving(engine)
    for name in names:
        if conversions.is_known(engine.store, name):
            engine.layers(name).purge(_PURGE_SECONDS)


def finish_for_another(engine: Engine) -> None:
    """What a command that accepted or rolled back had not come to. Busy if it lives."""
    with Alone(engine):
        finish_leaving(engine)


def _unknown(engine: Engine, name: str) -> str:
    """Why the store of a driver without layers in the database is not to be destroyed, "" if it may be."""
    if conversions.holds(engine.store, name):
        return ""  # it stays for these
    try:
        count = sum(found.kind is api.ObjectKind.LAYER for found in engine.layers(name).driver.scan())
    except (CowshedError, StorageError, OSError) as error:
        return f"it cannot be looked at: {error}"
    return f"it has {count} layers that nobody knows" if count else ""


def finish_leaving(engine: Engine) -> None:
    """Destroy the stores of drivers that are to leave, if they hold nothing: neither what the database knows nor what
    it does not. One that stays for the latter is told."""
    from cowshed.layers.host import make as make_host
    from cowshed.storage import options, registry

    store = engine.store
    for each in conversions.leaving(store):
        # Without its row it was looked at by the command that took that away, and may be half destroyed.
        why = _unknown(engine, each.name) if conversions.is_known(store, each.name) else ""
        with store.transaction() as tx:
            if why:
                conversions.has_left(tx, each.name)
                log.warn(f"driver {each.name} stays: {why}")
                continue
            if not conversions.leave(tx, each.name):
                continue
        step("leave.written")
        engine.close_layers(each.name)
        if not store.locks.exclude(f"driver.{each.name}", wait=_PATIENCE):
            raise Busy(f"the {each.name} store is being opened by another command", remedy="try again")
        try:
            if not conversions.is_known(store, each.name):  # else it was begun anew meanwhile
                plugin, _ = registry.load(each.name)
                chosen = options.check(plugin, engine.settings.options_of(each.name))
                options.compare(plugin, each.options, {}, chosen)
                root = f"{store.root}/drivers/{each.name}"
                plugin.destroy(root, chosen, make_host(), store=api.StoreId(each.store))
                step("leave.destroyed")
            with store.transaction() as tx:
                conversions.has_left(tx, each.name)
        finally:
            store.locks.let_go(f"driver.{each.name}")
