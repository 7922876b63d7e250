"""Named points at which tests kill the engine: COWSHED_FAULT.

    kill@STEP[:N]    SIGKILL at the Nth time (default first) that STEP is reached
    error@STEP[:N]   an OSError (EIO) there
    trace@FILE       append the name of every step that is reached

Every operation that changes something calls `step` between its parts. Unset, it costs one comparison.
"""

from __future__ import annotations

import os

_wanted = os.environ.get("COWSHED_FAULT", "")
_count = 0


def step(name: str) -> None:
    if _wanted:
        _reached(name)


def inject(wanted: str) -> None:
    """From now on in this process, as COWSHED_FAULT says it."""
    global _wanted, _count
    _wanted, _count = wanted, 0


def _reached(name: str) -> None:
    global _count
    kind, _, rest = _wanted.partition("@")
    if kind == "trace":
        fd = os.open(rest, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.write(fd, f"{name}\n".encode())
        os.close(fd)
        return
    wanted, _, nth = rest.partition(":")
    if wanted != name:
        return
    _count += 1
    if _count != int(nth or 1):
        return
    if kind == "kill":
        os.kill(os.getpid(), 9)
    raise OSError(5, f"fault injected at {name}")
