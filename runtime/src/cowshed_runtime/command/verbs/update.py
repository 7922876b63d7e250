"""update: change the limits of a container that runs."""

from __future__ import annotations

import os

from cowshed_runtime import spec
from cowshed_runtime.command import state
from cowshed_runtime.command.errors import CommandError
from cowshed_runtime.fastjson import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed_runtime.command.parser import Values

# option, object of linux.resources, key
_OPTIONS = (
    ("blkio_weight", "blockIO", "weight"), ("cpu_period", "cpu", "period"), ("cpu_quota", "cpu", "quota"),
    ("cpu_burst", "cpu", "burst"), ("cpu_share", "cpu", "shares"), ("cpu_rt_period", "cpu", "realtimePeriod"),
    ("cpu_rt_runtime", "cpu", "realtimeRuntime"), ("cpu_idle", "cpu", "idle"), ("cpuset_cpus", "cpu", "cpus"),
    ("cpuset_mems", "cpu", "mems"), ("memory", "memory", "limit"), ("memory_reservation", "memory", "reservation"),
    ("memory_swap", "memory", "swap"), ("pids_limit", "pids", "limit"),
)  # fmt: skip


def update(flags: Values, said: Values) -> int:
    resources = _read(said.resources) if said.resources else _said(said)
    container = state.load(state.root(flags), said["operands"][0], lock=True)
    if container.status(mine=True) == "stopped":
        raise CommandError("container not running")
    service, schemata = container.group.service, _schemata(said)
    if schemata and service is None:
        raise CommandError("the container was made without linux.intelRdt")
    container.group.update(resources)
    if service and schemata:
        service.update(schemata)
    return 0


def _schemata(said: Values) -> dict[str, Any]:
    wanted = {"l3CacheSchema": said.l3_cache_schema, "memBwSchema": said.mem_bw_schema}
    return {key: value for key, value in wanted.items() if value}


def _said(said: Values) -> dict[str, Any]:
    wanted: dict[str, Any] = {}
    for option, area, key in _OPTIONS:
        if option in said:
            wanted.setdefault(area, {})[key] = said[option]
    return wanted


def _read(path: str) -> dict[str, Any]:
    if path == "-":
        text = b""
        while block := os.read(0, 1 << 20):
            text += block
    else:
        with open(path, "rb") as file:
            text = file.read()
    try:
        wanted = loads(text)
    except ValueError as error:
        raise CommandError(f"{path}: {error}") from None
    problems = spec.validate_resources(wanted)
    if problems:
        raise CommandError(f"{path}: " + "; ".join(map(str, problems)))
    return dict(wanted)
