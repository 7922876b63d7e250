"""Rendering a container's log (frames.py) as `logs` shows it."""

from __future__ import annotations

import os

from cowshed.monitor.frames import HEADER, STDERR, STDOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Frame = tuple[int, int, bytes]  # time in ns, stream, data

_BLOCK = 1 << 20
_PAUSE = 0.03  # seconds between looks at a log that is followed


def render(
    path: str,
    *,
    follow: Callable[[], bool] | None = None,
    tail: int | None = None,
    since: int = 0,
    until: int = 0,
    timestamps: bool = False,
) -> None:
    """Write the log at path to stdout and stderr. times are ns since the epoch, 0 for none; tail counts lines; follow
    says whether the container still runs: while it does, wait for more. OSError if the output cannot be written."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # a container that never started
    try:
        skip = _lines(fd, since, until) - tail if tail is not None else 0
        stamps = _Stamps() if timestamps else None
        for block in _blocks(fd, follow):
            frames: list[Frame] = block
            if since or until:
                frames = [f for f in frames if f[0] >= since and not (until and f[0] > until)]
            if skip > 0:
                frames, skip = _skipped(frames, skip)
            if stamps:
                frames = [(when, stream, stamps.stamped(when, stream, data)) for when, stream, data in frames]
            _show(frames)
    finally:
        os.close(fd)


def _blocks(fd: int, follow: Callable[[], bool] | None = None) -> Iterator[list[Frame]]:
    """The whole frames of the log, as they are read. A torn last frame, of a monitor that was killed, is left out."""
    from time import sleep

    at, rest, header, unpack = 0, b"", HEADER.size, HEADER.unpack_from
    while True:
        running = follow is not None and follow()
        block = os.pread(fd, max(_BLOCK, len(rest)), at)
        if not block:
            if not running:
                return
            sleep(_PAUSE)
            continue
        at += len(block)
        buffer = rest + block if rest else block
        frames = []
        start, size = 0, len(buffer)
        while size - start >= header:
            when, length, stream = unpack(buffer, start)
            end = start + header + length
            if end > size:
                break
            frames.append((when, stream, buffer[start + header : end]))
            start = end
        rest = buffer[start:]
        yield frames


def _lines(fd: int, since: int, until: int) -> int:
    count, last = 0, b"\n"
    for frames in _blocks(fd):
        for when, _, data in frames:
            if when >= since and not (until and when > until):
                count += data.count(b"\n")
                last = data[-1:]
    return count + (last != b"\n")


def _skipped(frames: list[Frame], skip: int) -> tuple[list[Frame], int]:
    """The frames without their first `skip` lines, and how many lines are still to be left out."""
    for n, (when, stream, data) in enumerate(frames):
        lines = data.count(b"\n")
        if lines < skip:
            skip -= lines
            continue
        at = 0
        for _ in range(skip):
            at = data.index(b"\n", at) + 1
        return [(when, stream, data[at:]), *frames[n + 1 :]], 0
    return [], skip


def _show(frames: list[Frame]) -> None:
    """Write frames in order, with one call for those that follow each other in one stream."""
    at, count = 0, len(frames)
    while at < count:
        stream = frames[at][1]
        end = at
        while end < count and frames[end][1] == stream:
            end += 1
        _write(1 if stream == STDOUT else 2, b"".join([frame[2] for frame in frames[at:end]]))
        at = end


class _Stamps:
    """Puts a time before each line: that of the frame in which the line begins, as docker writes it."""

    def __init__(self) -> None:
        self.fresh = {STDOUT: True, STDERR: True}
        self.second, self.text = -1, ""

    def stamped(self, when: int, stream: int, data: bytes) -> bytes:
        if not data:
            return data
        second, rest = divmod(when, 10**9)
        if second != self.second:
            from time import gmtime, strftime

            self.second, self.text = second, strftime("%Y-%m-%dT%H:%M:%S", gmtime(second))
        stamp = f"{self.text}.{rest:09d}Z ".encode()
        ends = data.endswith(b"\n")
        body = (data[:-1] if ends else data).replace(b"\n", b"\n" + stamp)
        first = stamp if self.fresh[stream] else b""
        self.fresh[stream] = ends
        return first + body + (b"\n" if ends else b"")


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
