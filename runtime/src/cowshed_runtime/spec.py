"""Validation of an OCI configuration (runtime-spec 1.2, config.md and config-linux.md) before any side effect.

RULES is the table: where a value stands, what it must be. What takes two values to judge stands below it, as functions.
Unknown properties are ignored, as the specification wants; known ones that this runtime does not honour are refused, so
that nobody runs with less than was asked for.
"""

from __future__ import annotations

from cowshed_linux.capabilities import NUMBERS
from cowshed_linux.seccomp import COMPARE
from cowshed_runtime.errors import SpecError
from cowshed_runtime.identity import LIMITS
from cowshed_runtime.mounting import PROC_ALLOWED
from cowshed_runtime.options import PROPAGATION, UNSUPPORTED
from cowshed_runtime.seccomp import ACTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Check = Callable[[Any], str]  # what is wrong, or ""


class Problem:
    """A breach: where in the document, and what is wrong."""

    def __init__(self, where: str, text: str) -> None:
        self.where, self.text = where, text

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"

    __repr__ = __str__


def _string(value: Any) -> str:
    if not isinstance(value, str):
        return "must be a string"
    return "must not contain a NUL byte" if "\0" in value else ""


def _filled(value: Any) -> str:
    return _string(value) or ("" if value else "must not be empty")


def _absolute(value: Any) -> str:
    return _string(value) or ("" if value[:1] == "/" else f"must be an absolute path, not {value!r}")


def _boolean(value: Any) -> str:
    return "" if isinstance(value, bool) else "must be true or false"


def _object(value: Any) -> str:
    return "" if isinstance(value, dict) else "must be an object"


def _whole(low: int, high: int) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, int) or isinstance(value, bool):
            return "must be a whole number"
        return "" if low <= value <= high else f"must be between {low} and {high}, not {value}"

    return check


def _one_of(words: Any) -> Check:
    def check(value: Any) -> str:
        return "" if isinstance(value, str) and value in words else f"must be one of {', '.join(words)}, not {value!r}"

    return check


def _strings(value: Any) -> str:
    if not isinstance(value, dict):
        return "must be an object"
    return next((f"{k}: must be a string" for k, v in value.items() if _string(k) or _string(v)), "")


def _environment(value: Any) -> str:
    return _string(value) or ("" if "=" in value[1:] else f"must be NAME=VALUE, not {value!r}")


def _option(value: Any) -> str:
    word = value.partition("=")[0] if isinstance(value, str) else ""
    return _filled(value) or (f"{word} is not supported by this runtime" if word in UNSUPPORTED else "")


def _no_parents(value: Any) -> str:
    return _filled(value) or ("must not contain `..`" if ".." in value.split("/") else "")


def _unsupported(value: Any) -> str:
    return "is not supported by this runtime" if value else ""


def _capability(value: Any) -> str:
    # One that only a newer kernel has is no error: it is not granted.
    return _string(value) or ("" if value in NUMBERS or value[:4] == "CAP_" else f"{value!r} is no capability")


_U32, _S64, _U64 = _whole(0, 2**32 - 1), _whole(-(2**63), 2**63 - 1), _whole(0, 2**64 - 1)
# uid 2**32 - 1 means "leave as it is" to the kernel
_ID = _whole(0, 2**32 - 2)
_DEVICE_NUMBER = _whole(-1, 2**32 - 1)
_POSITIVE = _whole(1, 2**63 - 1)
_PROPAGATIONS = (*PROPAGATION, *(f"r{word}" for word in PROPAGATION))
_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")
_KINDS = ("pid", "network", "mount", "ipc", "uts", "cgroup")
_THROTTLES = ("throttleReadBpsDevice", "throttleWriteBpsDevice", "throttleReadIOPSDevice", "throttleWriteIOPSDevice")

# (place, check). `a.b` goes into an object, `[]` into each entry of a list; an absent value is not checked, unless its
# place ends in `!`.
PROCESS: tuple[tuple[str, Check], ...] = (
    ("args!", lambda v: "" if isinstance(v, list) and v else "must name a program"),
    ("args[]", _string),
    ("env[]", _environment),
    ("cwd!", _absolute),
    ("terminal", _boolean),
    ("consoleSize.height!", _whole(0, 65535)),
    ("consoleSize.width!", _whole(0, 65535)),
    ("user!", _object),
    ("user.uid!", _ID),
    ("user.gid!", _ID),
    ("user.umask", _whole(0, 0o777)),
    ("user.additionalGids[]", _ID),
    ("noNewPrivileges", _boolean),
    ("apparmorProfile", _string),
    ("oomScoreAdj", _whole(-1000, 1000)),
    ("rlimits[].type!", _one_of(LIMITS)),
    ("rlimits[].soft!", _U64),
    ("rlimits[].hard!", _U64),
    ("personality.domain!", _one_of(("LINUX", "LINUX32"))),
    *((f"capabilities.{kind}[]", _capability) for kind in _SETS),
    *((name, _unsupported) for name in (
        "selinuxLabel", "scheduler", "ioPriority", "execCPUAffinity", "personality.flags")),
)  # fmt: skip
_DOCUMENT: tuple[tuple[str, Check], ...] = (
    ("ociVersion!", lambda v: _string(v) or ("" if v.split(".")[0] == "1" else f"version {v} is not 1.x")),
    ("root!", _object),
    ("root.path!", _filled),
    ("root.readonly", _boolean),
    ("process!", _object),
    ("hostname", _filled),
    ("domainname", _filled),
    ("annotations", _strings),
    ("mounts[].destination!", _no_parents),
    ("mounts[].type", _string),
    ("mounts[].source", _string),
    ("mounts[].options[]", _option),
    ("mounts[].uidMappings", _unsupported),
    ("mounts[].gidMappings", _unsupported),
    *((f"hooks.{kind}[].path!", _absolute) for kind in _HOOKS),
    *((f"hooks.{kind}[].args[]", _string) for kind in _HOOKS),
    *((f"hooks.{kind}[].env[]", _environment) for kind in _HOOKS),
    *((f"hooks.{kind}[].timeout", _POSITIVE) for kind in _HOOKS),
    ("linux!", _object),
    ("linux.namespaces[].type!", _one_of(_KINDS)),
    ("linux.namespaces[].path", _absolute),
    ("linux.devices[].path!", _absolute),
    ("linux.devices[].type!", _one_of(("c", "b", "u", "p"))),
    ("linux.devices[].major", _whole(0, 2**32 - 1)),
    ("linux.devices[].minor", _whole(0, 2**32 - 1)),
    ("linux.devices[].fileMode", _whole(0, 0o7777)),
    ("linux.devices[].uid", _ID),
    ("linux.devices[].gid", _ID),
    ("linux.maskedPaths[]", _absolute),
    ("linux.readonlyPaths[]", _absolute),
    ("linux.rootfsPropagation", _one_of(_PROPAGATIONS)),
    ("linux.sysctl", _strings),
    ("linux.resources.devices[].allow!", _boolean),
    ("linux.resources.devices[].type", _one_of(("a", "b", "c"))),
    ("linux.resources.devices[].major", _DEVICE_NUMBER),
    ("linux.resources.devices[].minor", _DEVICE_NUMBER),
    ("linux.resources.devices[].access", lambda v: _filled(v) or ("" if set(v) <= set("rwm") else "is of r, w and m")),
    *((f"linux.resources.memory.{key}", _S64) for key in ("limit", "swap", "reservation", "kernelTCP")),
    ("linux.resources.memory.swappiness", _whole(0, 100)),
    ("linux.resources.memory.disableOOMKiller", _boolean),
    ("linux.resources.cpu.shares", _U64),
    ("linux.resources.cpu.quota", _S64),
    ("linux.resources.cpu.period", _U64),
    ("linux.resources.cpu.burst", _U64),
    ("linux.resources.cpu.idle", _whole(0, 1)),
    ("linux.resources.cpu.cpus", _string),
    ("linux.resources.cpu.mems", _string),
    ("linux.resources.pids.limit", _S64),
    ("linux.resources.blockIO.weight", _whole(10, 1000)),
    *((f"linux.resources.blockIO.{key}[].{part}!", _U64) for key in _THROTTLES for part in ("major", "minor", "rate")),
    ("linux.resources.hugepageLimits[].pageSize!", _filled),
    ("linux.resources.hugepageLimits[].limit!", _U64),
    ("linux.resources.unified", _strings),
    ("linux.seccomp.defaultAction!", _one_of(ACTIONS)),
    ("linux.seccomp.defaultErrnoRet", _whole(0, 4095)),
    ("linux.seccomp.architectures[]", _filled),
    ("linux.seccomp.flags", _unsupported),
    ("linux.seccomp.listenerPath", _unsupported),
    ("linux.seccomp.syscalls[].names!", lambda v: "" if isinstance(v, list) and v else "must name system calls"),
    ("linux.seccomp.syscalls[].names[]", _filled),
    ("linux.seccomp.syscalls[].action!", _one_of(ACTIONS)),
    ("linux.seccomp.syscalls[].errnoRet", _whole(0, 4095)),
    ("linux.seccomp.syscalls[].args[].index!", _whole(0, 5)),
    ("linux.seccomp.syscalls[].args[].value!", _U64),
    ("linux.seccomp.syscalls[].args[].valueTwo", _U64),
    ("linux.seccomp.syscalls[].args[].op!", _one_of(COMPARE)),
    *((f"linux.{name}", _unsupported) for name in (
        "uidMappings", "gidMappings", "timeOffsets", "intelRdt", "mountLabel", "netDevices", "memoryPolicy",
        "resources.rdma", "resources.network")),
    ("vm", _unsupported),
)  # fmt: skip
RULES = _DOCUMENT + tuple((f"process.{place}", check) for place, check in PROCESS)


def _compiled(rules: tuple[tuple[str, Check], ...]) -> list[tuple[list[str], bool, Check]]:
    return [(place.rstrip("!").replace("[]", ".[]").split("."), place[-1] == "!", check) for place, check in rules]


_RULES, _PROCESS_RULES = _compiled(RULES), _compiled(PROCESS)


def _apply(value: Any, path: list[str], at: int, needed: bool, check: Check, where: str) -> Iterator[Problem]:
    if at == len(path):
        text = check(value)
        if text:
            yield Problem(where, text)
        return
    part = path[at]
    if part == "[]":
        if not isinstance(value, list):
            yield Problem(where, "must be a list")
            return
        for number, entry in enumerate(value):
            yield from _apply(entry, path, at + 1, needed, check, f"{where}[{number}]")
        return
    if not isinstance(value, dict):
        yield Problem(where or "document", "must be an object")
        return
    below = value.get(part)
    here = f"{where}.{part}" if where else part
    if below is None:
        if needed and at == len(path) - 1:
            yield Problem(here, "is missing")
        return
    yield from _apply(below, path, at + 1, needed, check, here)


def _walk(document: Any, rules: list[tuple[list[str], bool, Check]]) -> list[Problem]:
    found: dict[str, Problem] = {}
    for path, needed, check in rules:
        for problem in _apply(document, path, 0, needed, check, ""):
            found.setdefault(problem.where, problem)
    return list(found.values())


def validate(config: Any) -> list[Problem]:
    """Every breach of the specification, and everything asked for that this runtime does not do."""
    problems = _walk(config, _RULES)
    return problems or [*_limits(config["process"], "process."), *_together(config)]


def validate_process(work: Any) -> list[Problem]:
    """The same for a process object alone, as for exec."""
    return _walk(work, _PROCESS_RULES) or list(_limits(work, ""))


def check(config: Any) -> None:
    """SpecError with every problem in its text."""
    problems = validate(config)
    if problems:
        raise SpecError("config.json: " + "; ".join(map(str, problems)))


def _limits(work: dict[str, Any], where: str) -> Iterator[Problem]:
    seen = set()
    for number, limit in enumerate(work.get("rlimits") or ()):
        here = f"{where}rlimits[{number}]"
        if limit["type"] in seen:
            yield Problem(here, f"{limit['type']} is given twice")
        if limit["soft"] > limit["hard"]:
            yield Problem(here, "the soft limit is above the hard one")
        seen.add(limit["type"])


# Settings that belong to a namespace, by the namespace; any other would be the host's.
_SYSCTLS = {
    "ipc": ("fs.mqueue.", "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall",
            "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced", "kernel.auto_msgmni", "kernel.msg_next_id",
            "kernel.sem_next_id", "kernel.shm_next_id"),
    "network": ("net.",),
    "uts": ("kernel.domainname",),
}  # fmt: skip


def _together(config: dict[str, Any]) -> Iterator[Problem]:
    linux = config["linux"]
    kinds: dict[str, str | None] = {}
    for number, entry in enumerate(linux.get("namespaces") or ()):
        if entry["type"] in kinds:
            yield Problem(f"linux.namespaces[{number}]", f"{entry['type']} is given twice")
        kinds[entry["type"]] = entry.get("path")
    if "mount" not in kinds or kinds["mount"]:
        yield Problem("linux.namespaces", "a new mount namespace is needed: the root is changed in it")
    for key in ("hostname", "domainname"):
        if config.get(key) and "uts" not in kinds:
            yield Problem(key, "needs a uts namespace; without one it would be the host's")
    if config.get("domainname") and "kernel.domainname" in (linux.get("sysctl") or {}):
        yield Problem("domainname", "is set by the sysctl kernel.domainname too")
    for key in linux.get("sysctl") or ():
        yield from _sysctl(key, kinds)
    for number, entry in enumerate(config.get("mounts") or ()):
        here, destination = f"mounts[{number}]", "/" + entry["destination"].strip("/")
        bound = bool({"bind", "rbind"} & set(entry.get("options") or ())) or entry.get("type") in ("bind", "", None)
        if bound and not entry.get("source"):
            yield Problem(here, "a bind mount needs a source")
        if destination.startswith("/proc/") and destination not in PROC_ALLOWED and entry.get("type") != "proc":
            yield Problem(here, f"{destination} is inside /proc, which is the kernel's")
        if destination == "/":
            yield Problem(here, "the root cannot be mounted over")


def _sysctl(key: str, kinds: dict[str, str | None]) -> Iterator[Problem]:
    name = key.replace("/", ".") if "/" in key else key
    if ".." in name:
        yield Problem("linux.sysctl", f"{key} is no setting")
        return
    for kind, prefixes in _SYSCTLS.items():
        if any(name == prefix or (prefix[-1] == "." and name.startswith(prefix)) for prefix in prefixes):
            if kind not in kinds:
                yield Problem("linux.sysctl", f"{key} needs a {kind} namespace; without one it would be the host's")
            return
    yield Problem("linux.sysctl", f"{key} is a setting of the whole host")
