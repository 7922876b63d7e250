"""The same containers on every runtime: ours, its command, runc, crun, gVisor's runsc, containerd's shim for runc.

What differs between them is data: `TRAITS`. A runtime that this host does not have is skipped, with the reason.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cowshed_testing import leftovers

from cowshed_runtime.cgroup import layout

TOP = Path(__file__).parents[2]
UNPACKED = TOP / "build/runtimes"  # Debian packages, where tools/unpack puts them
ROOTS = "/sys/fs/cgroup"
# name: (program, options)
PROGRAMS = {
    "runc": ("runc", []),
    "crun": ("crun", []),
    "runsc": (str(UNPACKED / "usr/bin/runsc"), ["--ignore-cgroups", "--network=none", "--platform=ptrace"]),
    "shim": (str(UNPACKED / "usr/bin/containerd-shim-runc-v2"), []),
    "command": (str(TOP / ".venv/bin/cowshed-runtime"), []),
}
# What a runtime does not do as the others, for a reason of its own
TRAITS = {"runsc": {"own kernel"}}


def until(what, seconds=30):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A configuration that names them all."""
    path = tmp_path_factory.mktemp("runtimes") / "config.toml"
    text = ""
    for name, (program, options) in PROGRAMS.items():
        found = shutil.which(program)
        if found:
            text += f"[runtimes.{name}]\npath = {json.dumps(found)}\noptions = {json.dumps(options)}\n"
    path.write_text(text)
    return path


@pytest.fixture(params=["native", *PROGRAMS])
def on(request, shop, tables):
    """The store, with a runtime; what a test leaves is removed, and nothing of it is left then."""
    name = request.param
    if name != "native" and f"[runtimes.{name}]" not in tables.read_text():
        pytest.skip(f"{PROGRAMS[name][0]} is not here: make test brings it")
    it = On(shop, name, tables)
    yield it
    ids = set(shop.ok("ps", "-aq", "--no-trunc").split())
    for ident in ids:
        shop("rm", "-f", "-v", ident)
    until(lambda: shop.children() == [])
    left = leftovers.files(str(shop.root), shop.run_directory())
    assert [path for path in left if "/trash/" not in path] == []  # which the next removal takes away
    assert leftovers.groups(ids) == []
    shop.assert_clean()


class On:
    def __init__(self, shop, name, tables) -> None:
        self.shop, self.name, self.image = shop, name, shop.image
        self.env = {"COWSHED_CONFIG": str(tables), "COWSHED_RUNTIME": name}

    def __call__(self, *words, feed=None):
        return self.shop(*words, feed=feed, env=self.env)

    def ok(self, *words, feed=None, status=0):
        return self.shop.ok(*words, feed=feed, env=self.env, status=status)

    def run(self, *words, feed=None, options=(), status=0):
        return self.ok("run", "--rm", *options, self.image, *words, feed=feed, status=status)

    def up(self, *words, options=()):
        """A container called box that runs in the background; its id."""
        return self.ok("run", "-d", "--name", "box", *options, self.image, *words).strip()

    def inspected(self):
        return json.loads(self.shop.ok("inspect", "box"))[0]

    def has(self, trait):
        return trait in TRAITS.get(self.name, ())


def test_streams_and_status(on):
    done = on("run", "--rm", on.image, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    assert on.run("cat", feed=b"fed\n" * 50000, options=["-i"]) == "fed\n" * 50000
    assert on.run("sh", "-c", 'sh -c "kill -9 \\$\\$"; exit $?', status=137) == ""


def test_what_cannot_be_executed(on):
    for words, status in ((["nothing"], 127), (["/bin"], 126)):
        done = on("run", "--rm", on.image, *words)
        (line,) = done.stderr.decode().splitlines()
        assert (done.returncode, line.startswith("cowshed: the container cannot be started: ")) == (status, True), line
        assert words[0] in line or on.name == "crun", line
    assert on.shop.names() == []


def test_identity_and_places(on):
    options = ["-u", "7:8", "-w", "/tmp", "-e", "A=b c", "-h", "inside", "--cap-drop", "ALL"]
    said = on.run("sh", "-c", 'id -u; id -g; pwd; echo "$A"; hostname; grep CapEff /proc/self/status', options=options)
    assert said.split("\n")[:5] == ["7", "8", "/tmp", "b c", "inside"]
    assert said.split()[-1] == "0" * 16
    assert on.run("cat", "/proc/1/comm") == "cat\n", "a process 1 of its own"


def test_mounts(on, tmp_path):
    (tmp_path / "file").write_text("of the host\n")
    options = [
        *("--read-only", "--tmpfs", "/scratch", "-v", f"{tmp_path}:/host:ro", "-v", "kept:/kept"),
        *("--shm-size", "8m"),
    ]
    script = (
        "cat /host/file; echo x > /scratch/x && echo scratch; echo y > /kept/y && echo kept;"
        "echo z > /host/z || echo read-only; echo z > /z || echo sealed"
    )
    assert on.run("sh", "-c", script, options=options).split("\n") == [
        *("of the host", "scratch", "kept", "read-only", "sealed", ""),
    ]
    assert on.run("cat", "/kept/y", options=["-v", "kept:/kept"]) == "y\n"
    on.ok("volume", "rm", "kept")


def test_pausing(on):
    on.up("sh", "-c", "while :; do echo x; sleep 0.02; done")
    until(lambda: on.ok("logs", "box"))
    on.ok("pause", "box")
    (listed,) = on.ok("ps", "--format", "{{.State}} {{.Status}}").splitlines()
    assert listed.startswith("paused Up")
    assert listed.endswith("(Paused)")
    state = on.inspected()["State"]
    assert (state["Status"], state["Running"], state["Paused"]) == ("paused", True, True)
    assert [on.ok("ps", "-q", "--filter", f"status={word}") != "" for word in ("paused", "running")] == [True, False]
    before = on.ok("logs", "box")
    assert "is paused" in on("exec", "box", "true").stderr.decode()
    assert "paused already" in on("pause", "box").stderr.decode()
    if on.name == "native":
        on.ok("commit", "box", "of-paused")  # which would pause it itself
        on.ok("rmi", "of-paused")
    assert on.ok("logs", "box") == before
    on.ok("unpause", "box")
    until(lambda: len(on.ok("logs", "box")) > len(before))
    assert "is not paused" in on("unpause", "box").stderr.decode()
    on.ok("pause", "box")
    on.ok("stop", "-t", "0", "box")
    assert on.inspected()["State"]["Status"] == "exited"
    assert "is not running" in on("pause", "box").stderr.decode()
    on.ok("start", "box")
    assert on.inspected()["State"]["Paused"] is False
    on.ok("pause", "box")
    on.ok("rm", "-f", "box")


def test_what_it_uses_and_what_runs_in_it(on):
    on.up("sleep", "1000", options=["-m", "64m"])
    (line,) = on.ok("stats", "--no-stream", "--format", "{{.Name}}|{{.PIDs}}|{{.MemUsage}}|{{.CPUPerc}}").splitlines()
    name, pids, memory, processor = line.split("|")
    assert name == "box"
    assert int(pids) >= 1 or not layout.host.find("pids")
    assert memory.endswith("/ 64MiB") or not layout.host.find("memory")
    assert processor.endswith("%")
    heading = on.ok("stats", "--no-stream", "box").splitlines()[0].split("   ")
    assert [word.strip() for word in heading if word.strip()][:3] == ["CONTAINER ID", "NAME", "CPU %"]
    listed = on.ok("top", "box").splitlines()
    assert listed[0].split()[:2] == ["UID", "PID"]
    assert "sleep 1000" in on.ok("top", "box", "-eo", "pid,args") or on.has("own kernel")
    assert "no column PID" in on("top", "box", "-eo", "args").stderr.decode()
    on.ok("kill", "box")
    until(lambda: on.inspected()["State"]["Status"] == "exited")
    assert "is not running" in on("top", "box").stderr.decode()


def test_limits_hold_and_memory_that_runs_out_is_told(on):
    ident = on.up("sleep", "1000", options=["-m", "64m", "--pids-limit", "300", "--cpus", "0.5"])
    found = {}
    for file in ("memory.limit_in_bytes", "memory.max", "pids.max", "cpu.cfs_quota_us", "cpu.max"):
        for top in (Path(ROOTS), *Path(ROOTS).iterdir()):
            if (path := top / "cowshed" / ident / file).exists():
                found[file] = path.read_text().split()[0]
    assert {"67108864", "300", "50000"} == set(found.values()), found
    on.ok("rm", "-f", "box")
    on.ok(
        "run",
        "--name",
        "box",
        "-m",
        "40m",
        on.image,
        "sh",
        "-c",
        "x=$(head -c 120m /dev/zero | tr '\\0' x)",
        status=137,
    )
    assert on.inspected()["State"]["OOMKilled"] is True


def test_a_terminal(on, tmp_path):
    script = f"{tmp_path}/script"
    # An executed process may run before its terminal has its size, if its runtime does not heed consoleSize.
    inside = """'until [ "$(stty size)" = "31 91" ]; do :; done; [ -t 0 ] && stty size && exit 6'"""
    for words in (
        ["run", "--rm", "-t", on.image],
        ["exec", "-t", "box"],
    ):
        if words[0] == "exec":
            on.up("sleep", "1000")
        command = " ".join(on.shop.words(*words, "sh", "-c", inside))
        done = subprocess.run(
            ["script", "-qec", f"stty rows 31 cols 91; exec {command}", script], stdin=subprocess.DEVNULL,
            capture_output=True, env={**on.shop.env, **on.env, "TERM": "xterm"}, timeout=60,
        )  # fmt: skip
        assert (done.returncode, b"31 91" in done.stdout) == (6, True), (words, done)


def test_exec(on):
    on.up("sh", "-c", "sleep 1000", options=["-e", "FROM=run"])
    assert on.ok("exec", "box", "sh", "-c", 'echo "$FROM"; cat /srv/three; exit 4', status=4) == "run\nthree\n"
    assert on.ok("exec", "-i", "-u", "5", "box", "sh", "-c", "cat; id -u", feed=b"given\n") == "given\n5\n"
    assert on.ok("exec", "box", "nothing", status=127) == ""
    on.ok("exec", "-d", "box", "sh", "-c", "echo later > /srv/later")
    assert until(lambda: on("exec", "box", "cat", "/srv/later").stdout) == b"later\n"


def test_life_logs_stop_start_kill_wait(on):
    script = "trap 'echo asked; exit 5' TERM; echo up; while :; do sleep 0.05; done"
    on.up("sh", "-c", script)
    until(lambda: on.ok("logs", "box") == "up\n")
    waiting = on.shop.spawn("wait", "box", stdout=subprocess.PIPE)
    on.ok("stop", "box")
    assert waiting.communicate(timeout=60)[0] == b"5\n"
    assert on.ok("logs", "box") == "up\nasked\n"
    on.ok("start", "box")
    until(lambda: on.ok("logs", "box") == "up\nasked\nup\n")
    on.ok("restart", "-t", "30", "box")
    until(lambda: on.ok("logs", "box") == "up\nasked\nup\nasked\nup\n")
    on.ok("kill", "-s", "TERM", "box")
    assert on.ok("wait", "box") == "5\n"
    on.ok("start", "box")
    on.ok("kill", "box")
    assert on.ok("wait", "box") == "137\n"
    assert on.inspected()["HostConfig"]["Runtime"] == on.name


def test_a_restart_policy_and_the_signals_of_an_attached_command(on):
    on.up("sh", "-c", "echo again; exit 9", options=["--restart", "on-failure:2"])
    until(lambda: on.ok("logs", "box") == "again\n" * 3 and on.inspected()["State"]["Status"] == "exited")
    assert (on.inspected()["RestartCount"], on.inspected()["State"]["ExitCode"]) == (2, 9)
    on.ok("rm", "box")
    script = "trap 'echo hup; exit 8' HUP; echo ready; while :; do sleep 0.05; done"
    command = on.shop.spawn("run", "--rm", on.image, "sh", "-c", script, env=on.env, stdout=subprocess.PIPE)
    assert command.stdout.readline() == b"ready\n"
    command.send_signal(signal.SIGHUP)
    assert (command.communicate(timeout=60)[0], command.returncode) == (b"hup\n", 8)


def test_attach(on):
    on.up("sh", "-c", "read line; echo got $line; exit 2", options=["-i"])
    command = on.shop.spawn("attach", "box", env=on.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert command.communicate(b"words\n", timeout=60)[0] == b"got words\n"
    assert command.returncode == 2


def test_files_of_a_container_that_runs(on, tmp_path):
    on.up("sh", "-c", "echo made > /srv/made; echo inside > /kept/inside; sleep 1000", options=["-v", "kept:/kept"])
    until(lambda: on("exec", "box", "cat", "/kept/inside").stdout == b"inside\n")
    for path, text in (("/srv/made", "made\n"), ("/kept/inside", "inside\n")):
        on.ok("cp", f"box:{path}", str(tmp_path / "out"))
        assert (tmp_path / "out").read_text() == text
    (tmp_path / "in").write_text("from the host\n")
    on.ok("cp", str(tmp_path / "in"), "box:/srv/in")
    assert on.ok("exec", "box", "cat", "/srv/in") == "from the host\n"
    assert {"A /srv/made", "A /srv/in"} <= set(on.ok("diff", "box").splitlines())
    on.ok("commit", "box", "snapshot")
    assert on.ok("run", "--rm", "snapshot", "cat", "/srv/made") == "made\n"
    on.ok("rm", "-f", "box")
    on.ok("rmi", "snapshot")
    on.ok("volume", "rm", "kept")


def test_processes_beside_a_container_are_killed(on):
    """Its monitor, and then all that a runtime has started beside it."""
    ident = on.up("sleep", "1000")
    place = Path(on.shop.run_directory()) / "c" / ident[:32]
    first, _, monitor = map(int, (place / "pid").read_text().split())
    os.kill(monitor, signal.SIGKILL)
    until(lambda: not _lives(monitor))
    assert on.ok("ps", "--format", "{{.Names}} {{.State}}") == "box running\n"
    on.ok("stop", "-t", "0", "box")
    until(lambda: not _lives(first))
    assert on.inspected()["State"]["ExitCode"] == 137
    on.ok("start", "box")
    first, _, monitor = map(int, (place / "pid").read_text().split())
    for pid in _below(monitor):
        os.kill(pid, signal.SIGKILL)
    assert on.ok("wait", "box") == "137\n"
    assert not (place / "runtime").exists()
    on.ok("start", "box")
    first, _, monitor = map(int, (place / "pid").read_text().split())
    for pid in (monitor, *_below(monitor)):
        if pid != first:
            os.kill(pid, signal.SIGKILL)
    until(lambda: not _lives(monitor))
    on.ok("rm", "-f", "box")
    until(lambda: not _lives(first))


def test_an_init(on):
    if on.name != "native" and not any(shutil.which(name) for name in ("catatonit", "tini-static", "docker-init")):
        pytest.skip("no static init is installed: make test brings catatonit")
    script = "(sleep 0.1 &) ; sleep 0.5; ps -o stat | grep -c Z; exit 3"
    assert on.run("sh", "-c", script, options=["--init"], status=3) == "0\n", "an orphan was not reaped"


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _below(pid):
    """The pids of all descendants."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            found += [int(path.parent.name), *_below(int(path.parent.name))]
    return found
