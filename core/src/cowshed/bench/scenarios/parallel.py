"""Several processes of this one at the same work."""

from __future__ import annotations

import os
import time
import traceback

from cowshed.bench.scenario import Wrong

_BLOCK = 4096
_FEW = 5  # writes that must have been done before what they stand beside begins

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType


def at_once(works: Sequence[Callable[[], None]]) -> list[float]:
    """Do all in a process each, beginning together; the seconds that each took. Wrong if one fails."""
    running = []
    ready, go = os.pipe()
    for work in works:
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(go)
                os.close(told)
                os.read(ready, 1)  # until the other end is closed
                began = time.perf_counter()
                work()
                os.write(tell, b"%r" % (time.perf_counter() - began))
                status = 0
            except BaseException:
                os.write(tell, traceback.format_exc().strip().splitlines()[-1].encode(errors="replace")[:500])
            finally:
                os._exit(status)
        os.close(tell)
        running.append((pid, told))
    os.close(ready)
    os.close(go)
    took, failed = [], []
    for pid, told in running:
        said = os.read(told, 4096).decode(errors="replace")
        os.close(told)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            failed.append(said or "killed")
        else:
            took.append(float(said))
    if failed:
        raise Wrong(f"{len(failed)} of {len(works)} processes failed: {failed[0]}")
    return took


class SyncedWrites:
    """`with SyncedWrites(path) as writes:` a process beside this one writes 4 KiB to a file and syncs them, again and
    again. Afterwards `writes.before` and `writes.during` are the ms that each took: before and since `begin`."""

    SIZE = 256 * _BLOCK  # bytes of the file, at most

    def __init__(self, path: str) -> None:
        self._path = path
        self.before: list[float] = []
        self.during: list[float] = []

    def __enter__(self) -> SyncedWrites:
        self._told, tell = os.pipe()
        asked, self._ask = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(self._ask)
                os.close(self._told)
                _write_until_asked(self._path, asked, tell)
            finally:
                os._exit(0)
        os.close(tell)
        os.close(asked)
        os.read(self._told, 1)  # the first writes are done
        return self

    def begin(self) -> None:
        self._began = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._ask)
        said = b""
        while piece := os.read(self._told, 1 << 16):
            said += piece
        os.close(self._told)
        os.waitpid(self._pid, 0)
        for line in said.split():
            ended, took = map(float, line.split(b","))
            (self.before if ended < self._began else self.during).append(took)


def _write_until_asked(path: str, asked: int, tell: int) -> None:
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
            os.write(tell, b"\n")
        try:
            if os.read(asked, 1) == b"":
                break
        except BlockingIOError:
            continue
    view = memoryview("\n".join(f"{ended!r},{ms!r}" for ended, ms in took).encode())
    while view:
        view = view[os.write(tell, view) :]
