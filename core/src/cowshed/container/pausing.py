"""A container that is paused: all that is in its control groups stands still, whatever its runtime is, for the groups
are the engine's.

That it is meant to be paused is a file in its run directory, so that a listing needs to know nothing of control groups.
"""

from __future__ import annotations

import os

from cowshed.container import state
from cowshed.errors import Conflict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.engine import Engine
    from cowshed.state.rows import ContainerRow

_PATIENCE = 15.0  # seconds for another command that works on the container


def paused(engine: Engine, row: ContainerRow) -> bool:
    """Of a container that runs."""
    return os.path.exists(f"{engine.place(row)}/paused")


def pause(engine: Engine, row: ContainerRow) -> None:
    """Conflict if it does not run, is paused, or cannot be."""
    from cowshed_runtime.cgroup import freezer
    from cowshed_runtime.cgroup.group import Group

    with _Running(engine, row):
        if paused(engine, row):
            raise Conflict(f"container {row.name} is paused already", remedy="cowshed unpause it")
        with open(f"{engine.place(row)}/paused", "w"):
            pass
        try:
            freezer.freeze(Group(row.id))
        except OSError as error:
            os.unlink(f"{engine.place(row)}/paused")
            text = f"container {row.name} cannot be paused: {error.strerror or error}"
            raise Conflict(text, remedy="stop it") from None


def unpause(engine: Engine, row: ContainerRow) -> None:
    """Conflict if it is not paused."""
    with _Running(engine, row):
        if not paused(engine, row):
            raise Conflict(f"container {row.name} is not paused")
        go_on(engine, row)


def go_on(engine: Engine, row: ContainerRow) -> None:
    """Let a paused container go on."""
    from cowshed_runtime.cgroup import freezer
    from cowshed_runtime.cgroup.group import Group

    freezer.thaw(Group(row.id))
    try:
        os.unlink(f"{engine.place(row)}/paused")
    except FileNotFoundError:
        return  # it has ended, and is removed


class _Running:
    """`with _Running(engine, row):` the container runs, and nobody else works on it. Conflict, NotFound, Busy."""

    def __init__(self, engine: Engine, row: ContainerRow) -> None:
        self._engine, self._row = engine, row

    def __enter__(self) -> None:
        self._engine.store.locks.take(
            "containers", self._row.number, wait=_PATIENCE, what=f"container {self._row.name}"
        )
        if state.now(self._engine, self._row).state != "running":
            self.__exit__()
            raise Conflict(f"container {self._row.name} is not running", remedy="cowshed start it")

    def __exit__(self, *unused: object) -> None:
        self._engine.store.locks.release("containers", self._row.number)
