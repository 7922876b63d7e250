"""Runtimes that are shims of containerd (its core/runtime/v2/README.md): gVisor's, Kata's, runc's.

A shim is started for each container, and told what to do through ttrpc.
"""

from __future__ import annotations

import os

from cowshed.runtimes import keeper, place, ttrpc
from cowshed.runtimes.api import API_VERSION
from cowshed_runtime.cgroup.group import Group
from cowshed_runtime.errors import LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.runtimes.api import Answers, Started, Task

_FLAGS = ("-namespace", "-address", "-publish-binary")  # that every shim takes


class ShimPlugin:
    name = "shim"
    api = API_VERSION
    summary = "a shim of containerd (runtime v2), which is asked through ttrpc"
    programs = True

    def drives(self, answers: Answers) -> bool:
        return {*_FLAGS} <= {*answers.usage.split()}

    def facts(self, answers: Answers) -> dict[str, str | bool]:
        return {"version": answers.version, "exec": True, "pause": True, "update": True}

    def start(self, task: Task, config: dict[str, Any], root: int, stdio: tuple[int, int, int]) -> Started:
        config = place.configured(config, task)
        place.make(task, config)
        place.group(task, config)
        place.enter(task, root)
        made = keeper.begin(task, config["process"], stdio)
        place.shut(task)
        return made

    def execute(
        self, task: Task, work: dict[str, Any], linux: dict[str, Any], target: int, stdio: tuple[int, int, int]
    ) -> Started:
        return keeper.begin(task, work, stdio, f"exec-{os.getpid()}")

    def signal(self, task: Task, target: int, number: int) -> None:
        client = keeper.connected(task)
        try:
            client.call("Kill", {1: task.id, 3: number})
        finally:
            client.close()

    def end(self, task: Task) -> None:
        if os.path.exists(f"{task.folder}/shim"):
            self._clear(task)
        Group(task.id).remove()
        place.remove(task.folder)

    def _clear(self, task: Task) -> None:
        """A shim that lives on, and what one that was killed has left."""
        try:
            client = keeper.connected(task)
            try:
                for method, body in (
                    ("Kill", {1: task.id, 3: 9, 4: 1}), ("Wait", {1: task.id}), ("Delete", {1: task.id}),
                    ("Shutdown", {1: task.id, 2: 1}),
                ):  # fmt: skip
                    try:
                        client.call(method, body)
                    except ttrpc.Refused:
                        continue  # it has been killed or deleted already
            finally:
                client.close()
        except LaunchError:
            pass  # it is gone: that is what the command is for
        try:
            keeper.command(task, "", "delete")
        except LaunchError:
            pass  # it has nothing more to delete
        keeper.forget(task)


plugin = ShimPlugin()
