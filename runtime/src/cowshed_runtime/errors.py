"""Errors of the runtime."""

from __future__ import annotations


class SpecError(Exception):
    """A config.json breaks the runtime specification; every breach is in the text."""


_LONGEST = 8000  # characters; as JSON each is six bytes at most, and a pipe, as a message of a socket may, holds 65536


def shortened(text: str) -> str:
    """An error as it can be told: a configuration may have values of any length, and any number of them."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"


class LaunchError(Exception):
    """A container or process could not be started: stage, errno (0 if none), text; status is 125, 126 or 127; warnings
    are of what was done because of it."""

    def __init__(self, stage: str, errno: int, text: str, status: int = 125) -> None:
        super().__init__(shortened(text))
        self.stage, self.errno, self.status = stage, errno, status
        self.warnings: list[str] = []
