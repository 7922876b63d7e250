"""Resource limits as files to write: OCI linux.resources for either version of control groups. Pure.

Each setting is (controller, file, value); where the controller's directory is, and what to do when the host lacks it,
is the executor's affair (cgroup.py).
"""

from __future__ import annotations

import math

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


def weight(shares: int) -> int:
    """cpu.weight (1 to 10000) for version 1 shares (2 to 262144, 1024 the usual): 1024 becomes 100, both ends and the
    middle of the scales meet."""
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    level = math.log2(shares)
    return math.ceil(10 ** ((level * level + 125 * level) / 612 - 7 / 34))


def version1(resources: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """cgroup-v1/*.rst. Memory first, then memory with swap: the kernel wants the first to be the lower at any time."""
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    for key, file in (
        ("limit", "memory.limit_in_bytes"),
        ("swap", "memory.memsw.limit_in_bytes"),
        ("reservation", "memory.soft_limit_in_bytes"),
        ("kernelTCP", "memory.kmem.tcp.limit_in_bytes"),
    ):
        if memory.get(key):
            yield "memory", file, str(memory[key])
    if memory.get("swappiness") is not None:
        yield "memory", "memory.swappiness", str(memory["swappiness"])
    if memory.get("disableOOMKiller"):
        yield "memory", "memory.oom_control", "1"
    for key, file in (("shares", "cpu.shares"), ("period", "cpu.cfs_period_us"), ("quota", "cpu.cfs_quota_us"),
                      ("burst", "cpu.cfs_burst_us")):  # fmt: skip
        if cpu.get(key):
            yield "cpu", file, str(cpu[key])
    for key in ("cpus", "mems"):
        if cpu.get(key):
            yield "cpuset", f"cpuset.{key}", cpu[key]
    yield from _pids(resources)
    block = resources.get("blockIO") or {}
    if block.get("weight"):
        yield "blkio", "blkio.bfq.weight", str(block["weight"])
    for key, name in _THROTTLES:
        for entry in block.get(key) or ():
            yield "blkio", f"blkio.throttle.{name}_device", f"{entry['major']}:{entry['minor']} {entry['rate']}"
    for page in resources.get("hugepageLimits") or ():
        yield "hugetlb", f"hugetlb.{page['pageSize']}.limit_in_bytes", str(page["limit"])
    for rule in resources.get("devices") or ():
        kind = rule.get("type") or "a"
        kind = "c" if kind == "u" else kind
        numbers = (
            str(rule[key]) if rule.get(key) is not None and rule[key] >= 0 else "*" for key in ("major", "minor")
        )
        text = "a" if kind == "a" else f"{kind} {':'.join(numbers)} {rule.get('access') or 'rwm'}"
        yield "devices", "devices.allow" if rule["allow"] else "devices.deny", text


_THROTTLES = (
    ("throttleReadBpsDevice", "read_bps"), ("throttleWriteBpsDevice", "write_bps"),
    ("throttleReadIOPSDevice", "read_iops"), ("throttleWriteIOPSDevice", "write_iops"),
)  # fmt: skip
_MAXIMA = {"read_bps": "rbps", "write_bps": "wbps", "read_iops": "riops", "write_iops": "wiops"}


def version2(resources: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """cgroup-v2.rst. Device rules are a program (devices.py) and not among these."""
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    limit, swap = memory.get("limit"), memory.get("swap")
    if limit:
        yield "memory", "memory.max", _maximum(limit)
    if swap:
        # OCI counts memory and swap together, version 2 swap alone.
        yield "memory", "memory.swap.max", "max" if swap < 0 else str(max(0, swap - max(limit or 0, 0)))
    if memory.get("reservation"):
        yield "memory", "memory.low", _maximum(memory["reservation"])
    if cpu.get("shares"):
        yield "cpu", "cpu.weight", str(weight(cpu["shares"]))
    if cpu.get("quota") or cpu.get("period"):
        yield "cpu", "cpu.max", f"{_maximum(cpu.get('quota') or -1)} {cpu.get('period') or 100_000}"
    if cpu.get("burst"):
        yield "cpu", "cpu.max.burst", str(cpu["burst"])
    if cpu.get("idle") is not None:
        yield "cpu", "cpu.idle", str(cpu["idle"])
    for key in ("cpus", "mems"):
        if cpu.get(key):
            yield "cpuset", f"cpuset.{key}", cpu[key]
    yield from _pids(resources)
    block = resources.get("blockIO") or {}
    if block.get("weight"):
        # 10…1000 to 1…10000
        yield "io", "io.weight", f"default {1 + (block['weight'] - 10) * 9999 // 990}"
    for key, name in _THROTTLES:
        for entry in block.get(key) or ():
            yield "io", "io.max", f"{entry['major']}:{entry['minor']} {_MAXIMA[name]}={entry['rate']}"
    for page in resources.get("hugepageLimits") or ():
        yield "hugetlb", f"hugetlb.{page['pageSize']}.max", str(page["limit"])
    for key, value in (resources.get("unified") or {}).items():
        yield key.partition(".")[0], key, value


def _pids(resources: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    limit = (resources.get("pids") or {}).get("limit")
    if limit is not None:
        yield "pids", "pids.max", _maximum(limit) if limit else "max"


def _maximum(value: int) -> str:
    return "max" if value < 0 else str(value)
