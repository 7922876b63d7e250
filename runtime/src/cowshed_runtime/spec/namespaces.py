"""Rules of namespaces, and of the settings that belong to one (config-linux.md, Namespaces and Sysctl)."""

from __future__ import annotations

from cowshed_runtime.spec.mappings import mapped, mapping_rules, overlapping
from cowshed_runtime.spec.walk import Problem, absolute, filled, mapping, one_of, section, string, strings, whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_KINDS = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")
_CLOCKS = ("monotonic", "boottime")
# Settings that belong to a namespace, by the namespace; any other would be the host's.
_SYSCTLS = {
    "ipc": ("fs.mqueue.", "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall",
            "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced", "kernel.auto_msgmni", "kernel.msg_next_id",
            "kernel.sem_next_id", "kernel.shm_next_id"),
    "network": ("net.",),
    "uts": ("kernel.domainname",),
}  # fmt: skip


def _clocks(value: Any) -> str:
    unknown = [name for name in value if name not in _CLOCKS] if isinstance(value, dict) else []
    return mapping(value) or (f"{unknown[0]!r} is no clock that a time namespace offsets" if unknown else "")


def _devices(value: Any) -> str:
    if not isinstance(value, dict):
        return "must be an object"
    names: set[str] = set()
    for old, device in value.items():
        if not isinstance(device, dict):
            return f"{old}: must be an object"
        new = device.get("name")
        for name in (old, old if new is None else new):
            text = string(name) or ("" if _is_device(name) else f"{name!r} is no name of a device")
            if text:
                return text
        new = new or old
        if new in names and "%d" not in new:
            return f"two devices would be {new}"
        names.add(new)
    return ""


def _is_device(name: str) -> bool:
    """As the kernel judges it (dev_valid_name of net/core/dev.c)."""
    return 0 < len(name.encode()) < 16 and name not in (".", "..") and not any(c in "/:" or c.isspace() for c in name)


RULES = (
    *section("config.md#hostname", ("hostname", filled)),
    *section("config.md#domainname", ("domainname", filled)),
    *section(
        "config-linux.md#namespaces",
        ("linux!", mapping),
        ("linux.namespaces[].type!", one_of(_KINDS)),
        ("linux.namespaces[].path", absolute),
    ),
    *section(
        "config-linux.md#user-namespace-mappings",
        *mapping_rules("linux.uidMappings"),
        *mapping_rules("linux.gidMappings"),
    ),
    *section(
        "config-linux.md#offset-for-time-namespace",
        ("linux.timeOffsets", _clocks),
        *((f"linux.timeOffsets.{clock}.secs", whole(-(2**63), 2**63 - 1)) for clock in _CLOCKS),
        *((f"linux.timeOffsets.{clock}.nanosecs", whole(0, 999_999_999)) for clock in _CLOCKS),
    ),
    *section("config-linux.md#network-devices", ("linux.netDevices", _devices)),
    *section("config-linux.md#sysctl", ("linux.sysctl", strings)),
)


def together(config: dict[str, Any]) -> Iterator[Problem]:
    """What takes two values to judge."""
    linux = config["linux"]
    kinds: dict[str, str | None] = {}
    for number, entry in enumerate(linux.get("namespaces") or ()):
        if entry["type"] in kinds:
            where = f"linux.namespaces[{number}]"
            yield Problem(where, f"{entry['type']} is given twice", "config-linux.md#namespaces")
        kinds[entry["type"]] = entry.get("path")
    if kinds.get("user", "none") is None and ("mount" not in kinds or kinds["mount"]):
        text = "a new user namespace needs a new mount namespace: it has no rights over another"
        yield Problem("linux.namespaces", text, "config-linux.md#namespaces")
    yield from _identities(config, new="user" in kinds and not kinds["user"])
    if linux.get("timeOffsets") and ("time" not in kinds or kinds["time"]):
        text = "needs a new time namespace; others keep the offsets that they have"
        yield Problem("linux.timeOffsets", text, "config-linux.md#offset-for-time-namespace")
    if linux.get("netDevices") and "network" not in kinds:
        yield Problem(
            "linux.netDevices", "needs a network namespace to move them to", "config-linux.md#network-devices"
        )
    for key in ("hostname", "domainname"):
        if config.get(key) and "uts" not in kinds:
            yield Problem(key, "needs a uts namespace; without one it would be the host's", f"config.md#{key}")
    if config.get("domainname") and "kernel.domainname" in (linux.get("sysctl") or {}):
        yield Problem("domainname", "is set by the sysctl kernel.domainname too", "config-linux.md#sysctl")
    for key in linux.get("sysctl") or ():
        text = _sysctl(key, kinds)
        if text:
            yield Problem("linux.sysctl", text, "config-linux.md#sysctl")


def _identities(config: dict[str, Any], *, new: bool) -> Iterator[Problem]:
    linux, name = config["linux"], "config-linux.md#user-namespace-mappings"
    user = config["process"]["user"]
    for key, ids in (
        ("uidMappings", [user["uid"]]),
        ("gidMappings", [user["gid"], *(user.get("additionalGids") or ())]),
    ):
        given = linux.get(key) or ()
        yield from overlapping(given, f"linux.{key}", name)
        if given and not any(entry["type"] == "user" for entry in linux.get("namespaces") or ()):
            yield Problem(f"linux.{key}", "needs a user namespace", name)
        if not new:
            continue
        if not given:
            yield Problem(f"linux.{key}", "is missing: a new user namespace has no ids of its own", name)
        for identity in ids if given else ():
            if not mapped(given, identity):
                yield Problem("process.user", f"{identity} is not in linux.{key}", name)


def _sysctl(key: str, kinds: dict[str, str | None]) -> str:
    name = key.replace("/", ".") if "/" in key else key
    if ".." in name:
        return f"{key} is no setting"
    for kind, prefixes in _SYSCTLS.items():
        if any(name == prefix or (prefix[-1] == "." and name.startswith(prefix)) for prefix in prefixes):
            return "" if kind in kinds else f"{key} needs a {kind} namespace; without one it would be the host's"
    return f"{key} is a setting of the whole host"
