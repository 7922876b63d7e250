"""pause, unpause, top, stats."""

from __future__ import annotations

import sys
import time

from cowshed.cli import output
from cowshed.cli.commands.control import each
from cowshed.container import pausing, state
from cowshed.errors import BadUsage, Conflict
from cowshed.state import containers
from cowshed_runtime.cgroup.group import Group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.cli.parser import Values
    from cowshed.engine import Engine
    from cowshed.state.rows import ContainerRow

_COLUMNS = ("ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs")
_HEADINGS = {
    "ID": "CONTAINER ID", "CPUPERC": "CPU %", "MEMUSAGE": "MEM USAGE / LIMIT", "MEMPERC": "MEM %", "NETIO": "NET I/O",
    "BLOCKIO": "BLOCK I/O", "PIDS": "PIDS",
}  # fmt: skip
_PERIOD = 1.0  # seconds that a share of processor time is measured over
_CLEAR = "\033[2J\033[H"


def pause(engine: Engine, said: Values) -> int:
    _ = engine.store
    return each(engine, said["operands"], lambda row: pausing.pause(engine, row))


def unpause(engine: Engine, said: Values) -> int:
    _ = engine.store
    return each(engine, said["operands"], lambda row: pausing.unpause(engine, row))


def top(engine: Engine, said: Values) -> int:
    from cowshed_runtime import listing

    name, *options = said["operands"]
    row = containers.find(engine.reader, name)
    if state.now(engine, row).state != "running":
        raise Conflict(f"container {row.name} is not running", remedy="cowshed start it")
    try:
        sys.stdout.write(listing.table(Group(row.id).processes(), options))
    except ValueError as error:
        raise BadUsage(str(error)) from None
    return 0


def stats(engine: Engine, said: Values) -> int:
    names = said["operands"]
    before: dict[str, tuple[int, int]] = {}
    _measured(engine, names, said, before)
    while True:
        time.sleep(_PERIOD)
        rows = _measured(engine, names, said, before)
        if not said.no_stream and sys.stdout.isatty():
            sys.stdout.write(_CLEAR)
        output.listing(rows, _COLUMNS, said.format, what="stats", headings=_HEADINGS)
        sys.stdout.flush()
        if said.no_stream:
            return 0


def _measured(
    engine: Engine, names: list[str], said: Values, before: dict[str, tuple[int, int]]
) -> list[dict[str, Any]]:
    """What each container uses now; before: of the last time, by id, when (ns) and processor time (ns)."""
    rows = [containers.find(engine.reader, name) for name in names] or list(containers.list_all(engine.reader))
    found = []
    for row in rows:
        now = state.now(engine, row)
        if names or said.all or now.state == "running":
            found.append(_line(row, now.pid if now.state == "running" else 0, said, before))
    return found


def _line(row: ContainerRow, pid: int, said: Values, before: dict[str, tuple[int, int]]) -> dict[str, Any]:
    from cowshed_runtime.cgroup.statistics import statistics

    told = statistics(Group(row.id)) if pid else {"cpu": {}, "memory": {}, "pids": {}, "blkio": {}}
    when, worked = time.monotonic_ns(), int((told["cpu"].get("usage") or {}).get("total") or 0)
    first, then = before.get(row.id, (when, worked))
    before[row.id] = when, worked
    share = 100 * (worked - then) / (when - first) if when > first else 0.0
    used, limit = _memory(told["memory"]) if pid else (0, 0)
    read, written = _blocks(told["blkio"])
    received, sent = _network(pid)
    return {
        "Container": row.id if said.no_trunc else row.id[:12],
        "ID": row.id if said.no_trunc else row.id[:12],
        "Name": row.name,
        "CPUPerc": f"{share:.2f}%",
        "MemUsage": f"{_binary(used)} / {_binary(limit)}",
        "MemPerc": f"{100 * used / limit if limit else 0:.2f}%",
        "NetIO": f"{output.size(received)} / {output.size(sent)}",
        "BlockIO": f"{output.size(read)} / {output.size(written)}",
        "PIDs": str(told["pids"].get("current") or 0),
    }


def _memory(told: dict[str, Any]) -> tuple[int, int]:
    """Without what could be thrown away at once, as docker counts it; and the limit, the host's memory if less."""
    with open("/proc/meminfo", encoding="ascii") as file:
        most = int(file.readline().split()[1]) * 1024
    usage, raw = told.get("usage") or {}, told.get("raw") or {}
    cached = raw.get("total_inactive_file", raw.get("inactive_file", 0))
    return max(0, int(usage.get("usage") or 0) - cached), min(most, int(usage.get("limit") or most))


def _blocks(told: dict[str, Any]) -> tuple[int, int]:
    sums = {"read": 0, "write": 0}
    for entry in told.get("ioServiceBytesRecursive") or ():
        kind = str(entry["op"]).lower()
        if kind in sums:
            sums[kind] += int(entry["value"])
    return sums["read"], sums["write"]


def _network(pid: int) -> tuple[int, int]:
    """Bytes received and sent by all devices but lo, in the network namespace of a process."""
    received = sent = 0
    try:
        with open(f"/proc/{pid}/net/dev", encoding="ascii") as file:
            for line in list(file)[2:]:
                name, _, numbers = line.partition(":")
                if name.strip() != "lo":
                    received += int(numbers.split()[0])
                    sent += int(numbers.split()[8])
    except OSError:
        return 0, 0  # it does not run, or has just ended
    return received, sent


def _binary(count: int) -> str:
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.4g}{unit}"
        amount /= 1024
    return f"{amount:.4g}TiB"
