"""Standing beside a process until it ends: signals are passed on, a terminal is relayed."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` brings enum
import fcntl
import os
import select
from _struct import unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Not those that cannot be caught, that this process causes itself, or that stop it; SIGCHLD and SIGWINCH are for us.
_FORWARDED = [n for n in range(1, 65) if n not in (4, 5, 6, 7, 8, 9, 11, 17, 18, 19, 20, 21, 22, 23, 28, 31, 32, 33)]
_GET_SIZE, _SET_SIZE = 0x5413, 0x5414


def own_size(work: dict[str, Any]) -> None:
    """Let a process that gets a terminal which is relayed to ours begin with its size."""
    ours = next((fd for fd in (0, 1, 2) if os.isatty(fd)), -1)
    if ours >= 0 and work.get("terminal") and not work.get("consoleSize"):
        rows, columns, _, _ = unpack("HHHH", fcntl.ioctl(ours, _GET_SIZE, b"\0" * 8))
        work["consoleSize"] = {"height": rows, "width": columns}


def hold() -> None:
    """Keep signals that are for the process until `wait` can pass them on: before it is started."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _FORWARDED)


def wait(pid: int, terminal: int = -1) -> int:
    """The exit status of a child, 128 and the signal's number if one killed it. terminal: the master of its terminal,
    relayed to and from ours."""

    def forward(number: int, frame: object) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return  # it has ended, and is about to be seen to have

    heard, ring = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = _signal.set_wakeup_fd(ring, warn_on_full_buffer=False)  # one that comes just before poll(2) ends it too
    pidfd = os.pidfd_open(pid)
    try:
        for number in _FORWARDED:
            _signal.signal(number, forward)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _FORWARDED)
        if terminal >= 0:
            _relay(terminal, pidfd, heard)
        else:
            _stand_by(pidfd, heard)
    finally:
        _signal.set_wakeup_fd(before)
        for fd in (pidfd, heard, ring):
            os.close(fd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return 128 - code if code < 0 else code


def _stand_by(pidfd: int, heard: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(heard, select.POLLIN)
    while pidfd not in dict(poll.poll()):
        os.read(heard, 64)


def _relay(terminal: int, pidfd: int, heard: int) -> None:
    import termios

    ours = next((fd for fd in (0, 1, 2) if os.isatty(fd)), -1)
    before: Any = termios.tcgetattr(ours) if ours >= 0 else None

    def resize(number: int = 0, frame: object = None) -> None:
        if ours >= 0:
            fcntl.ioctl(terminal, _SET_SIZE, fcntl.ioctl(ours, _GET_SIZE, b"\0" * 8))

    if ours >= 0:
        _signal.signal(28, resize)  # SIGWINCH
        resize()
        _raw(ours)
    try:
        _copy(terminal, pidfd, heard)
    finally:
        if before is not None:
            termios.tcsetattr(ours, termios.TCSADRAIN, before)


def _raw(fd: int) -> None:
    """cfmakeraw(3) but for the translation of line ends, which is done on the other terminal."""
    import termios

    mode = termios.tcgetattr(fd)
    mode[0] &= ~(termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON)
    mode[1] &= ~termios.OPOST
    mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    mode[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
    mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
    termios.tcsetattr(fd, termios.TCSAFLUSH, mode)


def _copy(terminal: int, pidfd: int, heard: int) -> None:
    """Until the process has ended and all that it wrote has been read."""
    poll = select.poll()
    poll.register(heard, select.POLLIN)
    poll.register(terminal, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    poll.register(0, select.POLLIN)
    ended = False
    while True:
        events = dict(poll.poll(0 if ended else None))
        if heard in events:
            os.read(heard, 64)
        if events.get(terminal, 0):
            try:
                block = os.read(terminal, 1 << 16)
            except OSError:
                block = b""  # EIO: nobody has the slave open
            if not block:
                poll.unregister(terminal)
                if ended:
                    return
            while block:
                block = block[os.write(1, block) :]
        elif ended:
            return
        if pidfd in events and not ended:
            ended = True
            poll.unregister(pidfd)
        if events.get(0, 0):
            block = os.read(0, 1 << 16)
            if not block:
                poll.unregister(0)
                block = b"\x04"  # the end of a file, as a terminal says it
            while block:
                block = block[os.write(terminal, block) :]
