"""Podman, docker and containerd run containers with cowshed-runtime as their runtime.

tools/peers unpacks a Debian release's; what is not unpacked is skipped. All that is tested here, with the newer ones:

    tools/peers bookworm && tools/peers sid && unshare -m .venv/bin/pytest tests/e2e/test_engines_on_our_runtime.py
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import tarfile
import time
from functools import partial

import pytest
from cowshed_testing import images, peers

IMAGE = "localhost/test:1"
WAITS = "trap 'echo ends; exit 3' TERM; echo begins; touch /tmp/ok; while :; do sleep 0.1; done"
RELEASES = ("bookworm", "sid")
EATS = ("tail", "/dev/zero")


def archive():
    """The image as `docker save` would write it, which all three can load."""
    layer = images.busybox_layer()
    config = json.dumps({
        "architecture": images.ARCHITECTURE, "os": "linux",
        "config": {"Cmd": ["sh"], "Env": ["PATH=/bin:/usr/bin"]}, "history": [],
        "rootfs": {"type": "layers", "diff_ids": [images.digest(layer)]},
    }).encode()  # fmt: skip
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": name, "RepoTags": [IMAGE], "Layers": ["layer/layer.tar"]}]).encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path, data in ((name, config), ("layer/layer.tar", layer), ("manifest.json", manifest)):
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


class Engines:
    """The engines of each release, started when a test first wants them."""

    def __init__(self, folder):
        self.folder, self.made, self.calls = folder, {}, {}

    def release(self, name):
        tree = peers.available(name)
        if tree is None:
            pytest.skip(f"podman, docker and containerd of {name} are not there: tools/peers {name}")
        if name not in self.made:
            self.made[name] = peers.Peers(tree, self.folder / name)
            self.made[name].put("/peers/image.tar", archive())
        return self.made[name]

    def call(self, engine, name):
        """A function that calls podman or docker, which has the image."""
        made = self.release(name)
        if (engine, name) not in self.calls:
            if engine == "docker":
                made.start_docker()
            program = made.docker if engine == "docker" else partial(made.run, "podman")
            self.calls[engine, name] = program
            program("load", "-i", "/peers/image.tar")
        return self.calls[engine, name]

    def close(self):
        for (engine, _), call in self.calls.items():
            left = call("ps", "-aq").split()
            if left:
                call("rm", "-f", *(["--time", "0"] if engine == "podman" else []), *left)
        for made in self.made.values():
            made.close()


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    if os.geteuid():
        pytest.skip("needs root: it mounts, and starts daemons")
    made = Engines(tmp_path_factory.mktemp("peers"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(params=[f"{engine}-{release}" for release in RELEASES for engine in ("podman", "docker")])
def engine(request, engines):
    program, release = request.param.split("-")
    inner = engines.call(program, release)

    def call(*words, **options):
        first, *rest = words
        return inner(first, *(["--network", "none"] if first == "run" else []), *rest, **options)

    call.program, call.release = program, (program, release)
    return call


@pytest.fixture
def running(engine):
    name = f"r{time.monotonic_ns()}"
    engine("run", "-d", "--name", name, IMAGE, "sh", "-c", WAITS)
    yield name
    engine("rm", "-f", name)


def until(ask, wanted):
    end = time.monotonic() + 60
    while (said := ask().strip()) != wanted:
        assert time.monotonic() < end, said
        time.sleep(0.1)


def test_run(engine):
    assert engine("run", "--rm", IMAGE, "echo", "hello") == "hello\n"
    engine("run", "--rm", IMAGE, "sh", "-c", "exit 7", status=7)
    assert "/dev/pts/0" in engine("run", "--rm", "-t", IMAGE, "tty")


def test_run_as_somebody_with_little(engine):
    words = ("-u", "33:33", "--cap-drop", "ALL", "--read-only", "--tmpfs", "/tmp", "-w", "/tmp", "--hostname", "other")
    script = "id -u; pwd; hostname; touch /x 2>/dev/null || echo refused; grep -E 'CapBnd|Seccomp:' /proc/self/status"
    said = engine("run", "--rm", *words, IMAGE, "sh", "-c", script).split()
    assert said == ["33", "/tmp", "other", "refused", "CapBnd:", "0" * 16, "Seccomp:", "2"]


def test_run_with_all_rights(engine):
    script = "mount -t tmpfs none /var/tmp && test -c /dev/ptmx && echo mounted"
    assert engine("run", "--rm", "--privileged", IMAGE, "sh", "-c", script) == "mounted\n"


@pytest.mark.parametrize(("program", "status"), [("nothing", 127), ("/bin/nothing", 127), ("/etc/passwd", 126)])
def test_run_of_what_cannot_be_executed(engine, program, status):
    engine("run", "--rm", IMAGE, program, status=status)


def test_exec(engine, running):
    assert engine("exec", running, "echo", "hello") == "hello\n"
    assert "/dev/pts/0" in engine("exec", "-t", running, "tty")
    assert (
        engine("exec", "-u", "33", "-w", "/tmp", "-e", "A=b", running, "sh", "-c", "id -u; pwd; echo $A")
        == "33\n/tmp\nb\n"
    )
    engine("exec", running, "sh", "-c", "exit 9", status=9)
    engine("exec", "-d", running, "touch", "/tmp/detached")
    until(lambda: engine("exec", running, "sh", "-c", "test -e /tmp/detached && echo there; :"), "there")
    engine("exec", running, "nothing", status=126 if engine.release == ("docker", "bookworm") else 127)


def test_statistics_limits_and_processes(engine, running):
    engine("update", "--memory", "64m", "--memory-swap", "64m", running)
    script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; :"
    assert engine("exec", running, "sh", "-c", script) == f"{64 << 20}\n"
    assert "B / " in engine("stats", "--no-stream", "--format", "{{.MemUsage}}", running)
    assert "sh -c" in engine("top", running)


def test_pause_logs_and_stop(engine, running):
    def state():
        return engine("inspect", "--format", "{{.State.Status}}", running)

    engine("pause", running)
    assert state() == "paused\n"
    engine("unpause", running)
    assert state() == "running\n"
    engine("stop", running)
    assert engine("logs", running).split() == ["begins", "ends"]
    assert engine("inspect", "--format", "{{.State.ExitCode}}", running) == "3\n"
    engine("start", running)
    engine("kill", running)
    until(lambda: engine("inspect", "--format", "{{.State.ExitCode}}", running), "137")


def test_health(engine):
    words = ("--health-cmd", "test -e /tmp/ok", "--health-interval", "300ms", "--health-retries", "1")
    name = f"h{time.monotonic_ns()}"
    engine("run", "-d", "--name", name, *words, IMAGE, "sh", "-c", WAITS)
    if engine.program == "podman":  # it has no daemon that asks; systemd would
        engine("healthcheck", "run", name)
    until(lambda: engine("inspect", "--format", "{{.State.Health.Status}}", name), "healthy")
    engine("rm", "-f", name)


def test_want_of_memory_is_reported(engine):
    name = f"o{time.monotonic_ns()}"
    engine("run", "--name", name, "--memory", "16m", "--memory-swap", "16m", IMAGE, *EATS, status=137)
    if engine.program == "docker":  # podman tells nobody on version 1 of control groups, with runc neither
        assert engine("inspect", "--format", "{{.State.OOMKilled}}", name) == "true\n"
    engine("rm", "-f", name)


@pytest.mark.parametrize("release", RELEASES)
def test_rootless_podman(engines, release):
    """It calls the runtime as root of a user namespace of its user, who has subordinate ids."""
    engines = engines.release(release)
    if not shutil.which("newuidmap"):
        pytest.skip("needs newuidmap (Debian: uidmap)")
    podman = partial(engines.rootless, "podman")
    try:
        podman("load", "-i", "/peers/image.tar")
        assert podman("run", "--rm", "-u", "33", IMAGE, "id", "-u") == "33\n"
        podman("run", "-d", "--name", "one", IMAGE, "sh", "-c", WAITS)
        said = podman("exec", "one", "cat", "/proc/self/uid_map").split()
        assert said == ["0", "3917", "1", "1", "700000", "65536"]
        assert "/dev/pts/0" in podman("exec", "-t", "one", "tty")
        assert "sh -c" in podman("top", "one")
        podman("stop", "one")
        assert podman("logs", "one").split() == ["begins", "ends"]
        assert podman("inspect", "--format", "{{.State.ExitCode}}", "one") == "3\n"
        podman("rm", "one")
        assert set(os.listdir(f"{engines.root}/home/plain/run/cowshed-runtime")) == {".cache"}
    finally:
        podman("system", "migrate")  # ends the process that keeps its namespaces


@pytest.mark.parametrize("release", RELEASES)
def test_containerd(engines, release):
    engines = engines.release(release)
    engines.start_containerd()
    # The newer ones' daemon unpacks for the snapshotters of its configuration only.
    local = ["--local"] if "--local" in engines.ctr("images", "import", "--help") else []
    engines.ctr("images", "import", *local, "--snapshotter", "native", "/peers/image.tar")
    words = ("--snapshotter", "native", "--runtime", "io.containerd.runc.v2", "--runc-binary", str(engines.runtime))
    assert engines.ctr("run", "--rm", *words, IMAGE, "first", "echo", "hello") == "hello\n"
    engines.ctr("run", "-d", *words, IMAGE, "second", "sleep", "1000")
    assert engines.ctr("tasks", "exec", "--exec-id", "e1", "second", "id", "-u") == "0\n"
    assert "pids.current" in engines.ctr("tasks", "metrics", "second")
    for verb, status in (("pause", "PAUSED"), ("resume", "RUNNING")):
        engines.ctr("tasks", verb, "second")
        assert status in engines.ctr("tasks", "ls")
    engines.ctr("tasks", "kill", "-s", "KILL", "second")
    until(lambda: engines.ctr("tasks", "ls").split()[-1], "STOPPED")
    engines.ctr("tasks", "rm", "second", status=None)  # its status is that of the container
    engines.ctr("containers", "rm", "second")
    assert engines.ctr("tasks", "ls").split() == ["TASK", "PID", "STATUS"]
    with contextlib.suppress(FileNotFoundError):
        assert set(os.listdir(f"{engines.root}/run/containerd/runc/default")) <= {".cache"}
