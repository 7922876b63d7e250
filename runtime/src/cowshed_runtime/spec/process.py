"""Rules of the process object (config.md, Process), in config.json and for exec."""

from __future__ import annotations

from cowshed_linux.capabilities import NUMBERS
from cowshed_runtime.identity import LIMITS
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
    unsupported,
    variable,
    whole,
)  # fmt: skip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


def _program(value: Any) -> str:
    return "" if isinstance(value, list) and value else "must name a program"


def _capability(value: Any) -> str:
    # One that only a newer kernel has is no error: it is not granted.
    return string(value) or ("" if value in NUMBERS or value[:4] == "CAP_" else f"{value!r} is no capability")


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
        *((f"capabilities.{kind}[]", _capability)
          for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")),
        *((name, unsupported) for name in ("selinuxLabel", "scheduler", "ioPriority", "execCPUAffinity")),
    ),
    *section(
        "config.md#posix-platform-user",
        ("user!", mapping),
        ("user.uid!", ID),
        ("user.gid!", ID),
        ("user.umask", whole(0, 0o777)),
        ("user.additionalGids[]", ID),
    ),
    *section(
        "config-linux.md#personality",
        ("personality.domain!", one_of(("LINUX", "LINUX32"))),
        ("personality.flags", unsupported),
    ),
)  # fmt: skip


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
