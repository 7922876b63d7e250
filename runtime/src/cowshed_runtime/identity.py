"""The last stretch of a container's process: streams, limits, directory, identity, confinement, program.

The order of the steps is what makes them safe; each says why it stands where it does.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` brings enum
import errno
import fcntl
import os
import resource
import stat
import sys

from cowshed_linux import capabilities, process, scheduling, seccomp
from cowshed_linux.paths import open_in_root
from cowshed_runtime import defaults, reaper
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.rootfs import is_null
from cowshed_runtime.settings import lowest
from cowshed_runtime.targets import place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from cowshed_runtime.labels import Label
    from cowshed_runtime.settings import Settings

_CONTROLLING_TERMINAL, _SET_SIZE = 0x540E, 0x5414  # TIOCSCTTY, TIOCSWINSZ
_SIGNALS = [n for n in range(1, 65) if n not in (9, 19, 32, 33)]


def become(
    settings: Settings,
    stdio: tuple[int, int, int],
    terminal: tuple[int, int] | None,
    labels: list[Label],
    *,
    init: bool,
    preserve: int = 0,
    keyring: bool = True,
    listening: Callable[[int], None] | None = None,
    last: Callable[[], None] | None = None,
) -> NoReturn:
    """Turn this process into the one that an OCI process object describes. LaunchError or OSError if it cannot be.

    stdio is not used with a terminal (master, slave); labels are of AppArmor and SELinux, opened while /proc was the
    host's; init keeps a reaper behind; preserve: how many descriptors from 3 on the program inherits; keyring: give it
    a session keyring of its own; listening is told the descriptor at which the filter's notifications arrive; last:
    what is still to do when all but the filter and the execution is done, and the program is known to be there. Root is
    the container's by now.
    """
    work = settings.work
    os.setsid()
    if terminal:
        stdio = _take_terminal(work, terminal)
    else:
        own_streams(stdio, settings.uid)
    # Away from 0-2 first, so that none is overwritten before it is used.
    moved = [_own_null(fd) for fd in stdio]
    for number, fd in enumerate(moved):
        os.dup2(fd, number, inheritable=True)
    # Before the working directory: none of ours may be reached through /proc/self/fd (CVE-2024-21626).
    process.close_range(3 + preserve, on_exec=True)
    for fd in range(3, 3 + preserve):
        os.set_inheritable(fd, True)
    limit(settings.limits)
    for number in _SIGNALS:  # Python ignores some, and what is ignored stays so through execve(2)
        if _signal.getsignal(number) is not _signal.SIG_DFL:
            _signal.signal(number, _signal.SIG_DFL)
    process.default_reserved_signals()
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
    for label in labels:  # that of the keyring is of use before there is one
        label.write()
    if keyring:
        process.new_session_keyring()
    _schedule(settings)
    _change_directory(work["cwd"])
    environment = dict(entry.split("=", 1) for entry in work.get("env") or ())
    if "HOME" not in environment:
        environment["HOME"] = _home(settings.uid)
    _drop(settings)
    arguments = work["args"]
    path = _find(arguments[0], environment)
    # An agent is told when the container is created, and not when its program is executed.
    notifies = bool(settings.filter and settings.filter.notifies)
    if notifies and listening:
        listening(confine(settings))
    if last:
        _look(path)
        last()
    if not notifies:
        confine(settings)
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


def own_streams(stdio: tuple[int, int, int], uid: int) -> None:
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


def _own_null(fd: int) -> int:
    """A duplicate; for a null device of the host the container's own, so that nothing of it is from a mount of the host
    (which criu could not restore)."""
    if is_null(fd):
        try:
            null = os.open("/dev/null", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return os.dup(fd)  # it has none
        if is_null(null):
            os.set_blocking(null, True)
            return null
        os.close(null)
    return os.dup(fd)


def limit(limits: list[tuple[int, int, int]]) -> None:
    """Set resource limits (kind, soft, hard); one that is refused (of open files, above fs.nr_open) as high as it
    goes."""
    for kind, soft, hard in limits:
        try:
            resource.setrlimit(kind, (soft, hard))
        except (PermissionError, ValueError):
            most = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (lowest(soft, most), lowest(hard, most)))


def raise_limits(pid: int, limits: list[tuple[int, int, int]]) -> None:
    """Raise hard limits of a process (0: of this one) to those that it is to set itself, before a user namespace takes
    the privilege from it."""
    for kind, _, hard in limits:
        soft, most = resource.prlimit(pid, kind)
        if lowest(hard, most) == hard:
            continue
        try:
            resource.prlimit(pid, kind, (soft, hard))
        except PermissionError:
            continue  # above fs.nr_open: it sets what it can


def _schedule(settings: Settings) -> None:
    """While the privileges for it are still there."""
    steps: list[tuple[str, Callable[[], None]]] = []
    if settings.memory:
        mode, nodes = settings.memory
        steps.append(("memoryPolicy", lambda: scheduling.set_memory_policy(mode, nodes)))
    if settings.io:
        kind, level = settings.io
        steps.append(("ioPriority", lambda: scheduling.set_io_priority(kind, level)))
    if settings.persona is not None:
        persona = settings.persona
        steps.append(("personality", lambda: scheduling.set_personality(persona)))
    if settings.scheduler:
        scheduler = settings.scheduler
        steps.append(("scheduler", lambda: scheduling.set_scheduler(**scheduler)))
    for name, step in steps:
        try:
            step()
        except OSError as error:
            text = f"{name} cannot be set: {error.strerror}"
            if name == "scheduler" and error.errno == errno.EPERM:
                text += " (is CAP_SYS_NICE there, and a share of real time, linux.resources.cpu.realtimeRuntime?)"
            raise LaunchError(name, error.errno or 0, text) from None


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


def _home(uid: int) -> str:
    """A user's directory by the container's /etc/passwd, as execvp(3)'s caller would find it; no library looks it up,
    which could be one of the image."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = open_in_root(root, "etc/passwd", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return "/"
    finally:
        os.close(root)
    try:
        text = os.read(fd, 1 << 20) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
    for line in text.split(b"\n"):
        fields = line.split(b":")
        if len(fields) > 5 and fields[2] == b"%d" % uid and fields[5][:1] == b"/":
            return os.fsdecode(fields[5])
    return "/"


def _drop(settings: Settings) -> None:
    """Become the user, with his capabilities."""
    uid, gid = settings.uid, settings.gid
    os.umask(settings.umask)
    capabilities.drop_bounding(settings.dropped)
    if settings.groups is not None:
        os.setgroups(settings.groups)
    os.setresgid(gid, gid, gid)
    process.prctl(process.PR_SET_KEEPCAPS, 1)  # what the next line would take from a user who is not root
    os.setresuid(uid, uid, uid)
    process.prctl(process.PR_SET_KEEPCAPS, 0)
    lent = settings.lent if settings.filter else 0
    capabilities.set_all(
        settings.effective | lent, settings.permitted | lent, settings.inheritable, settings.ambient
    )  # fmt: skip
    if settings.no_new_privileges:
        seccomp.no_new_privileges()


def confine(settings: Settings) -> int:
    """What remains after `become` has done the rest: the filter, if there is one. The descriptor of its listener, or
    0."""
    if not settings.filter:
        return 0
    listener = seccomp.load(settings.filter.program, settings.filter.flags, listener=settings.filter.notifies)
    if settings.lent:
        capabilities.set_all(settings.effective, settings.permitted, settings.inheritable, settings.ambient)
    return listener


def _find(name: str, environment: dict[str, str]) -> str:
    """The program to execute, by the container's own PATH (execvp(3))."""
    if "/" in name:
        return name
    refused = False
    for folder in environment.get("PATH", defaults.PATH).split(":"):
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
