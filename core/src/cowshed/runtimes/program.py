"""Running the program of a runtime, and understanding what it says."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` brings enum
import os
import select

from cowshed_linux import mount, process
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.fastjson import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

    from cowshed.runtimes.api import Task

_SIGNALS = [n for n in range(1, _signal.NSIG) if n not in (9, 19, 32, 33)]  # the C library keeps the last two
_SAID = 1 << 16  # bytes of its output that are looked at
# How a program says that what it was to execute is not there, or is no program: the words of the kernel, which all pass
# on, beside the command or a word for executing. docker tells the same two statuses from such words.
_EXECUTING = ("exec", "executable", "cwd", "chdir", "failed to load")
_NOT_FOUND = ("not found", "no such file")
_REFUSED = ("permission denied", "operation not permitted", "exec format error", "is a directory", "not a directory")


def run(
    words: Sequence[str],
    stdio: tuple[int, int, int],
    *,
    hidden: Sequence[str] = (),
    doors: Sequence[int] = (),
    folder: str = "/",
    environment: dict[str, str] | None = None,
    seconds: float | None = None,
) -> int:
    """Run a program to its end, with nothing of this process's but these three descriptors; its exit status.

    hidden: mount points to take out of its view; doors: what to write to, to be in control groups; seconds: it is
    killed then. LaunchError if it cannot be executed, or has not ended by then.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(words, stdio, hidden, doors, folder, environment, write_end)
    os.close(write_end)
    try:
        said = b""
        while block := os.read(read_end, 4096):
            said += block
    finally:
        os.close(read_end)
        slow = seconds is not None and not _ends(pid, seconds)
        _, status = os.waitpid(pid, 0)
    if slow:
        raise LaunchError("runtime", 110, f"{words[0]} does not answer within {seconds} s")
    if said:
        raise LaunchError("runtime", 0, f"the runtime {words[0]} cannot be run: {said.decode(errors='replace')}")
    return os.waitstatus_to_exitcode(status)


def _ends(pid: int, seconds: float) -> bool:
    """Whether a child ends within that time; it is killed if not."""
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    ended = bool(poll.poll(seconds * 1000))
    os.close(pidfd)
    if not ended:
        os.kill(pid, 9)
    return ended


def _child(
    words: Sequence[str],
    stdio: tuple[int, int, int],
    hidden: Sequence[str],
    doors: Sequence[int],
    folder: str,
    environment: dict[str, str] | None,
    report: int,
) -> NoReturn:
    try:
        for fd in doors:
            os.write(fd, b"0")
        moved = [os.dup(fd) for fd in stdio]  # away from 0-2 first, so that none is overwritten before it is used
        for number, fd in enumerate(moved):
            os.dup2(fd, number)
        process.close_range(3, on_exec=True)
        for number in _SIGNALS:
            _signal.signal(number, _signal.SIG_DFL)
        process.default_reserved_signals()
        _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
        if hidden:
            process.unshare(process.CLONE_NEWNS)
            hide(hidden)
        os.chdir(folder)
        environment = environment or {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")}
        os.execve(words[0], list(words), environment)  # noqa: S606
    except BaseException as error:
        os.write(report, str(getattr(error, "strerror", None) or error).encode())
    finally:
        os._exit(127)


def reap(kept: int) -> None:
    """Take the ends of this process's children that have ended, but of one: what a runtime forked on its way."""
    with open("/proc/thread-self/children", "rb") as f:
        for pid in map(int, f.read().split()):
            if pid != kept:
                os.waitpid(pid, os.WNOHANG | process.WALL)


def hide(places: Sequence[str]) -> None:
    """Take mount points out of this process's mount namespace, which is its own."""
    mount.mount(None, "/", None, mount.REC | mount.SLAVE)
    for path in places:
        mount.unmount(path, mount.MNT_DETACH)


class Call:
    """One command of an OCI runtime's command line: `with Call(task, "kill") as call: call.run(...)`. Its log is a file
    in memory: the folder may just be going. work: the OCI process that it is to start, if it is to."""

    def __init__(self, task: Task, verb: str, work: dict[str, Any] | None = None) -> None:
        self.task, self.verb, self._work = task, verb, work
        self._log = os.memfd_create("log")

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._log)

    def run(self, *words: str, stdio: tuple[int, int, int] | None = None, entered: bool = False) -> None:
        """LaunchError with the runtime's own words if it fails. stdio: else what it prints is only looked at when it
        fails. entered: this process sees what the program is to see."""
        task = self.task
        said = os.memfd_create("said") if stdio is None else -1
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            log = f"/proc/{os.getpid()}/fd/{self._log}"
            before = [*task.options, "--root", f"{task.folder}/state", "--log", log, "--log-format", "json"]
            status = run(
                [task.path, *before, self.verb, *words], stdio or (null, said, said),
                hidden=() if entered else task.hidden,
                doors=task.doors if entered else (), folder=task.folder,
            )  # fmt: skip
            if status:
                text = self.error() or (_last_line(said) if said >= 0 else "")
                raise failure(task, self.verb, text or f"it ended with status {status} and said nothing", self._work)
        finally:
            os.close(null)
            if said >= 0:
                os.close(said)

    def error(self) -> str:
        """The last error in its log: one JSON object per line, with `level` and `msg`."""
        for line in reversed(os.pread(self._log, _SAID, 0).splitlines()):
            try:
                entry = loads(line)
                if entry["level"] in ("error", "fatal"):
                    return _one_line(str(entry["msg"]))
            except (ValueError, KeyError, TypeError):
                continue  # a line that is none of the log's
        return ""


def failure(task: Task, verb: str, text: str, work: dict[str, Any] | None) -> LaunchError:
    """What a runtime refused, as an error of ours: 127 and 126 if it is the container's program that is at fault."""
    low, status = text.lower(), 125
    if work is not None and any(word in low for word in (*_EXECUTING, work["args"][0].lower())):
        status = 127 if any(word in low for word in _NOT_FOUND) else 126 if any(w in low for w in _REFUSED) else 125
    return LaunchError("runtime", 0, f"{os.path.basename(task.path)} {verb}: {text}", status)


def _last_line(said: int) -> str:
    lines = os.pread(said, _SAID, 0).decode(errors="replace").splitlines()
    return next((_one_line(line) for line in reversed(lines) if line.strip()), "")


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
