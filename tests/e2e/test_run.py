"""An image pulled and run end to end, on each driver, as a user sees it."""

import json
import os
import pty
import select
import signal
import subprocess
import time


def test_three_layers_are_seen_as_one_tree(pulled):
    assert pulled.ok("run", "--rm", pulled.image, "sh", "-c", "pwd; ls; cat one; echo $GREETING").split() == [
        "/srv", "one", "three", "one", "hello",
    ]  # fmt: skip


def test_exit_statuses(pulled):
    def status(*words):
        return pulled("run", "--rm", *words).returncode

    assert status(pulled.image, "true") == 0
    assert status(pulled.image, "sh", "-c", "exit 7") == 7
    assert status(pulled.image, "/nonexistent") == 127
    assert status(pulled.image, "/etc/passwd") == 126
    assert status("--no-such-option", pulled.image, "true") == 125
    assert status("no.such.host.invalid/nothing:here", "true") == 125


def test_killed_from_outside_is_137(pulled):
    pulled.ok("run", "-d", "--name", "victim", pulled.image, "sleep", "1000")
    pulled.ok("kill", "victim")
    assert pulled.ok("wait", "victim").strip() == "137"
    assert json.loads(pulled.ok("inspect", "victim"))[0]["State"]["ExitCode"] == 137


def test_the_first_command_of_a_store_may_be_detached_and_captured(engine, greeting):
    """The zygote that it starts must not keep the caller's pipes open."""
    done = engine("run", "-d", "--name", "first", greeting, "sleep", "1000", timeout=60)
    assert done.returncode == 0
    assert len(done.stdout.strip()) == 64
    engine.ok("rm", "-f", "first")


def test_100_megabytes_in_and_out_byte_for_byte(pulled):
    data = os.urandom(1 << 20) * 100
    done = pulled("run", "--rm", "-i", pulled.image, "cat", feed=data)
    assert done.returncode == 0
    assert done.stdout == data


def test_streams_are_kept_apart(pulled):
    done = pulled("run", "--rm", pulled.image, "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


def test_terminal_through_a_pty(pulled):
    master, slave = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", 33, 101, 0, 0))
    before = termios.tcgetattr(slave)
    process = pulled.spawn(
        "run", "--rm", "-it", pulled.image, "sh", stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )

    seen = b""

    def until(text):
        nonlocal seen
        deadline = time.monotonic() + 30
        while text not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([master], [], [], 0.5)[0]:
                seen += os.read(master, 4096)

    until(b"# ")
    os.write(master, b"stty size; tty\n")
    until(b"33 101")
    until(b"/dev/")
    os.write(master, b"sleep 1000\n")
    time.sleep(0.3)
    os.write(master, b"\x03")  # Ctrl-C ends the sleep, not the shell
    os.write(master, b"echo still $((40 + 2)) here; exit 5\n")
    until(b"still 42 here")
    assert process.wait(30) == 5
    assert termios.tcgetattr(slave) == before, "the terminal is restored"
    os.close(master)
    os.close(slave)


def test_detach_keys_leave_the_container_running(pulled):
    master, slave = pty.openpty()
    process = pulled.spawn(
        "run", "-it", "--name", "stays", pulled.image, "sh",
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    seen = b""
    while b"# " not in seen:
        seen += os.read(master, 4096)
    os.write(master, b"\x10\x11")
    assert process.wait(30) == 0
    os.close(master)
    os.close(slave)
    assert json.loads(pulled.ok("inspect", "stays"))[0]["State"]["Running"] is True


def test_create_start_logs_exec_stop_rm(pulled):
    pulled.ok("create", "--name", "life", pulled.image, "sh", "-c", "echo born; echo late >&2; exec sleep 1000")
    assert pulled.ok("ps", "-a", "--format", "{{.Names}} {{.State}}").split() == ["life", "created"]
    pulled.ok("start", "life")
    deadline = time.monotonic() + 20
    while True:
        logs = pulled("logs", "life")
        if logs.stdout == b"born\n" and logs.stderr == b"late\n":
            break
        assert time.monotonic() < deadline, logs
    assert pulled.ok("exec", "life", "sh", "-c", "echo $GREETING from $(cat /proc/1/comm)") == "hello from sleep\n"
    assert pulled("exec", "life", "sh", "-c", "exit 9").returncode == 9
    assert pulled("exec", "life", "/none").returncode == 127
    done = pulled("rm", "life")
    assert done.returncode == 1 or done.returncode == 125
    assert len(done.stderr.strip().splitlines()) == 1
    pulled.ok("stop", "-t", "1", "life")
    pulled.ok("restart", "-t", "1", "life")
    pulled.ok("rm", "-f", "life")
    assert pulled.names() == []


def test_volumes_mounts_and_limits(pulled, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    said = pulled.ok(
        "run", "--rm", "-v", f"{shared}:/in", "--tmpfs", "/fast",
        "--mount", f"type=bind,src={shared},dst=/ro,readonly",
        "-m", "64m", "--pids-limit", "50", "--ulimit", "nofile=100:200", "--hostname", "barn", "-u", "www",
        "-w", "/tmp",
        "--read-only", "-e", "A=b c", pulled.image, "sh", "-c",
        "hostname; id -u; pwd; echo $A; ulimit -n; touch /x 2>/dev/null || echo read-only; "
        "touch /ro/x 2>/dev/null || echo ro",
    )  # fmt: skip
    assert said.splitlines() == ["barn", "33", "/tmp", "b c", "100", "read-only", "ro"]


def test_isolation(pulled):
    said = pulled.ok(
        "run", "--rm", pulled.image, "sh", "-c", "echo $$; ip -o link | wc -l; hostname; cat /proc/1/status"
    )
    lines = said.splitlines()
    assert lines[0] == "1"
    assert lines[1] == "1", "only the loopback device"
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert fields["CapEff"] == "00000000a80425fb"
    assert fields["Seccomp"].strip() == "2"


def test_signals_reach_the_container(pulled):
    process = pulled.spawn(
        "run", "--rm", pulled.image, "sh", "-c",
        "trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.1; done",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 3
    assert process.stdout.read() == b"term\n"
    process.stdout.close()


def test_refused_network_says_what_is_there(pulled):
    done = pulled("run", "--rm", "--network", "bridge", pulled.image, "true")
    assert done.returncode == 125
    assert b"none" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_images_and_their_removal(pulled):
    assert "test/greeting" in pulled.ok("images")
    pulled.ok("tag", pulled.image, "other:name")
    assert len(json.loads(pulled.ok("image", "inspect", pulled.image))) == 1
    assert pulled.ok("history", pulled.image).count("layer") >= 3
    pulled.ok("rmi", "other:name")
    pulled.ok("rmi", pulled.image)
    assert pulled.ok("images", "-q") == ""


def test_both_drivers_in_one_store(pulled):
    for driver in ("overlay", "copy"):
        pulled.driver = driver
        assert pulled.ok("run", "--rm", pulled.image, "cat", "three") == "three\n"


def test_driver_why_is_told(engine):
    said = engine.ok("driver", "why")
    assert engine.driver in said
    listed = [json.loads(line) for line in engine.ok("driver", "list", "--format", "json").splitlines()]
    assert {"copy", "overlay"} <= {row["Name"] for row in listed}
