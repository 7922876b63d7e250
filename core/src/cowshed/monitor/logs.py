"""Rendering a container's log (frames.py) as `logs` shows it."""

from __future__ import annotations

import os

from cowshed.monitor.frames import HEADER, STDOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BLOCK = 1 << 20


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
    says whether the container still runs: while it does, wait for more."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    skip = _lines(fd, since, until) - tail if tail is not None else 0
    for when, stream, data in _frames(fd, follow):
        if when < since or (until and when > until):
            continue
        if skip > 0:
            lines = data.count(b"\n")
            if lines < skip or (lines == skip and data.endswith(b"\n")):
                skip -= lines
                continue
            at = 0
            for _ in range(skip):
                at = data.index(b"\n", at) + 1
            data, skip = data[at:], 0
        if timestamps:
            data = _stamped(when, data)
        _write(1 if stream == STDOUT else 2, data)
    os.close(fd)


def _frames(fd: int, follow: Callable[[], bool] | None = None) -> Iterator[tuple[int, int, bytes]]:
    from time import sleep

    os.lseek(fd, 0, os.SEEK_SET)
    buffer = b""
    while True:
        running = follow is not None and follow()
        block = os.read(fd, _BLOCK)
        if not block:
            if not running:
                return
            sleep(0.03)
            continue
        buffer = buffer + block if buffer else block
        at = 0
        while len(buffer) - at >= HEADER.size:
            when, length, stream = HEADER.unpack_from(buffer, at)
            end = at + HEADER.size + length
            if end > len(buffer):
                break
            yield when, stream, buffer[at + HEADER.size : end]
            at = end
        buffer = buffer[at:]


def _lines(fd: int, since: int, until: int) -> int:
    count, last = 0, b"\n"
    for when, _, data in _frames(fd):
        if when >= since and not (until and when > until):
            count += data.count(b"\n")
            last = data[-1:]
    return count + (last != b"\n")


def _stamped(when: int, data: bytes) -> bytes:
    from time import gmtime, strftime

    stamp = f"{strftime('%Y-%m-%dT%H:%M:%S', gmtime(when // 10**9))}.{when % 10**9:09d}Z ".encode()
    lines = data.split(b"\n")
    end = lines.pop()
    out = b"".join([stamp + line + b"\n" for line in lines])
    return out + stamp + end if end else out


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
