"""Rules of the root and the mounts (config.md, Root and Mounts)."""

from __future__ import annotations

from cowshed_runtime.mounting import PROC_ALLOWED
from cowshed_runtime.options import PROPAGATION
from cowshed_runtime.spec.mappings import mapping_rules, overlapping
from cowshed_runtime.spec.walk import (
    Problem,
    absolute,
    boolean,
    filled,
    mapping,
    one_of,
    section,
    string,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_PROPAGATIONS = (*PROPAGATION, *(f"r{word}" for word in PROPAGATION))


def _no_parents(value: Any) -> str:
    return filled(value) or ("must not contain `..`" if ".." in value.split("/") else "")


RULES = (
    *section("config.md#root", ("root!", mapping), ("root.path!", filled), ("root.readonly", boolean)),
    *section(
        "config.md#mounts",
        ("mounts[].destination!", _no_parents),
        ("mounts[].source", string),
        ("mounts[].options[]", filled),
    ),
    *section(
        "config.md#posix-platform-mounts",
        ("mounts[].type", string),
        *mapping_rules("mounts[].uidMappings"),
        *mapping_rules("mounts[].gidMappings"),
    ),
    *section("config-linux.md#masked-paths", ("linux.maskedPaths[]", absolute)),
    *section("config-linux.md#readonly-paths", ("linux.readonlyPaths[]", absolute)),
    *section("config-linux.md#rootfs-mount-propagation", ("linux.rootfsPropagation", one_of(_PROPAGATIONS))),
    *section("config-linux.md#mount-label", ("linux.mountLabel", string)),
)


def together(config: dict[str, Any]) -> Iterator[Problem]:
    """What takes two values to judge."""
    for number, entry in enumerate(config.get("mounts") or ()):
        here, destination = f"mounts[{number}]", "/" + entry["destination"].strip("/")
        bound = bool({"bind", "rbind"} & set(entry.get("options") or ())) or entry.get("type") in ("bind", "", None)
        if bound and "remount" not in (entry.get("options") or ()) and not entry.get("source"):
            yield Problem(here, "a bind mount needs a source", "config.md#mounts")
        if destination.startswith("/proc/") and destination not in PROC_ALLOWED and entry.get("type") != "proc":
            yield Problem(here, f"{destination} is inside /proc, which is the kernel's", "config.md#mounts")
        if destination == "/" and "remount" not in (entry.get("options") or ()):
            yield Problem(here, "the root cannot be mounted over", "config.md#mounts")
        yield from _shifted(config, entry, here, bound=bound)


def _shifted(config: dict[str, Any], entry: dict[str, Any], here: str, *, bound: bool) -> Iterator[Problem]:
    """Identities of a mount."""
    section_name = "config.md#linux-mount-options"
    own = bool(entry.get("uidMappings")), bool(entry.get("gidMappings"))
    asked = bool({"idmap", "ridmap"} & set(entry.get("options") or ()))
    if own[0] != own[1]:
        yield Problem(here, "uidMappings and gidMappings belong together", "config.md#posix-platform-mounts")
    if (asked or any(own)) and not bound:
        yield Problem(here, "only of a bind mount identities can be shifted", section_name)
    inherited = any(space["type"] == "user" for space in config["linux"].get("namespaces") or ())
    if asked and not any(own) and not inherited:
        text = "idmap needs uidMappings and gidMappings, of the mount or of a user namespace of the container"
        yield Problem(here, text, section_name)
    for name in ("uidMappings", "gidMappings"):
        yield from overlapping(entry.get(name) or (), f"{here}.{name}", "config.md#posix-platform-mounts")
