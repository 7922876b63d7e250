"""stop, kill, restart, rm, wait, container prune."""

from __future__ import annotations

import sys

from cowshed.container import lifecycle, signals
from cowshed.errors import CowshedError, NotFound
from cowshed.state import containers
from cowshed.storage.errors import StorageError
from cowshed_runtime.fastjson import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cowshed.cli.parser import Values
    from cowshed.engine import Engine
    from cowshed.state.rows import ContainerRow


def each(engine: Engine, names: list[str], work: Callable[[ContainerRow], None]) -> int:
    """Do work for every container named and print the name; one that fails does not keep the others from it."""
    status = 0
    for name in names:
        try:
            work(containers.find(engine.reader, name))
            print(name)
        except (CowshedError, StorageError) as error:
            remedy = f": {error.remedy}" if error.remedy else ""
            sys.stderr.write(f"cowshed: {error}{remedy}\n")
            status = 1
    return status


def _stop(engine: Engine, row: ContainerRow, said: Values) -> None:
    text = said.signal or row.config.get("stop_signal")
    if not text and row.image_id:
        rows = engine.reader.query("select config from images where id = ?", row.image_id)
        text = (loads(rows[0][0]).get("config") or {}).get("StopSignal") if rows else None
    timeout = said.time if said.time is not None else row.config.get("stop_timeout")
    lifecycle.stop(engine, row, timeout=timeout, number=signals.number(text) if text else 15)


def stop(engine: Engine, said: Values) -> int:
    _ = engine.store
    return each(engine, said["operands"], lambda row: _stop(engine, row, said))


def kill(engine: Engine, said: Values) -> int:
    number = signals.number(said.signal or "KILL")
    return each(engine, said["operands"], lambda row: lifecycle.signal(engine, row, number))


def restart(engine: Engine, said: Values) -> int:
    def work(row: ContainerRow) -> None:
        with open(f"{engine.make_place(row)}/restarting", "w"):
            pass  # its end is no reason to remove it, nor to start it once more: see Monitor.end
        _stop(engine, row, said)
        claimed = lifecycle.claim(engine, row)
        if claimed is None:
            raise lifecycle.removed(row)
        lifecycle.start(engine, claimed, attached=False).close()
        lifecycle.release(engine, claimed)

    _ = engine.store
    return each(engine, said["operands"], work)


def remove(engine: Engine, said: Values) -> int:
    engine.freeing = True
    _ = engine.store
    names = said["operands"]
    if said.force:
        present = []
        for name in names:
            try:
                containers.find(engine.store, name)
                present.append(name)
            except NotFound:
                continue  # what -f is for
        names = present
    return each(
        engine, names,
        lambda row: lifecycle.remove(engine, row, force=bool(said.force), with_volumes=bool(said.volumes)),
    )  # fmt: skip


def wait(engine: Engine, said: Values) -> int:
    for name in said["operands"]:
        print(lifecycle.wait(engine, containers.find(engine.reader, name)))
    return 0


def prune(engine: Engine, said: Values) -> int:
    from cowshed.cli import pruning

    fits = allowed = pruning.fitting(engine, said.filter or [])
    if said.dry_run or said.keep_last is not None or said.max_size is not None:
        from cowshed.container import state
        from cowshed.space import policy as policies

        chosen = pruning.by_policy(
            engine, said, "container",
            lambda inventory, policy: policies.containers(
                inventory, policy, fits=lambda row: fits(row, state.now(engine, row))
            ),
        )  # fmt: skip
        if chosen is None:
            return 0
        allowed = lambda row, now: row.id in chosen and fits(row, now)  # noqa: E731
    elif not (said.force or pruning.agreed("all containers that do not run")):
        return 0
    removed, freed = pruning.remove_containers(engine, allowed)
    pruning.tell("Containers", removed)
    pruning.tell_freed(freed)
    return 0
