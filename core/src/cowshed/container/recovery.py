"""What dead commands left: each journal row whose layer's byte is free is repeated or undone."""

from __future__ import annotations

from cowshed.errors import CowshedError
from cowshed.state import journal
from cowshed.storage.errors import StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.engine import Engine


def recover(engine: Engine) -> None:
    """Called by the first thing that opens the store for writing; costs one query when nobody has died."""
    for entry in journal.list_all(engine.store):
        _recover(engine, entry.number, entry.op, entry.driver)


def _recover(engine: Engine, number: int, op: str, driver: str) -> None:
    locks = engine.store.locks
    if not locks.try_take("layers", number):
        return  # its command lives
    try:
        if journal.get(engine.store, number) is None or locks.held("containers", number):
            return  # done meanwhile, or being started
        if op == "run" and _adopt(engine, number):
            return
        if engine.layers(driver).repair(number, op):
            _forget(engine, number)
    except (CowshedError, StorageError, OSError):
        return  # it cannot be repaired now, which must not stop this command; `system check` tells of it
    finally:
        locks.release("layers", number)


def _adopt(engine: Engine, number: int) -> bool:
    """Whether the container was started before the command that asked for it died: then it is one like any other."""
    from cowshed.container import lifecycle
    from cowshed.monitor import client
    from cowshed.state import containers

    store = engine.store
    row = containers.get(store, number)
    if row is None:
        return False
    running = client.running(engine.place(row)) if store.locks.held("monitors", number) else None
    ended = client.exit_record(engine.place(row)) is not None and not row.config.get("rm")
    if running is None and not ended:
        return store.locks.held("monitors", number)
    with store.transaction() as tx:
        journal.end(tx, number)
        containers.update(
            tx, number, state="running", started=row.started or row.created, pid=running[0] if running else None,
            wanted="running",
        )  # fmt: skip
    if running is None:
        lifecycle.ended(engine, row)
    return True


def _forget(engine: Engine, number: int) -> None:
    from cowshed.container import lifecycle
    from cowshed.state import containers, layers

    row = containers.get(engine.store, number)
    with engine.store.transaction() as tx:
        if row is not None:
            containers.delete(tx, number)
        layers.delete(tx, number)
    if row is not None:
        lifecycle.remove_files(engine, row)
