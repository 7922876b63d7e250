"""What dead commands left: each journal row whose layer's byte is free is repeated or undone, and what a removal had
not come to yet is removed."""

from __future__ import annotations

import os

from cowshed import log
from cowshed.errors import CowshedError
from cowshed.state import containers, journal
from cowshed.storage.errors import StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cowshed.engine import Engine
    from cowshed.state.rows import JournalRow


def recover(engine: Engine) -> None:
    """Called by the first thing that opens the store for writing; costs three queries when nobody has died."""
    store = engine.store
    for entry in journal.list_all(store):
        _recover(engine, entry)
    left = store.query(
        "select exists (select 1 from loose_layers), exists (select 1 from loose_volumes), "
        "exists (select 1 from loose_blobs where unlisted), exists (select 1 from leaving_drivers)"
    )
    if any(left[0]):
        _finish_removals(engine, leaving=bool(left[0][3]))
    for number in containers.to_restart(store):
        if not store.locks.held("monitors", number):
            _restart(engine, number)
    if store.unrecorded():
        from cowshed.state import records

        records.recover(store)
    if os.path.isdir(f"{store.run}/active"):
        from cowshed.layers import activation

        activation.recover(store, engine.layers)


def _finish_removals(engine: Engine, *, leaving: bool) -> None:
    from cowshed.container import lifecycle
    from cowshed.image.blobs import BlobStore
    from cowshed.state import layers

    store = engine.store
    work: list[Callable[[], object]] = [
        lambda: lifecycle.remove_loose_volumes(engine),
        lambda: BlobStore(store.root).collect(store, wait=0),
        *[lambda name=name: engine.layers(name).remove_unreferenced(wait=0) for name in layers.loose_drivers(store)],
    ]  # fmt: skip
    if leaving:
        from cowshed.convert import settle

        work.append(lambda: settle.finish_for_another(engine))
    for each in work:
        try:
            each()
        except (CowshedError, StorageError, OSError) as error:  # as below; another command may be at it just now
            log.info(f"what removals left cannot be taken away now: {error}")


def _restart(engine: Engine, number: int) -> None:
    """Do what the monitor of a container cannot do any more, because it was killed: leave the restart to a command, as
    the policy says. Not while a process of the container lives, nor after a reboot, when nothing was killed."""
    from cowshed.container import lifecycle, state
    from cowshed.monitor import client

    row = containers.get(engine.store, number)
    if row is None or client.running(engine.place(row)) is None or state.alive(engine.place(row)):
        return
    try:
        if lifecycle.bury(engine, row):
            lifecycle.restart_later(engine, row)
    except (CowshedError, OSError) as error:
        log.info(f"container {row.name}, whose monitor was killed, cannot be restarted now: {error}")


def _recover(engine: Engine, entry: JournalRow) -> None:
    number, op = entry.number, entry.op
    locks = engine.store.locks
    if not locks.try_take("layers", number):
        return  # its command lives
    try:
        if journal.get(engine.store, number) is None or locks.held("containers", number):
            return  # done meanwhile, or being started
        if op == "run" and _adopt(engine, number):
            return
        if engine.layers(entry.driver).repair(number, op):
            _forget(engine, number, with_volumes=op != "remove" or bool(entry.args.get("volumes")))
    except (CowshedError, StorageError, OSError) as error:
        # It cannot be repaired now, which must not stop this command; `system check` tells of it.
        log.info(f"what a dead command left ({op} of layer {number}) cannot be repaired now: {error}")
    finally:
        locks.release("layers", number)


def _adopt(engine: Engine, number: int) -> bool:
    """Whether the container was started before the command that asked for it died: then it is one like any other."""
    from cowshed.container import lifecycle
    from cowshed.monitor import client

    store = engine.store
    row = containers.get(store, number)
    if row is None:
        return False
    running = client.running(engine.place(row)) if store.locks.held("monitors", number) else None
    ended = client.exit_record(engine.place(row)) is not None and not row.config.get("rm")
    if running is None and not ended:
        if store.locks.held("monitors", number):
            return True
        lifecycle.clear(engine, row)  # its monitor was killed as well
        try:
            os.unlink(f"{engine.folder(row)}/config.json")  # a monitor on its way finds nothing that it could start
        except FileNotFoundError:
            pass
        return False
    with store.transaction() as tx:
        journal.end(tx, number)
        containers.update(
            tx, number, state="running", started=row.started or row.created, pid=running[0] if running else None,
            wanted="running",
        )  # fmt: skip
    if running is None:
        lifecycle.ended(engine, row)
    return True


def _forget(engine: Engine, number: int, *, with_volumes: bool) -> None:
    from cowshed.container import lifecycle
    from cowshed.state import layers

    row = containers.get(engine.store, number)
    if row is not None:
        lifecycle.forget(engine, row, with_volumes=with_volumes)
        return
    with engine.store.transaction() as tx:
        layers.delete(tx, number)
