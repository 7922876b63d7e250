"""Hooks (config.md, POSIX-platform Hooks; their order and what follows from a failure: runtime.md, Lifecycle): programs
of the host's administrator around a container's life, and of the container before its own.

A hook's environment is what the configuration gives it and nothing else: neither the image nor the container's
environment reaches it (CVE-2025-23266). Its working directory is the bundle, in the container `/`.
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
    from collections.abc import Callable
    from typing import Any

    from cowshed_runtime.plan import Scene

STDOUT, STDERR = "run.oci.hooks.stdout", "run.oci.hooks.stderr"
_LONGEST_WORD = 1000  # bytes of what a hook that fails has said
_LONGEST = 1 << 31  # seconds: select(2) takes no more than 2^63 ns
_DEFAULTED = [n for n in range(1, 65) if n not in (9, 19, 32, 33)]


class InRuntime:
    """A step that has the launcher run the hooks prestart and createRuntime, in its own namespaces, while the
    container's first process waits."""

    stage = "hooks"

    def describe(self) -> str:
        return "wait for prestart and createRuntime hooks"

    def execute(self, scene: Scene) -> None:
        scene.ask()


class Run:
    """A step that runs hooks in the process that executes the plan."""

    stage = "hooks"

    def __init__(self, kind: str, hooks: list[dict[str, Any]], state: dict[str, Any]) -> None:
        self.kind, self.hooks, self.state = kind, hooks, state

    def describe(self) -> str:
        return f"run {self.kind} hooks {' '.join(hook['path'] for hook in self.hooks)}"

    def execute(self, scene: Scene) -> None:
        if self.kind == "startContainer":
            told = {**self.state, "status": "created", "pid": os.getpid()}
            run(self.kind, self.hooks, told, output=scene.output, confine=scene.confine)
        else:
            run(self.kind, self.hooks, {**self.state, "status": "creating", "pid": os.getpid()})


class Output:
    """Where the output of hooks goes: files that annotations name, which it is added to; -1 is nowhere."""

    def __init__(self, annotations: dict[str, str]) -> None:
        """LaunchError for a file that cannot be written."""
        self.out = _open(annotations.get(STDOUT))
        self.err = _open(annotations.get(STDERR))

    def descriptors(self) -> tuple[int, int]:
        return self.out, self.err

    def close(self) -> None:
        for fd in self.descriptors():
            if fd >= 0:
                os.close(fd)


def _open(path: str | None) -> int:
    if not path:
        return -1
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LaunchError("hooks", error.errno or 0, f"output of hooks to {path}: {error.strerror}") from None


def state(config: dict[str, Any], name: str, bundle: str) -> dict[str, Any]:
    """The state document (runtime.md, State) but for status and pid."""
    return {
        "ociVersion": config.get("ociVersion", "1.2.0"),
        "id": name,
        "bundle": bundle,
        "annotations": config.get("annotations") or {},
    }


def run(
    kind: str,
    hooks: list[dict[str, Any]],
    told: dict[str, Any],
    *,
    output: Output | None = None,
    confine: Callable[[], object] | None = None,
) -> None:
    """Run hooks one after the other, each with the state on its standard input. LaunchError for the first that fails or
    outlasts its timeout, which is killed with the processes of its group.

    output: where it is open already. confine: what is still to be done in the process of a hook, so that it has no more
    rights than the container.
    """
    if not hooks:
        return
    opened = output or Output(told.get("annotations") or {})
    try:
        document = dumps(told).encode()
        bundle = told["bundle"]
        folder = "/" if kind == "startContainer" or bundle[:1] != "/" else bundle
        for hook in hooks:
            _run(kind, hook, document, folder, opened, confine)
    finally:
        if not output:
            opened.close()


def stopped(config: dict[str, Any], name: str, bundle: str = "") -> list[str]:
    """Run the poststop hooks of a container that has ended and is taken away, and give a warning for each that fails
    (runtime.md, Lifecycle, step 13)."""
    place = bundle or str((config.get("root") or {}).get("path") or "")
    told = {**state(config, name, place), "status": "stopped"}
    warnings = []
    for hook in (config.get("hooks") or {}).get("poststop") or ():
        try:
            run("poststop", [hook], told)
        except LaunchError as error:
            warnings.append(str(error))
    return warnings


def _run(
    kind: str, hook: dict[str, Any], document: bytes, folder: str, output: Output, confine: Callable[[], object] | None
) -> None:
    # A file in memory and not a pipe: a hook that does not read must not stop us, nor one that writes much.
    stdin = os.memfd_create("state", os.MFD_CLOEXEC)
    stderr = os.memfd_create("stderr", os.MFD_CLOEXEC) if output.err < 0 else output.err
    try:
        os.write(stdin, document)
        os.lseek(stdin, 0, os.SEEK_SET)
        pid = os.fork()
        if pid == 0:
            _become(hook, stdin, output.out, stderr, folder, confine)
        text = _wait(hook, pid)
        if not text:
            return
        said = b""
        if stderr != output.err:
            os.lseek(stderr, 0, os.SEEK_SET)
            said = os.read(stderr, _LONGEST_WORD)
        words = " ".join(said.decode(errors="replace").split())
        raise LaunchError("hooks", 0, f"{kind} hook {hook['path']}: {text}{f': {words}' if words else ''}")
    finally:
        os.close(stdin)
        if stderr != output.err:
            os.close(stderr)


def _become(
    hook: dict[str, Any], stdin: int, stdout: int, stderr: int, folder: str, confine: Callable[[], object] | None
) -> None:
    try:
        os.setsid()
        null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(stdin, 0)
        os.dup2(stdout if stdout >= 0 else null, 1)
        os.dup2(stderr, 2)
        process.close_range(3, on_exec=True)
        os.chdir(folder)
        for number in _DEFAULTED:
            _signal.signal(number, _signal.SIG_DFL)
        process.default_reserved_signals()
        _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
        environment = dict(entry.split("=", 1) for entry in hook.get("env") or ())
        if confine:
            confine()
        os.execve(hook["path"], hook.get("args") or [hook["path"]], environment)  # noqa: S606
    except OSError as error:
        os.write(2, f"{error.filename or 'it'} cannot be used: {error.strerror}".encode(errors="replace"))
        os._exit(127 if error.errno == 2 else 126)
    finally:
        os._exit(125)


def _wait(hook: dict[str, Any], pid: int) -> str:
    """How a hook failed, "" if it did not."""
    timeout = hook.get("timeout")
    if timeout:
        pidfd = os.pidfd_open(pid)
        ended = select.select([pidfd], [], [], min(timeout, _LONGEST))[0]
        os.close(pidfd)
        if not ended:
            for whom in (pid, -pid):  # it may not lead a group yet
                try:
                    os.kill(whom, 9)
                except ProcessLookupError:
                    continue
            os.waitpid(pid, 0)
            return f"took longer than {timeout} s, was killed"
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        return f"ended with signal {-code}"
    return f"ended with status {code}" if code else ""
