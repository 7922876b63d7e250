"""Real containers: a busybox root file system, a forked launcher, and this process as the monitor."""

import contextlib
import os
import shutil
import socket
import uuid
from pathlib import Path

import pytest
from cowshed_testing.callers import Caller

from cowshed_linux import mount, process
from cowshed_runtime import defaults, launcher
from cowshed_runtime.cgroup import layout
from cowshed_runtime.cgroup.group import Group
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.fastjson import dumps, loads

BUSYBOX = "/bin/busybox"
APPLETS = (
    "sh echo cat ls id mount umount sleep true false test stat readlink grep wc tty stty hostname head touch dd kill ps"
    " env mknod tail"
)


class Started:
    """A process that runs: its pid, its terminal or -1, and the reading ends of its streams."""

    def __init__(self, pid: int, terminal: int, out: int, err: int) -> None:
        self.pid, self.terminal, self.out, self.err = pid, terminal, out, err
        self.warnings: list[str] = []
        self.status: int | None = None

    def read(self) -> tuple[str, str]:
        """Everything until the end of both streams, then the status of the process."""
        text = []
        for fd in (self.out, self.err):
            data = b""
            while block := os.read(fd, 65536):
                data += block
            os.close(fd)
            text.append(data.decode(errors="replace"))
        self.out = self.err = -1
        self.wait()
        return text[0], text[1]

    def line(self) -> str:
        """The next line of the output."""
        data = b""
        while not data.endswith(b"\n"):
            byte = os.read(self.out, 1)
            assert byte, f"the output ended after {data!r}"
            data += byte
        return data.decode().strip()

    def wait(self) -> int:
        if self.status is None:
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, process.WALL)[1])
            self.status = 128 - code if code < 0 else code
        return self.status


class Done:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    def __repr__(self) -> str:
        return f"<status {self.status} out {self.out!r} err {self.err!r}>"


def _children() -> set[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as f:
        return {int(pid) for pid in f.read().split()}


class Box:
    """One container to be: `rootfs` and `config` may be changed before it is started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rootfs, self.cache = folder, folder / "rootfs", folder / "cache"
        self.cache.mkdir()
        self.group = Group(f"test-{uuid.uuid4().hex}")
        self.config = defaults.config()
        self.config["process"]["env"] = ["PATH=/bin"]
        self.config["hostname"] = "box"
        self.running: list[Started] = []
        self.filtered, self.by_path = False, False
        for name in ("bin", "dev", "proc", "sys", "etc", "tmp"):
            (self.rootfs / name).mkdir(parents=True)
        shutil.copy(BUSYBOX, self.rootfs / "bin/busybox")
        for name in APPLETS.split():
            (self.rootfs / "bin" / name).symlink_to("busybox")

    @property
    def groups(self) -> str:
        """Where the container finds its group of the memory controller; version 2 has one for all controllers."""
        return "/sys/fs/cgroup/memory" if layout.host.v1 else "/sys/fs/cgroup"

    @property
    def process(self) -> dict:
        return self.config["process"]

    @property
    def linux(self) -> dict:
        return self.config["linux"]

    def _fork(self, work) -> Started:
        """Run work(stdio) in a launcher, with pipes for output, as the monitor does."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        out_r, out_w = os.pipe()
        err_r, err_w = os.pipe()
        null = os.open("/dev/null", os.O_RDONLY)
        others = _children()
        process.become_subreaper()
        helper = os.fork()
        if helper == 0:
            try:
                made = work((null, out_w, err_w))
                said: list = [made.pid, made.warnings]
                passed = [made.terminal] if made.terminal >= 0 else []
            except LaunchError as error:
                said, passed = [error.stage, error.errno, str(error), error.status, error.warnings], []
            except BaseException as error:
                said, passed = ["bug", 0, f"{type(error).__name__}: {error}", 0, []], []
            socket.send_fds(theirs, [dumps(said).encode()], passed)
            os._exit(0)
        theirs.close()
        for fd in (out_w, err_w, null):
            os.close(fd)
        message, passed, _, _ = socket.recv_fds(ours, 65536, 1)
        ours.close()
        os.waitpid(helper, 0)
        process.prctl(process.PR_SET_CHILD_SUBREAPER, 0)
        said = loads(message)
        if len(said) != 2:
            os.close(out_r)
            os.close(err_r)
            for pid in _children() - others:  # the first process of a launch that failed is this process's child
                os.waitpid(pid, process.WALL)
            stage, number, text, status, warnings = said
            failed = LaunchError(stage, number, text, status)
            failed.warnings = warnings
            raise failed
        started = Started(said[0], passed[0] if passed else -1, out_r, err_r)
        started.warnings = said[1]
        self.running.append(started)
        return started

    def start(self, *words: str) -> Started:
        if words:
            self.process["args"] = list(words)
        if self.filtered:
            from cowshed_runtime import seccomp

            self.linux["seccomp"] = seccomp.default_profile(self.process["capabilities"]["bounding"])
        root = -1 if self.by_path else mount.clone(str(self.rootfs))
        manner = launcher.Manner(bundle=str(self.folder))

        def launch(stdio):
            return launcher.launch(
                self.config, root, stdio, group=self.group, cache=str(self.cache), manner=manner
            )  # fmt: skip

        try:
            return self._fork(launch)
        finally:
            if root >= 0:
                os.close(root)

    @contextlib.contextmanager
    def beside(self, *words: str):
        """A first container that runs while others are started: it ends after them, for a pid namespace of its own
        does not before."""
        first = self.start(*(words or ("/bin/sleep", "60")))
        self.group, group = Group(self.group.name + "b"), self.group
        try:
            yield first
        finally:
            self.group.remove()
            for started in reversed(self.running):
                if started is first:
                    group.kill()
                started.wait()
            group.remove()

    def in_user_namespace(self, first: int = 100_000, count: int = 65_536) -> None:
        """Give the container a user namespace, and its root file system the owner that this makes root."""
        self.linux["namespaces"].append({"type": "user"})
        for key in ("uidMappings", "gidMappings"):
            self.linux[key] = [{"containerID": 0, "hostID": first, "size": count}]
        for path in (self.rootfs, *self.rootfs.rglob("*")):
            os.lchown(path, first, first)

    def run(self, *words: str) -> Done:
        started = self.start(*words)
        out, err = started.read()
        self.group.remove()
        return Done(started.wait(), out, err)

    def sh(self, script: str) -> Done:
        return self.run("/bin/sh", "-c", script)

    def exec_start(self, first: Started, *words: str, **changes) -> Started:
        work = {**self.process, "args": list(words), "terminal": False, **changes}
        return self._fork(
            lambda stdio: launcher.join(work, self.linux, first.pid, stdio, group=self.group, cache=str(self.cache))
        )

    def exec(self, first: Started, *words: str, **changes) -> Done:
        started = self.exec_start(first, *words, **changes)
        out, err = started.read()
        return Done(started.wait(), out, err)

    def refused(self, *words: str, gone: bool = True) -> LaunchError:
        """Start and insist that it fails, and leaves no cgroup."""
        with pytest.raises(LaunchError) as caught:
            self.start(*(words or ("/bin/true",)))
        assert caught.value.stage != "bug", caught.value
        assert not gone or not [path for path in self.group.directories() if os.path.exists(path)]
        return caught.value

    def close(self) -> None:
        self.group.remove()
        for started in self.running:
            started.wait()
            for fd in (started.out, started.err, started.terminal):
                if fd >= 0:
                    os.close(fd)


@pytest.fixture
def box(tmp_path):
    if os.geteuid():
        pytest.skip("needs root: it makes namespaces and mounts")
    if not os.path.exists(BUSYBOX):
        pytest.skip(f"needs {BUSYBOX} (Debian: busybox-static)")
    made = Box(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def caller(box):
    """The command, and box's bundle."""
    made = Caller(box.folder, box.config)
    try:
        yield made
    finally:
        made.close()
