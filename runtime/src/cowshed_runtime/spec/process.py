"""Rules of the process object (config.md, Process), in config.json and for exec."""

from __future__ import annotations

from cowshed_linux.scheduling import FLAGS, IO_CLASSES, MEMORY_FLAGS, MEMORY_MODES, PERSONALITIES, POLICIES
from cowshed_runtime.settings import LIMITS, SETS, numbers
from cowshed_runtime.spec.walk import (
    ID,
    U64,
    Problem,
    absolute,
    boolean,
    mapping,
    one_of,
    section,
    string,
    variable,
    whole,
)  # fmt: skip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


def _program(value: Any) -> str:
    return "" if isinstance(value, list) and value else "must name a program"


def _list(value: Any) -> str:
    text = string(value)
    if text:
        return text
    try:
        numbers(value)
    except ValueError as error:
        return f"must be a list such as 0-3,7: {error}"
    return ""


_S32 = whole(-(2**31), 2**31 - 1)

# Places inside the process object
RULES = (
    *section(
        "config.md#process",
        ("cwd!", absolute),
        ("env[]", variable),
        ("terminal", boolean),
        ("consoleSize.height!", whole(0, 65535)),
        ("consoleSize.width!", whole(0, 65535)),
    ),
    *section(
        "config.md#posix-process",
        ("args!", _program),
        ("args[]", string),
        ("rlimits[].type!", one_of(LIMITS)),
        ("rlimits[].soft!", U64),
        ("rlimits[].hard!", U64),
    ),
    *section(
        "config.md#linux-process",
        ("noNewPrivileges", boolean),
        ("apparmorProfile", string),
        ("oomScoreAdj", whole(-1000, 1000)),
        # A name that is none is not granted, with a warning.
        *((f"capabilities.{kind}[]", string) for kind in SETS),
        ("selinuxLabel", string),
        ("scheduler.policy!", one_of(POLICIES)),
        ("scheduler.flags[]", one_of(FLAGS)),
        ("scheduler.nice", whole(-20, 19)),
        ("scheduler.priority", _S32),
        ("scheduler.runtime", U64),
        ("scheduler.deadline", U64),
        ("scheduler.period", U64),
        ("ioPriority.class!", one_of(IO_CLASSES)),
        ("ioPriority.priority!", whole(0, 7)),
        ("execCPUAffinity.initial", _list),
        ("execCPUAffinity.final", _list),
    ),
    *section(
        "config.md#posix-platform-user",
        ("user!", mapping),
        ("user.uid!", ID),
        ("user.gid!", ID),
        ("user.umask", whole(0, 0o777)),
        ("user.additionalGids[]", ID),
    ),
)  # fmt: skip
# Places inside the document
LINUX = (
    *section(
        "config-linux.md#personality",
        ("linux.personality.domain!", one_of(PERSONALITIES)),
        ("linux.personality.flags", lambda value: "knows no value" if value else ""),
    ),
    *section(
        "config-linux.md#memory-policy",
        ("linux.memoryPolicy.mode!", one_of(MEMORY_MODES)),
        ("linux.memoryPolicy.nodes", _list),
        ("linux.memoryPolicy.flags[]", one_of(MEMORY_FLAGS)),
    ),
)
_REAL_TIME = ("SCHED_FIFO", "SCHED_RR")
_WITHOUT_NODES = ("MPOL_DEFAULT", "MPOL_LOCAL")
_WITH_NODES = ("MPOL_BIND", "MPOL_INTERLEAVE", "MPOL_WEIGHTED_INTERLEAVE", "MPOL_PREFERRED_MANY")


def together(work: dict[str, Any], where: str = "process.") -> Iterator[Problem]:
    """What takes two values to judge; where: the object's place, with a dot, or ""."""
    seen = set()
    for number, limit in enumerate(work.get("rlimits") or ()):
        here = f"{where}rlimits[{number}]"
        if limit["type"] in seen:
            yield Problem(here, f"{limit['type']} is given twice", "config.md#posix-process")
        if limit["soft"] > limit["hard"]:
            yield Problem(here, "the soft limit is above the hard one", "config.md#posix-process")
        seen.add(limit["type"])
    scheduler = work.get("scheduler")
    if scheduler:
        for key, text in _scheduler(scheduler):
            yield Problem(f"{where}scheduler.{key}", text, "config.md#linux-process")


def _scheduler(wanted: dict[str, Any]) -> Iterator[tuple[str, str]]:
    policy, priority = wanted["policy"], wanted.get("priority") or 0
    if policy in _REAL_TIME and not 1 <= priority <= 99:
        yield "priority", f"must be between 1 and 99 for {policy}, not {priority}"
    if policy not in _REAL_TIME and priority:
        yield "priority", f"is of {' and '.join(_REAL_TIME)}, not of {policy}"
    if policy != "SCHED_DEADLINE":
        for key in ("runtime", "deadline", "period"):
            if wanted.get(key):
                yield key, f"is of SCHED_DEADLINE, not of {policy}"


def linux_together(linux: dict[str, Any]) -> Iterator[Problem]:
    """The same for what stands in `linux` (set_mempolicy(2))."""
    policy = linux.get("memoryPolicy")
    if not policy:
        return
    mode, nodes, flags = policy["mode"], policy.get("nodes"), policy.get("flags") or ()
    section_ = "config-linux.md#memory-policy"
    if mode in _WITHOUT_NODES and nodes:
        yield Problem("linux.memoryPolicy.nodes", f"there are none with {mode}", section_)
    if mode in _WITH_NODES and not nodes:
        yield Problem("linux.memoryPolicy.nodes", f"is missing, {mode} needs some", section_)
    if "MPOL_F_STATIC_NODES" in flags and "MPOL_F_RELATIVE_NODES" in flags:
        text = "MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other"
        yield Problem("linux.memoryPolicy.flags", text, section_)
