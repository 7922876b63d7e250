"""ps: the processes of a container."""

from __future__ import annotations

import sys

from cowshed_runtime import listing
from cowshed_runtime.command import state
from cowshed_runtime.command.errors import CommandError
from cowshed_runtime.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed_runtime.command.parser import Values


def ps(flags: Values, said: Values) -> int:
    form = said.format or "table"
    if form not in ("table", "json"):
        raise CommandError("invalid format option")
    name, *options = said["operands"]
    pids = state.load(state.root(flags), name).group.processes()
    if form == "json":
        sys.stdout.write(dumps(pids) + "\n")
        return 0
    try:
        sys.stdout.write(listing.table(pids, options))
    except ValueError as error:
        raise CommandError(f"{error}; --format json needs no ps") from None
    return 0
