"""pause and resume: all of a container's processes stop where they are, and go on."""

from __future__ import annotations

from cowshed_runtime.cgroup import freezer
from cowshed_runtime.command import state
from cowshed_runtime.command.errors import CommandError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed_runtime.command.parser import Values


def pause(flags: Values, said: Values) -> int:
    container = state.load(state.root(flags), said["operands"][0], lock=True)
    if container.status(mine=True) not in ("running", "created"):
        raise CommandError("container not running")
    freezer.freeze(container.group)
    return 0


def resume(flags: Values, said: Values) -> int:
    container = state.load(state.root(flags), said["operands"][0], lock=True)
    if container.status(mine=True) != "paused":
        raise CommandError("container not paused")
    freezer.thaw(container.group)
    return 0
