"""`--init`: process 1 of a container that forwards signals and reaps orphans, for programs that do neither.

It is forked when the container's identity, capabilities and filter are already in force, so that it has no more rights
than what it looks after.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` brings enum
import os

from cowshed_linux import process

# Not those that cannot be caught, that this process causes itself, or that stop it.
_FORWARDED = [n for n in range(1, 65) if n not in (4, 5, 6, 7, 8, 9, 11, 17, 19, 21, 22, 31, 32, 33)]
_CHILD = 17


def stay_behind(terminal: bool) -> None:
    """Return in a child; this process stays as process 1 and ends as the child does."""
    # Blocked and waited for, not handled: one that comes before the program has started, or just before this process
    # waits, would be lost or late.
    _signal.pthread_sigmask(_signal.SIG_BLOCK, [*_FORWARDED, _CHILD, 22])
    closed, open_ = os.pipe()
    pid = os.fork()
    if pid == 0:
        # Until process 1 has closed its descriptors: the program could find them in /proc/1/fd.
        os.close(open_)
        os.read(closed, 1)
        os.close(closed)
        os.setpgid(0, 0)
        if terminal:
            os.tcsetpgrp(0, os.getpid())  # SIGTTOU, which would stop a background group that asks, is blocked
        _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
        return
    process.close_range(3)
    process.rename(b"cowshed-init")
    for number in (21, 22):  # SIGTTIN, SIGTTOU
        _signal.signal(number, _signal.SIG_IGN)
    while True:
        if (code := _reap(pid)) is not None:
            os._exit(128 - code if code < 0 else code)
        number = _signal.sigwait([*_FORWARDED, _CHILD])
        if number != _CHILD:
            try:
                os.kill(pid, number)
            except (ProcessLookupError, PermissionError):
                pass  # it has just ended, or is another user's by now


def _reap(pid: int) -> int | None:
    """Wait for all that have ended; the exit status of this one, if it has."""
    while True:
        try:
            dead, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            os._exit(125)
        if dead == pid:
            return os.waitstatus_to_exitcode(status)
        if not dead:
            return None
