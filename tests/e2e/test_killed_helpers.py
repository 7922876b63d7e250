"""S9 of the crash sequences, and its neighbours: the processes beside containers are killed, not the commands."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from cowshed_testing import leftovers

from cowshed.state.store import open_store


def until(what, seconds=10):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def inspected(engine, name):
    return json.loads(engine.ok("inspect", name))[0]


def place(engine, name):
    return f"{engine.run_directory()}/c/{inspected(engine, name)['Id'][:32]}"


def gone(pid):
    """Ended; whether it was also reaped is up to process 1."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            return f.read().rpartition(b")")[2].split()[0] == b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def kill_monitor(engine, name):
    """The pid of the container's first process, which lives on."""
    with open(f"{place(engine, name)}/pid") as f:
        first, _, monitor = map(int, f.read().split())
    os.kill(monitor, signal.SIGKILL)
    until(lambda: gone(monitor))
    assert not gone(first)
    return first


@pytest.fixture
def up(pulled):
    pulled.ok("run", "-d", "--name", "up", pulled.image, "sleep", "1000")
    yield pulled
    ids = set(pulled.ok("ps", "-aq", "--no-trunc").split())
    pulled("rm", "-f", "up")
    until(lambda: pulled.children() == [])
    assert leftovers.files(str(pulled.root), pulled.run_directory()) == []
    assert leftovers.groups(ids) == []
    assert pulled.ok("system", "check").splitlines()[-1] == "clean"


def test_s9_ps_tells_that_a_container_without_its_monitor_runs(up):
    first = kill_monitor(up, "up")
    assert up.ok("ps", "--format", "{{.Names}} {{.State}}") == "up running\n"
    assert inspected(up, "up")["State"]["Pid"] == first
    done = up("rm", "up")
    assert (done.returncode, b"is running" in done.stderr) == (1, True), done
    done = up("rmi", up.image)
    assert done.returncode == 1
    up.ok("rm", "-f", "up")
    assert gone(first)
    assert up.names() == []


def test_s9_it_is_stopped_and_started_again(up):
    first = kill_monitor(up, "up")
    up.ok("stop", "-t", "0", "up")
    assert gone(first)
    state = inspected(up, "up")["State"]
    assert (state["Status"], state["ExitCode"], state["Error"]) == ("exited", 137, "its monitor was killed")
    up.ok("start", "up")
    assert up.ok("exec", "up", "echo", "here") == "here\n"


def test_s9_one_whose_processes_died_as_well_is_exited_and_starts_again(up):
    first = kill_monitor(up, "up")
    os.kill(first, signal.SIGKILL)
    until(lambda: inspected(up, "up")["State"]["Status"] == "exited")
    up.ok("start", "up")
    assert up.ok("ps", "--format", "{{.State}}") == "running\n"


def test_s9_a_command_that_waits_for_it_is_told(up):
    waiting = up.spawn("wait", "up", stdout=-1)
    first = kill_monitor(up, "up")
    os.kill(first, signal.SIGKILL)
    out, _ = waiting.communicate(timeout=20)
    assert out == b"255\n"


@pytest.mark.parametrize(("policy", "again"), [("always", True), ("on-failure:3", True), ("no", False)])
def test_s9_the_restart_policy_is_kept_to_by_the_next_command_that_writes(up, policy, again):
    up.ok("run", "-d", "--name", "kept", "--restart", policy, up.image, "sleep", "1000")
    first = kill_monitor(up, "kept")
    up.ok("volume", "create", "one")
    assert inspected(up, "kept")["State"]["Pid"] == first, "what lives is left alone"
    os.kill(first, signal.SIGKILL)
    until(lambda: inspected(up, "kept")["State"]["Status"] == "exited")
    up.ok("volume", "create", "two")
    if again:
        until(lambda: inspected(up, "kept")["RestartCount"] == 1, 60)
        assert inspected(up, "kept")["State"]["Status"] == "running"
        assert up.ok("exec", "kept", "echo", "here") == "here\n"
    else:
        up.ok("volume", "create", "three")
        assert inspected(up, "kept")["State"]["Status"] == "exited"
    up.ok("rm", "-f", "kept")


def test_s9_one_that_is_stopped_is_not_started_by_its_policy(up):
    up.ok("run", "-d", "--name", "kept", "--restart", "always", up.image, "sleep", "1000")
    os.kill(kill_monitor(up, "kept"), signal.SIGKILL)
    until(lambda: inspected(up, "kept")["State"]["Status"] == "exited")
    up.ok("stop", "kept")
    until(lambda: not [pid for pid in up.processes() if b"--restarted" in command(pid)], 60)
    assert inspected(up, "kept")["State"]["Status"] == "exited"
    up.ok("rm", "kept")


def command(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return f.read()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_s13_the_exit_status_survives_a_database_that_cannot_be_written(up):
    up.ok("create", "--name", "seven", up.image, "sh", "-c", "sleep 0.3; exit 7")
    up.ok("start", "seven")
    store = open_store(str(up.root), str(up.run_root))
    with store.transaction():
        assert up.ok("wait", "seven") == "7\n"
        assert up.ok("ps", "-a", "--filter", "name=seven", "--format", "{{.Status}}").startswith("Exited (7)")
    store.close()
    assert inspected(up, "seven")["State"]["ExitCode"] == 7
    up.ok("rm", "seven")


def zygotes(engine):
    return sorted(set(engine.processes()) - set(engine.children()))


def test_a_killed_zygote_harms_no_container_and_is_replaced(up):
    (zygote,) = zygotes(up)
    os.kill(zygote, signal.SIGKILL)
    until(lambda: gone(zygote))
    assert up.ok("exec", "up", "echo", "here") == "here\n"
    assert up.ok("run", "--rm", up.image, "cat", "three") == "three\n"
    assert up.ok("ps", "--format", "{{.State}}") == "running\n"
    assert len(zygotes(up)) == 2  # the monitor of "up" is nobody's child now


def test_a_zygote_of_another_version_is_not_used(up, tmp_path):
    """Another version is one whose sources have other times: here, one source more."""
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources/more.py").write_text("")
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        f"from cowshed.monitor import client; client._FOLDERS.append({str(tmp_path / 'sources')!r})\n"
        "from cowshed.cli.main import main; main()"
    )
    words = up.words("run", "--rm", up.image, "cat", "three")[1:]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, env=up.env, timeout=60)
    assert done.stdout == b"three\n", done
    assert len([name for name in os.listdir(up.run_directory()) if name.startswith("zygote-")]) == 2
    assert up.ok("exec", "up", "echo", "here") == "here\n"
