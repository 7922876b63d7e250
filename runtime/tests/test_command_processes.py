"""cowshed-runtime: exec, terminals, descriptors, sockets of callers and of services, limits, listings."""

import array
import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import termios

import pytest
from cowshed_testing.callers import Listening

from cowshed_linux import process


@pytest.fixture
def running(caller):
    """The name of a container that runs, and does nothing."""
    name = caller.create("sh", "-c", "while :; do sleep 1000; done")
    caller.ok("start", name)
    return name


def read_to(fd, mark):
    """What a terminal says until the mark."""
    data = b""
    while mark not in data:
        assert select.select([fd], [], [], 30)[0], data
        data += os.read(fd, 4096)
    return data


def test_exec_has_the_streams_and_gives_the_status(caller, running):
    done = caller.call("exec", running, "sh", "-c", "echo out; echo err >&2; exit 9")
    assert (done.returncode, done.stdout, done.stderr) == (9, "out\n", "err\n")
    assert caller.call("exec", running, "sh", "-c", "kill -KILL $$").returncode == 137


def test_exec_changes_what_its_options_say(caller, running):
    options = ("--cwd", "/tmp", "--env", "A=b", "-u", "33:34", "-g", "50", "--cap", "NET_ADMIN", "--no-new-privs")
    script = "pwd; echo $A; id -u; id -g; id -G; grep -E 'CapBnd|NoNewPrivs' /proc/self/status"
    said = caller.ok("exec", *options, running, "sh", "-c", script).split()
    assert said[:6] == ["/tmp", "b", "33", "34", "34", "50"]
    assert int(said[7], 16) >> 12 & 1, "CAP_NET_ADMIN is not in the bounding set"
    assert said[9] == "1"
    assert caller.ok("exec", "--user", "1", running, "id").startswith("uid=1 gid=0")


@pytest.mark.parametrize("user", ["root", "1x", "-1", "4294967296", "1:", "1:x", "١"])
def test_a_user_that_is_no_number_is_refused(caller, running, user):
    assert "no user or group number" in caller.refused("exec", f"--user={user}", running, "id", status=255)


def test_exec_takes_a_process_object_and_what_it_leaves_out_from_the_container(caller, running):
    work = {"args": ["sh", "-c", "id -u; grep CapBnd /proc/self/status"], "cwd": "/", "user": {"uid": 7, "gid": 8}}
    work["env"] = ["PATH=/bin"]
    (caller.bundle / "process.json").write_text(json.dumps(work))
    said = caller.ok("exec", "--process", "process.json", running).split()
    bounding = int(caller.ok("exec", running, "grep", "CapBnd", "/proc/self/status").split()[1], 16)
    assert said == ["7", "CapBnd:", f"{bounding:016x}"]
    (caller.bundle / "process.json").write_text('{"args": []}')
    assert "args" in caller.refused("exec", "--process", "process.json", running, status=255)


def test_exec_of_what_is_not_there(caller, running):
    assert "executable file not found in $PATH" in caller.refused("exec", running, "nothing", status=255)


def test_a_detached_exec_leaves_its_pid(caller, running):
    caller.ok("exec", "--detach", "--pid-file", "pid", running, "sleep", "1000")
    pid = int((caller.bundle / "pid").read_text())
    assert pid in json.loads(caller.ok("ps", "--format", "json", running))
    assert "sleep 1000" in caller.ok("ps", running, "-o", "pid,args")


def test_terminals_are_handed_to_the_callers_socket(caller):
    caller.process.update(terminal=True, consoleSize={"height": 7, "width": 33})
    listening = Listening(caller.bundle / "console")
    name = caller.create("sh", "-c", "stty size; cat", options=("--console-socket", "console"))
    master = listening.receive()
    caller.ok("start", name)
    assert b"7 33" in read_to(master, b"33")
    listening = Listening(caller.bundle / "second")
    caller.ok("exec", "--tty", "--detach", "--console-socket", "second", name, "tty")
    second = listening.receive()
    assert b"/dev/pts/1" in read_to(second, b"1")
    for fd in (master, second):
        os.close(fd)


def test_a_terminal_without_anybody_at_its_other_end_is_refused(caller):
    caller.process.update(terminal=True, args=["true"])
    caller.write()
    name = caller.name()
    assert "without setting console socket" in caller.refused("create", "--bundle", caller.bundle, name)
    caller.process["terminal"] = False
    caller.write()
    said = caller.refused("create", "--bundle", caller.bundle, "--console-socket", "nothing", name)
    assert "cannot use console socket" in said
    assert caller.left() == []


def test_run_relays_a_terminal(caller):
    caller.process.update(terminal=True, args=["sh", "-c", "stty size; read line; echo got $line; exit 4"])
    caller.write()
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, array.array("H", [11, 44, 0, 0]))
    command = subprocess.Popen(
        caller.words("run", "--bundle", caller.bundle, caller.name()), stdin=slave, stdout=slave, stderr=slave
    )
    read_to(master, b"11 44")
    os.write(master, b"word\r")
    read_to(master, b"got word")
    assert command.wait(30) == 4
    for fd in (master, slave):
        os.close(fd)


def test_a_pidfd_is_handed_to_the_callers_socket(caller):
    listening = Listening(caller.bundle / "pidfd")
    name = caller.create("sleep", "1000", options=("--pidfd-socket", "pidfd"))
    pidfd = listening.receive()
    assert not select.select([pidfd], [], [], 0)[0]
    caller.ok("delete", "--force", name)
    assert select.select([pidfd], [], [], 30)[0]
    os.close(pidfd)


def test_only_what_is_to_be_preserved_is_inherited(caller):
    caller.process["args"] = ["sh", "-c", "ls /proc/self/fd; echo kept >&3"]
    caller.write()

    def run(count, kept):
        words = caller.words("run", "--bundle", caller.bundle, "--preserve-fds", count, caller.name())
        script = f'exec 3>{kept} 4>&- 9>&1; exec "$@"'
        return subprocess.run(
            ["sh", "-c", script, "sh", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )

    done = run(1, caller.bundle / "kept")
    assert done.stdout.split() == ["0", "1", "2", "3", "4"], "4 is the listed directory"
    assert (caller.bundle / "kept").read_text() == "kept\n"
    assert "descriptor 4 is to be preserved and is not open" in run(2, caller.bundle / "kept").stderr


def test_sockets_of_a_service_manager_are_passed_on(caller):
    caller.process["args"] = ["sh", "-c", "echo $LISTEN_FDS $LISTEN_PID; ls /proc/self/fd | wc -l"]
    caller.write()
    words = caller.words("run", "--bundle", caller.bundle, caller.name())
    script = 'exec 3</dev/null 4</dev/null; LISTEN_FDS=2 LISTEN_PID=$$ exec "$@"'
    done = subprocess.run(["sh", "-c", script, "sh", *words], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "1", "6"]


@pytest.fixture
def manager():
    """A service manager's socket, at a path that an address can hold."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as it:
        it.bind(f"{folder}/manager")
        it.settimeout(30)
        yield it


def started_service(caller, manager):
    """A container's name, and the `start` of it, which waits until it is ready."""
    environment = {**os.environ, "NOTIFY_SOCKET": manager.getsockname()}
    (caller.bundle / "rootfs/run").mkdir()
    name = caller.create("sh", "-c", "test -S $NOTIFY_SOCKET && sleep 1000", env=environment)
    start = subprocess.Popen(caller.words("start", name), env=environment)
    while caller.state(name)["status"] != "running":
        assert start.poll() is None
    return name, start


def test_a_service_that_is_never_ready_can_be_deleted(caller, manager):
    name, start = started_service(caller, manager)
    caller.ok("delete", "--force", name)
    assert start.wait(30) == 0


def test_a_service_manager_is_told_that_the_container_is_ready(caller, manager):
    name, start = started_service(caller, manager)
    folder = os.open(caller.root / name / "notify", os.O_PATH)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as said:
        said.connect(f"/proc/self/fd/{folder}/notify.sock")
        said.send(b"MAINPID=1\nSTATUS=x")
        said.send(b"READY=1\nSTATUS=y")
    os.close(folder)
    assert manager.recv(100) == b"READY=1\n"
    assert manager.recv(100) == b"MAINPID=%d\n" % caller.state(name)["pid"]
    message, descriptors, _, _ = socket.recv_fds(manager, 100, 1)
    assert message == b"BARRIER=1"
    assert start.poll() is None
    for fd in descriptors:
        os.close(fd)
    assert start.wait(30) == 0
    assert caller.state(name)["status"] == "running"


def test_pause_and_resume(caller, running):
    caller.ok("pause", running)
    assert caller.state(running)["status"] == "paused"
    assert "cannot exec in a paused container" in caller.refused("exec", running, "true", status=255)
    caller.ok("resume", running)
    assert caller.call("exec", running, "true").returncode == 0
    caller.ok("pause", running)
    caller.ok("kill", running, "KILL")
    caller.wait(running, "stopped")


def test_update_from_options_file_and_standard_input(caller, running):
    def limit():
        return caller.ok(
            "exec", running, "sh", "-c", "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>&-; :"
        )

    caller.ok("update", "--pids-limit", "55", running)
    assert limit() == "55\n"
    (caller.bundle / "limits").write_text('{"pids": {"limit": 66}}')
    caller.ok("update", "--resources", "limits", running)
    assert limit() == "66\n"
    with open(caller.bundle / "limits") as file:
        caller.ok("update", "--resources", "-", running, stdin=file)
    assert "must be a whole number" in _update(caller, running, '{"pids": {"limit": "x"}}')
    assert limit() == "66\n"


def _update(caller, name, text):
    (caller.bundle / "limits").write_text(text)
    return caller.refused("update", "--resources", "limits", name)


def test_signals_by_name_and_number(caller):
    script = "trap 'echo usr1' USR1; trap 'echo hup; exit 6' HUP; echo ready; while :; do sleep 0.05; done"
    caller.process["args"] = ["sh", "-c", script]
    caller.write()
    name = caller.name()
    command = subprocess.Popen(caller.words("run", "--bundle", caller.bundle, name), stdout=subprocess.PIPE, text=True)
    assert command.stdout.readline() == "ready\n"
    caller.ok("kill", name, "SIGUSR1")
    assert command.stdout.readline() == "usr1\n"
    assert "unknown signal" in caller.refused("kill", name, "NOTHING")
    caller.ok("kill", "--all", name, "usr1")
    assert command.stdout.readline() == "usr1\n"
    caller.ok("kill", name, "1")
    assert command.wait(30) == 6
    command.stdout.close()


def test_events_tell_of_use_and_of_want_of_memory(caller):
    caller.config["linux"]["resources"]["memory"] = {"limit": 16 << 20, "swap": 16 << 20}
    name = caller.create("sh", "-c", "while :; do sleep 1000; done")
    caller.ok("start", name)
    once = json.loads(caller.ok("events", "--stats", name))
    assert (once["type"], once["id"]) == ("stats", name)
    assert once["data"]["pids"]["current"] >= 1
    assert once["data"]["memory"]["usage"]["limit"] == 16 << 20
    events = subprocess.Popen(caller.words("events", "--interval", "1h", name), stdout=subprocess.PIPE, text=True)
    assert json.loads(events.stdout.readline())["type"] == "stats"
    assert caller.call("exec", name, "tail", "/dev/zero").returncode == 137
    assert json.loads(events.stdout.readline()) == {"type": "oom", "id": name}
    caller.ok("delete", "--force", name)
    assert events.wait(30) == 0
    events.stdout.close()
    for wrong in ("5", "-1s", "0s", "s"):
        assert "is a time like 5s" in caller.refused("events", f"--interval={wrong}", caller.create("true"))


def test_control_groups_are_where_the_configuration_says(caller):
    path = f"/command-tests/{caller.name()}"
    caller.config["linux"]["cgroupsPath"] = path
    name = caller.create("sleep", "1000")
    with open(f"/proc/{caller.state(name)['pid']}/cgroup") as file:
        groups = {line.split(":", 2)[2].strip() for line in file if ":pids:" in line or line.startswith("0::/c")}
    assert groups == {path}
    caller.ok("delete", "--force", name)
    caller.config["linux"]["cgroupsPath"] = "/a/../b"
    caller.write()
    assert "cgroupsPath" in caller.refused("create", "--bundle", caller.bundle, caller.name())
    caller.config["linux"].pop("cgroupsPath")
    caller.write()
    assert "cgroupfs, systemd or disabled" in caller.refused("--cgroup-manager", "x", "create", caller.name())


def test_listings(caller, running):
    (row,) = [line.split() for line in caller.ok("list").splitlines()[1:]]
    assert row[0] == running
    assert row[2] == "running"
    (entry,) = json.loads(caller.ok("list", "--format", "json"))
    assert (entry["id"], entry["bundle"], entry["status"]) == (running, str(caller.bundle), "running")
    assert caller.ok("list", "--quiet") == f"{running}\n"
    assert caller.call("list", "--format", "yaml").returncode == 1


def test_a_plain_user_sees_nothing_of_the_state(caller, running):
    assert caller.root.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in (caller.root / running).iterdir()} == {0}


def test_errors_are_in_the_log_in_the_form_that_was_asked_for(caller):
    caller.refused("--log", "log", "--log-format", "json", "state", "nothing")
    entry = json.loads((caller.bundle / "log").read_text())
    assert (entry["level"], entry["msg"]) == ("error", "container does not exist: nothing")
    caller.refused("--log", "log", "--log-format", "text", "state", "nothing")
    assert 'level=error msg="container does not exist: nothing"' in (caller.bundle / "log").read_text()
    assert "invalid log-format" in caller.refused("--log-format", "xml", "list")


def test_wrong_words_are_refused(caller):
    for words in (
        ("fly",),
        ("list", "--fly"),
        ("state",),
        ("state", "a", "b"),
        ("create", "--pid-file"),
        ("kill", "a", "b", "c"),
    ):
        caller.refused(*words)
    assert "create" in caller.ok("--help")
    assert "--pid-file" in caller.ok("create", "--help")
    assert "spec: 1.3.0" in caller.ok("--version")


def test_what_features_says_is_what_is_done(caller):
    said = json.loads(caller.ok("features"))
    assert said["ociVersionMax"] == "1.3.0"
    assert {"pid", "network", "mount"} <= set(said["linux"]["namespaces"])
    ours = [word for word in said["mountOptions"] if "idmap" not in word and word != "remount"]
    for word in ("rro", "nosymfollow", "rslave", "tmpcopyup"):
        assert word in ours
    for word in ours:
        kind = "tmpfs" if word == "tmpcopyup" else "bind"
        caller.config["mounts"].append({
            "destination": f"/tmp/{word}", "type": kind, "source": "/tmp", "options": ["bind", word][kind == "tmpfs" :],
        })  # fmt: skip
    assert caller.run("true").returncode == 0


def test_spec_writes_a_configuration_that_runs(caller):
    config = caller.bundle / "config.json"
    caller.ok("spec")
    assert "exists" in caller.refused("spec")
    made = json.loads(config.read_text())
    made["process"].update(args=["true"], terminal=False)
    config.write_text(json.dumps(made))
    assert caller.call("run", caller.name()).returncode == 0


def test_a_verb_imports_little(caller):
    code = "import sys; from cowshed_runtime.command import main; main.run(sys.argv[1:]); print(len(sys.modules))"
    counts = {}
    for verb in ("list", "create"):
        words = [sys.executable, "-IS", "-c", f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}; {code}"]
        words += ["--root", str(caller.root), *(["list"] if verb == "list" else ["create", "--help"])]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        counts[verb] = int(done.stdout.split()[-1])
    assert counts["list"] < 70, counts
    assert "json" not in sys.builtin_module_names


def test_a_process_that_took_the_pid_is_not_taken_for_the_container(caller, running):
    file = caller.root / running / "state.json"
    record = json.loads(file.read_text())
    first = record["pid"], record["started"]
    file.write_text(json.dumps({**record, "started": record["started"] - 1}))
    assert caller.state(running)["status"] == "stopped"
    assert "container not running" in caller.refused("kill", running, "KILL")
    assert process.lives(*first)
    file.write_text(json.dumps(record))
