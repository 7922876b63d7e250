"""Rules of seccomp profiles (config-linux.md, Seccomp)."""

from __future__ import annotations

from cowshed_linux.seccomp import COMPARE
from cowshed_runtime.seccomp import ACTIONS
from cowshed_runtime.spec.walk import U64, filled, one_of, section, unsupported, whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ACTION, _ERRNO = one_of(ACTIONS), whole(0, 4095)


def _names(value: Any) -> str:
    return "" if isinstance(value, list) and value else "must name system calls"


RULES = section(
    "config-linux.md#seccomp",
    ("linux.seccomp.defaultAction!", _ACTION),
    ("linux.seccomp.defaultErrnoRet", _ERRNO),
    ("linux.seccomp.architectures[]", filled),
    ("linux.seccomp.flags", unsupported),
    ("linux.seccomp.listenerPath", unsupported),
    ("linux.seccomp.syscalls[].names!", _names),
    ("linux.seccomp.syscalls[].names[]", filled),
    ("linux.seccomp.syscalls[].action!", _ACTION),
    ("linux.seccomp.syscalls[].errnoRet", _ERRNO),
    ("linux.seccomp.syscalls[].args[].index!", whole(0, 5)),
    ("linux.seccomp.syscalls[].args[].value!", U64),
    ("linux.seccomp.syscalls[].args[].valueTwo", U64),
    ("linux.seccomp.syscalls[].args[].op!", one_of(COMPARE)),
)
