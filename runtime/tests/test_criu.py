"""Checkpoint and restore, by the criu that `tools/unpack` has put into build/criu, or that is installed."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cowshed_testing.callers import Listening

from cowshed_runtime.cgroup import layout

TREE = Path(__file__).parents[2] / "build/criu"
# Counts in its memory and in a file of its tmpfs, and says both.
COUNT = "i=0; while :; do i=$((i+1)); echo $i > /dev/shm/count; echo $i; sleep 0.05; done"


@pytest.fixture(scope="session")
def path(tmp_path_factory):
    """PATH with a criu that works."""
    folder = tmp_path_factory.mktemp("criu")
    if (TREE / "usr/sbin/criu").exists():
        libraries = next(TREE.glob("usr/lib/*-linux-gnu*"))
        loader = next(libraries.glob("ld-linux*.so.*"))
        script = f'#!/bin/sh\nexec {loader} --library-path {libraries} {TREE}/usr/sbin/criu "$@"\n'
        (folder / "criu").write_text(script)
        (folder / "criu").chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    found = shutil.which("criu", path=path)
    if not found:
        pytest.skip("needs criu: tools/unpack --release sid build/criu criu")
    done = subprocess.run([found, "check"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"criu does not work on this kernel: {done.stderr.splitlines()[-1:]}")
    return path


class Piped:
    """A container whose streams are pipes, as conmon and containerd's shim have them."""

    def __init__(self, caller, path):
        self.caller, self.images = caller, caller.bundle / "images"
        self.environment = {**os.environ, "PATH": path}
        self.running = []

    def start(self, *words, stdin=subprocess.PIPE):
        running = subprocess.Popen(
            self.caller.words(*words), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=self.environment, cwd=self.caller.bundle, text=True,
        )  # fmt: skip
        self.running.append(running)
        return running

    def run(self, *args, **options):
        """The name of a container in the foreground, when it has said something."""
        self.caller.process["args"] = list(args)
        self.caller.write()
        name = self.caller.name()
        self.first = self.start("run", "--bundle", self.caller.bundle, name, **options).stdout.readline()
        return name

    def checkpoint(self, name, *options):
        return self.caller.ok("checkpoint", "--image-path", self.images, *options, name, env=self.environment)

    def restore(self, *options):
        name = self.caller.name()
        return name, self.start("restore", "--image-path", self.images, "--bundle", self.caller.bundle, *options, name)

    def close(self):
        for running in self.running:
            if running.poll() is None:
                running.kill()
            running.wait()
            for stream in filter(None, (running.stdin, running.stdout, running.stderr)):
                stream.close()


@pytest.fixture
def piped(caller, path):
    made = Piped(caller, path)
    try:
        yield made
    finally:
        made.close()


def memberships(pid):
    with open(f"/proc/{pid}/cgroup") as file:
        return {line.rstrip("\n").split(":", 2)[2] for line in file}


def test_a_container_goes_on_where_it_was(piped, caller):
    data = caller.bundle / "data"
    data.mkdir()
    (caller.bundle / "rootfs/link").symlink_to("/mnt/far")
    caller.config["mounts"].append({"destination": "/link/data", "source": "data", "type": "bind", "options": ["bind"]})
    (caller.bundle / "rootfs/mnt/far").mkdir(parents=True)
    caller.config["linux"]["resources"] = {"pids": {"limit": 40}}
    before = piped.run("sh", "-c", COUNT)
    process = piped.running[-1]
    counted = [process.stdout.readline() for _ in range(5)]
    piped.checkpoint(before)
    process.wait()
    last = int([*counted, *process.stdout][-1])
    assert caller.left() == []
    name, restored = piped.restore()
    assert int(restored.stdout.readline()) == last + 1
    state = caller.wait(name, "running")
    group = f"/cowshed/{name}"
    for hierarchy in layout.host.hierarchies():
        with open(f"{hierarchy}{group}/cgroup.procs") as file:
            assert state["pid"] in map(int, file)
    assert int(caller.ok("exec", name, "cat", "/dev/shm/count")) > last
    (data / "file").write_text("seen")
    assert caller.ok("exec", name, "cat", "/mnt/far/data/file") == "seen"
    assert "UP" in caller.ok("exec", name, "/bin/busybox", "ifconfig", "lo")
    stats = json.loads(caller.ok("events", "--stats", name))
    assert stats["data"]["pids"]["limit"] == 40
    caller.ok("kill", name, "KILL")
    assert restored.wait(30) == 137
    assert caller.left() == []


def test_one_that_is_left_running_is_as_it_was_and_can_be_restored_beside(piped):
    caller = piped.caller
    before = piped.run("sh", "-c", COUNT, stdin=subprocess.DEVNULL)  # the host's null device, as podman gives it
    running = piped.running[-1]
    piped.checkpoint(before, "--leave-running", "--work-path", "work")
    assert "finished successfully" in (caller.bundle / "work/dump.log").read_text()
    assert caller.state(before)["status"] == "running"
    assert caller.ok("exec", before, "echo", "here") == "here\n"
    assert running.stdout.readline()
    name, _ = piped.restore("--detach", "--pid-file", "pid")
    assert piped.running[-1].wait(30) == 0
    state = caller.state(name)
    assert (state["status"], int((caller.bundle / "pid").read_text())) == ("running", state["pid"])
    assert piped.running[-1].stdout.readline()
    caller.ok("pause", name)
    caller.ok("resume", name)
    assert len(caller.left()) == 2
    # Its streams are pipes of a caller that is gone: what it was restored to is what it is dumped as again.
    shutil.rmtree(piped.images)
    piped.checkpoint(name)
    assert caller.left() == [before]


def test_a_terminal(piped):
    caller = piped.caller
    caller.process["terminal"] = True
    listening = Listening(caller.bundle / "first")
    name = caller.create("sh", "-c", "read a; echo got $a; sleep 100", options=("--console-socket", listening.path))
    master = listening.receive()
    caller.ok("start", name)
    piped.checkpoint(name)
    os.close(master)
    listening = Listening(caller.bundle / "second")
    name, restored = piped.restore("--detach", "--console-socket", listening.path)
    master = listening.receive()
    assert restored.wait(30) == 0
    os.write(master, b"word\n")
    said = b""
    while b"got word" not in said:
        said += os.read(master, 1000)
    os.close(master)
    assert caller.state(name)["status"] == "running"


def test_hooks_run_when_its_namespaces_are_there(piped):
    caller, log = piped.caller, piped.caller.bundle / "hooks.log"
    script = f"read s; echo $(readlink /proc/self/ns/net) >> {log}; echo $s >> {log}"
    name = piped.run("sh", "-c", COUNT)
    piped.checkpoint(name)
    hook = {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}
    caller.config["hooks"] = {"createRuntime": [hook]}
    caller.write()
    name, _ = piped.restore("--detach")
    assert piped.running[-1].wait(30) == 0, piped.running[-1].stderr.read()
    where, told = log.read_text().splitlines()
    told = json.loads(told)
    assert where == os.readlink("/proc/self/ns/net")
    assert (told["status"], told["pid"], told["id"]) == ("creating", caller.state(name)["pid"], name)


def test_a_restore_that_fails_leaves_nothing(piped):
    caller = piped.caller
    name = piped.run("sh", "-c", COUNT)
    piped.checkpoint(name)
    caller.config["hooks"] = {"createRuntime": [{"path": "/bin/false"}]}
    caller.write()
    name, refused = piped.restore("--detach")
    assert refused.wait(30) == 1
    assert "createRuntime" in refused.stderr.read()
    caller.config["hooks"] = {}
    caller.write()
    (piped.images / "core-1.img").write_bytes(b"nothing")
    name, refused = piped.restore("--detach")
    assert refused.wait(30) == 1
    said = refused.stderr.read()
    assert "criu: " in said
    assert "restore.log" in said
    assert caller.left() == []
    assert not [path for path in layout.host.hierarchies() if os.path.exists(f"{path}/cowshed/{name}")]


def test_what_cannot_be_dumped_goes_on(piped):
    """A file of the host is open that is of no mount of the container."""
    caller = piped.caller
    name = caller.create("sleep", "1000")  # its output is such a file
    caller.ok("start", name)
    said = caller.refused("checkpoint", "--image-path", piped.images, name, env=piped.environment)
    assert "dump.log" in said
    assert caller.state(name)["status"] == "running"


def test_states_that_cannot_be_dumped(piped):
    caller = piped.caller
    name = caller.create("sleep", "1000")
    assert "created state" in caller.refused("checkpoint", "--image-path", piped.images, name)
    assert "manage-cgroups-mode" in caller.refused("checkpoint", "--manage-cgroups-mode", "some", name)
    assert "pid" in caller.refused("checkpoint", "--empty-ns", "pid", name)
    caller.ok("start", name)
    said = caller.refused("checkpoint", "--image-path", piped.images, name, env={"PATH": "/nowhere"})
    assert "no criu in PATH" in said
    said = caller.refused(
        "restore", "--bundle", caller.bundle, "--image-path", caller.bundle, "x", env=piped.environment
    )
    assert "descriptors.json" in said
