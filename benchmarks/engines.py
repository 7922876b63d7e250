"""Command lines of container engines, and the process that runs and times them where they live."""

from __future__ import annotations

import json
import os
import resource  # noqa: F401 - os.wait4 imports it, which a helper in another root could not
import select
import signal
import socket
import time
import traceback
from typing import Any

from cowshed_linux import process

_OUTPUT = 1 << 20


class Failed(Exception):
    """A command did not succeed."""


class Runner:
    """A forked helper that starts commands with posix_spawn and waits for them: neither a shell nor this program's
    memory is part of what is timed. inside: the pid of a process whose mount namespace the commands run in, or 0."""

    def __init__(self, inside: int = 0, environment: dict[str, str] | None = None) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._socket.close()
                _serve(theirs, inside, {**os.environ, **(environment or {})})
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        theirs.close()
        self._answers = self._socket.makefile("r")

    def __call__(
        self, *commands: list[str], feed: str = "", quiet: bool = False, timeout: float = 600, check: bool = True
    ) -> dict[str, Any]:
        """Run commands at once; {"ms", "codes", "rss" (MB, of the largest), "out"}. feed: a file of the host for
        their stdin."""
        asked = {"commands": commands, "feed": feed, "quiet": quiet, "timeout": timeout}
        self._socket.sendall(json.dumps(asked).encode() + b"\n")
        answer: dict[str, Any] = json.loads(self._answers.readline())
        if check and any(answer["codes"]):
            said = (answer["err"] or answer["out"]).strip()[-400:]
            raise Failed(f"{' '.join(commands[0])}: {answer['codes']}: {said}")
        return answer

    def close(self) -> None:
        self._answers.close()
        self._socket.close()
        os.waitpid(self._pid, 0)


def _serve(requests: socket.socket, inside: int, environment: dict[str, str]) -> None:
    process.prctl(process.PR_SET_PDEATHSIG, signal.SIGKILL)
    host = os.open("/", os.O_PATH | os.O_DIRECTORY)
    if inside:
        fd = os.open(f"/proc/{inside}/ns/mnt", os.O_RDONLY)
        process.setns(fd, process.CLONE_NEWNS)
        os.close(fd)
        os.chdir("/")
    os.environ.clear()
    os.environ.update(environment)
    null = os.open("/dev/null", os.O_RDWR)
    for line in requests.makefile("r"):
        asked = json.loads(line)
        given = os.open(asked["feed"].lstrip("/"), os.O_RDONLY, dir_fd=host) if asked["feed"] else null
        out, err = os.memfd_create("out"), os.memfd_create("err")
        ends = [given, null if asked["quiet"] else out, err]
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(ends)]
        start, codes, rss, cpu = time.perf_counter(), [], 0, 0.0
        pids = [os.posix_spawnp(words[0], words, environment, file_actions=actions) for words in asked["commands"]]
        for pid in pids:
            pidfd = os.pidfd_open(pid)
            if not select.select([pidfd], [], [], asked["timeout"])[0]:
                os.kill(pid, signal.SIGKILL)
            _, status, used = os.wait4(pid, 0)
            os.close(pidfd)
            codes.append(os.waitstatus_to_exitcode(status))
            rss = max(rss, used.ru_maxrss)
            cpu += used.ru_utime + used.ru_stime
        answer = {
            "ms": (time.perf_counter() - start) * 1e3, "codes": codes, "rss": rss / 1000,
            "cpu": cpu * 1e3,
            "out": os.pread(out, _OUTPUT, 0).decode(errors="replace"),
            "err": os.pread(err, _OUTPUT, 0).decode(errors="replace"),
        }  # fmt: skip
        for fd in (out, err, *([given] if given != null else [])):
            os.close(fd)
        requests.sendall(json.dumps(answer).encode() + b"\n")


class Engine:
    """A docker-like command line. A method gives the words of one command; None: this engine cannot do that."""

    force = ("rm", "-f")
    pulling: tuple[str, ...] = ("-q",)
    network: tuple[str, ...] = ("--network", "none")

    def __init__(self, name: str, prefix: list[str], runner: Runner) -> None:
        self.name, self.prefix, self.runner = name, prefix, runner

    def __call__(self, *words: list[str], **options: Any) -> dict[str, Any]:
        return self.runner(*words, **options)

    def words(self, *words: str) -> list[str]:
        return [*self.prefix, *words]

    def run(self, image: str, *command: str, name: str = "", rm: bool = False, network: bool = False) -> list[str]:
        """Detached if there is a name and not rm. network: the engine's default one, instead of none."""
        options = [*(["--rm"] if rm else ["-d"]), *(["--name", name] if name else [])]
        return self.words("run", *options, *(() if network else self.network), image, *command)

    def create(self, image: str, *command: str, name: str, network: bool = False) -> list[str]:
        return self.words("create", "--name", name, *(() if network else self.network), image, *command)

    def start(self, name: str) -> list[str]:
        return self.words("start", name)

    def exec(self, name: str, *command: str) -> list[str]:
        return self.words("exec", name, *command)

    def wait(self, name: str) -> list[str]:
        return self.words("wait", name)

    def logs(self, name: str) -> list[str]:
        return self.words("logs", name)

    def rm(self, *names: str) -> list[str]:
        return self.words(*self.force, *names)

    def ps(self) -> list[str]:
        return self.words("ps", "-a")

    def images(self) -> list[str]:
        return self.words("images")

    def inspect(self, name: str) -> list[str]:
        return self.words("inspect", name)

    def pull(self, image: str) -> list[str]:
        return self.words("pull", *self.pulling, image)

    def rmi(self, *images: str) -> list[str]:
        return self.words("rmi", "-f", *images)

    def commit(self, name: str, image: str) -> list[str]:
        return self.words("commit", name, image)

    def load(self) -> list[str]:
        return self.words("load", "-i", "/proc/self/fd/0")  # a path, so that nobody makes a copy of a pipe first

    def save(self, image: str, kind: str) -> list[str]:
        return self.words("save", "-q", "--format", kind, image)

    def pid(self, name: str) -> int:
        """Of a container's first process."""
        return int(self(self.words("inspect", "--format", "{{.State.Pid}}", name))["out"])

    def clean(self) -> None:
        """Remove every container that this program has made: their names begin with `b`, digits and a hyphen."""
        found = self(self.words("ps", "-a", "--format", "{{.Names}}"))["out"].split()
        mine = [name for name in found if name[:1] == "b" and name[1:].partition("-")[0].isdigit()]
        if mine:
            self(self.rm(*mine), check=False)


class Podman(Engine):
    force = ("rm", "-f", "-t", "0")  # else it waits ten seconds for an end that process 1 does not hear of
    pulling = ("-q", "--tls-verify=false")


class Containerd(Engine):
    """Through `ctr`, its own client, and for pulls only."""

    def pull(self, image: str) -> list[str]:
        return self.words("images", "pull", "--plain-http", image)

    def rmi(self, *images: str) -> list[str]:
        return self.words("images", "rm", "--sync", *images)

    def clean(self) -> None:
        return


KNOWN: dict[str, type[Engine]] = {"podman": Podman, "docker": Engine, "ctr": Containerd}
