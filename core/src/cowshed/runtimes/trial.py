"""Asking a program what it is, and trying whether it runs a container here.

Names and versions are facts for people: what drives a program, and how, follows from what it answers and from a trial.
The trial is a container as the engine makes them, whose program is a few bytes of machine code that end with a status
of their own. A program that refuses this host as it is gets a second and a third chance: `WAYS`.
"""

from __future__ import annotations

import os
import select
from _struct import pack
from zlib import crc32

from cowshed.runtimes import place, program, tasks
from cowshed.runtimes.api import Answers
from cowshed.storage.record import field, record
from cowshed_linux import mount, process
from cowshed_runtime import defaults, seccomp
from cowshed_runtime.cgroup.layout import host
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

    from cowshed.storage.registry import Found

_ANSWER, _TRIAL = 10.0, 60.0  # seconds that it has to answer, and to run a container
_STATUS = 7
_FORMAT = 2  # of what is remembered; goes up with every change of it, or of what a trial tries
# machine: (number in an ELF header, code of exit(_STATUS))
_CODE = {
    "x86_64": (62, "bf07000000b83c0000000f05"),
    "aarch64": (183, "e00080d2a80b80d2010000d4"),
    "riscv64": (243, "130570009308d00573000000"),
}
# (hide the hierarchy of version 2, the engine makes the groups, what is said of it): the plainest first
WAYS = (
    (False, False, ""),
    (True, False, "it gets a view without the cgroup version 2 hierarchy"),
    (False, True, "the engine makes the control groups and starts it in them"),
    (True, True, "it gets a view without cgroup version 2, and the engine makes the control groups"),
)


@record(frozen=True)
class Trial:
    """What came of asking and trying."""

    kind: str  # the plug-in that drives it, "" if none does
    attr: str = ""  # where that is
    error: str = ""  # why it cannot be used here
    refusals: list[list[str]] = field(default_factory=list)  # (in which way, what it said) of each way that failed
    way: str = ""  # what it needs to run here, "" if nothing
    hidden: list[str] = field(default_factory=list)
    grouped: bool = False
    facts: dict[str, str | bool] = field(default_factory=dict)


def ask(path: str) -> Answers:
    """LaunchError if it cannot be executed or does not answer."""
    usage = _said(path, "--help")[1]
    version = _said(path, "--version" if "--version" in usage or "features" in usage.split() else "-v")[1]
    features = None
    if {"create", "start", "delete"} <= {*usage.split()}:  # only then `features` is a command, if at all
        status, text = _said(path, "features")
        try:
            features = loads(text) if status == 0 else None
        except ValueError:
            features = None  # a usage, of one that has no such command
    return Answers(usage, _version(version), features if isinstance(features, dict) else None)


def _version(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [line for line in lines if "version" in line.lower()] or lines
    return found[0][:80] if found else ""


def _said(path: str, word: str) -> tuple[int, str]:
    said = os.memfd_create("said")
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = program.run([path, word], (null, said, said), seconds=_ANSWER)
        return status, os.pread(said, 1 << 20, 0).decode(errors="replace")
    finally:
        os.close(null)
        os.close(said)


def examine(found: dict[str, Any], folder: str, plugins: Sequence[Found]) -> Trial:
    """Ask and try a program. found: path, options, settings; folder: where what it takes is put, and removed."""
    try:
        answers = ask(found["path"])
    except LaunchError as error:
        return Trial("", error=str(error))
    able = [one for one in plugins if one.plugin is not None and one.plugin.programs]
    kind = next((one for one in able if one.plugin.drives(answers)), None)
    if kind is None:
        return Trial("", error="it answers neither as an OCI runtime nor as a shim does")
    plugin: Any = kind.plugin
    from cowshed.runtimes import registry

    attr = registry.attr_of(kind.name)
    return _tried(attr, kind.name, found, folder, plugin.facts(answers))


def alone(one: Found, folder: str) -> Trial:
    """Try a plug-in that is a runtime by itself."""
    from cowshed.runtimes import registry

    found = {"path": "", "options": [], "settings": ""}
    return _tried(registry.attr_of(one.name), one.name, found, folder, one.plugin.facts(Answers("", "", None)))


def _tried(attr: str, kind: str, found: dict[str, Any], folder: str, facts: dict[str, str | bool]) -> Trial:
    both = bool(host.v1) and _second() != ""
    refusals: list[list[str]] = []
    for hide, grouped, way in WAYS:
        if (hide and not both) or (way and not found["path"]):
            continue
        hidden = [_second()] if hide else []
        error = attempt({"attr": attr, "id": f"trial-{os.getpid()}", "folder": folder, "path": found["path"],
                         "options": found["options"], "settings": found["settings"], "hidden": hidden,
                         "grouped": grouped})  # fmt: skip
        if not error:
            return Trial(kind, attr, "", refusals, way, hidden, grouped, facts)
        refusals.append([way or "as it is", error])
    return Trial(kind, attr, refusals[0][1], refusals, facts=facts)


def _second() -> str:
    """Where the hierarchy of version 2 is mounted, "" if it is not."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        for line in f:
            left, _, right = line.partition(" - ")
            if right.startswith("cgroup2 "):
                return left.split()[4]
    return ""


def attempt(value: dict[str, Any]) -> str:
    """Run a container in the way that a task says; why it does not run, or "". Nothing is left of it."""
    code = _executable(os.uname().machine)
    if not code:
        return ""  # nothing can be tried on this machine: the first container will tell
    tree = f"{value['folder']}.root"
    try:
        os.makedirs(tree, mode=0o700, exist_ok=True)
        fd = os.open(f"{tree}/true", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o755)
        os.write(fd, code)
        os.close(fd)
        return _aside(lambda: _monitor(value, tree))
    finally:
        plugin, task = tasks.of(value)
        try:
            plugin.end(task)
        finally:
            place.remove(tree)


def _monitor(value: dict[str, Any], tree: str) -> str:
    """As a monitor does it: a helper starts the container, and what it leaves behind is this process's."""
    process.become_subreaper()
    read_end, write_end = os.pipe()
    helper = os.fork()
    if helper == 0:
        _answer(lambda: _started(value, tree), write_end)
    os.close(write_end)
    with open(read_end, "rb") as f:
        said = loads(f.read())
    os.waitpid(helper, 0)
    if not said.isdigit():
        return str(said)
    _, status = os.waitpid(int(said), process.WALL)
    ended = os.waitstatus_to_exitcode(status)
    return "" if ended == _STATUS else f"a program that ends with status {_STATUS} ended with {ended}"


def _started(value: dict[str, Any], tree: str) -> str:
    plugin, task = tasks.of(value)
    tasks.keep(value)
    config = defaults.config()
    config["process"].update(args=["/true"], env=["PATH=/"])
    config["linux"]["seccomp"] = seccomp.default_profile(list(defaults.CAPABILITIES))
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    return str(plugin.start(task, config, mount.clone(tree), (null, null, null)).child)


def _aside(work: Callable[[], str]) -> str:
    """What work gives, done in a child that takes all orphans; its error as text."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        _answer(work, write_end)
    os.close(write_end)
    poll = select.poll()
    poll.register(read_end, select.POLLIN)
    try:
        if not poll.poll(_TRIAL * 1000):
            os.kill(pid, 9)
            return f"a container that does nothing has not ended within {_TRIAL:.0f} s"
        said = b""
        while block := os.read(read_end, 1 << 16):
            said += block
        return str(loads(said)) if said else "its trial was killed"
    finally:
        os.close(read_end)
        os.waitpid(pid, 0)


def _answer(work: Callable[[], str], to: int) -> NoReturn:
    try:
        text = work()
    except LaunchError as error:
        text = str(error)
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
    try:
        os.write(to, dumps(text).encode())
    finally:
        os._exit(0)


def _executable(machine: str) -> bytes:
    """A static ELF program (elf(5)) that exits with _STATUS; b"" for a machine that is not known."""
    if machine not in _CODE:
        return b""
    number, text = _CODE[machine]
    code = bytes.fromhex(text)
    base, header = 0x400000, 64 + 56
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    size = header + len(code)
    elf = ident + pack("<HHIQQQIHHHHHH", 2, number, 1, base + header, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return elf + pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000) + code


def recall(found: dict[str, Any], run: str) -> Trial | None:
    """What an earlier trial in this boot told of the same program with the same options, None if there was none."""
    path, stamp = _remembered(found, run)
    try:
        with open(path, "rb") as f:
            value = loads(f.read())
    except (FileNotFoundError, ValueError):
        return None
    return Trial(**value["trial"]) if value["stamp"] == stamp else None


def remember(found: dict[str, Any], run: str, trial: Trial) -> None:
    path, stamp = _remembered(found, run)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    names = ("kind", "attr", "error", "refusals", "way", "hidden", "grouped", "facts")
    fd = os.open(f"{path}.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as f:
        f.write(dumps({"stamp": stamp, "trial": {name: getattr(trial, name) for name in names}}))
    os.rename(f"{path}.{os.getpid()}", path)


def _remembered(found: dict[str, Any], run: str) -> tuple[str, list[Any]]:
    key = [found["path"] or found["name"], found["options"], found["settings"]]
    stamp = [_FORMAT, *key]
    if found["path"]:
        status = os.stat(found["path"])
        stamp += [status.st_mtime_ns, status.st_size, status.st_ino]
    return f"{run}/trial-{crc32(dumps(key).encode()):08x}", stamp
