"""What dead commands left: each journal row whose layer's byte is free is repeated or undone."""

from __future__ import annotations

from cowshed.errors import NotFound
from cowshed.storage.errors import StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.engine import Engine


def recover(engine: Engine) -> None:
    """Called by the first thing that opens the store for writing; costs one query when nobody has died."""
    store = engine.store
    rows = store.query(
        "select j.number, j.op, l.driver from journal j join layers l using (number) order by number desc"
    )
    for number, op, driver in rows:
        if not store.locks.try_take("layers", number):
            continue  # its command lives
        try:
            if not store.query("select 1 from journal where number = ?", number):
                continue  # done meanwhile
            if store.locks.held("monitors", number) or store.locks.held("containers", number):
                continue  # it was started before its command died, or is being started
            layers = engine.layers(driver)
            if layers.repair(number, op):
                _forget(engine, number)
        except (NotFound, StorageError):
            continue  # its driver is not to be had now; `system check` tells of it
        finally:
            store.locks.release("layers", number)


def _forget(engine: Engine, number: int) -> None:
    from cowshed.container import lifecycle
    from cowshed.state import containers

    row = containers.get(engine.store, number)
    with engine.store.transaction() as tx:
        if row is not None:
            containers.delete(tx, number)
        tx.execute("delete from journal where number = ?", number)
        tx.execute("delete from layers where number = ?", number)
    if row is not None:
        lifecycle.remove_files(engine, row)
