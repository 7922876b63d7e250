"""Rules of seccomp profiles (config-linux.md, Seccomp)."""

from __future__ import annotations

from cowshed_linux.seccomp import COMPARE, FLAGS
from cowshed_runtime.seccomp import ACTIONS, ARCHITECTURES, WITH_ERRNO
from cowshed_runtime.spec.walk import U64, Problem, absolute, filled, one_of, section, string, whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_SECTION = "config-linux.md#seccomp"
_ACTION = one_of(ACTIONS)
_RETURNED = whole(0, 0xFFFF)  # what a tracer is told; an error number is 4095 at most
# What a process tells its launcher the listener's descriptor with, when the filter is in force already
_OWN_CALLS = ("read", "write")


def _names(value: Any) -> str:
    return "" if isinstance(value, list) and value else "must name system calls"


RULES = section(
    _SECTION,
    ("linux.seccomp.defaultAction!", _ACTION),
    ("linux.seccomp.defaultErrnoRet", _RETURNED),
    ("linux.seccomp.architectures[]", one_of(ARCHITECTURES)),
    ("linux.seccomp.flags[]", one_of(FLAGS)),
    ("linux.seccomp.listenerPath", lambda value: string(value) or (absolute(value) if value else "")),
    ("linux.seccomp.listenerMetadata", string),
    ("linux.seccomp.syscalls[].names!", _names),
    ("linux.seccomp.syscalls[].names[]", filled),
    ("linux.seccomp.syscalls[].action!", _ACTION),
    ("linux.seccomp.syscalls[].errnoRet", _RETURNED),
    ("linux.seccomp.syscalls[].args[].index!", whole(0, 5)),
    ("linux.seccomp.syscalls[].args[].value!", U64),
    ("linux.seccomp.syscalls[].args[].valueTwo", U64),
    ("linux.seccomp.syscalls[].args[].op!", one_of(COMPARE)),
)


def together(linux: dict[str, Any]) -> Iterator[Problem]:
    """What takes two values to judge."""
    profile = linux.get("seccomp")
    if not profile:
        return
    text = _errno(profile["defaultAction"], profile.get("defaultErrnoRet"))
    if text:
        yield Problem("linux.seccomp.defaultErrnoRet", text, _SECTION)
    if profile["defaultAction"] == "SCMP_ACT_NOTIFY":
        text = "SCMP_ACT_NOTIFY cannot be the default: the process could not tell the agent where to listen"
        yield Problem("linux.seccomp.defaultAction", text, _SECTION)
    notifies = False
    for number, rule in enumerate(profile.get("syscalls") or ()):
        if rule.get("errnoRet") is not None:
            text = _errno(rule["action"], rule["errnoRet"])
            if text:
                yield Problem(f"linux.seccomp.syscalls[{number}].errnoRet", text, _SECTION)
        if rule["action"] == "SCMP_ACT_NOTIFY":
            notifies = True
            for name in _OWN_CALLS:
                if name in rule["names"]:
                    text = f"SCMP_ACT_NOTIFY cannot be for {name}: the process tells by it where the agent listens"
                    yield Problem(f"linux.seccomp.syscalls[{number}].names", text, _SECTION)
    if notifies and not profile.get("listenerPath"):
        text = "is missing: SCMP_ACT_NOTIFY needs an agent"
        yield Problem("linux.seccomp.listenerPath", text, _SECTION)
    if profile.get("listenerMetadata") and not profile.get("listenerPath"):
        yield Problem("linux.seccomp.listenerMetadata", "needs a listenerPath", _SECTION)


def _errno(action: str, value: int | None) -> str:
    if value is None:
        return ""
    if action not in WITH_ERRNO:
        return f"{action} returns none"
    return "must be 4095 at most" if action == "SCMP_ACT_ERRNO" and value > 4095 else ""
