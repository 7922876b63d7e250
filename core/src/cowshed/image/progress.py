"""What long work says while it runs: bars on a terminal, one line per step elsewhere, nothing if asked to be quiet.

A `Progress` may be told things from any thread. Transfers are named by a key (a digest); what is told of an unknown
or finished one is ignored, so that a late thread harms nothing.
"""

from __future__ import annotations

import os
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import TextIO


class Progress:
    """Says nothing: the base of the others, and what `--quiet` gets. A context manager; `close` may come twice."""

    def step(self, text: str) -> None:
        """A step begins or has ended, in one line."""

    def warn(self, text: str) -> None:
        """Something is odd, and the work goes on."""

    def begin(self, key: str, name: str, total: int) -> None:
        """A transfer of total bytes begins; name is short, for people."""

    def advance(self, key: str, done: int) -> None:
        """A transfer has come to done bytes."""

    def end(self, key: str) -> None:
        """A transfer is complete."""

    def close(self) -> None:
        """Leave the terminal as it was."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Lines(Progress):
    """One line per step, for files and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def step(self, text: str) -> None:
        self._stream.write(_printable(text) + "\n")
        self._stream.flush()

    def warn(self, text: str) -> None:
        self.step(f"warning: {text}")


class Bars(Progress):
    """Steps, and below them a bar for each transfer that runs.

    The terminal is left as it is at any moment, whatever ends the process: the cursor is never hidden, no mode changed.
    Lines are short, so that narrowing the window rarely wraps them.
    """

    _EVERY = 0.1  # seconds between two paintings
    _WIDEST = 79

    def __init__(self, stream: TextIO) -> None:
        import threading  # not for `run`, which shows nothing when the image is here

        self._stream = stream
        self._guard = threading.RLock()
        self._transfers: dict[str, _Transfer] = {}
        self._painted = 0  # lines on the screen, the cursor is below them
        self._last = 0.0

    def step(self, text: str) -> None:
        with self._guard:
            self._paint(_printable(text) + "\n")

    def warn(self, text: str) -> None:
        self.step(f"warning: {text}")

    def begin(self, key: str, name: str, total: int) -> None:
        with self._guard:
            self._transfers[key] = _Transfer(_printable(name), total)
            self._paint()

    def advance(self, key: str, done: int) -> None:
        transfer = self._transfers.get(key)
        if transfer is None:
            return
        transfer.advance(done)
        if monotonic() - self._last >= self._EVERY:
            with self._guard:
                self._paint()

    def end(self, key: str) -> None:
        with self._guard:
            if self._transfers.pop(key, None) is not None:
                self._paint()

    def close(self) -> None:
        with self._guard:
            self._transfers.clear()
            if self._painted:
                self._paint()

    def _paint(self, above: str = "") -> None:
        columns, rows = self._size()
        width = min(columns - 1, self._WIDEST)
        lines = [t.line(width) for t in list(self._transfers.values())[: max(rows - 1, 0)]]
        erase = f"\x1b[{self._painted}A\r\x1b[J" if self._painted else ""
        self._stream.write(erase + above + "".join([line + "\n" for line in lines]))
        self._stream.flush()
        self._painted = len(lines)
        self._last = monotonic()

    def _size(self) -> tuple[int, int]:
        try:
            size = os.get_terminal_size(self._stream.fileno())
        except OSError:
            return 80, 24
        return (size.columns or 80), (size.lines or 24)


class _Transfer:
    def __init__(self, name: str, total: int) -> None:
        self._name, self._total = name, max(total, 1)
        self._done = self._first = 0
        self._since = 0.0

    def advance(self, done: int) -> None:
        if not self._since:
            self._first, self._since = done, monotonic()
        self._done = done

    def line(self, width: int) -> str:
        """At most width columns: name, bar, amounts and speed, as far as there is room."""
        from cowshed import words

        share = min(self._done / self._total, 1.0)
        took = monotonic() - self._since if self._since else 0.0
        speed = f"{words.size((self._done - self._first) / took, '')}/s" if took > self._SETTLED else ""
        amounts = f"{words.size(self._done, ''):>7}/{words.size(self._total, '')}"
        text = f"{self._name}: {amounts:16}{speed:>11}"
        room = width - len(text) - 3
        if room >= self._NARROWEST:
            full = int(share * min(room, self._LONGEST))
            bar = ("=" * full + ">" * (share < 1)).ljust(min(room, self._LONGEST))[: min(room, self._LONGEST)]
            return f"{self._name}: [{bar}] {amounts:16}{speed:>11}".rstrip()
        for shorter in (text.rstrip(), f"{self._name}: {share:4.0%}", f"{share:4.0%}"):
            if len(shorter) <= width:
                return shorter
        return ""

    _NARROWEST, _LONGEST = 8, 32  # columns of a bar
    _SETTLED = 0.3  # seconds before a speed means something


def _printable(text: str) -> str:
    """What an image or a registry says must not steer the terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def choose(stream: TextIO, *, quiet: bool = False) -> Progress:
    """The right one for a stream."""
    if quiet:
        return Progress()
    if stream.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return Bars(stream)
    return Lines(stream)
