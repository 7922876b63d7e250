"""Runtimes that are a program with the command line of runc: create, start, exec, kill, delete."""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
from _struct import pack, unpack

from cowshed.runtimes import place, program
from cowshed.runtimes.api import API_VERSION, Started
from cowshed.runtimes.program import Call
from cowshed_linux import process
from cowshed_runtime.cgroup.group import Group
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    from cowshed.runtimes.api import Answers, Task

_VERBS = ("create", "start", "state", "kill", "delete")  # the operations that runtime.md of the specification names
_MORE = ("exec", "pause", "resume", "update", "checkpoint", "restore", "events", "ps", "features")
_SET_SIZE = 0x5414  # TIOCSWINSZ: ioctl_tty(2)
_PATIENCE = 10  # seconds for the terminal of a container that has been created


class OciPlugin:
    name = "oci"
    api = API_VERSION
    summary = "a program with runc's command line: create, start, exec, kill, delete"
    programs = True

    def drives(self, answers: Answers) -> bool:
        return answers.features is not None or {*_VERBS} <= _verbs(answers.usage)

    def facts(self, answers: Answers) -> dict[str, str | bool]:
        features, verbs = answers.features or {}, _verbs(answers.usage)
        linux = features.get("linux") or {}
        found: dict[str, str | bool] = {"version": answers.version, "features": answers.features is not None}
        for verb in _MORE[:-1]:
            found[verb] = verb in verbs
        if features:
            found["specification"] = f"{features.get('ociVersionMin', '?')} to {features.get('ociVersionMax', '?')}"
            for key in ("seccomp", "apparmor", "selinux", "intelRdt"):
                if key in linux:
                    found[key] = bool((linux[key] or {}).get("enabled"))
            for key in ("v1", "v2", "systemd"):
                if key in (linux.get("cgroup") or {}):
                    found[f"cgroup {key}"] = bool(linux["cgroup"][key])
        return found

    def start(self, task: Task, config: dict[str, Any], root: int, stdio: tuple[int, int, int]) -> Started:
        config = place.configured(config, task)
        bundle = place.make(task, config)
        place.group(task, config)
        place.enter(task, root)
        process.become_subreaper()  # until this process ends, and the container becomes the monitor's child
        pid_file = f"{task.folder}/pid"
        words = ["--bundle", bundle, "--pid-file", pid_file]
        terminal = -1
        with Console(task, config["process"]) as console, Call(task, "create", config["process"]) as call:
            call.run(*words, *console.words, task.id, stdio=console.stdio or stdio, entered=True)
            pid = _number(pid_file)
            terminal = console.master()
        program.reap(pid)
        place.confined(task, pid)
        with Call(task, "start", config["process"]) as call:
            call.run(task.id, entered=True)
        place.shut(task)
        return Started(pid, terminal)

    def execute(
        self, task: Task, work: dict[str, Any], linux: dict[str, Any], target: int, stdio: tuple[int, int, int]
    ) -> Started:
        mark = f"{task.folder}/exec-{os.getpid()}"
        with Console(task, work) as console, Call(task, "exec", work) as call:
            try:
                with open(f"{mark}.json", "w", encoding="utf-8") as f:
                    f.write(dumps(work))
                words = ["--detach", "--pid-file", f"{mark}.pid", "--process", f"{mark}.json", *console.words]
                process.become_subreaper()  # as in start
                call.run(*words, task.id, stdio=console.stdio or stdio)
                pid = _number(f"{mark}.pid")
                program.reap(pid)
                return Started(pid, console.master())
            finally:
                for path in (f"{mark}.json", f"{mark}.pid"):
                    if os.path.exists(path):
                        os.unlink(path)

    def signal(self, task: Task, target: int, number: int) -> None:
        with Call(task, "kill") as call:
            call.run(task.id, str(number))

    def end(self, task: Task) -> None:
        try:
            there = any(name.startswith(task.id) for name in os.listdir(f"{task.folder}/state"))
        except FileNotFoundError:
            there = False
        if there:
            try:
                with Call(task, "delete") as call:
                    call.run("--force", task.id)
            except LaunchError:
                pass  # one that was killed half-way may know too little: without its processes only files are left
        Group(task.id).remove()
        place.remove(task.folder)


class Console:
    """Where a runtime sends the master of a terminal to, if the process is to have one.

    words: the options that say so; stdio: what the runtime gets in its place, None without a terminal.
    """

    def __init__(self, task: Task, work: dict[str, Any]) -> None:
        self._task, self._size = task, work.get("consoleSize")
        self._listener: Any = None
        self._fds: list[int] = []
        self.words: list[str] = []
        self.stdio: tuple[int, int, int] | None = None
        self._wanted = bool(work.get("terminal"))

    def __enter__(self) -> Console:
        if not self._wanted:
            return self
        name = f"console-{os.getpid()}"
        folder = os.open(self._task.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._fds = [folder, null]
        self._path = f"{self._task.folder}/{name}"
        self._listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        # The path of the folder may be longer than a socket's address can be: it is named by our descriptor.
        address = f"/proc/{os.getpid()}/fd/{folder}/{name}"
        self._listener.bind(address)
        self._listener.listen(1)
        self.words, self.stdio = ["--console-socket", address], (null, null, null)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listener is not None:
            self._listener.close()
            os.unlink(self._path)
        for fd in self._fds:
            os.close(fd)

    def master(self) -> int:
        """The terminal's master, with the size that was asked for; -1 if there is none to be. LaunchError."""
        if self._listener is None:
            return -1
        self._listener.settimeout(_PATIENCE)
        try:
            fd, _ = self._listener._accept()
            connection = _socket.socket(fileno=fd)
            connection.settimeout(_PATIENCE)
            _, extra, _, _ = connection.recvmsg(4096, _socket.CMSG_SPACE(4), 0x40000000)  # MSG_CMSG_CLOEXEC
            connection.close()
        except TimeoutError:
            raise LaunchError("terminal", errno.ETIMEDOUT, "the runtime does not hand over the terminal") from None
        found = [unpack("i", data[:4])[0] for _, _, data in extra]
        if not found:
            raise LaunchError("terminal", 0, "the runtime does not hand over the terminal")
        if self._size:
            fcntl.ioctl(found[0], _SET_SIZE, pack("HHHH", self._size["height"], self._size["width"], 0, 0))
        return int(found[0])


def _verbs(usage: str) -> set[str]:
    """The first words of the lines of a usage, where every such program lists its commands."""
    return {words[0].rstrip(",") for line in usage.splitlines() if (words := line.split()) and line[0].isspace()}


def _number(path: str) -> int:
    try:
        with open(path, "rb") as f:
            return int(f.read())
    except (OSError, ValueError):
        raise LaunchError("runtime", 0, "the runtime does not tell the pid of the process it has started") from None


plugin = OciPlugin()
