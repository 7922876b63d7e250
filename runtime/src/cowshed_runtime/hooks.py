"""Hooks (runtime-spec config.md, POSIX-platform Hooks): programs of the host's administrator around a container's life.

A hook's environment is what the configuration gives it and nothing else, its working directory is `/`: neither the
image nor the container's environment reaches it (CVE-2025-23266).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` brings enum
import os
import select

from cowshed_linux import process
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed_runtime.plan import Scene

_LONGEST = 1 << 31  # seconds: select(2) takes no more than 2^63 ns
_DEFAULTED = [n for n in range(1, 65) if n not in (9, 19, 32, 33)]


class Run:
    """A step that runs hooks in the process that executes the plan."""

    stage = "hooks"

    def __init__(self, kind: str, hooks: list[dict[str, Any]], state: dict[str, Any]) -> None:
        self.kind, self.hooks, self.state = kind, hooks, state

    def describe(self) -> str:
        return f"run {self.kind} hooks {' '.join(hook['path'] for hook in self.hooks)}"

    def execute(self, scene: Scene) -> None:
        run(self.kind, self.hooks, self.state)


def state(config: dict[str, Any], name: str, root: str) -> dict[str, Any]:
    """The state document (runtime.md, State) but for status and pid."""
    return {
        "ociVersion": config.get("ociVersion", "1.2.0"),
        "id": name,
        "bundle": root,
        "annotations": config.get("annotations") or {},
    }


def run(kind: str, hooks: list[dict[str, Any]], told: dict[str, Any]) -> None:
    """Run hooks one after the other, each with the state on its standard input. LaunchError for the first that fails or
    outlasts its timeout, which is killed."""
    document = dumps(told).encode()
    for hook in hooks:
        # A file in memory and not a pipe: a hook that does not read must not stop us.
        stdin = os.memfd_create("state", os.MFD_CLOEXEC)
        os.write(stdin, document)
        os.lseek(stdin, 0, os.SEEK_SET)
        pid = os.fork()
        if pid == 0:
            _become(hook, stdin)
        os.close(stdin)
        _wait(kind, hook, pid)


def _become(hook: dict[str, Any], stdin: int) -> None:
    try:
        null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(stdin, 0)
        os.dup2(null, 1)
        os.dup2(null, 2)
        process.close_range(3, on_exec=True)
        os.chdir("/")
        os.setsid()
        for number in _DEFAULTED:
            _signal.signal(number, _signal.SIG_DFL)
        process.default_reserved_signals()
        _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
        environment = dict(entry.split("=", 1) for entry in hook.get("env") or ())
        os.execve(hook["path"], hook.get("args") or [hook["path"]], environment)  # noqa: S606
    except OSError as error:
        os._exit(127 if error.errno == 2 else 126)
    finally:
        os._exit(125)


def _wait(kind: str, hook: dict[str, Any], pid: int) -> None:
    timeout = hook.get("timeout")
    if timeout:
        pidfd = os.pidfd_open(pid)
        ended = select.select([pidfd], [], [], min(timeout, _LONGEST))[0]
        os.close(pidfd)
        if not ended:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            raise LaunchError("hooks", 110, f"{kind} hook {hook['path']}: took longer than {timeout} s, was killed")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        how = f"signal {-code}" if code < 0 else f"status {code}"
        raise LaunchError("hooks", 0, f"{kind} hook {hook['path']}: ended with {how}")
