"""What long work says while it runs: bars on a terminal, one line per step elsewhere, nothing if asked to be quiet.

A `Progress` may be told things from any thread. Transfers are named by a key (a digest); what is told of an unknown
or finished one is ignored, so that a late thread harms nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, TextIO


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
        self._stream.write(text + "\n")
        self._stream.flush()

    def warn(self, text: str) -> None:
        self.step(f"warning: {text}")


class Bars(Progress):
    """A bar for each transfer and steps above them. rich is imported with the first transfer only."""

    _EVERY = 0.08  # seconds between two updates of one bar: each costs some 20 µs

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rich: Any = None
        self._bars: dict[str, list[Any]] = {}  # key -> [task, when it was last shown, total]

    def _bars_shown(self) -> Any:
        if self._rich is None:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
            from rich.progress import Progress as RichProgress

            self._rich = RichProgress(
                TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=False),
                TransferSpeedColumn(), console=Console(file=self._stream, highlight=False), transient=True,
                refresh_per_second=8,
            )  # fmt: skip
            self._rich.start()
        return self._rich

    def step(self, text: str) -> None:
        if self._rich is not None:
            self._rich.console.print(text, markup=False)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()

    def warn(self, text: str) -> None:
        self.step(f"warning: {text}")

    def begin(self, key: str, name: str, total: int) -> None:
        from rich.markup import escape

        self._bars[key] = [self._bars_shown().add_task(escape(name), total=total), 0.0, total]

    def advance(self, key: str, done: int) -> None:
        from time import monotonic

        bar = self._bars.get(key)
        now = monotonic()
        if bar is not None and now - bar[1] >= self._EVERY:
            bar[1] = now
            self._rich.update(bar[0], completed=done)

    def end(self, key: str) -> None:
        bar = self._bars.pop(key, None)
        if bar is not None:
            self._rich.update(bar[0], completed=bar[2])

    def close(self) -> None:
        if self._rich is not None:
            self._rich.stop()
            self._rich = None
        self._bars.clear()


def choose(stream: TextIO, *, quiet: bool = False) -> Progress:
    """The right one for a stream."""
    if quiet:
        return Progress()
    return Bars(stream) if stream.isatty() else Lines(stream)
