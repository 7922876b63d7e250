"""ps: the processes of a container."""

from __future__ import annotations

import sys

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
    import subprocess

    # Its options and columns are those of ps(1): whoever gives some wants that program's.
    try:
        done = subprocess.run(["ps", *(options or ["-ef"])], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise CommandError("the program ps is not installed (Debian: procps); --format json needs none") from None
    if done.returncode:
        raise CommandError(f"ps: {done.stderr or done.stdout}")
    lines = done.stdout.splitlines()
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise CommandError("ps was told to print no column PID, by which the container's processes are known")
    at, wanted = titles.index("PID"), {str(pid) for pid in pids}
    shown = [lines[0], *(line for line in lines[1:] if line.split()[at : at + 1] and line.split()[at] in wanted)]
    sys.stdout.write("\n".join(shown) + "\n")
    return 0
