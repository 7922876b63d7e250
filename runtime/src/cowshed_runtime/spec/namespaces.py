"""Rules of namespaces, and of the settings that belong to one (config-linux.md, Namespaces and Sysctl)."""

from __future__ import annotations

from cowshed_runtime.spec.walk import Problem, absolute, filled, mapping, one_of, section, strings, unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_KINDS = ("pid", "network", "mount", "ipc", "uts", "cgroup")
# Settings that belong to a namespace, by the namespace; any other would be the host's.
_SYSCTLS = {
    "ipc": ("fs.mqueue.", "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall",
            "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced", "kernel.auto_msgmni", "kernel.msg_next_id",
            "kernel.sem_next_id", "kernel.shm_next_id"),
    "network": ("net.",),
    "uts": ("kernel.domainname",),
}  # fmt: skip

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
        ("linux.uidMappings", unsupported),
        ("linux.gidMappings", unsupported),
    ),
    *section("config-linux.md#offset-for-time-namespace", ("linux.timeOffsets", unsupported)),
    *section("config-linux.md#network-devices", ("linux.netDevices", unsupported)),
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
    if "mount" not in kinds or kinds["mount"]:
        text = "a new mount namespace is needed: the root is changed in it"
        yield Problem("linux.namespaces", text, "config-linux.md#namespaces")
    for key in ("hostname", "domainname"):
        if config.get(key) and "uts" not in kinds:
            yield Problem(key, "needs a uts namespace; without one it would be the host's", f"config.md#{key}")
    if config.get("domainname") and "kernel.domainname" in (linux.get("sysctl") or {}):
        yield Problem("domainname", "is set by the sysctl kernel.domainname too", "config-linux.md#sysctl")
    for key in linux.get("sysctl") or ():
        text = _sysctl(key, kinds)
        if text:
            yield Problem("linux.sysctl", text, "config-linux.md#sysctl")


def _sysctl(key: str, kinds: dict[str, str | None]) -> str:
    name = key.replace("/", ".") if "/" in key else key
    if ".." in name:
        return f"{key} is no setting"
    for kind, prefixes in _SYSCTLS.items():
        if any(name == prefix or (prefix[-1] == "." and name.startswith(prefix)) for prefix in prefixes):
            return "" if kind in kinds else f"{key} needs a {kind} namespace; without one it would be the host's"
    return f"{key} is a setting of the whole host"
