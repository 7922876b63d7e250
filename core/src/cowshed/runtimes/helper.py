"""What a monitor and its helper do for a container of another runtime. Imported for those alone."""

from __future__ import annotations

import os

from cowshed.runtimes import tasks
from cowshed_runtime.errors import LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.runtimes.api import Started


def start(known: dict[str, Any], config: dict[str, Any], root: int, stdio: tuple[int, int, int]) -> Started:
    """Start the container that `known` tells of. LaunchError."""
    value = known["runtime"]
    plugin, task = tasks.of(value)
    plugin.end(task)  # of a start or a monitor that was killed
    tasks.keep(value)
    made = plugin.start(task, config, root, stdio)
    # While the monitor holds it, its root can be reached by `cp` and the like, also where the container's first process
    # is a sandbox that does not have it.
    space = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    tasks.keep({**value, "space": space, "monitor": os.getppid()})
    return made


def execute(
    known: dict[str, Any], work: dict[str, Any], linux: dict[str, Any], target: int, stdio: tuple[int, int, int]
) -> Started:
    """Start a process in a container that runs. LaunchError."""
    plugin, task = tasks.of(known["runtime"])
    return plugin.execute(task, work, linux, target, stdio)


def end(value: dict[str, Any]) -> None:
    """Remove what the runtime keeps of a container that has ended, or was never started."""
    plugin, task = tasks.of(value)
    try:
        plugin.end(task)
    except (LaunchError, OSError):
        return  # whoever starts or removes the container next tries again, and tells
