"""A task and its plug-in, as they are said in a request, and kept beside the container while it runs."""

from __future__ import annotations

import os
import sys

from cowshed.runtimes.api import Task
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.runtimes.api import RuntimePlugin


def of(value: dict[str, Any]) -> tuple[RuntimePlugin, Task]:
    """value: the arguments of a Task, and `attr`: where its plug-in is, module:attribute. ImportError,
    AttributeError."""
    words = {key: value[key] for key in value if key not in ("space", "monitor")}  # see helper.start
    module, _, name = str(words.pop("attr")).partition(":")
    __import__(module)
    plugin: RuntimePlugin = getattr(sys.modules[module], name)
    return plugin, Task(**words)


def keep(value: dict[str, Any]) -> None:
    """For whoever has to do with the container while it runs: a later choice may be another one."""
    os.makedirs(value["folder"], mode=0o700, exist_ok=True)
    path = f"{value['folder']}/task"
    fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as f:
        f.write(dumps(value))
    os.rename(f"{path}.new", path)


def kept(folder: str) -> dict[str, Any] | None:
    """What `keep` has written, None if the container does not run."""
    try:
        with open(f"{folder}/task", "rb") as f:
            value: dict[str, Any] = loads(f.read())
    except FileNotFoundError:
        return None
    return value
