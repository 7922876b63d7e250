"""Rules of the root and the mounts (config.md, Root and Mounts)."""

from __future__ import annotations

from cowshed_runtime.mounting import PROC_ALLOWED
from cowshed_runtime.options import PROPAGATION, UNSUPPORTED
from cowshed_runtime.spec.walk import (
    Problem,
    absolute,
    boolean,
    filled,
    mapping,
    one_of,
    section,
    string,
    unsupported,
)  # fmt: skip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_PROPAGATIONS = (*PROPAGATION, *(f"r{word}" for word in PROPAGATION))


def _option(value: Any) -> str:
    word = value.partition("=")[0] if isinstance(value, str) else ""
    return filled(value) or (f"{word} is not supported by this runtime" if word in UNSUPPORTED else "")


def _no_parents(value: Any) -> str:
    return filled(value) or ("must not contain `..`" if ".." in value.split("/") else "")


RULES = (
    *section("config.md#root", ("root!", mapping), ("root.path!", filled), ("root.readonly", boolean)),
    *section(
        "config.md#mounts",
        ("mounts[].destination!", _no_parents),
        ("mounts[].source", string),
        ("mounts[].options[]", _option),
    ),
    *section(
        "config.md#posix-platform-mounts",
        ("mounts[].type", string),
        ("mounts[].uidMappings", unsupported),
        ("mounts[].gidMappings", unsupported),
    ),
    *section("config-linux.md#masked-paths", ("linux.maskedPaths[]", absolute)),
    *section("config-linux.md#readonly-paths", ("linux.readonlyPaths[]", absolute)),
    *section("config-linux.md#rootfs-mount-propagation", ("linux.rootfsPropagation", one_of(_PROPAGATIONS))),
    *section("config-linux.md#mount-label", ("linux.mountLabel", unsupported)),
)


def together(config: dict[str, Any]) -> Iterator[Problem]:
    """What takes two values to judge."""
    for number, entry in enumerate(config.get("mounts") or ()):
        here, destination = f"mounts[{number}]", "/" + entry["destination"].strip("/")
        bound = bool({"bind", "rbind"} & set(entry.get("options") or ())) or entry.get("type") in ("bind", "", None)
        if bound and not entry.get("source"):
            yield Problem(here, "a bind mount needs a source", "config.md#mounts")
        if destination.startswith("/proc/") and destination not in PROC_ALLOWED and entry.get("type") != "proc":
            yield Problem(here, f"{destination} is inside /proc, which is the kernel's", "config.md#mounts")
        if destination == "/":
            yield Problem(here, "the root cannot be mounted over", "config.md#mounts")
