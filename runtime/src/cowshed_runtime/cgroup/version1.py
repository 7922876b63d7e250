"""OCI linux.resources as files of control groups version 1 (Documentation/admin-guide/cgroup-v1). Pure.

Each controller has a function that yields (file, value) in the order in which they are written. `now` tells what stands
in a file of the group, and None if there is no such file: names have changed between kernels.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Now = Callable[[str], str | None]
    Rows = Iterator[tuple[str, str]]

_MEMORY = (
    # Memory first, then memory with swap: the kernel wants the first to be the lower at any time.
    ("limit", "memory.limit_in_bytes"), ("swap", "memory.memsw.limit_in_bytes"),
    ("reservation", "memory.soft_limit_in_bytes"), ("kernel", "memory.kmem.limit_in_bytes"),
    ("kernelTCP", "memory.kmem.tcp.limit_in_bytes"),
)  # fmt: skip
_CPU = (
    ("realtimePeriod", "cpu.rt_period_us"), ("realtimeRuntime", "cpu.rt_runtime_us"), ("period", "cpu.cfs_period_us"),
    ("quota", "cpu.cfs_quota_us"), ("burst", "cpu.cfs_burst_us"),
)  # fmt: skip
THROTTLES = (
    ("throttleReadBpsDevice", "read_bps", "rbps"), ("throttleWriteBpsDevice", "write_bps", "wbps"),
    ("throttleReadIOPSDevice", "read_iops", "riops"), ("throttleWriteIOPSDevice", "write_iops", "wiops"),
)  # fmt: skip


def _memory(resources: dict[str, Any], now: Now) -> Rows:
    memory = resources.get("memory") or {}
    if memory.get("useHierarchy") is not None and now("memory.use_hierarchy") is not None:
        yield "memory.use_hierarchy", str(int(memory["useHierarchy"]))
    wanted = dict(memory)
    if memory.get("limit") == -1 and not memory.get("swap"):
        wanted["swap"] = -1  # there can be no less of both than of one
    for key, file in _MEMORY:
        if wanted.get(key) and not (key == "swap" and now(file) is None):  # a kernel that does not count swap
            yield file, str(wanted[key])
    if memory.get("swappiness") is not None:
        yield "memory.swappiness", str(memory["swappiness"])
    if memory.get("disableOOMKiller") is not None:
        yield "memory.oom_control", str(int(memory["disableOOMKiller"]))


def _cpu(resources: dict[str, Any], now: Now) -> Rows:
    cpu = resources.get("cpu") or {}
    if cpu.get("idle") is not None:
        yield "cpu.idle", str(cpu["idle"])
    if cpu.get("shares") and not cpu.get("idle"):  # an idle group has none
        yield "cpu.shares", str(cpu["shares"])
    for key, file in _CPU:
        if cpu.get(key):
            yield file, str(cpu[key])


def cpuset(resources: dict[str, Any], now: Now) -> Rows:
    """The same in both versions."""
    cpu = resources.get("cpu") or {}
    for key in ("cpus", "mems"):
        if cpu.get(key):
            yield f"cpuset.{key}", cpu[key]


def pids(resources: dict[str, Any], now: Now) -> Rows:
    """The same in both versions. 0 is a limit: nothing may be forked (runtime-spec 1.3); -1 is none."""
    limit = (resources.get("pids") or {}).get("limit")
    if limit is not None:
        yield "pids.max", "max" if limit < 0 else str(limit)


def _blkio(resources: dict[str, Any], now: Now) -> Rows:
    block = resources.get("blockIO") or {}
    kind = "blkio" if now("blkio.bfq.weight") is None and now("blkio.weight") is not None else "blkio.bfq"
    for key, file in (("weight", f"{kind}.weight"), ("leafWeight", "blkio.leaf_weight")):
        if block.get(key):
            yield file, str(block[key])
    for entry in block.get("weightDevice") or ():
        for key, file in (("weight", f"{kind}.weight_device"), ("leafWeight", "blkio.leaf_weight_device")):
            if entry.get(key):
                yield file, f"{device(entry)} {entry[key]}"
    for key, name, _ in THROTTLES:
        for entry in block.get(key) or ():
            yield f"blkio.throttle.{name}_device", f"{device(entry)} {entry['rate']}"


def device(entry: dict[str, Any]) -> str:
    return f"{entry['major']}:{entry['minor']}"


def _hugetlb(resources: dict[str, Any], now: Now) -> Rows:
    """Reservations are limited where the kernel counts them, so that a program is refused memory instead of killed."""
    for page in resources.get("hugepageLimits") or ():
        for file in (f"hugetlb.{page['pageSize']}.rsvd.limit_in_bytes", f"hugetlb.{page['pageSize']}.limit_in_bytes"):
            if ".rsvd." not in file or now(file) is not None:
                yield file, str(page["limit"])


def _net_cls(resources: dict[str, Any], now: Now) -> Rows:
    number = (resources.get("network") or {}).get("classID")
    if number is not None:
        yield "net_cls.classid", str(number)


def _net_prio(resources: dict[str, Any], now: Now) -> Rows:
    for entry in (resources.get("network") or {}).get("priorities") or ():
        yield "net_prio.ifpriomap", f"{entry['name']} {entry['priority']}"


def rdma(resources: dict[str, Any], now: Now) -> Rows:
    """The same in both versions."""
    for name, limit in (resources.get("rdma") or {}).items():
        words = [
            f"{word}={limit[key]}"
            for key, word in (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object"))
            if limit.get(key) is not None
        ]
        if words:
            yield "rdma.max", " ".join((name, *words))


def _devices(resources: dict[str, Any], now: Now) -> Rows:
    for rule in resources.get("devices") or ():
        kind = rule.get("type") or "a"
        kind = "c" if kind == "u" else kind
        numbers = (
            str(rule[key]) if rule.get(key) is not None and rule[key] >= 0 else "*" for key in ("major", "minor")
        )
        text = "a" if kind == "a" else f"{kind} {':'.join(numbers)} {rule.get('access') or 'rwm'}"
        yield "devices.allow" if rule["allow"] else "devices.deny", text


CONTROLLERS = {
    "memory": _memory, "cpu": _cpu, "cpuset": cpuset, "pids": pids, "blkio": _blkio, "hugetlb": _hugetlb,
    "net_cls": _net_cls, "net_prio": _net_prio, "rdma": rdma, "devices": _devices,
}  # fmt: skip
