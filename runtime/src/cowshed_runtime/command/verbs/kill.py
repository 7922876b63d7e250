"""kill: a signal to a container's first process, or to all."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` brings enum
import os

from cowshed_runtime.cgroup import freezer
from cowshed_runtime.command import ending, state
from cowshed_runtime.command.errors import CommandError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed_runtime.command.parser import Values


def kill(flags: Values, said: Values) -> int:
    name, *rest = said["operands"]
    number = _number(rest[0] if rest else "SIGTERM")
    container = state.load(state.root(flags), name)
    if said.all:
        _all(container, number)
        return 0
    if container.status() == "stopped":
        raise CommandError("container not running")
    if not ending.signal(container, number):
        raise CommandError("os: process already finished")
    return 0


def _all(container: state.Container, number: int) -> None:
    """Also when the first process has ended: what has no pid namespace of its own may live on."""
    group = container.group
    if number == 9:
        group.kill()
        if freezer.frozen(group):
            freezer.thaw(group)
        return
    for pid in group.processes():
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _number(text: str) -> int:
    """SIGTERM, TERM or 15."""
    if text.isdecimal() and len(text) < 4:
        number = int(text)
        if number <= 64:
            return number
    name = text.upper() if text[:3].upper() == "SIG" else f"SIG{text.upper()}"
    found = getattr(_signal, name, None) if name.isalnum() else None
    for edge, sign in (("SIGRTMIN+", 1), ("SIGRTMAX-", -1)):
        if name.startswith(edge) and name[9:].isdecimal():
            found = int(getattr(_signal, edge[:8])) + sign * int(name[9:])
    if found is None:
        raise CommandError(f"unknown signal {text!r}")
    return int(found)
