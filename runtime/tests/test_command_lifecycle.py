"""cowshed-runtime: a container's life from create to delete, as its callers see it."""

import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from cowshed_testing.callers import COMMAND

from cowshed_linux import process


def groups(name):
    return glob.glob(f"/sys/fs/cgroup/*/cowshed/{name}") + glob.glob(f"/sys/fs/cgroup/cowshed/{name}")


def test_a_created_container_waits_and_outlives_its_creator(caller):
    name = caller.create("sh", "-c", "echo runs > /tmp/mark; sleep 1000", options=("--pid-file", "pid"))
    mark, created = caller.bundle / "rootfs/tmp/mark", caller.state(name)
    assert created["status"] == "created"
    assert created["bundle"] == str(caller.bundle)
    assert int((caller.bundle / "pid").read_text()) == created["pid"]
    assert not mark.exists()
    caller.ok("start", name)
    running = caller.state(name)
    assert (running["status"], running["pid"]) == ("running", created["pid"])
    while not mark.exists():
        assert caller.state(name)["status"] == "running"
    caller.ok("kill", name, "KILL")
    assert caller.wait(name, "stopped")["pid"] == 0
    caller.ok("delete", name)
    assert caller.left() == []
    assert groups(name) == []


def test_a_configuration_that_is_changed_after_create_has_no_effect(caller):
    caller.process["env"] = ["PATH=/bin", "WHEN=before"]
    name = caller.create("sleep", "1000")
    caller.process["env"] = ["PATH=/bin", "WHEN=after"]
    caller.write()
    caller.ok("start", name)
    assert "WHEN=before" in caller.ok("exec", name, "env").splitlines()


def test_what_a_state_does_not_allow_is_refused_in_the_words_that_callers_look_for(caller):
    name = caller.create("sleep", "1000")
    assert "already exists" in caller.refused("create", "--bundle", caller.bundle, name)
    assert "container not paused" in caller.refused("resume", name)
    caller.ok("start", name)
    assert "cannot start an already running container" in caller.refused("start", name)
    assert "that is not stopped: running" in caller.refused("delete", name)
    caller.ok("kill", name, "9")
    caller.wait(name, "stopped")
    assert "cannot start a container that has stopped" in caller.refused("start", name)
    assert "container not running" in caller.refused("kill", name)
    caller.ok("kill", "--all", name)
    assert "container not running" in caller.refused("pause", name)
    assert "container not running" in caller.refused("exec", name, "true", status=255)
    caller.ok("delete", name)
    for verb in ("state", "start", "kill", "delete", "pause", "resume", "ps", "update"):
        assert "container does not exist" in caller.refused(verb, name)
    caller.ok("delete", "--force", name)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a b", "x" * 300])
def test_names_that_could_be_paths_are_refused(caller, name):
    caller.write()
    assert "container id" in caller.refused("create", "--bundle", caller.bundle, name).lower()
    assert caller.left() == []


def test_run_ends_with_the_status_of_the_program_and_leaves_nothing(caller):
    assert [caller.run("sh", "-c", script).returncode for script in ("exit 7", "kill -TERM $$; exit 3")] == [7, 3]
    done = caller.run("sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    assert caller.left() == []


def test_run_keeps_what_it_is_told_to_keep(caller):
    assert caller.run("true", options=("--keep",)).returncode == 0
    (name,) = caller.left()
    assert caller.state(name)["status"] == "stopped"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nothing"], "executable file not found in $path"),
        (["/bin/nothing"], "no such file or directory"),
        (["/etc"], "permission denied"),
    ],
)
@pytest.mark.parametrize("verb", ["create", "run"])
def test_a_program_that_cannot_be_executed_is_told_and_leaves_nothing(caller, args, words, verb):
    caller.process["args"] = args
    caller.write()
    name = caller.name()
    assert words in caller.refused(verb, "--bundle", caller.bundle, name).lower()
    assert caller.left() == []
    assert groups(name) == []


def test_what_is_found_out_at_the_start_is_told_by_start(caller):
    (caller.bundle / "rootfs/bin/garbage").write_bytes(b"\x7fnot ELF")
    (caller.bundle / "rootfs/bin/garbage").chmod(0o755)
    name = caller.create("garbage")
    assert "exec format error" in caller.refused("start", name).lower()
    assert caller.wait(name, "stopped")


def test_a_configuration_that_is_not_one(caller):
    (caller.bundle / "config.json").write_text("{")
    assert "config.json: " in caller.refused("create", "--bundle", caller.bundle, caller.name())
    caller.process["args"] = ["true"]
    caller.config["linux"]["namespaces"].append({"type": "pid"})
    caller.write()
    assert "pid is given twice" in caller.refused("create", "--bundle", caller.bundle, caller.name())
    (caller.bundle / "config.json").unlink()
    assert "config.json not found" in caller.refused("create", "--bundle", caller.bundle, caller.name())
    assert caller.left() == []


def test_hooks_run_in_the_operation_that_the_specification_names(caller):
    log = caller.bundle / "hooks.log"
    inside = caller.bundle / "rootfs/tmp/hooks.log"
    for kind in ("prestart", "createRuntime", "poststart", "poststop"):
        script = f'read s; echo {kind} "$s" >> {log}'
        caller.config.setdefault("hooks", {})[kind] = [{"path": "/bin/sh", "args": ["sh", "-c", script]}]
    script = "echo startContainer >> /tmp/hooks.log"
    caller.config["hooks"]["startContainer"] = [{"path": "/bin/sh", "args": ["sh", "-c", script]}]
    name = caller.create("sleep", "1000")

    def ran():
        return [line.split()[0] for line in log.read_text().splitlines()]

    assert ran() == ["prestart", "createRuntime"]
    assert not inside.exists()
    caller.ok("start", name)
    assert ran() == ["prestart", "createRuntime", "poststart"]
    assert inside.read_text() == "startContainer\n"
    caller.ok("delete", "--force", name)
    assert ran() == ["prestart", "createRuntime", "poststart", "poststop"]
    told = [json.loads(line.partition(" ")[2]) for line in log.read_text().splitlines()]
    assert {(one["id"], one["bundle"]) for one in told} == {(name, str(caller.bundle))}
    assert [one["status"] for one in told] == ["creating", "creating", "running", "stopped"]


def test_a_poststart_hook_that_fails_ends_the_container(caller):
    caller.config["hooks"] = {"poststart": [{"path": "/bin/false"}]}
    name = caller.create("sleep", "1000")
    assert "poststart" in caller.refused("start", name)
    assert caller.left() == []
    assert groups(name) == []


def test_a_poststop_hook_that_fails_is_a_warning(caller):
    caller.config["hooks"] = {"poststop": [{"path": "/bin/false"}]}
    name = caller.create("sleep", "1000")
    done = caller.call("delete", "--force", name)
    assert done.returncode == 0
    assert "level=warning" in done.stderr
    assert caller.left() == []


def test_delete_by_a_regular_expression(caller):
    names = [caller.create("sleep", "1000") for _ in range(3)]
    caller.ok("delete", "--force", "--regex", f"^{names[0]}$|^{names[2]}$")
    assert caller.left() == [names[1]]
    assert "no regular expression" in caller.refused("delete", "--regex", "(")


def test_a_foreground_run_passes_signals_on(caller):
    caller.process["args"] = ["sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"]
    caller.write()
    command = subprocess.Popen(
        caller.words("run", "--bundle", caller.bundle, caller.name()), stdout=subprocess.PIPE, text=True
    )
    assert command.stdout.readline() == "ready\n"
    command.send_signal(signal.SIGTERM)
    assert command.wait(30) == 5
    command.stdout.close()
    assert caller.left() == []


def test_dry_run_prints_the_plan_and_does_nothing(caller):
    done = caller.run("true", options=("--dry-run",))
    assert "change the root" in done.stdout
    assert caller.left() == []


_KILLED = """
import os, sys
sys.path[:0] = {paths!r}
at, me, events = int(sys.argv.pop(1)), os.getpid(), 0
def hook(event, arguments):
    global events
    if os.getpid() != me:
        return
    events += 1
    if events == at:
        os.kill(me, 9)
from cowshed_runtime.command import main
import cowshed_runtime.command.verbs.create
sys.addaudithook(hook)
status = main.run(sys.argv[1:])
os.write(2, b"%d\\n" % events)
os._exit(status)
"""


def _killed(caller, name, at):
    """create, killed at its at-th audit event (sys.addaudithook): a system call or so each. 0: at none. Its status, and
    what it wrote. Its output is a file: a container that stays keeps it."""
    paths = [path for path in sys.path if path]
    words = [sys.executable, "-IS", "-c", _KILLED.format(paths=paths), str(at), "--root", str(caller.root)]
    words += ["create", "--bundle", str(caller.bundle), "--pid-file", str(caller.bundle / "pid"), name]
    with open(caller.bundle / "killed", "w+") as sink:
        done = subprocess.run(words, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, timeout=60, check=False)
        sink.seek(0)
        return done.returncode, sink.read()


def _recorded(caller, name):
    """The pid and start time that the state directory has of a container, None if it does not know it."""
    try:
        record = json.loads((caller.root / name / "state.json").read_text())
    except FileNotFoundError:
        return None
    return record["pid"], record["started"]


def test_whenever_its_creator_is_killed_delete_leaves_nothing(caller):
    caller.process["args"] = ["sleep", "1000"]
    caller.write()
    total = 0
    for _ in range(2):  # the first makes the folders, and has more to do
        name = caller.name()
        status, said = _killed(caller, name, 0)
        assert status == 0, said
        total = int(said)
        caller.ok("delete", "--force", name)
    moments = int(os.environ.get("COWSHED_KILLED_CREATES", "25"))
    assert total > moments
    statuses = set()
    for step in range(moments):
        name = caller.name()
        assert _killed(caller, name, 1 + step * total // moments)[0] == -9
        known = _recorded(caller, name)
        if known:
            statuses.add(caller.state(name)["status"])
        caller.ok("delete", "--force", name)
        assert groups(name) == []
        if known and known[0]:
            assert not process.lives(*known)
    assert statuses <= {"stopped", "created"}, "nobody is creating any more"
    assert "stopped" in statuses
    caller.ok("delete", "--force", caller.create("true"))
    assert caller.left() == []


def test_a_container_that_runs_in_the_foreground_can_be_deleted(caller):
    caller.process["args"] = ["sh", "-c", "echo ready; while :; do sleep 1000; done"]
    caller.write()
    name = caller.name()
    command = subprocess.Popen(caller.words("run", "--bundle", caller.bundle, name), stdout=subprocess.PIPE, text=True)
    assert command.stdout.readline() == "ready\n"
    caller.ok("delete", "--force", name)
    assert command.wait(30) == 137
    command.stdout.close()
    assert caller.left() == []


def test_a_plain_user_makes_containers(caller):
    as_user = ["setpriv", "--reuid", "3000", "--regid", "3000", "--clear-groups"]
    folder = tempfile.mkdtemp(dir="/tmp")
    try:
        words = [*as_user, "unshare", "--user", "sh", "-c", 'exec "$@"', "sh", str(COMMAND), "--version"]
        if subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip("a plain user can make no user namespace here, or not reach the command")
        shutil.copytree(caller.bundle / "rootfs", f"{folder}/rootfs", symlinks=True)
        for path in (folder, *glob.glob(f"{folder}/**", recursive=True)):
            os.chown(path, 3000, 3000, follow_symlinks=False)
        environment = {"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": f"{folder}/run"}

        def call(*words):
            return subprocess.run(
                [*as_user, COMMAND, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
            )

        assert call("spec", "--rootless").returncode == 0
        config = json.loads(Path(folder, "config.json").read_text())
        config["process"].update(terminal=False, args=["id", "-u"])
        Path(folder, "config.json").write_text(json.dumps(config))
        done = call("run", caller.name())
        assert (done.returncode, done.stdout) == (0, "0\n"), done
        assert os.listdir(f"{folder}/run/cowshed-runtime") == [".cache"]
    finally:
        shutil.rmtree(folder)
