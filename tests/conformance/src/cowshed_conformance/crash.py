"""Killing a driver, and letting its calls fail: a forked child does the work and meets its end at a chosen point.

The points are the named steps, the effects that go through the host (`SuiteHost`), and every call of the interpreter
that changes a file system, which it announces before it makes it (PEP 578). So a driver is stopped between any two of
its changes, whether or not its author has named a step there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable

from cowshed.storage import api
from cowshed.storage.errors import StorageError
from cowshed_conformance.harness import Store, SuiteHost

Work = Callable[[Store], object]
Point = tuple[str, int]  # a name ("" for any), and which time it is reached

_CALLS = frozenset(
    "os.chmod os.chown os.link os.mkdir os.remove os.removexattr os.rename os.rmdir os.setxattr os.symlink os.truncate "
    "os.utime".split()
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def points(store: Store, work: Work, *, closed: bool = False) -> list[Point]:
    """The points that work goes through. A child really does it, so make something for the purpose.

    closed: work does not want the store opened.
    """
    reader, writer = os.pipe()

    def child() -> None:
        os.close(reader)
        _work(store, work, lambda name: void(os.write(writer, f"{name}\n".encode())), closed=closed)

    pid = _fork(child)
    os.close(writer)
    with open(reader, "rb") as pipe:
        names = pipe.read().decode().splitlines()
    _expect(pid, 0)
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append((name, seen[name]))
    return found


def kill_at(store: Store, work: Work, point: Point, *, closed: bool = False) -> bool:
    """Let a child do the work and kill it at a point; False if it never came there."""
    pid = _fork(lambda: _work(store, work, _signal(point, signal.SIGKILL), closed=closed))
    return _wait(pid) == -signal.SIGKILL


def stop_at(store: Store, work: Work, point: Point) -> int:
    """Let a child do the work and stop it at a point: its pid, for `go_on`."""
    pid = _fork(lambda: _work(store, work, _signal(point, signal.SIGSTOP)))
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"the child process never came to {point}"
    return pid


def go_on(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)
    _expect(pid, 0)


def fail_at(store: Store, work: Work, point: Point, error: Exception, *, times: int = 1) -> str:
    """Let a child do the work with an error at a point, and so many times in sum. What came of it: "" for success, or
    the error that left the driver, which is an OSError or a StorageError."""

    def fail() -> None:
        raise error

    def attempt() -> str:
        try:
            _work(store, work, _at(point, fail, times))
        except (OSError, StorageError) as caught:
            return f"{type(caught).__name__}: {caught}"
        return ""

    return str(answer(attempt))


def kill_after(store: Store, work: Work, seconds: float) -> bool:
    """Let a child do the work and kill it after some time; False if it was done by then."""
    pid = _fork(lambda: _work(store, work, None))
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return _wait(pid) == -signal.SIGKILL


def in_child(work: Callable[[], object]) -> None:
    """Do something in another process; what goes wrong there fails here."""
    _expect(_fork(work), 0)


def answer(work: Callable[[], object]) -> object:
    """What another process finds: anything that JSON can carry."""
    reader, writer = os.pipe()

    def child() -> None:
        os.close(reader)
        os.write(writer, json.dumps(work()).encode())

    pid = _fork(child)
    os.close(writer)
    with open(reader, "rb") as pipe:
        text = pipe.read()
    _expect(pid, 0)
    return json.loads(text)


def elsewhere(store: Store, work: Work) -> object:
    """Do the work in another process, which opens the store for itself; what it returned."""
    return answer(lambda: _work(store, work, None))


def start(work: Callable[[], object]) -> int:
    """As in_child, without waiting: the pid, for `finish`."""
    return _fork(work)


def finish(pid: int) -> None:
    _expect(pid, 0)


def _at(point: Point, then: Callable[[], None], times: int = 1) -> Callable[[str], None]:
    wanted, nth = point
    count = 0

    def reached(name: str) -> None:
        nonlocal count
        if wanted in ("", name):
            count += 1
            if nth <= count < nth + times:
                then()

    return reached


def _signal(point: Point, number: signal.Signals) -> Callable[[str], None]:
    return _at(point, lambda: os.kill(os.getpid(), number))


def _work(store: Store, work: Work, at: Callable[[str], None] | None, *, closed: bool = False) -> object:
    mine = object.__new__(Store)
    mine.__dict__.update(store.__dict__)
    mine.host = SuiteHost(at)
    if not closed:
        mine.driver = mine.open(mine.host)
    if at is not None:
        _announce(at)
    return work(mine)


def _announce(at: Callable[[str], None]) -> None:
    """Call `at` before each call that changes a file system. For children only: the hook cannot be taken away."""
    sys.dont_write_bytecode = True

    def hook(event: str, words: tuple[object, ...]) -> None:
        if event in _CALLS:
            at(event)
        elif event == "open" and isinstance(words[2], int) and words[2] & _WRITING:
            at("open")

    sys.addaudithook(hook)


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


def prepare(layer: api.Layer, options: api.LayerOptions | None = None) -> Work:
    return lambda store: dict(store.driver.prepare(layer, options or api.LayerOptions()))


def commit(active: api.Layer, new: api.Layer, durability: api.Durability) -> Work:
    return lambda store: dict(store.driver.commit(active, new, durability))


def remove(layer: api.Layer) -> Work:
    return lambda store: store.driver.remove(layer)


def purge() -> Work:
    return lambda store: store.purge().objects_left


def void(_: object) -> None: ...
