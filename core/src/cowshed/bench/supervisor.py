"""A process that outlives the benchmark, whatever ends it, and puts the host back as it was."""

from __future__ import annotations

import os
import signal
import sys

from cowshed_linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from cowshed.bench.journal import Journal

_PR_SET_PDEATHSIG = 1  # prctl(2)
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def supervised(journal: Journal, work: Callable[[], int]) -> int:
    """Do the work in a process of its own, and clean up after it; its exit status, 128+n if signal n ended it.

    In that process the call gives what work gives. Ctrl-C and SIGTERM end the work by KeyboardInterrupt, once: a second
    one does not disturb its end. CowshedError if something cannot be taken away (the entry of the journal stays).
    """
    worker: list[int] = []
    early: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        if worker:
            os.kill(worker[0], signal.SIGTERM)
        else:
            early.append(number)

    before = {number: signal.signal(number, pass_on) for number in _ENDING}
    sys.stdout.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become_worker(parent)
        journal.enter()
        return work()
    worker.append(pid)
    try:
        if early:
            os.kill(pid, signal.SIGTERM)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        worker.clear()
        journal.clean()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - status if status < 0 else status


def _become_worker(parent: int) -> None:
    for number in _ENDING:
        signal.signal(number, _interrupt)
    process.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    for one in _ENDING:
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt
