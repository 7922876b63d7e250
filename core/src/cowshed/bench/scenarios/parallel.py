"""Several processes of this one at the same work."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback

from cowshed.bench.scenario import Wrong

_BLOCK = 4096
_FEW = 5  # writes that must have been done before what they stand beside begins

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from io import FileIO
    from types import TracebackType


def _pipe() -> tuple[FileIO, FileIO]:
    reading, writing = os.pipe()
    return open(reading, "rb", 0), open(writing, "wb", 0)


class _Child:
    """A process of this one, and the end of the pipe by which it tells what it has found, or why it failed."""

    def __init__(self, work: Callable[[FileIO], None], *others: FileIO) -> None:
        """others: what it must not have open."""
        self.told, tell = _pipe()
        try:
            self._pid = os.fork()
        except OSError:
            self.told.close()
            tell.close()
            raise
        if self._pid == 0:
            status = 1
            try:
                for other in (self.told, *others):
                    other.close()
                work(tell)
                status = 0
            except BaseException:
                tell.write(traceback.format_exc().strip().splitlines()[-1].encode(errors="replace")[:500])
            finally:
                os._exit(status)
        tell.close()

    def ended(self) -> tuple[int, bytes]:
        """Wait for its end: its exit status, or minus the signal that ended it, and what it has told."""
        said = self.told.readall()
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        self._pid = 0
        return status, said

    def discard(self) -> None:
        """It is gone afterwards, whatever it does."""
        self.told.close()
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


def at_once(works: Sequence[Callable[[], None]]) -> list[float]:
    """Do all in a process each, beginning together; the seconds that each took. Wrong if one fails."""
    took, failed = [], []
    with contextlib.ExitStack() as until:
        ready, go = map(until.enter_context, _pipe())
        children = []
        for work in works:
            children.append(_Child(lambda tell, work=work: _timed(work, ready, tell), go))  # type: ignore[misc]
            until.callback(children[-1].discard)
        go.close()
        for child in children:
            status, said = child.ended()
            if status:
                failed.append(said.decode(errors="replace") or "killed")
            else:
                took.append(float(said))
    if failed:
        raise Wrong(f"{len(failed)} of {len(works)} processes failed: {failed[0]}")
    return took


def _timed(work: Callable[[], None], ready: FileIO, tell: FileIO) -> None:
    ready.read(1)  # until the other end is closed
    began = time.perf_counter()
    work()
    tell.write(b"%r" % (time.perf_counter() - began))


class SyncedWrites:
    """`with SyncedWrites(path) as writes:` a process beside this one writes 4 KiB to a file and syncs them, again and
    again. Afterwards `writes.before` and `writes.during` are the ms that each took: before and since `begin`. Wrong if
    it could not go on."""

    SIZE = 256 * _BLOCK  # bytes of the file, at most

    def __init__(self, path: str) -> None:
        self._path = path
        self.before: list[float] = []
        self.during: list[float] = []

    def __enter__(self) -> SyncedWrites:
        with contextlib.ExitStack() as half:
            asked, self._ask = map(half.enter_context, _pipe())
            self._child = _Child(lambda tell: _write_until_asked(self._path, asked.fileno(), tell), self._ask)
            half.callback(self._child.discard)
            if (first := self._child.told.read(1)) != b"\n":  # else the first writes are done
                raise Wrong(f"writes beside failed: {(first or b'') + self._child.ended()[1]!r}")
            half.pop_all()
            asked.close()
        return self

    def begin(self) -> None:
        self._began = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._ask.close()
            status, said = self._child.ended()
        finally:
            self._child.discard()
        if status:
            if error is None:
                raise Wrong(f"writes beside failed: {said.decode(errors='replace') or 'killed'}")
            return
        for line in said.split():
            ended, took = map(float, line.split(b","))
            (self.before if ended < self._began else self.during).append(took)


def _write_until_asked(path: str, asked: int, tell: FileIO) -> None:
    """Until the other end of `asked` is closed; then tell when each write ended, and the ms that it took."""
    os.set_blocking(asked, False)
    took: list[tuple[float, float]] = []
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while True:
        began = time.perf_counter()
        os.pwrite(fd, b"x" * _BLOCK, len(took) * _BLOCK % SyncedWrites.SIZE)
        os.fdatasync(fd)
        ended = time.perf_counter()
        took.append((ended, (ended - began) * 1000))
        if len(took) == _FEW:
            tell.write(b"\n")
        try:
            if os.read(asked, 1) == b"":
                break
        except BlockingIOError:
            continue
    view = memoryview("\n".join(f"{ended!r},{ms!r}" for ended, ms in took).encode())
    while view:
        view = view[tell.write(view) :]
