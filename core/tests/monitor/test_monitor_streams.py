"""Streams between a container and the commands that are attached to it."""

import os
import signal
import subprocess
import time
from pathlib import Path

from cowshed.monitor.frames import HEADER


def done(process: subprocess.Popen, feed: bytes | None = None, timeout: float = 60) -> tuple[int, bytes, bytes]:
    out, err = process.communicate(feed, timeout=timeout)
    return process.returncode, out, err


def logged(container) -> dict[int, bytes]:
    """The log, taken apart by hand."""
    data, found, at = Path(container.log).read_bytes(), {1: b"", 2: b""}, 0
    while at < len(data):
        when, length, stream = HEADER.unpack_from(data, at)
        assert abs(when / 1e9 - time.time()) < 300
        at += HEADER.size
        found[stream] += data[at : at + length]
        at += length
    assert at == len(data)
    return found


def test_streams_are_kept_apart_and_the_status_is_the_containers(store):
    box = store.container("sh", "-c", "echo out; echo err >&2; exit 7")
    assert done(box.start()) == (7, b"out\n", b"err\n")
    assert logged(box) == {1: b"out\n", 2: b"err\n"}
    assert box.ended()["status"] == 7


def test_death_by_signal_is_128_and_its_number(store):
    box = store.container("sleep", "60")
    process = box.start()
    os.kill(box.pids()[0], signal.SIGKILL)
    assert done(process)[0] == 137


def test_stdin_arrives_whole_and_ends(store):
    data = os.urandom(3_000_000)
    box = store.container("cat", stdin=True, log=None)
    assert done(box.start(), data) == (0, data, b"")


def test_without_interactive_stdin_is_empty(store):
    assert done(store.container("cat").start(), b"never seen") == (0, b"", b"")


def test_stdin_that_is_closed_while_it_is_full_does_not_stop_the_command(store):
    box = store.container("sh", "-c", "sleep 0.5; exec 0<&-; sleep 0.2; echo on", stdin=True)
    assert done(box.start(), b"x" * 1_000_000) == (0, b"on\n", b"")


def test_a_container_that_closes_its_stdin_does_not_stop_the_command(store):
    box = store.container("sh", "-c", "exec 0<&-; sleep 0.3; echo on", stdin=True)
    assert done(box.start(), b"x" * 1_000_000) == (0, b"on\n", b"")


def test_a_slow_reader_gets_everything_also_after_the_end(store):
    box = store.container("seq", "1", "400000")
    process = box.start(idle=1.5)
    whole = b"".join([b"%d\n" % n for n in range(1, 400001)])
    assert done(process) == (0, whole, b"")
    assert logged(box)[1] == whole


def test_output_to_a_file_opened_for_appending(store, tmp_path):
    path = tmp_path / "out"
    path.write_bytes(b"before\n")
    with open(path, "ab") as target:
        stdio = {"stdin": subprocess.DEVNULL, "stdout": target, "stderr": subprocess.PIPE}
        assert done(store.container("seq", "1", "50000").start(stdio=stdio))[0] == 0
    assert path.read_bytes() == b"before\n" + b"".join([b"%d\n" % n for n in range(1, 50001)])


def test_nobody_reads_the_output_any_more(store):
    box = store.container("yes")
    process = box.start()
    process.stdout.close()
    assert process.wait(timeout=20) == 128 + signal.SIGPIPE


def test_signals_are_passed_on(store):
    box = store.container("sh", "-c", "trap 'exit 9' TERM; echo ready; while true; do sleep 0.05; done")
    process = box.start()
    assert process.stdout.readline() == b"ready\n"
    process.terminate()
    assert done(process)[0] == 9


def test_signals_are_passed_on_while_the_reader_is_stopped(store):
    box = store.container("sh", "-c", "trap 'exit 9' TERM; echo ready; while true; do echo xxxxxxxxxxxxxxxxxxxx; done")
    process = box.start()
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.5)  # by now all pipes are full
    process.terminate()
    time.sleep(0.2)
    assert done(process)[0] == 9


def test_several_commands_attached_see_the_same(store):
    box = store.container("sh", "-c", "while test ! -e /tmp/go; do sleep 0.02; done; seq 1 1000; exit 3")
    box.detached()
    watchers = [box.attach(stdin=False) for _ in range(3)]
    monitor = box.pids()[2]
    wait_for_clients(monitor, 3)
    assert done(box.execute("sh", "-c", "echo > /tmp/go"))[0] == 0
    whole = b"".join([b"%d\n" % n for n in range(1, 1001)])
    for watcher in watchers:
        assert done(watcher) == (3, whole, b"")


def wait_for_clients(monitor: int, count: int, *, own: int = 0) -> None:
    """Until so many attached commands are held by a monitor: each has two pipes that are written to,
    besides those that are the monitor's own."""
    deadline = time.monotonic() + 10
    while sum(writable_pipes(monitor)) != 2 * count + own:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def writable_pipes(pid: int):
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            if os.readlink(f"/proc/{pid}/fd/{name}").startswith("pipe:"):
                with open(f"/proc/{pid}/fdinfo/{name}") as f:
                    yield any(line.split()[1][-1] == "1" for line in f if line.startswith("flags:"))
        except FileNotFoundError:
            continue


def test_a_command_that_goes_silently_leaves_nothing_in_the_monitor(store):
    box = store.container("sleep", "60")
    box.detached()
    monitor = box.pids()[2]
    before = len(os.listdir(f"/proc/{monitor}/fd"))  # some more, if what started it has not let go of all yet
    for _ in range(10):
        watcher = box.attach(stdin=False)
        wait_for_clients(monitor, 1)
        watcher.kill()
        watcher.wait()
        wait_for_clients(monitor, 0)
    deadline = time.monotonic() + 10
    while len(os.listdir(f"/proc/{monitor}/fd")) > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_command_that_connects_and_says_nothing_stops_nobody(store):
    import socket

    box = store.container("sh", "-c", "while true; do echo tick; sleep 0.05; done")
    process = box.start()
    box.pids()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        folder = os.open(box.place, os.O_PATH)
        silent.connect(f"/proc/self/fd/{folder}/attach")
        os.close(folder)
        for _ in range(40):
            assert process.stdout.readline() == b"tick\n"


def test_attach_to_what_does_not_run(store):
    box = store.container("true")
    status, _, err = done(box.attach())
    assert status == 125
    assert b"not running" in err


def test_attached_input_does_not_end_a_detached_containers(store):
    box = store.container("sh", "-c", "while read line; do echo got $line; done; echo end", stdin=True)
    box.detached()
    first = box.attach()
    wait_for_clients(box.pids()[2], 1, own=1)
    first.stdin.write(b"one\n")
    first.stdin.close()
    assert first.stdout.readline() == b"got one\n"
    first.kill()
    second = box.attach()
    second.stdin.write(b"two\n")
    second.stdin.flush()
    assert second.stdout.readline() == b"got two\n"


def test_exec_has_streams_and_a_status_of_its_own(store):
    box = store.container("sleep", "60")
    box.detached()
    process = box.execute("sh", "-c", "cat; echo err >&2; exit 5")
    assert done(process, b"fed") == (5, b"fed", b"err\n")
    assert logged(box) == {1: b"", 2: b""}


def test_exec_returns_when_its_process_ends_whoever_else_holds_the_streams(store):
    box = store.container("sleep", "60")
    box.detached()
    assert done(box.execute("sh", "-c", "sleep 50 & echo here"), b"", timeout=20) == (0, b"here\n", b"")


def test_detached_exec_may_write(store):
    box = store.container("sleep", "60")
    box.detached()
    words = "sleep 0.2; echo a; echo b || exit 1; echo > /tmp/written"
    assert done(box.execute("sh", "-c", words, attached=False))[0] == 0
    check = "while test ! -e /tmp/written; do sleep 0.02; done"
    assert done(box.execute("sh", "-c", check), timeout=20)[0] == 0


def test_exec_of_what_is_missing(store):
    box = store.container("sleep", "60")
    box.detached()
    status, _, err = done(box.execute("nothing-of-this-name"))
    assert status == 127
    assert b"nothing-of-this-name" in err
