"""The last stretch of a container's process: streams, limits, directory, identity, confinement, program.

The order of the steps is what makes them safe; each says why it stands where it does.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` brings enum
import fcntl
import os
import resource
import stat
import sys

from cowshed_linux import capabilities, process, seccomp
from cowshed_linux.libc import C
from cowshed_runtime import apparmor, reaper
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.targets import place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

_LAST_CAPABILITY = capabilities.last()
_PERMITTED = capabilities.permitted()
_SYS_ADMIN = 1 << capabilities.NUMBERS["CAP_SYS_ADMIN"]
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CONTROLLING_TERMINAL, _SET_SIZE = 0x540E, 0x5414  # TIOCSCTTY, TIOCSWINSZ
_SIGNALS = [n for n in range(1, 65) if n not in (9, 19, 32, 33)]
# <asm-generic/resource.h>; the module `resource` lacks some
LIMITS = {
    f"RLIMIT_{name}": number
    for number, name in enumerate(
        "CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE RTPRIO RTTIME".split()
    )
}
_PERSONALITIES = {"LINUX": 0, "LINUX32": 0x8}


def become(
    work: dict[str, Any],
    stdio: tuple[int, int, int],
    terminal: tuple[int, int] | None,
    program: bytes,
    confinement: tuple[int, str] | None,
    *,
    init: bool,
    preserve: int = 0,
    keyring: bool = True,
    last: Callable[[], None] | None = None,
) -> NoReturn:
    """Turn this process into the one that an OCI process object describes. LaunchError or OSError if it cannot be.

    stdio is not used with a terminal (master, slave); program is a BPF filter or empty; confinement is an AppArmor
    profile, after where to write it; init keeps a reaper behind; preserve: how many descriptors from 3 on the program
    inherits; keyring: give it a session keyring of its own; last: what is still to do when all but the filter and the
    execution is done, and the program is known to be there. Root is the container's by now.
    """
    user = work["user"]
    os.setsid()
    if terminal:
        stdio = _take_terminal(work, terminal)
    else:
        _own_streams(stdio, user["uid"])
    # Away from 0-2 first, so that none is overwritten before it is used.
    moved = [os.dup(fd) for fd in stdio]
    for number, fd in enumerate(moved):
        os.dup2(fd, number, inheritable=True)
    # Before the working directory: none of ours may be reached through /proc/self/fd (CVE-2024-21626).
    process.close_range(3 + preserve, on_exec=True)
    for fd in range(3, 3 + preserve):
        os.set_inheritable(fd, True)
    _limits(work.get("rlimits") or ())
    for number in _SIGNALS:  # Python ignores some, and what is ignored stays so through execve(2)
        _signal.signal(number, _signal.SIG_DFL)
    process.default_reserved_signals()
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
    if keyring:
        process.new_session_keyring()
    persona = (work.get("personality") or {}).get("domain")
    if persona:
        C.personality(_PERSONALITIES[persona])
    _change_directory(work["cwd"])
    if confinement:  # the filter below need not allow it, and a process that is forked later has it too
        apparmor.enter(*confinement)
    sets = _sets(work)
    lent = _drop(work, sets, program)
    environment = dict(entry.split("=", 1) for entry in work.get("env") or ())
    arguments = work["args"]
    path = _find(arguments[0], environment)
    if last:
        _look(path)
        last()
    _filter(work, sets, program, lent)
    if init:
        reaper.stay_behind(terminal is not None)
    try:
        os.execve(path, arguments, environment)  # noqa: S606 - no shell is the point
    except OSError as error:
        text, status = f"{arguments[0]}: {error.strerror}", 127 if error.errno == 2 else 126
        if error.errno == 2 and os.path.exists(path):
            text, status = f"{arguments[0]}: its interpreter or loader is not in the container", 127
        raise LaunchError("exec", error.errno or 0, text, status) from None


def _take_terminal(work: dict[str, Any], terminal: tuple[int, int]) -> tuple[int, int, int]:
    slave = terminal[1]
    size = work.get("consoleSize")
    if size:
        fcntl.ioctl(
            slave, _SET_SIZE, b"".join(n.to_bytes(2, sys.byteorder) for n in (size["height"], size["width"], 0, 0))
        )
    os.fchown(slave, work["user"]["uid"], -1)
    fcntl.ioctl(slave, _CONTROLLING_TERMINAL, 0)
    return slave, slave, slave


def _own_streams(stdio: tuple[int, int, int], uid: int) -> None:
    """Let a user who is not root open /dev/stdout and the like: pipes are his own."""
    if uid == 0:
        return
    for fd in set(stdio):
        there = os.fstat(fd)
        if stat.S_ISFIFO(there.st_mode) and there.st_uid != uid:
            try:
                os.fchown(fd, uid, -1)
            except PermissionError:
                continue  # another's pipe: he can still read or write it, only not open it again


def _limits(wanted: Any) -> None:
    """Resource limits; what this host does not let its root raise is set as high as it goes."""
    for limit in wanted:
        kind = LIMITS[limit["type"]]
        soft, hard = (n if n < 1 << 63 else resource.RLIM_INFINITY for n in (limit["soft"], limit["hard"]))
        try:
            resource.setrlimit(kind, (soft, hard))
        except (PermissionError, ValueError):
            most = resource.getrlimit(kind)[1]
            if most != resource.RLIM_INFINITY:
                hard = most if hard == resource.RLIM_INFINITY else min(hard, most)
                soft = hard if soft == resource.RLIM_INFINITY else min(soft, hard)
            resource.setrlimit(kind, (soft, hard))


def _change_directory(path: str) -> None:
    """A path through a descriptor of ours, or any other magic link, is not followed (CVE-2024-21626)."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = place(root, path, directory=True)
        os.fchdir(fd)
        os.close(fd)
    except OSError as error:
        text = f"the working directory {path} cannot be entered: {error.strerror}"
        raise LaunchError("cwd", error.errno or 0, text, 126 if error.errno in (13, 20) else 125) from None
    finally:
        os.close(root)
    if not os.getcwd().startswith("/"):
        raise LaunchError("cwd", 0, f"the working directory {path} is outside the container")


def _sets(work: dict[str, Any]) -> dict[str, int]:
    """The five sets of capabilities as bits, each within what it can hold."""
    wanted = work.get("capabilities") or {}
    sets = {kind: capabilities.bits(wanted.get(kind) or []) & _PERMITTED for kind in
            ("bounding", "effective", "permitted", "inheritable", "ambient")}  # fmt: skip
    sets["ambient"] &= sets["permitted"] & sets["inheritable"]
    sets["effective"] &= sets["permitted"]
    return sets


def _drop(work: dict[str, Any], sets: dict[str, int], program: bytes) -> int:
    """Become the user, with his capabilities. The result is lent for _filter: it needs CAP_SYS_ADMIN for one call."""
    user = work["user"]
    os.umask(user.get("umask", 0o022))
    capabilities.drop_bounding(sets["bounding"], _LAST_CAPABILITY)
    os.setgroups(user.get("additionalGids") or [])
    os.setresgid(user["gid"], user["gid"], user["gid"])
    process.prctl(process.PR_SET_KEEPCAPS, 1)  # what the next line would take from a user who is not root
    os.setresuid(user["uid"], user["uid"], user["uid"])
    process.prctl(process.PR_SET_KEEPCAPS, 0)
    # CAP_SYS_ADMIN for one call more: without no_new_privs the kernel wants it for a filter, and the filter comes as
    # late as can be, so that it need not allow what stands above.
    lend = _SYS_ADMIN & _PERMITTED if program and not work.get("noNewPrivileges") else 0
    capabilities.set_all(sets["effective"] | lend, sets["permitted"] | lend, sets["inheritable"], sets["ambient"])
    return lend


def _filter(work: dict[str, Any], sets: dict[str, int], program: bytes, lent: int) -> None:
    if work.get("noNewPrivileges"):
        seccomp.no_new_privileges()
    if program:
        seccomp.load(program)
    if lent:
        capabilities.set_all(sets["effective"], sets["permitted"], sets["inheritable"], 0)


def _find(name: str, environment: dict[str, str]) -> str:
    """The program to execute, by the container's own PATH (execvp(3))."""
    if "/" in name:
        return name
    refused = False
    for folder in environment.get("PATH", _DEFAULT_PATH).split(":"):
        path = f"{folder or '.'}/{name}"
        if os.path.isfile(path):
            if os.access(path, os.X_OK):
                return path
            refused = True
    if refused:
        raise LaunchError("exec", 13, f"{name}: found in PATH, but not executable", 126)
    raise LaunchError("exec", 2, f"{name}: not found in PATH", 127)


def _look(path: str) -> None:
    """LaunchError if it cannot be executed, as far as can be told before: the words of execve(2), earlier."""
    if not os.path.exists(path):
        raise LaunchError("exec", 2, f"{path}: {os.strerror(2)}", 127)
    if not os.path.isfile(path) or not os.access(path, os.X_OK):
        raise LaunchError("exec", 13, f"{path}: {os.strerror(13)}", 126)
