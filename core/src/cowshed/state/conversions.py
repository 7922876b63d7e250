"""The conversion of a store to another driver: what was made of what, until it is accepted or rolled back.

Whoever changes any of it holds the file `convert` of the locks exclusively.
"""

from __future__ import annotations

from cowshed.errors import Conflict
from cowshed.state import journal
from cowshed.storage.record import record
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import Any

    from cowshed.state.store import Store, Transaction


@record(frozen=True)
class Conversion:
    target: str  # driver
    sources: tuple[str, ...]  # drivers
    fresh: bool  # nothing was in its store before, known or not
    lossy: bool
    begun: int  # ns since the epoch


@record(frozen=True)
class Converted:
    layer: int  # the first one
    twin: int | None  # the one that takes its place; None if it was removed since
    made: bool  # the twin was made for it
    container: str | None  # whose layer it is; None for a committed one
    digest: str  # of the tree
    driver: str  # of the first one


@record(frozen=True)
class Leaving:
    name: str  # of a driver
    store: str
    options: dict[str, Any]


def get(store: Store) -> Conversion | None:
    rows = store.query("select target, sources, fresh, lossy, begun from conversion")
    return _row(rows[0]) if rows else None


def _row(values: tuple[Any, ...]) -> Conversion:
    target, sources, fresh, lossy, begun = values
    return Conversion(target, tuple(loads(sources)), bool(fresh), bool(lossy), begun)


def begin(tx: Transaction, row: Conversion) -> None:
    """Write down that a conversion begins. Conflict if there is one to another driver, which is not accepted yet."""
    for target, sources in tx.execute("select target, sources from conversion"):
        if target != row.target:
            raise Conflict(
                f"the conversion to {target} is not accepted yet",
                remedy="cowshed storage accept, or cowshed storage rollback",
            )
        both = sorted({*loads(sources), *row.sources})
        tx.execute("update conversion set sources = ?, lossy = max(lossy, ?)", dumps(both), int(row.lossy))
        return
    tx.execute(
        "insert into conversion values (?, ?, ?, ?, ?)",
        row.target, dumps(list(row.sources)), int(row.fresh), int(row.lossy), row.begun,
    )  # fmt: skip


def note(tx: Transaction, layer: int, twin: int, *, made: bool, digest: str, container: str | None = None) -> None:
    """Write down that twin takes the place of layer."""
    tx.execute("insert or replace into converted values (?, ?, ?, ?, ?)", layer, twin, int(made), container, digest)


def list_all(store: Store) -> list[Converted]:
    rows = store.query(
        "select layer, twin, made, container, digest, layers.driver from converted "
        "join layers on layers.number = layer order by layer"
    )
    return [Converted(layer, twin, bool(made), box, digest, driver) for layer, twin, made, box, digest, driver in rows]


def is_noted(store: Store, layer: int) -> bool:
    return bool(store.query("select 1 from converted where layer = ?", layer))


def same_tree(store: Store, layer: int, twin: int) -> bool:
    """Whether the trees of a layer and of the one that takes its place were held against each other. They may differ in
    times that an image does not tell, if both were made from its archives."""
    return bool(store.query("select 1 from converted where layer = ? and twin = ? and digest != ''", layer, twin))


def was_made(tx: Transaction, twin: int) -> bool:
    """Whether a layer of the target was made for the conversion."""
    return bool(tx.execute("select 1 from converted where twin = ? and made", twin))


def found_again(tx: Transaction, container: str, number: int) -> None:
    """A container whose layer's row was lost has it again: it is what takes the place of its first one, if that was
    noted. The database had taken it for one that was removed."""
    tx.execute(
        "update converted set twin = ? where container = ? and layer != ? and twin is null and "
        "(select target from conversion) = (select driver from layers where number = ?)",
        number, container, number, number,
    )  # fmt: skip


def switch(tx: Transaction, container: int, number: int, driver: str) -> None:
    """Let a container have the layer `number` of that driver from now on, and be known by its number."""
    tx.execute("pragma defer_foreign_keys = on")
    for (id_,) in tx.execute(
        "update containers set number = ?, driver = ? where number = ? returning id", number, driver, container
    ):
        tx.record("containers", id_)
    tx.execute("update volume_users set container = ? where container = ?", number, container)


def give_up(tx: Transaction, layers: Sequence[int]) -> None:
    """These committed layers realise no image any more. Each goes when nothing stands on it: at once, or later."""
    for number in layers:
        for (id_,) in tx.execute("update layers set chain_id = null where number = ? returning id", number):
            tx.record("layers", id_)
        tx.execute("insert or ignore into loose_layers select number from bare_layers where number = ?", number)


def remove(tx: Transaction, layers: Sequence[int]) -> None:
    """Write down that these active layers, which no container has, are about to be removed."""
    for number in layers:
        journal.begin(tx, number, "remove", {"volumes": False})


def end(tx: Transaction, stay: Collection[int] = ()) -> None:
    """The conversion is over, but for what was made of the layers that stay."""
    for (layer,) in tx.execute("select layer from converted"):
        if layer not in stay:
            tx.execute("delete from converted where layer = ?", layer)
    tx.execute("delete from conversion where not exists (select 1 from converted)")


# ---------------------------------------------------------------- drivers that hold nothing any more


def is_known(store: Store, name: str) -> bool:
    """Whether this store has been used with a driver, and it has not left."""
    return bool(store.query("select 1 from drivers where name = ?", name))


def holds(store: Store, name: str) -> bool:
    """Whether a driver has layers in this store."""
    return bool(store.query("select 1 from layers where driver = ? limit 1", name))


def may_leave(tx: Transaction, names: Sequence[str]) -> None:
    """Write down that the stores of these drivers are to be destroyed, if nothing is in them soon."""
    for name in names:
        tx.execute(
            "insert or replace into leaving_drivers select name, store, options from drivers where name = ?", name
        )


def leave(tx: Transaction, name: str) -> bool:
    """Forget a driver that may leave; False if it stays, as it holds layers."""
    if tx.execute("select 1 from layers where driver = ? limit 1", name):
        has_left(tx, name)
        return False
    tx.execute("delete from drivers where name = ?", name)
    tx.record("drivers", name)
    return True


def leaving(store: Store) -> list[Leaving]:
    rows = store.query("select name, store, options from leaving_drivers order by name")
    return [Leaving(name, identity, loads(options)) for name, identity, options in rows]


def has_left(tx: Transaction, name: str) -> None:
    tx.execute("delete from leaving_drivers where name = ?", name)
