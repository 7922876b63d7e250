"""start: let a container that waits execute its program."""

from __future__ import annotations

import os

from cowshed_runtime import hooks, waiting
from cowshed_runtime.command import ending, notify, state
from cowshed_runtime.command.errors import CommandError
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.fastjson import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed_runtime.command.parser import Values


def start(flags: Values, said: Values) -> int:
    container = state.load(state.root(flags), said["operands"][0], lock=True)
    status = container.status(mine=True)
    if status == "stopped":
        raise CommandError("cannot start a container that has stopped")
    if status != "created":
        raise CommandError(f"cannot start an already {status} container")
    service = os.environ.get("NOTIFY_SOCKET", "") if container.record["notifies"] else ""
    listener = notify.bind(container.fd) if service else None
    answer = waiting.release(container.fd)
    if answer:
        stage, number, text, code = loads(answer)
        raise LaunchError(stage, number, text, code)
    config = container.config()
    wanted = (config.get("hooks") or {}).get("poststart") or []
    if wanted:
        try:
            told = hooks.state(config, container.id, container.record["bundle"])
            hooks.run("poststart", wanted, {**told, "status": "running", "pid": container.pid})
        except LaunchError:
            ending.kill(container)
            ending.destroy(container, config)
            raise
    if listener:
        container.unlock()  # it may never be ready, and be deleted
        notify.forward(listener, service, container.pid, container.pid)
    return 0
