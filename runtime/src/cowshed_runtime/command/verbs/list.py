"""list: the containers of a state directory."""

from __future__ import annotations

import sys

from cowshed_runtime.command import state
from cowshed_runtime.command.errors import CommandError, told
from cowshed_runtime.command.log import log
from cowshed_runtime.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed_runtime.command.parser import Values

_COLUMNS = ("id", "pid", "status", "bundle", "created", "owner")


def list(flags: Values, said: Values) -> int:
    form = said.format or "table"
    if form not in ("table", "json"):
        raise CommandError("invalid format option")
    found: Any = []
    for name in state.names(state.root(flags)):
        if said.quiet:
            sys.stdout.write(f"{name}\n")
            continue
        try:
            container = state.load(state.root(flags), name)
        except state.Unknown:
            continue  # it has been deleted since its name was read
        except (OSError, ValueError) as error:
            log.warning(f"container {name}: {told(error)}")
            continue
        shown = container.told(container.status())
        container.close()
        found.append({**shown, "owner": _user(int(shown["owner"]))})
    if said.quiet:
        return 0
    if form == "json":
        sys.stdout.write(dumps(found) + "\n")
        return 0
    rows = [[column.upper() for column in _COLUMNS], *([str(one[column]) for column in _COLUMNS] for one in found)]
    widths = [max(12, *(len(row[at]) + 3 for row in rows)) for at in range(len(_COLUMNS))]
    for row in rows:
        sys.stdout.write("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
    return 0


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"
