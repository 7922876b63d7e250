"""Rules of control groups (config-linux.md, Control groups and below) and of device nodes."""

from __future__ import annotations

from cowshed_runtime.spec.walk import (
    ID,
    S64,
    U64,
    absolute,
    boolean,
    filled,
    one_of,
    section,
    string,
    strings,
    unsupported,
    whole,
)  # fmt: skip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_THROTTLES = ("throttleReadBpsDevice", "throttleWriteBpsDevice", "throttleReadIOPSDevice", "throttleWriteIOPSDevice")
_DEVICE_NUMBER = whole(-1, 2**32 - 1)


def _access(value: Any) -> str:
    return filled(value) or ("" if set(value) <= set("rwm") else "is of r, w and m")


RULES = (
    *section(
        "config-linux.md#devices",
        ("linux.devices[].path!", absolute),
        ("linux.devices[].type!", one_of(("c", "b", "u", "p"))),
        ("linux.devices[].major", whole(0, 2**32 - 1)),
        ("linux.devices[].minor", whole(0, 2**32 - 1)),
        ("linux.devices[].fileMode", whole(0, 0o7777)),
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
        "config-linux.md#memory",
        *((f"linux.resources.memory.{key}", S64) for key in ("limit", "swap", "reservation", "kernelTCP")),
        ("linux.resources.memory.swappiness", whole(0, 100)),
        ("linux.resources.memory.disableOOMKiller", boolean),
    ),
    *section(
        "config-linux.md#cpu",
        ("linux.resources.cpu.shares", U64),
        ("linux.resources.cpu.quota", S64),
        ("linux.resources.cpu.period", U64),
        ("linux.resources.cpu.burst", U64),
        ("linux.resources.cpu.idle", whole(0, 1)),
        ("linux.resources.cpu.cpus", string),
        ("linux.resources.cpu.mems", string),
    ),
    *section("config-linux.md#pids", ("linux.resources.pids.limit", S64)),
    *section(
        "config-linux.md#block-io",
        ("linux.resources.blockIO.weight", whole(10, 1000)),
        *((f"linux.resources.blockIO.{key}[].{part}!", U64)
          for key in _THROTTLES for part in ("major", "minor", "rate")),
    ),
    *section(
        "config-linux.md#huge-page-limits",
        ("linux.resources.hugepageLimits[].pageSize!", filled),
        ("linux.resources.hugepageLimits[].limit!", U64),
    ),
    *section("config-linux.md#unified", ("linux.resources.unified", strings)),
    *section("config-linux.md#rdma", ("linux.resources.rdma", unsupported)),
    *section("config-linux.md#network", ("linux.resources.network", unsupported)),
    *section("config-linux.md#intelrdt", ("linux.intelRdt", unsupported)),
)  # fmt: skip
