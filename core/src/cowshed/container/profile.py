"""Seccomp profiles that a user gives as a file: OCI's form, and docker's, whose rules may depend on capabilities,
architecture and kernel."""

from __future__ import annotations

import os

from cowshed.errors import BadUsage
from cowshed_runtime.fastjson import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PLAIN: tuple[str, ...] = ("defaultAction", "defaultErrnoRet", "flags", "listenerPath")
_ARCHITECTURES = {"x86_64": ("amd64", "SCMP_ARCH_X86_64"), "aarch64": ("arm64", "SCMP_ARCH_AARCH64")}


def read(path: str, capabilities: list[str]) -> dict[str, Any]:
    """The profile in the file at path as OCI's linux.seccomp, for a container with these capabilities. BadUsage."""
    try:
        with open(path, "rb") as f:
            given = loads(f.read())
        return _chosen(given, {*capabilities})
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadUsage(f"the seccomp profile {path} cannot be read: {reason}") from None
    except (AttributeError, KeyError, TypeError):
        raise BadUsage(f"{path} is no seccomp profile", remedy="docker's or OCI's form, as JSON") from None


def _chosen(given: dict[str, Any], held: set[str]) -> dict[str, Any]:
    profile: dict[str, Any] = {key: given[key] for key in _PLAIN if key in given}
    machine = os.uname().machine
    name, ours = _ARCHITECTURES.get(machine, (machine, f"SCMP_ARCH_{machine.upper()}"))
    if "architectures" in given:
        profile["architectures"] = given["architectures"]
    for entry in given.get("archMap") or ():
        if entry["architecture"] == ours:
            profile["architectures"] = [ours, *(entry.get("subArchitectures") or ())]
    rules = []
    for rule in given.get("syscalls") or ():
        includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
        if not held >= {*(includes.get("caps") or ())} or held & {*(excludes.get("caps") or ())}:
            continue
        if name in (excludes.get("arches") or ()) or name not in (includes.get("arches") or (name,)):
            continue
        if _release() < _numbers(includes.get("minKernel") or "0") or (
            excludes.get("minKernel") and _release() >= _numbers(excludes["minKernel"])
        ):
            continue
        kept = {key: rule[key] for key in ("action", "errnoRet", "args") if rule.get(key) is not None}
        rules.append({"names": rule.get("names") or [rule["name"]], **kept})
    return {**profile, "syscalls": rules}


def _release() -> tuple[int, ...]:
    return _numbers(os.uname().release)


def _numbers(text: str) -> tuple[int, ...]:
    """The first two numbers of a kernel's version."""
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in text.split("-")[0].split(".")[:2])
