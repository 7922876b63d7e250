"""What a container uses, as data: the shape is that of `runc events --stats` (runc, types/events.go), which engines
read. Times are nanoseconds, sizes bytes; what this host does not count is left out or 0.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from cowshed_runtime.cgroup.group import Group

    Read = Callable[[str], str]

UNLIMITED = 2**64 - 1
_TICK = 10**9 // os.sysconf("SC_CLK_TCK")
_SETS = ("cpu_exclusive", "mem_hardwall", "mem_exclusive", "memory_migrate", "memory_spread_page",
         "memory_spread_slab", "memory_pressure", "sched_load_balance", "sched_relax_domain_level")  # fmt: skip
# Of version 1: where in the data, and which file; the first scheduler's files that are there count.
_BLOCKS = (
    ("ioServiceBytesRecursive", "io_service_bytes"), ("ioServicedRecursive", "io_serviced"),
    ("ioQueueRecursive", "io_queued"), ("ioServiceTimeRecursive", "io_service_time"),
    ("ioWaitTimeRecursive", "io_wait_time"), ("ioMergedRecursive", "io_merged"), ("ioTimeRecursive", "time"),
    ("sectorsRecursive", "sectors"),
)  # fmt: skip
_IO = (
    ("rbytes", "ioServiceBytesRecursive", "Read"), ("wbytes", "ioServiceBytesRecursive", "Write"),
    ("dbytes", "ioServiceBytesRecursive", "Discard"), ("rios", "ioServicedRecursive", "Read"),
    ("wios", "ioServicedRecursive", "Write"), ("dios", "ioServicedRecursive", "Discard"),
)  # fmt: skip


def statistics(group: Group) -> dict[str, Any]:
    """All of it; a group that has gone used nothing."""
    found: dict[str, Any] = {}
    old = {name for _, names in group.layout.v1 for name in names}
    for key, controllers, first, second in (
        ("cpu", ("cpuacct", "cpu"), _cpu1, _cpu2), ("cpuset", ("cpuset", "cpuset"), _cpuset, _cpuset),
        ("memory", ("memory", "memory"), _memory1, _memory2), ("pids", ("pids", "pids"), _pids, _pids),
        ("blkio", ("blkio", "io"), _blkio1, _blkio2), ("hugetlb", ("hugetlb", "hugetlb"), _hugetlb1, _hugetlb2),
        ("rdma", ("rdma", "rdma"), _rdma, _rdma),
    ):  # fmt: skip
        folder, plan = group.find(controllers[0]), first
        if controllers[0] not in old:
            folder, plan = group.find(controllers[1]), second
            if key == "cpu" and group.layout.v2:
                folder = group.layout.v2 + group.path  # any group of version 2 counts times
        if folder:
            found[key] = plan(_reader(folder))
    for key in ("cpu", "cpuset", "memory", "pids", "blkio", "hugetlb"):
        found.setdefault(key, {})
    if "cpu" in old:
        stat = _pairs(_reader(group.find("cpu"))("cpu.stat"))
        found["cpu"]["throttling"] = _throttling(stat, "throttled_time", 1)
    return {**found, "intel_rdt": {}, "network_interfaces": []}


def _reader(folder: str) -> Read:
    """The text of a file of the group; "" if there is none, or the kernel does not fill it."""

    def text(file: str) -> str:
        try:
            with open(f"{folder}/{file}", encoding="ascii", errors="replace") as f:
                return f.read()
        except OSError:
            return ""

    return text


def _pairs(text: str) -> dict[str, int]:
    """Lines `name number`."""
    words = (line.split() for line in text.splitlines())
    return {w[0]: int(w[1]) for w in words if len(w) == 2 and w[1].lstrip("-").isdigit()}


def _number(text: str) -> int:
    word = text.strip()
    return UNLIMITED if word == "max" else int(word) if word.lstrip("-").isdigit() else 0


def _pressure(text: str) -> dict[str, Any]:
    """Documentation/accounting/psi.rst: {"psi": {"some": ..., "full": ...}}, or nothing if the kernel does not tell."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        kind, *words = line.split()
        values = dict(word.split("=") for word in words)
        found[kind] = {key: int(v) if key == "total" else float(v) for key, v in values.items()}
    return {"psi": found} if found else {}


def _throttling(stat: dict[str, int], time: str, scale: int) -> dict[str, int]:
    return {
        "periods": stat.get("nr_periods", 0), "throttledPeriods": stat.get("nr_throttled", 0),
        "throttledTime": stat.get(time, 0) * scale,
    }  # fmt: skip


def _cpu1(read: Read) -> dict[str, Any]:
    stat = _pairs(read("cpuacct.stat"))
    usage: dict[str, Any] = {
        "total": _number(read("cpuacct.usage")), "kernel": stat.get("system", 0) * _TICK,
        "user": stat.get("user", 0) * _TICK, "percpu": [int(n) for n in read("cpuacct.usage_percpu").split()],
    }  # fmt: skip
    rows = [line.split() for line in read("cpuacct.usage_all").splitlines()[1:]]
    if rows:
        usage["percpu_user"], usage["percpu_kernel"] = [int(r[1]) for r in rows], [int(r[2]) for r in rows]
    return {"usage": usage}


def _cpu2(read: Read) -> dict[str, Any]:
    stat = _pairs(read("cpu.stat"))
    total, user, kernel = (stat.get(f"{key}_usec", 0) * 1000 for key in ("usage", "user", "system"))
    return {
        "usage": {"total": total, "kernel": kernel, "user": user},
        "throttling": _throttling(stat, "throttled_usec", 1000),
        **_pressure(read("cpu.pressure")),
    }


def _cpuset(read: Read) -> dict[str, Any]:
    found: dict[str, Any] = {
        key: _numbers(read(f"cpuset.{key}.effective") or read(f"cpuset.effective_{key}") or read(f"cpuset.{key}"))
        for key in ("cpus", "mems")
    }
    return {**found, **{key: _number(read(f"cpuset.{key}")) for key in _SETS}}


def _numbers(text: str) -> list[int]:
    """0-2,5"""
    found: list[int] = []
    for part in text.strip().split(","):
        low, _, high = part.partition("-")
        if low:
            found += range(int(low), int(high or low) + 1)
    return found


def _memory1(read: Read) -> dict[str, Any]:
    stat = _pairs(read("memory.stat"))
    found: dict[str, Any] = {"cache": stat.get("total_cache", stat.get("cache", 0)), "raw": stat}
    for key, prefix in (("usage", "memory"), ("swap", "memory.memsw"), ("kernel", "memory.kmem"),
                        ("kernelTCP", "memory.kmem.tcp")):  # fmt: skip
        used = read(f"{prefix}.usage_in_bytes")
        if used:
            found[key] = {
                "usage": _number(used), "max": _number(read(f"{prefix}.max_usage_in_bytes")),
                "failcnt": _number(read(f"{prefix}.failcnt")), "limit": _number(read(f"{prefix}.limit_in_bytes")),
            }  # fmt: skip
    return found


def _memory2(read: Read) -> dict[str, Any]:
    stat, events = _pairs(read("memory.stat")), _pairs(read("memory.events"))
    used, limit = _number(read("memory.current")), _number(read("memory.max"))
    found: dict[str, Any] = {
        "cache": stat.get("file", 0), "raw": stat,
        "usage": {"usage": used, "limit": limit, "max": _number(read("memory.peak")), "failcnt": events.get("max", 0)},
        **_pressure(read("memory.pressure")),
    }  # fmt: skip
    swapped = read("memory.swap.current")
    if swapped:
        # Together with memory, as version 1 counts.
        most = _number(read("memory.swap.max"))
        both = UNLIMITED if UNLIMITED in (most, limit) else most + limit
        found["swap"] = {"usage": _number(swapped) + used, "limit": both, "failcnt": 0}
    return found


def _pids(read: Read) -> dict[str, Any]:
    limit = _number(read("pids.max"))
    return {"current": _number(read("pids.current")), "limit": 0 if limit == UNLIMITED else limit}


def _blkio1(read: Read) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, name in _BLOCKS:
        for file in (f"blkio.bfq.{name}_recursive", f"blkio.{name}_recursive", f"blkio.throttle.{name}_recursive"):
            entries = list(_entries(read(file)))
            if entries:
                found[key] = entries
                break
    return found


def _entries(text: str) -> Iterator[dict[str, Any]]:
    """Lines `8:0 Read 5` and `8:0 5`; those of the sum begin with Total."""
    for line in text.splitlines():
        words = line.split()
        major, colon, minor = words[0].partition(":")
        if colon:
            yield {"major": int(major), "minor": int(minor), "op": "".join(words[1:-1]), "value": int(words[-1])}


def _blkio2(read: Read) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in read("io.stat").splitlines():
        device, *words = line.split()
        values = dict(word.split("=") for word in words if "=" in word)
        major, _, minor = device.partition(":")
        for name, key, operation in _IO:
            if name in values:
                entry = {"major": int(major), "minor": int(minor), "op": operation, "value": int(values[name])}
                found.setdefault(key, []).append(entry)
    return {**found, **_pressure(read("io.pressure"))}


def _page_sizes() -> Iterator[str]:
    """As control groups write them: 2MB, 1GB."""
    try:
        names = sorted(os.listdir("/sys/kernel/mm/hugepages"))
    except FileNotFoundError:
        return
    for name in names:
        size = int(name.removeprefix("hugepages-").removesuffix("kB"))
        for unit in ("KB", "MB", "GB"):
            if size < 1024 or unit == "GB":
                yield f"{size}{unit}"
                break
            size //= 1024


def _hugetlb1(read: Read) -> dict[str, Any]:
    found = {}
    for size in _page_sizes():
        prefix = next((p for p in (f"hugetlb.{size}.rsvd", f"hugetlb.{size}") if read(f"{p}.usage_in_bytes")), "")
        if prefix:
            files = (("usage", "usage_in_bytes"), ("max", "max_usage_in_bytes"), ("failcnt", "failcnt"))
            found[size] = {key: _number(read(f"{prefix}.{file}")) for key, file in files}
    return found


def _hugetlb2(read: Read) -> dict[str, Any]:
    found = {}
    for size in _page_sizes():
        used = read(f"hugetlb.{size}.rsvd.current") or read(f"hugetlb.{size}.current")
        if used:
            failed = _pairs(read(f"hugetlb.{size}.events")).get("max", 0)
            found[size] = {"usage": _number(used), "failcnt": failed}
    return found


def _rdma(read: Read) -> dict[str, Any]:
    return {
        f"rdma_{key}": list(_handles(read(f"rdma.{file}"))) for key, file in (("current", "current"), ("limit", "max"))
    }


def _handles(text: str) -> Iterator[dict[str, Any]]:
    """Lines `mlx4_0 hca_handle=2 hca_object=max`."""
    for line in text.splitlines():
        device, *words = line.split()
        values = dict(word.split("=") for word in words)
        counts = {f"{key}s": _number(value) for key, value in values.items()}
        yield {"device": device, **counts}
