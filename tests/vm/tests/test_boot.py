"""What comes out of a guest: an exit status, results, nothing that runs on."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cowshed_vm.cache import Cache

TOP = Path(__file__).parents[3]
RUN = [sys.executable, f"{TOP}/tests/vm/run", "--kernel", os.environ.get("COWSHED_BOOT", "6.12")]


def run(results, *words):
    command = [*RUN, "--results", str(results), *words]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.fixture
def started(tmp_path):
    """A guest that has begun to do nothing for long: the process that runs it, and the pid of its QEMU."""
    command = [*RUN, "--results", str(tmp_path), "--", "sh", "-c", "echo it has begun; sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert any("it has begun" in line for line in process.stdout)
            yield process, int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        finally:
            process.kill()


def gone(qemu):
    """Wait for a process that is no child of ours."""
    try:
        fd = os.pidfd_open(qemu)
    except ProcessLookupError:
        return True
    with os.fdopen(fd) as file:
        return select.select([file], [], [], 30)[0] != []


def test_status_output_and_results_come_back_and_the_tree_stays_as_it_was(tmp_path):
    script = """
        echo out; echo err >&2; uname -r
        test "$COWSHED_GUEST" = "$(uname -r)" || exit 90
        test "$MINE" = "two words" || exit 91
        touch written && mkdir /results/d && echo kept > /results/d/f
        exit 7
    """
    done = run(tmp_path, "--env", "MINE=two words", "--", "sh", "-c", script)
    assert done.returncode == 7, done
    assert done.stdout.startswith("out\nerr\n")
    assert done.stderr == ""
    assert (tmp_path / "d/f").read_text() == "kept\n"
    assert (tmp_path / "status").read_text() == "7\n"
    assert "Linux version" in (tmp_path / "dmesg").read_text()
    assert not (TOP / "written").exists()


def test_a_test_that_fails_there_fails_here(tmp_path):
    script = "cd /tmp; echo 'def test_it(): assert 0' > test_it.py; pytest -q --junitxml=/results/junit.xml test_it.py"
    done = run(tmp_path, "--", "sh", "-c", script)
    assert done.returncode == 1, done
    assert "FAILED" in done.stdout
    assert 'failures="1"' in (tmp_path / "junit.xml").read_text()


def test_the_engine_runs_there(tmp_path):
    script = "cowshed --root /tmp/store --run-root /tmp/run driver why && cat /sys/fs/cgroup/cgroup.controllers"
    done = run(tmp_path, "--", "sh", "-c", script)
    assert done.returncode == 0, done
    assert "overlay" in done.stdout
    assert {"memory", "pids", "cpu", "io"} <= set(done.stdout.split())


def test_a_command_that_takes_too_long_is_ended_and_its_results_come_back(tmp_path):
    done = run(tmp_path, "--timeout", "3", "--", "sh", "-c", "echo early > /results/early; sleep 1000")
    assert done.returncode == 124, done
    assert (tmp_path / "early").read_text() == "early\n"


def test_a_panic_is_told_in_one_line(tmp_path):
    done = run(tmp_path, "--", "sh", "-c", "echo c > /proc/sysrq-trigger; sleep 100")
    assert done.returncode == 125, done
    assert done.stderr == "vm: the guest's kernel panicked\n"
    assert not (tmp_path / "status").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_guest_and_takes_its_disks_away(started, number):
    process, qemu = started
    mine = {path.name for path in (Cache.default().path / "runs").iterdir() if path.name.startswith(f"{process.pid}-")}
    process.send_signal(number)
    assert process.wait() == 128 + number
    assert gone(qemu)
    assert mine, "its directory is named after its process"
    assert not mine & {path.name for path in (Cache.default().path / "runs").iterdir()}


def test_when_its_process_is_killed_the_guest_goes_too_and_the_next_run_takes_its_disks_away(started, tmp_path):
    process, qemu = started
    process.kill()
    process.wait()
    assert gone(qemu)
    run(tmp_path, "--", "true")
    assert not [path for path in (Cache.default().path / "runs").iterdir() if path.name.startswith(f"{process.pid}-")]


def test_a_missing_kernel_is_one_line(tmp_path):
    done = run(tmp_path, "--kernel", "/no/such", "--", "true")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == "vm: no kernel /no/such: a series as 6.1, a .deb or a directory is wanted\n"
