"""state: what a container is and does, as the specification's document."""

from __future__ import annotations

import sys

from cowshed_runtime.command import state as states
from cowshed_runtime.fastjson import pretty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed_runtime.command.parser import Values


def state(flags: Values, said: Values) -> int:
    container = states.load(states.root(flags), said["operands"][0])
    sys.stdout.write(pretty(container.told(container.status())) + "\n")
    return 0
