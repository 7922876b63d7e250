"""Real containers under real monitors: a busybox root, and commands that are processes of their own."""

import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from cowshed_linux import locks
from cowshed_runtime import defaults

BUSYBOX = "/bin/busybox"
APPLETS = "sh cat echo sleep seq stty true wc yes dd kill ls readlink head test trap".split()
COMMAND = str(Path(__file__).with_name("command.py"))


def until(what, seconds: float = 10):
    """What `what` returns, as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return found


def links(pid: int) -> set[str]:
    """What the descriptors of a process refer to."""
    found = set()
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    except OSError:
        return found  # it is ending
    return found


class Store:
    """The directories that a store and its run directory would be, and one image."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run, self.locks, self.tree = folder, folder / "run", folder / "locks", folder / "tree"
        for path in (self.run / "c", self.locks, folder / "cache", self.tree / "bin"):
            path.mkdir(parents=True)
        for name in ("dev", "proc", "sys", "tmp", "etc"):
            (self.tree / name).mkdir()
        shutil.copy(BUSYBOX, self.tree / "bin/busybox")
        for applet in APPLETS:
            (self.tree / "bin" / applet).symlink_to("busybox")
        self.number = 0
        self.containers: list[Container] = []

    def container(self, *words: str, **how) -> "Container":
        self.number += 1
        made = Container(self, self.number, list(words), **how)
        self.containers.append(made)
        return made

    def held(self, name: str, number: int) -> bool:
        fd = locks.open_file(str(self.locks / name))
        try:
            return locks.byte_is_locked(fd, number)
        finally:
            os.close(fd)

    def processes(self) -> list[int]:
        """The zygotes of this store and the monitors, which are forks of theirs."""
        found = []
        for path in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                if f"{self.run}/zygote-".encode() in Path(path).read_bytes():
                    found.append(int(path.split("/")[2]))
            except OSError:
                continue
        return found

    def zygotes(self) -> list[int]:
        listening = Path("/proc/net/unix").read_text()
        inodes = {f"socket:[{line.split()[6]}]" for line in listening.splitlines() if f"{self.run}/zygote-" in line}
        return [pid for pid in self.processes() if inodes & links(pid)]

    def close(self) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        until(lambda: not self.processes())


class Container:
    def __init__(self, store: Store, number: int, words: list[str], *, tty=False, stdin=False, **more) -> None:
        self.store, self.number, self.id = store, number, uuid.uuid4().hex + uuid.uuid4().hex
        self.place = store.run / "c" / self.id[:32]
        self.place.mkdir()
        self.log = str(store.folder / f"log-{number}")
        config = defaults.config()
        config["process"]["args"], config["process"]["env"] = words, ["PATH=/bin", "TERM=xterm"]
        config["process"]["terminal"] = tty
        self.config = store.folder / f"config-{number}.json"
        self.config.write_text(json.dumps(config))
        self.linux = {"namespaces": config["linux"]["namespaces"], "seccomp": None}
        self.request = {
            "number": number, "config": str(self.config), "place": str(self.place), "name": self.id, "log": self.log,
            "cache": str(store.folder / "cache"), "locks": str(store.locks), "stdin": stdin, "terminal": tty, **more,
        }  # fmt: skip
        self.commands: list[subprocess.Popen] = []

    def command(self, operation: str, *, stdio=None, **options) -> subprocess.Popen:
        """A process that does what `cowshed run`, `exec`, `attach` do with the monitor."""
        order = {
            "operation": operation, "run": str(self.store.run), "tree": str(self.store.tree), "request": self.request,
            "place": str(self.place), **options,
        }  # fmt: skip
        stdio = stdio or {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen([sys.executable, "-P", COMMAND, json.dumps(order)], **stdio)
        self.commands.append(process)
        return process

    def start(self, **options) -> subprocess.Popen:
        return self.command("run", attached=True, **options)

    def detached(self) -> None:
        done = self.command("run", attached=False)
        assert done.communicate(timeout=20)[1] == b""
        assert done.returncode == 0

    def execute(self, *words: str, tty=False, **options) -> subprocess.Popen:
        process = {**json.loads(self.config.read_text())["process"], "args": list(words), "terminal": tty}
        request = {
            "process": process, "linux": self.linux, "pid": self.pids()[0], "name": self.id,
            "cache": self.request["cache"],
        }  # fmt: skip
        return self.command("exec", **{"request": request, **options})

    def attach(self, **options) -> subprocess.Popen:
        return self.command("attach", **options)

    def pids(self) -> tuple[int, int, int]:
        """(first process, its start time, monitor)."""
        first, started, monitor = until(lambda: self.read("pid")).split()
        return int(first), int(started), int(monitor)

    def read(self, name: str) -> str:
        path = self.place / name
        return path.read_text() if path.exists() else ""

    def ended(self) -> dict:
        return json.loads(until(lambda: self.read("exit")))

    def groups(self) -> list[str]:
        return glob.glob(f"/sys/fs/cgroup/*/cowshed/{self.id}") + glob.glob(f"/sys/fs/cgroup/cowshed/{self.id}")

    def kill(self) -> None:
        text = self.read("pid")
        if text:
            try:
                os.kill(int(text.split()[0]), signal.SIGKILL)
            except ProcessLookupError:
                pass
        until(lambda: not self.store.held("monitors", self.number))
        for process in self.commands:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    try:
                        stream.close()
                    except BrokenPipeError:
                        continue  # what was still to be fed


@pytest.fixture(scope="session")
def whole_store(tmp_path_factory):
    made = Store(tmp_path_factory.mktemp("monitor"))
    yield made
    made.close()


@pytest.fixture
def store(whole_store):
    """One store and zygote for all tests; each test's containers end with it."""
    if os.geteuid() != 0:
        pytest.skip("starting containers needs root")
    yield whole_store
    for container in whole_store.containers:
        container.kill()
    whole_store.containers.clear()
