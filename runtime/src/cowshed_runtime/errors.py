"""Errors of the runtime."""

from __future__ import annotations


class SpecError(Exception):
    """A config.json breaks the runtime specification; every breach is in the text."""


class LaunchError(Exception):
    """A container or process could not be started: stage, errno (0 if none), text; status is 125, 126 or 127; warnings
    are of what was done because of it."""

    def __init__(self, stage: str, errno: int, text: str, status: int = 125) -> None:
        super().__init__(text)
        self.stage, self.errno, self.status = stage, errno, status
        self.warnings: list[str] = []
