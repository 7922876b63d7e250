"""Killing a driver: a forked child does the work and is killed with SIGKILL at a named step, or after some time."""

from __future__ import annotations

import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable

from cowshed.storage import api
from cowshed_conformance.harness import Store, SuiteHost

Work = Callable[[Store], object]


def names_of(store: Store, work: Work) -> list[str]:
    """The steps that work goes through, noted while a child does it on a copy of the store's handle.

    The child really does it, so call this on a store that is made for the purpose.
    """
    reader, writer = os.pipe()

    def child() -> None:
        os.close(reader)

        def note(name: str) -> None:
            os.write(writer, f"{name}\n".encode())

        _work(store, work, note)

    pid = _fork(child)
    os.close(writer)
    with open(reader, "rb") as pipe:
        names = pipe.read().decode().splitlines()
    _expect(pid, 0)
    return names


def points(names: list[str]) -> list[tuple[str, int]]:
    """(step, which time it is reached), each once."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append((name, seen[name]))
    return found


def kill_at(store: Store, work: Work, step: str, nth: int = 1) -> bool:
    """Let a child do the work and kill it at the nth time of step; False if it never came there."""
    count = 0

    def reached(name: str) -> None:
        nonlocal count
        if name == step:
            count += 1
            if count == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    pid = _fork(lambda: _work(store, work, reached))
    return _wait(pid) == -signal.SIGKILL


def kill_after(store: Store, work: Work, seconds: float) -> bool:
    """Let a child do the work and kill it after some time; False if it was done by then."""
    pid = _fork(lambda: _work(store, work, None))
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return _wait(pid) == -signal.SIGKILL


def in_child(work: Callable[[], object]) -> None:
    """Do something in another process; what goes wrong there fails here."""
    _expect(_fork(work), 0)


def start(work: Callable[[], object]) -> int:
    """As in_child, without waiting: the pid, for `finish`."""
    return _fork(work)


def finish(pid: int) -> None:
    _expect(pid, 0)


def _work(store: Store, work: Work, at: Callable[[str], None] | None) -> None:
    host = SuiteHost(at)
    mine = object.__new__(Store)
    mine.__dict__.update(store.__dict__)
    mine.host = host
    mine.driver = store.target.plugin.open(store.root, store.target.options, host, store=store.id)
    work(mine)


def _fork(work: Callable[[], object]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # pytest's watchdog thread holds no lock that is needed here
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.setitimer(signal.ITIMER_REAL, 0)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _wait(pid: int) -> int:
    try:
        _, status = os.waitpid(pid, 0)
    except BaseException:  # the case has run out of time
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return os.waitstatus_to_exitcode(status)


def _expect(pid: int, wanted: int) -> None:
    found = _wait(pid)
    assert found == wanted, f"the child process ended with {found}, see its output"


def prepare(layer: api.Layer) -> Work:
    return lambda store: store.driver.prepare(layer, api.LayerOptions())


def commit(active: api.Layer, new: api.Layer, durability: api.Durability) -> Work:
    return lambda store: store.driver.commit(active, new, durability)


def remove(layer: api.Layer) -> Work:
    return lambda store: store.driver.remove(layer)


def purge() -> Work:
    return lambda store: store.purge()
