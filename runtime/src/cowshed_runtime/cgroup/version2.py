"""OCI linux.resources as files of control groups version 2 (Documentation/admin-guide/cgroup-v2.rst). Pure.

As version1.py. OSError EOPNOTSUPP for what version 2 does not have: nobody runs with less than was asked for. Device
rules are a program (devices.py) and not among these.
"""

from __future__ import annotations

import math

from cowshed_runtime.cgroup.version1 import THROTTLES, cpuset, device, pids, rdma

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed_runtime.cgroup.version1 import Now, Rows

_ABSENT = {
    "memory": ("swappiness", "disableOOMKiller", "kernel", "kernelTCP"),
    "cpu": ("realtimePeriod", "realtimeRuntime"),
    "blockIO": ("leafWeight",),
}


def weight(shares: int) -> int:
    """cpu.weight (1 to 10000) for version 1 shares (2 to 262144, 1024 the usual): 1024 becomes 100, both ends and the
    middle of the scales meet."""
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    level = math.log2(shares)
    return math.ceil(10 ** ((level * level + 125 * level) / 612 - 7 / 34))


def _refuse_absent(resources: dict[str, Any], area: str) -> None:
    for key in _ABSENT[area]:
        if (resources.get(area) or {}).get(key) not in (None, 0, False):
            raise OSError(95, f"{area}.{key}: cgroup version 2 has no such limit")


def _memory(resources: dict[str, Any], now: Now) -> Rows:
    _refuse_absent(resources, "memory")
    memory = resources.get("memory") or {}
    if memory.get("useHierarchy") is False:
        raise OSError(95, "memory.useHierarchy: cgroup version 2 counts what is below a group always")
    limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
    if limit > 0 and memory.get("checkBeforeUpdate"):
        used = int(now("memory.current") or 0)
        if used > limit:
            raise OSError(16, f"memory.limit: {limit} bytes are less than the {used} in use")
    if limit:
        yield "memory.max", _maximum(limit)
    if limit == -1 and not swap:
        swap = -1
    if swap and now("memory.swap.max") is not None:  # else a kernel that does not count swap: nothing to limit
        yield "memory.swap.max", _swap_alone(swap, limit, now)
    if memory.get("reservation"):
        yield "memory.low", _maximum(memory["reservation"])


def _swap_alone(swap: int, limit: int, now: Now) -> str:
    """OCI counts memory and swap together, version 2 swap alone."""
    if swap < 0:
        return "max"
    if not limit:
        standing = (now("memory.max") or "").strip()
        limit = int(standing) if standing.isdigit() else 0
    if limit <= 0:
        raise OSError(22, "memory.swap: is of memory and swap together, and needs memory.limit")
    if swap < limit:
        raise OSError(22, f"memory.swap: {swap} bytes for memory and swap together are less than the {limit} of memory")
    return str(swap - limit)


def _cpu(resources: dict[str, Any], now: Now) -> Rows:
    _refuse_absent(resources, "cpu")
    cpu = resources.get("cpu") or {}
    if cpu.get("idle") is not None:
        yield "cpu.idle", str(cpu["idle"])
    if cpu.get("shares") and not cpu.get("idle"):  # an idle group has no weight
        yield "cpu.weight", str(weight(cpu["shares"]))
    quota, period = cpu.get("quota"), cpu.get("period")
    if period:
        standing = (now("cpu.max") or "max").split()[0]
        yield "cpu.max", f"{_maximum(quota) if quota else standing} {period}"
    elif quota:
        yield "cpu.max", _maximum(quota)  # the period stays
    if cpu.get("burst"):
        yield "cpu.max.burst", str(cpu["burst"])


def _io(resources: dict[str, Any], now: Now) -> Rows:
    _refuse_absent(resources, "blockIO")
    block = resources.get("blockIO") or {}
    bfq = now("io.bfq.weight") is not None
    file = "io.bfq.weight" if bfq else "io.weight"

    def scaled(given: int) -> int:
        return given if bfq else 1 + (given - 10) * 9999 // 990  # 10...1000 to 1...10000

    if block.get("weight"):
        yield file, f"default {scaled(block['weight'])}"
    for entry in block.get("weightDevice") or ():
        if entry.get("leafWeight"):
            raise OSError(95, "blockIO.weightDevice.leafWeight: cgroup version 2 has no such limit")
        if entry.get("weight"):
            yield file, f"{device(entry)} {scaled(entry['weight'])}"
    for key, _, name in THROTTLES:
        for entry in block.get(key) or ():
            # OCI's 0 lifts a limit, as in version 1.
            yield "io.max", f"{device(entry)} {name}={entry['rate'] or 'max'}"


def _hugetlb(resources: dict[str, Any], now: Now) -> Rows:
    for page in resources.get("hugepageLimits") or ():
        for file in (f"hugetlb.{page['pageSize']}.rsvd.max", f"hugetlb.{page['pageSize']}.max"):
            if ".rsvd." not in file or now(file) is not None:
                yield file, str(page["limit"])


def unified(resources: dict[str, Any]) -> Rows:
    """The files that are named as they are, each line of a value as a write of its own."""
    for file, value in (resources.get("unified") or {}).items():
        if "/" in file or file in ("", ".", ".."):
            raise OSError(22, f"unified: {file!r} is no file of a group")
        for line in value.splitlines() or [value]:
            yield file, line


def _maximum(value: int) -> str:
    return "max" if value < 0 else str(value)


CONTROLLERS = {
    "memory": _memory, "cpu": _cpu, "cpuset": cpuset, "pids": pids, "io": _io, "hugetlb": _hugetlb, "rdma": rdma,
}  # fmt: skip
