"""What an OCI process object asks for, as numbers for the kernel, and what of it this host cannot give. Pure.

A launch works this out before anything is done, so that the process itself only makes system calls (identity).
What cannot be granted is a warning and no error where the specification says so (config.md#linux-process); a list of
warnings goes to whoever launches.
"""

from __future__ import annotations

import resource

from cowshed_linux import capabilities, scheduling

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed_runtime.seccomp import Filter

# <asm-generic/resource.h>; the module `resource` lacks some
LIMITS = {
    f"RLIMIT_{name}": number
    for number, name in enumerate(
        "CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE RTPRIO RTTIME".split()
    )
}
SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")
KEEP_GROUPS = "run.oci.keep_original_groups"
_LAST = capabilities.last()
_PERMITTED = capabilities.permitted()
_RAISE_LIMITS = _PERMITTED >> capabilities.NUMBERS["CAP_SYS_RESOURCE"] & 1
_SYS_ADMIN = 1 << capabilities.NUMBERS["CAP_SYS_ADMIN"]
_UNLIMITED = resource.RLIM_INFINITY


class Settings:
    """limits: (kind, soft, hard); scheduler: arguments of set_scheduler; io: class and level; memory: mode with flags,
    mask of nodes; initial, final: processors; the sets of capabilities are masks, `lent` of what is kept until a
    seccomp filter is in force; groups: None leaves those that there are."""

    def __init__(self, work: dict[str, Any], linux: dict[str, Any], annotations: dict[str, str]) -> None:
        self.work = work
        self.warnings: list[str] = []
        user = work["user"]
        self.uid, self.gid, self.umask = user["uid"], user["gid"], user.get("umask", 0o022)
        self.groups = None if KEEP_GROUPS in annotations else user.get("additionalGids") or []
        self.no_new_privileges = bool(work.get("noNewPrivileges"))
        self.filter: Filter | None = None
        self._capabilities(work.get("capabilities") or {}, linux)
        self.limits = [self._limit(limit) for limit in work.get("rlimits") or ()]
        wanted = work.get("scheduler")
        self.scheduler = _scheduler(wanted) if wanted else None
        wanted = work.get("ioPriority")
        self.io = (scheduling.IO_CLASSES[wanted["class"]], wanted["priority"]) if wanted else None
        wanted = work.get("execCPUAffinity") or {}
        self.initial, self.final = numbers(wanted.get("initial") or ""), numbers(wanted.get("final") or "")
        wanted = linux.get("memoryPolicy")
        self.memory = _memory(wanted) if wanted else None
        wanted = linux.get("personality")
        self.persona = scheduling.PERSONALITIES[wanted["domain"]] if wanted else None

    def _capabilities(self, wanted: dict[str, list[str]], linux: dict[str, Any]) -> None:
        """The five sets, each within what it can hold."""
        # In a user namespace of its own (user_namespaces(7)) a process has all there are.
        inside = any(entry["type"] == "user" for entry in linux.get("namespaces") or ())
        most = (1 << _LAST + 1) - 1 if inside else _PERMITTED
        sets = {}
        refused: dict[str, str] = {}
        for kind in SETS:
            names = wanted.get(kind) or []
            asked = capabilities.bits(names)
            sets[kind] = asked & most
            if asked & ~most or len(names) > asked.bit_count():
                for name in names:
                    number = capabilities.NUMBERS.get(name, 64)
                    if number > _LAST:
                        refused[name] = "this kernel does not know it"
                    elif not most >> number & 1:
                        refused[name] = "this runtime does not have it itself"
        self.warnings += [f"capability {name} is not granted: {why}" for name, why in refused.items()]
        self.bounding = sets["bounding"]
        self.inheritable = sets["inheritable"] & self.bounding  # capset(2): no other can be added
        self.permitted = sets["permitted"]
        self.effective = sets["effective"] & self.permitted
        self.ambient = sets["ambient"] & self.permitted & self.inheritable
        for kind, given, needs in (
            ("inheritable", self.inheritable, "bounding"),
            ("effective", self.effective, "permitted"), ("ambient", self.ambient, "permitted and inheritable"),
        ):  # fmt: skip
            for name in capabilities.names(sets[kind] & ~given):
                self.warnings.append(f"capability {name} is not {kind}: it is not {needs}")
        self.dropped = capabilities.numbers(~self.bounding & ((1 << _LAST + 1) - 1))
        # Without no_new_privs the kernel wants it for a filter, and the filter comes as late as can be, so that it need
        # not allow what is done before.
        self.lent = 0 if self.no_new_privileges else _SYS_ADMIN & most

    def _limit(self, limit: dict[str, Any]) -> tuple[int, int, int]:
        """What the host does not let its root raise is set as high as it goes."""
        kind = LIMITS[limit["type"]]
        soft, hard = (n if n < 1 << 63 else _UNLIMITED for n in (limit["soft"], limit["hard"]))
        if not _RAISE_LIMITS:
            most = resource.getrlimit(kind)[1]
            given = lowest(soft, most), lowest(hard, most)
            if given != (soft, hard):
                text = f"{limit['type']} is {most} at most: this runtime lacks CAP_SYS_RESOURCE, which raising it takes"
                self.warnings.append(text)
                soft, hard = given
        return kind, soft, hard


def lowest(one: int, other: int) -> int:
    """The lower one of two limits, of which RLIM_INFINITY is the highest."""
    if one == _UNLIMITED:
        return other
    return one if other == _UNLIMITED else min(one, other)


def numbers(text: str) -> list[int]:
    """The numbers of a list of processors or nodes such as `0-3,7` (cpuset(7), List format). ValueError if it is
    none."""
    found: set[int] = set()
    for part in text.split(",") if text.strip() else ():
        first, dash, last = part.strip().partition("-")
        if not (first.isascii() and first.isdigit() and len(first) < 6):
            raise ValueError(f"{part!r} is no number and no range")
        if dash and not (last.isascii() and last.isdigit() and len(last) < 6 and int(last) >= int(first)):
            raise ValueError(f"{part!r} is no range")
        found.update(range(int(first), int(last or first) + 1))
    return sorted(found)


def _scheduler(wanted: dict[str, Any]) -> dict[str, int]:
    flags = 0
    for flag in wanted.get("flags") or ():
        flags |= scheduling.FLAGS[flag]
    keys = ("nice", "priority", "runtime", "deadline", "period")
    given = {key: wanted.get(key) or 0 for key in keys}
    return {"policy": scheduling.POLICIES[wanted["policy"]], "flags": flags, **given}


def _memory(wanted: dict[str, Any]) -> tuple[int, int]:
    mode, mask = scheduling.MEMORY_MODES[wanted["mode"]], 0
    for flag in wanted.get("flags") or ():
        mode |= scheduling.MEMORY_FLAGS[flag]
    for node in numbers(wanted.get("nodes") or ""):
        mask |= 1 << node
    return mode, mask
