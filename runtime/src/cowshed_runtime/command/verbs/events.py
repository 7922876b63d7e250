"""events: what a container uses, and when it is out of memory, in the form of runc's events."""

from __future__ import annotations

import os
import select
import sys
from time import monotonic, sleep

from cowshed_runtime.cgroup.oom import Notice
from cowshed_runtime.cgroup.statistics import statistics
from cowshed_runtime.command import state
from cowshed_runtime.command.errors import CommandError
from cowshed_runtime.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed_runtime.command.parser import Values

_UNITS = (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0))
_TRIES = 40


def events(flags: Values, said: Values) -> int:
    container = state.load(state.root(flags), said["operands"][0])
    interval = _seconds(said.interval or "5s")
    if container.status() == "stopped":
        raise CommandError("container not running")
    if said.stats:
        _tell(container, "stats", statistics(container.group))
        return 0
    _follow(container, interval)
    return 0


def _follow(container: state.Container, interval: float) -> None:
    """Until the container's first process has ended."""
    try:
        pidfd = os.pidfd_open(container.pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    notice = None
    try:
        notice = Notice(container.group)
        poll.register(notice.fd, notice.mask)
    except FileNotFoundError:
        pass  # this host has no memory controller: nothing there is ever out of memory
    killed, due = 0, monotonic()
    try:
        while container.lives():
            if monotonic() >= due:
                _tell(container, "stats", statistics(container.group))
                due += interval
            ready = dict(poll.poll(max(0, 1000 * (due - monotonic()))))
            if notice and notice.fd in ready:
                killed = _told_of(container, notice, killed)
            if pidfd in ready:
                return
    finally:
        os.close(pidfd)
        if notice:
            notice.close()


def _told_of(container: state.Container, notice: Notice, before: int) -> int:
    """Version 1 gives notice before it kills."""
    for _ in range(_TRIES):
        try:
            now = notice.kills()
        except FileNotFoundError:
            return before
        if now > before:
            _tell(container, "oom", None)
            return now
        sleep(0.05)
    return before


def _tell(container: state.Container, kind: str, data: Any) -> None:
    line = {"type": kind, "id": container.id}
    sys.stdout.write(dumps(line if data is None else {**line, "data": data}) + "\n")
    sys.stdout.flush()


def _seconds(text: str) -> float:
    """A duration as Go writes it, of one unit."""
    for unit, factor in _UNITS:
        number = text.removesuffix(unit)
        if number != text and number.replace(".", "", 1).isdecimal():
            seconds = float(number) * factor
            if seconds > 0:
                return seconds
    raise CommandError(f"--interval is a time like 5s, greater than 0, not {text!r}")
