"""Diagnostics on stderr: what a command decided and did, for people who look for a cause. Errors are not told here:
they end the command, which prints them. (The logging module costs 14 ms of every command.)"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.layers.tracing import CommandTrace

trace: CommandTrace | None = None  # of this command, if --trace asks for one
LEVELS = ("debug", "info", "warn", "error")  # error: nothing but what ends the command
_least = LEVELS.index("warn")


def choose(level: str) -> None:
    """Tell what is of this level or graver."""
    global _least
    _least = LEVELS.index(level)


def debug(text: str) -> None:
    _tell(0, text)


def debug_block(text: str, lines: str) -> None:
    """Lines that belong together, such as a traceback."""
    if _least == 0:
        debug(text)
        sys.stderr.write(lines)


def info(text: str) -> None:
    _tell(1, text)


def warn(text: str) -> None:
    _tell(2, text)


def _tell(level: int, text: str) -> None:
    if level >= _least:
        sys.stderr.write(f"cowshed: {LEVELS[level]}: {' '.join(text.split())}\n")
