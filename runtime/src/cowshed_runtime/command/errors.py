"""Errors of the command, in the words that podman, docker and containerd look for."""

from __future__ import annotations

import os

from cowshed_runtime.errors import LaunchError, SpecError

# What callers match on is what Go programs say (syscall.Errno.Error, os/exec): without these words they take a missing
# program for a fault of the runtime.
_WORDS = {2: "no such file or directory", 8: "exec format error", 13: "permission denied", 20: "not a directory"}


class CommandError(Exception):
    """A command failed; status is the exit status."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


def told(error: BaseException) -> str:
    """One line for people and callers."""
    if isinstance(error, LaunchError):
        text = str(error)
        if error.stage == "exec" and "not found in PATH" in text:
            text = f'exec: "{text.partition(":")[0]}": executable file not found in $PATH'
        else:
            text = _in_words(text, error.errno)
        text = f"unable to start container process: {text}" if error.stage != "spec" else text
    elif isinstance(error, (CommandError, SpecError)):
        text = str(error)
    elif isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        text = _in_words(f"{name}{error.strerror or error}", error.errno or 0)
    else:
        text = f"internal error: {type(error).__name__}: {error}"
    return " ".join(text.split())


def _in_words(text: str, number: int) -> str:
    words = _WORDS.get(number, "")
    text = text.replace(os.strerror(number), words) if words else text
    return text if words in text else f"{text}: {words}"
