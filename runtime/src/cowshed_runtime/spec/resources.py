"""Rules of control groups (config-linux.md, Control groups and below) and of device nodes."""

from __future__ import annotations

from cowshed_runtime.spec.walk import (
    ID,
    S64,
    U64,
    absolute,
    boolean,
    filled,
    mapping,
    one_of,
    section,
    string,
    strings,
    whole,
)  # fmt: skip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_THROTTLES = ("throttleReadBpsDevice", "throttleWriteBpsDevice", "throttleReadIOPSDevice", "throttleWriteIOPSDevice")
_DEVICE_NUMBER = whole(-1, 2**32 - 1)
_WEIGHT = whole(10, 1000)
_NODE = whole(0, 2**32 - 1)


def _access(value: Any) -> str:
    return filled(value) or ("" if set(value) <= set("rwm") else "is of r, w and m")


def _path(value: Any) -> str:
    return string(value) or ("must not contain `..`" if ".." in value.replace(":", "/").split("/") else "")


def _weight(value: Any) -> str:
    return "" if value == 0 and value is not False else _WEIGHT(value)


def _list_of_numbers(value: Any) -> str:
    """cpuset(7), FORMATS; "" asks for nothing."""
    return string(value) or ("" if set(value) <= set("0123456789-,") else f"must be a list as 0-3,7, not {value!r}")


def _page_size(value: Any) -> str:
    number = value[:-2] if isinstance(value, str) else ""
    right = number.isascii() and number.isdigit() and value[-2:] in ("KB", "MB", "GB")
    return filled(value) or ("" if right else f"must be a size as 2MB, not {value!r}")


def _unified(value: Any) -> str:
    wrong = strings(value)
    return wrong or next((f"{key!r} is no file of a group" for key in value if "/" in key or "." not in key), "")


def _interface(value: Any) -> str:
    return filled(value) or ("" if not set(value) & set(" \t\n/") else f"{value!r} is no network interface")


def _class(value: Any) -> str:
    """One directory of resctrl, or its root."""
    wrong = value in (".", "..") or ("/" in value and value != "/") if isinstance(value, str) else False
    return filled(value) or (f"{value!r} is no class of service" if wrong else "")


def _schema(value: Any) -> str:
    return filled(value) or ("must be one line" if "\n" in value else "")


def _bandwidth(value: Any) -> str:
    return _schema(value) or ("" if value[:3] == "MB:" else "must start with MB:")


def _rdma(value: Any) -> str:
    if not isinstance(value, dict):
        return "must be an object"
    count = whole(0, 2**32 - 1)
    for name, limits in value.items():
        if _interface(name) or not isinstance(limits, dict):
            return f"{name!r}: must be the limits of an RDMA device"
        for key in ("hcaHandles", "hcaObjects"):
            if limits.get(key) is not None and count(limits[key]):
                return f"{name}.{key}: {count(limits[key])}"
    return ""


RULES = (
    *section(
        "config-linux.md#devices",
        ("linux.devices[].path!", absolute),
        ("linux.devices[].type!", one_of(("c", "b", "u", "p"))),
        ("linux.devices[].major", whole(0, 2**32 - 1)),
        ("linux.devices[].minor", whole(0, 2**32 - 1)),
        ("linux.devices[].fileMode", whole(0, 0o177777)),  # podman's have the type's bits
        ("linux.devices[].uid", ID),
        ("linux.devices[].gid", ID),
    ),
    *section(
        "config-linux.md#allowed-device-list",
        ("linux.resources.devices[].allow!", boolean),
        ("linux.resources.devices[].type", one_of(("a", "b", "c"))),
        ("linux.resources.devices[].major", _DEVICE_NUMBER),
        ("linux.resources.devices[].minor", _DEVICE_NUMBER),
        ("linux.resources.devices[].access", _access),
    ),
    *section(
        "config-linux.md#control-groups",
        ("linux.cgroupsPath", _path),
        ("linux.resources", mapping),
    ),
    *section(
        "config-linux.md#memory",
        *((f"linux.resources.memory.{key}", whole(-1, 2**63 - 1))
          for key in ("limit", "reservation", "swap", "kernel", "kernelTCP")),
        ("linux.resources.memory.swappiness", whole(0, 100)),
        *((f"linux.resources.memory.{key}", boolean)
          for key in ("disableOOMKiller", "useHierarchy", "checkBeforeUpdate")),
    ),
    *section(
        "config-linux.md#cpu",
        ("linux.resources.cpu.shares", U64),
        ("linux.resources.cpu.quota", S64),
        ("linux.resources.cpu.period", U64),
        ("linux.resources.cpu.burst", U64),
        ("linux.resources.cpu.realtimeRuntime", S64),
        ("linux.resources.cpu.realtimePeriod", U64),
        ("linux.resources.cpu.idle", whole(0, 1)),
        ("linux.resources.cpu.cpus", _list_of_numbers),
        ("linux.resources.cpu.mems", _list_of_numbers),
    ),
    *section("config-linux.md#pids", ("linux.resources.pids.limit", S64)),
    *section(
        "config-linux.md#block-io",
        *((f"linux.resources.blockIO.{key}", _weight) for key in ("weight", "leafWeight")),
        *((f"linux.resources.blockIO.weightDevice[].{key}!", _NODE) for key in ("major", "minor")),
        *((f"linux.resources.blockIO.weightDevice[].{key}", _weight) for key in ("weight", "leafWeight")),
        *((f"linux.resources.blockIO.{key}[].{part}!", _NODE) for key in _THROTTLES for part in ("major", "minor")),
        *((f"linux.resources.blockIO.{key}[].rate!", U64) for key in _THROTTLES),
    ),
    *section(
        "config-linux.md#huge-page-limits",
        ("linux.resources.hugepageLimits[].pageSize!", _page_size),
        ("linux.resources.hugepageLimits[].limit!", U64),
    ),
    *section("config-linux.md#unified", ("linux.resources.unified", _unified)),
    *section("config-linux.md#rdma", ("linux.resources.rdma", _rdma)),
    *section(
        "config-linux.md#network",
        ("linux.resources.network.classID", whole(0, 2**32 - 1)),
        ("linux.resources.network.priorities[].name!", _interface),
        ("linux.resources.network.priorities[].priority!", whole(0, 2**32 - 1)),
    ),
    *section(
        "config-linux.md#intelrdt",
        ("linux.intelRdt", mapping),
        ("linux.intelRdt.closID", _class),
        ("linux.intelRdt.l3CacheSchema", _schema),
        ("linux.intelRdt.memBwSchema", _bandwidth),
        ("linux.intelRdt.schemata[]", _schema),
        ("linux.intelRdt.enableMonitoring", boolean),
    ),
)  # fmt: skip
