"""Cloning a container's process, and what is said between it and the launcher until its program runs."""

from __future__ import annotations

import _socket
import errno
import os
import sys

from cowshed_linux import process
from cowshed_runtime import joining
from cowshed_runtime.errors import LaunchError, shortened
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

_MESSAGE = 8000  # bytes of what a child asks or says


_kept: list[object] = []


def forget_imports() -> None:
    """Whatever would be imported after a change of root could come from the image (CVE-2019-14271).

    What there was is kept: to free all that importers know of directories would touch, and so copy, two hundred pages
    of a process that has just been cloned.
    """
    _kept.extend((sys.path, sys.meta_path, sys.path_hooks, sys.path_importer_cache))
    sys.path, sys.meta_path, sys.path_hooks, sys.path_importer_cache = [], [], [], {}


class Report:
    """Where a child tells how far it is, and why it failed, before anything of the image runs."""

    def __init__(self, fd: int, socket: Any, *, tied: bool) -> None:
        """tied: this process dies with the launcher until that has recorded it."""
        self.fd, self.socket, self.stage, self.tied = fd, socket, "start", tied
        self.warnings: list[str] = []
        self.tie()

    def tie(self) -> None:
        if self.tied:
            process.prctl(process.PR_SET_PDEATHSIG, 9)

    def descriptors(self) -> tuple[int, int]:
        return self.fd, self.socket.fileno()

    def ask(self, what: bytes) -> None:
        """Have the launcher do something; ends this process if it is gone or could not."""
        self.socket.send(what)
        if self.socket.recv(1) != b"g":
            os._exit(125)

    def ready(self, terminal: tuple[int, int] | None, *, goes_on: bool) -> None:
        """All is set up; hand the terminal's master over, and the warnings. Fails if the launcher is gone: nobody would
        know of us. goes_on: there will be a listener to tell of."""
        self.stage = "ready"
        passed = []
        if terminal:
            passed = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, terminal[0].to_bytes(4, sys.byteorder))]
        self.socket.sendmsg([b"r" + (dumps(self.warnings).encode() if self.warnings else b"")], passed)
        if self.tied:
            if self.socket.recv(1) != b"k":
                os._exit(125)
            process.prctl(process.PR_SET_PDEATHSIG, 0)
        if not goes_on:
            self.socket.close()
        if terminal:
            os.close(terminal[0])

    def listening(self, fd: int) -> None:
        """Tell the launcher at which descriptor notifications arrive, and wait until the agent has it. By read(2) and
        write(2) alone if it can fetch it, for the filter is in force."""
        socket = self.socket.fileno()
        os.write(socket, b"%d" % fd)
        answer = os.read(socket, 1)
        if answer == b"s":
            self.socket.sendmsg([b"f"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))])
            answer = os.read(socket, 1)
        if answer != b"k":
            os._exit(125)
        os.close(fd)

    def failed(self, error: BaseException) -> NoReturn:
        os._exit(_told(self.fd, self.stage, error))


def _told(fd: int, stage: str, error: BaseException) -> int:
    """Write an error into the pipe to the launcher; the status to exit with."""
    if isinstance(error, LaunchError):
        stage, number, text, status = error.stage, error.errno, str(error), error.status
    else:
        number, status = getattr(error, "errno", 0) or 0, 125
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        name = getattr(error, "filename", None)
        text = f"{stage}: {name}: {text}" if name else f"{stage}: {text}"
    text = shortened(text)  # nobody reads while this is written
    os.write(fd, dumps([stage, number, text, status]).encode("ascii", "replace"))
    return status


def _fetch(socket: Any, pid: int, number: int) -> int:
    """A descriptor of the process pid, taken without a system call of that, which its filter could refuse. Who is not
    root may not take it: then the process has to send it."""
    pidfd = os.pidfd_open(pid)
    try:
        return process.pidfd_getfd(pidfd, number)
    except PermissionError:
        socket.send(b"s")
    finally:
        os.close(pidfd)
    for _, _, data in socket.recvmsg(1, _socket.CMSG_SPACE(4))[1]:
        return int.from_bytes(data[:4], sys.byteorder)
    raise LaunchError("seccomp", 0, "the listener of the seccomp filter was not sent")


def clone(
    flags: int,
    group: int,
    child: Callable[[Report], NoReturn],
    answers: dict[bytes, Callable[[int], None]],
    for_listener: Callable[[int, int], None] | None,
    early: Sequence[tuple[str, int]] = (),
    *,
    sibling: bool,
    recorded: Callable[[int], None] | None,
) -> tuple[int, int, list[str]]:
    """Clone a process that runs child(report), and wait until it has executed its program, or holds before it; its pid,
    the master of its terminal or -1, and its warnings. answers: what to do with its pid when it asks; for_listener is
    called when its filter is in force. early: namespaces that it is to be born in."""
    read_end, write_end = os.pipe()
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        if early:
            pid = _clone_within(early, flags, group, write_end)
        elif sibling:
            pid, _ = process.clone3(flags | process.CLONE_PARENT, exit_signal=0, cgroup=group)
        else:
            pid, _ = process.clone3(flags, cgroup=group)
    except OSError as error:
        os.close(read_end)
        os.close(write_end)
        ours.close()
        theirs.close()
        raise _unborn(error, flags) from None
    if pid == 0:
        try:
            forget_imports()
            report = Report(write_end, theirs, tied=not sibling)
            try:
                child(report)
            except BaseException as error:
                report.failed(error)
        finally:
            os._exit(125)  # whatever happens: a second launcher must not go on, in a container at that
    os.close(write_end)
    theirs.close()
    terminal, said = -1, b""
    try:
        if recorded and pid > 0:
            recorded(pid)
        message, ancillary, _, _ = ours.recvmsg(_MESSAGE, _socket.CMSG_SPACE(4))
        while message in answers:
            answers[message](pid)
            ours.send(b"g")
            message, ancillary, _, _ = ours.recvmsg(_MESSAGE, _socket.CMSG_SPACE(4))
        for _, _, data in ancillary:
            terminal = int.from_bytes(data[:4], sys.byteorder)
        ready = message[:1] == b"r"
        if ready and not sibling:
            ours.send(b"k")
        if ready and for_listener and (number := ours.recv(16)):
            listener = _fetch(ours, pid, int(number))
            try:
                for_listener(pid, listener)
            finally:
                os.close(listener)
            ours.send(b"k")
        while block := os.read(read_end, 1 << 16):
            said += block
    except BaseException:
        if pid > 0:
            os.kill(pid, 9)
            if not sibling:
                os.waitpid(pid, process.WALL)
        raise
    finally:
        os.close(read_end)
        ours.close()
    if said or not ready:
        if terminal >= 0:
            os.close(terminal)
        if not sibling and pid > 0:
            os.waitpid(pid, process.WALL)
    if said:
        stage, number, text, status = loads(said)
        raise LaunchError(stage, number, text, status)
    if not ready:
        text = "the container was killed while it was being set up (is its memory limit too low?)"
        raise LaunchError("start", 0, text)
    return pid, terminal, loads(message[1:]) if message[1:] else []


def _unborn(error: OSError, flags: int) -> LaunchError:
    text = f"the container's process cannot be made: {os.strerror(error.errno or 0)}"
    if error.errno == errno.EPERM and os.geteuid() and not flags & process.CLONE_NEWUSER:
        text += (
            " (a plain user's container needs a user namespace in linux.namespaces, with uidMappings and gidMappings)"
        )
    return LaunchError("namespaces", error.errno or 0, text)


def _clone_within(early: Sequence[tuple[str, int]], flags: int, group: int, errors: int) -> int:
    """Clone from a process in between that has joined namespaces; 0 in the child, -1 if that has failed and said why.
    The process in between is gone then, and the child is this process's own."""
    read_end, write_end = os.pipe()
    between = os.fork()
    if between == 0:
        pid = -1
        try:
            for kind, fd in early:
                joining.enter(kind, fd)
            pid, _ = process.clone3(flags | process.CLONE_PARENT, exit_signal=0, cgroup=group)
            if pid == 0:
                return 0
            os.write(write_end, pid.to_bytes(4, sys.byteorder))
        except BaseException as error:
            _told(errors, "namespaces", error)
        finally:
            if pid:
                os._exit(0)
    os.close(write_end)
    said = os.read(read_end, 4)
    os.close(read_end)
    os.waitpid(between, 0)
    return int.from_bytes(said, sys.byteorder) if said else -1
