"""Killing a container and taking it away: what delete, a failed create and a foreground run have in common."""

from __future__ import annotations

import os
import select

from cowshed_linux import process
from cowshed_runtime import hooks
from cowshed_runtime.cgroup import freezer
from cowshed_runtime.command.errors import CommandError
from cowshed_runtime.command.log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed_runtime.command.state import Container

_PATIENCE = 10_000


def kill(container: Container) -> None:
    """Kill its first process, and return when that has ended. CommandError if it does not within ten seconds."""
    signal(container, 9)
    try:
        pidfd = os.pidfd_open(container.pid)
    except ProcessLookupError:
        return
    try:
        if not process.lives(container.pid, container.record["started"]):
            return
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(_PATIENCE):
            raise CommandError(f"container {container.id}: its process {container.pid} does not end")
    finally:
        os.close(pidfd)


def signal(container: Container, number: int) -> bool:
    """Send a signal to its first process; False if that has ended. By a pidfd, so that it can be no other's process."""
    import _signal  # type: ignore[import-not-found]  # `signal` brings enum

    try:
        pidfd = os.pidfd_open(container.pid)
    except (ProcessLookupError, ValueError, OSError):
        return False
    try:
        if not container.lives():
            return False
        _signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    if number == 9 and freezer.frozen(container.group):
        freezer.thaw(container.group)  # on version 1 it dies when it goes on
    return True


def destroy(container: Container, config: dict[str, Any]) -> None:
    """Undo what create did, for a container whose first process has ended. Hooks of poststop that fail are told in the
    log and stop nothing (runtime.md, Lifecycle)."""
    try:
        container.group.remove()
    except OSError as error:
        raise CommandError(f"container {container.id}: {error.strerror}") from None
    for text in hooks.stopped(config, container.id, container.record["bundle"]):
        log.warning(text)
    container.remove()
