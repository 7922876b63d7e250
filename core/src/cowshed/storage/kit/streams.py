"""Streams between back ends, which want descriptors, and Python's files, which need not have one."""

from __future__ import annotations

import os
from threading import Thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

_PIECE = 1 << 18


def to(out: BinaryIO, write: Callable[[int], None]) -> None:
    """Call write with a descriptor; what it writes there goes to out. An error of out wins over that of write."""
    reader, writer = os.pipe()
    problems: list[BaseException] = []

    def drain() -> None:
        try:
            while piece := os.read(reader, _PIECE):
                out.write(piece)
        except BaseException as error:
            problems.append(error)
        finally:
            os.close(reader)  # write() ends with EPIPE then

    _beside(drain, writer, write, problems)


def of(source: BinaryIO, read: Callable[[int], None]) -> None:
    """Call read with a descriptor at which source's bytes arrive. An error of source wins over that of read."""
    reader, writer = os.pipe()
    problems: list[BaseException] = []

    def feed() -> None:
        try:
            while piece := source.read(_PIECE):
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(writer, rest) :]
        except BrokenPipeError:
            return  # read() wants no more: it has its own say on why
        except BaseException as error:
            problems.append(error)
        finally:
            os.close(writer)

    _beside(feed, reader, read, problems)


def _beside(pump: Callable[[], None], end: int, use: Callable[[int], None], problems: list[BaseException]) -> None:
    thread = Thread(target=pump, name="stream")
    thread.start()
    try:
        use(end)
    except Exception as error:
        problems.append(error)
    finally:
        os.close(end)
        thread.join()
    if problems:
        raise problems[0]
