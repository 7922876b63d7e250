"""Cowshed's own runtime as a plug-in: what starts containers when nothing else is asked for.

The engine's own path (`cowshed.monitor.starting`) calls the same two functions without this module.
"""

from __future__ import annotations

from cowshed.runtimes.api import API_VERSION, Started
from cowshed_runtime import launcher
from cowshed_runtime.cgroup.group import Group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.runtimes.api import Answers, Task


class NativePlugin:
    name = "native"
    api = API_VERSION
    summary = "Cowshed's own, without a program"
    programs = False

    def drives(self, answers: Answers) -> bool:
        return False

    def facts(self, answers: Answers) -> dict[str, str | bool]:
        return {"exec": True, "pause": True, "--init": True}

    def start(self, task: Task, config: dict[str, Any], root: int, stdio: tuple[int, int, int]) -> Started:
        made = launcher.launch(config, root, stdio, group=Group(task.id), cache=task.folder)
        return Started(made.pid, made.terminal)

    def execute(
        self, task: Task, work: dict[str, Any], linux: dict[str, Any], target: int, stdio: tuple[int, int, int]
    ) -> Started:
        made = launcher.join(work, linux, target, stdio, group=Group(task.id), cache=task.folder)
        return Started(made.pid, made.terminal)

    def signal(self, task: Task, target: int, number: int) -> None:
        import os

        os.kill(target, number)

    def end(self, task: Task) -> None:
        from cowshed.runtimes import place

        Group(task.id).remove()
        place.remove(task.folder)


plugin = NativePlugin()
