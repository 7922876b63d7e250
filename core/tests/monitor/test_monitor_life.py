"""The life of a monitor: what it holds, leaves behind, survives, and becomes."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from cowshed.monitor import frames
from cowshed_linux import mount, process
from cowshed_runtime.fastjson import loads


def until(what, seconds: float = 10):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return found


def gone(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_while_it_runs_and_afterwards(store):
    box = store.container("sleep", "60")
    box.detached()
    first, started, monitor = box.pids()
    assert process.start_time(first) == started
    assert Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1] == str(monitor)  # its parent
    assert store.held("monitors", box.number)
    assert store.held("mounts", box.number)
    assert box.groups()
    before = time.time_ns()
    os.kill(first, signal.SIGKILL)
    record = box.ended()
    assert record["status"] == 137
    assert record["oom"] is False
    assert before < record["finished"] < time.time_ns()
    until(lambda: gone(monitor))
    assert not store.held("monitors", box.number)
    assert not store.held("mounts", box.number)
    assert not box.groups()
    assert sorted(os.listdir(box.place)) == ["exit"]


def test_nothing_of_the_callers_is_kept(store):
    """`$(cowshed run -d …)` returns: the container goes on, and no descriptor of the caller is open anywhere."""
    for pid in store.zygotes():
        os.kill(pid, signal.SIGKILL)
    until(lambda: not store.zygotes())
    box = store.container("sleep", "60")
    process_ = box.command("run", attached=False)
    assert process_.communicate(timeout=20) == (b"", b"")
    first, _, monitor = box.pids()
    for pid in (first, monitor, *store.zygotes()):
        assert {os.readlink(f"/proc/{pid}/fd/{n}") for n in (0, 1, 2)} <= {"/dev/null"} | {
            link for n in (1, 2) if (link := os.readlink(f"/proc/{pid}/fd/{n}")).startswith("pipe:") and pid == first
        }
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert len(os.listdir(f"/proc/{first}/fd")) == 3


def test_a_failed_start_leaves_nothing(store):
    box = store.container("no-such-program")
    process_ = box.start()
    _, err = process_.communicate(timeout=20)
    assert process_.returncode == 127
    assert b"no-such-program" in err
    assert err.count(b"\n") == 1
    until(lambda: not store.held("monitors", box.number))
    assert not box.groups()
    assert os.listdir(box.place) == []


def test_what_another_command_uses_is_not_started(store):
    box = store.container("sleep", "60")
    box.detached()
    _, err = (again := box.start()).communicate(timeout=20)
    assert again.returncode == 125
    assert b"used by another command" in err
    assert box.pids()[0]


def test_the_command_is_told_when_its_monitor_is_killed(store):
    box = store.container("sleep", "60")
    command = box.start()
    first, _, monitor = box.pids()
    os.kill(monitor, signal.SIGKILL)
    _, err = command.communicate(timeout=20)
    assert command.returncode == 125
    assert b"monitor was killed" in err
    assert not store.held("monitors", box.number)
    assert not gone(first)  # what is left is for the next command to find
    os.kill(first, signal.SIGKILL)
    until(lambda: gone(first))
    for path in box.groups():
        until(lambda path=path: not Path(f"{path}/cgroup.procs").read_text())
        os.rmdir(path)


def test_a_zygote_that_is_killed_harms_nobody_and_is_replaced(store):
    box = store.container("sh", "-c", "while true; do echo tick; sleep 0.02; done")
    command = box.start()
    assert command.stdout.readline() == b"tick\n"
    for pid in store.zygotes():
        if pid != box.pids()[2]:
            os.kill(pid, signal.SIGKILL)
    for _ in range(20):
        assert command.stdout.readline() == b"tick\n"
    other = store.container("true").start()
    other.communicate(timeout=20)
    assert other.returncode == 0


def test_the_zygote_is_one_with_no_descriptor_too_many(store):
    commands = [store.container("true").start() for _ in range(8)]
    for command in commands:
        command.communicate(timeout=30)
        assert command.returncode == 0
    until(lambda: len(store.zygotes()) == 1)
    zygote = store.zygotes()[0]
    assert len(os.listdir(f"/proc/{zygote}/fd")) == 4  # 0, 1, 2 and the socket
    assert len(os.listdir(f"/proc/{zygote}/task")) == 1
    fd = os.open(f"/proc/{zygote}/exe", os.O_PATH)
    try:
        assert os.fstatvfs(fd).f_flag & os.ST_RDONLY  # CVE-2019-5736: nobody writes to it through a container's /proc
    finally:
        os.close(fd)
    for name in os.listdir(store.run):
        if name.startswith("zygote-"):
            assert os.stat(store.run / name).st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("script", "most"), [("exec sleep 60", 420), ("echo up; exec sleep 60", 500)])
def test_an_idle_monitor_is_small(store, script, most):
    """Private memory (340 and 412 kB when this was written): a Python feature used for the first time after the fork
    costs 20 to 300 kB."""
    boxes = [store.container("sh", "-c", script) for _ in range(4)]
    for box in boxes:
        box.detached()
    if "echo" in script:
        until(lambda: all(os.path.getsize(box.log) for box in boxes))
    dirty = []
    for box in boxes:
        with open(f"/proc/{box.pids()[2]}/smaps_rollup") as f:
            dirty.append(sum(int(line.split()[1]) for line in f if line.startswith("Private_Dirty")))
    assert max(dirty) <= most, dirty


def test_what_stands_by_is_small(store):
    """Of all standing processes 12 MB are allowed; the zygote is the only one without a container."""
    store.container("true").start().communicate(timeout=20)
    for pid in store.zygotes():
        with open(f"/proc/{pid}/smaps_rollup") as f:
            sizes = {line.split()[0]: int(line.split()[1]) for line in f if line.endswith("kB\n")}
        assert sizes["Pss:"] <= 11_000, sizes


def test_an_idle_monitor_holds_only_what_it_needs(store):
    """Its helper shares its table of descriptors, and closes what the monitor does not need."""
    box = store.container("sleep", "60", stdin=True)
    box.detached()
    folder = f"/proc/{box.pids()[2]}/fd"
    open_files = [os.readlink(f"{folder}/{number}") for number in os.listdir(folder)]
    found = sorted(link.partition(":[")[0] for link in open_files if link != "/dev/null")
    assert found == sorted([
        "/memfd:monitor (deleted)", "anon_inode", "anon_inode", "socket", box.log,
        f"{store.locks}/monitors", f"{store.locks}/mounts", "pipe", "pipe", "pipe",
    ])  # fmt: skip


def worker(path, words: str = "echo done") -> dict:
    return {"worker": ["/bin/sh", "-c", f"{words} > {path}"], "worker_always": False, "environment": {}}


def test_the_monitor_of_a_detached_container_becomes_the_worker(store, tmp_path):
    box = store.container("true", **worker(tmp_path / "ran"))
    box.detached()
    until((tmp_path / "ran").exists)
    assert box.ended()["status"] == 0


def test_a_served_command_cleans_up_itself(store, tmp_path):
    box = store.container("true", **worker(tmp_path / "ran"))
    box.start().communicate(timeout=20)
    box.ended()
    until(lambda: not store.held("monitors", box.number))
    time.sleep(0.2)
    assert not (tmp_path / "ran").exists()


def test_a_command_that_was_killed_does_not(store, tmp_path):
    box = store.container("sh", "-c", "echo up; sleep 60", **worker(tmp_path / "ran"))
    command = box.start()
    assert command.stdout.readline() == b"up\n"
    command.kill()
    command.wait()
    os.kill(box.pids()[0], signal.SIGKILL)
    until((tmp_path / "ran").exists)


def test_one_that_only_attached_does_not_count(store, tmp_path):
    box = store.container("sh", "-c", "while test ! -e /tmp/end; do sleep 0.02; done", **worker(tmp_path / "ran"))
    box.detached()
    watcher = box.attach(stdin=False)
    time.sleep(0.3)
    box.execute("sh", "-c", "echo > /tmp/end").communicate(timeout=20)
    watcher.communicate(timeout=20)
    assert watcher.returncode == 0
    until((tmp_path / "ran").exists)
    os.unlink(store.tree / "tmp/end")


def test_a_full_run_directory_does_not_lose_the_status(store):
    """The record is written into space that was kept for it."""
    small = mount.file_system("tmpfs", None, [("size", "64k")])
    try:
        shared = f"/proc/{os.getpid()}/fd/{small}"
        box = store.container("sh", "-c", "echo up; cat; exit 4", stdin=True, place=shared, log=f"{shared}/log")
        command = box.start()
        assert command.stdout.readline() == b"up\n"
        filler = os.open(f"{shared}/filler", os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError, match="No space"):
            os.posix_fallocate(filler, 0, 1 << 20)
        while free := os.fstatvfs(filler).f_bavail:
            os.posix_fallocate(filler, 0, os.fstat(filler).st_size + free * 4096)
        out, _ = command.communicate(b"y" * 100_000, timeout=20)
        assert (command.returncode, out) == (4, b"y" * 100_000)
        assert loads(Path(f"{shared}/exit").read_text())["status"] == 4
        log = Path(f"{shared}/log").read_bytes()
        assert log[16:] == b"up\n"  # what fitted, whole
        os.close(filler)
    finally:
        os.close(small)


def test_a_log_that_finds_no_space_has_a_hole_and_stops_nobody(store):
    small = mount.file_system("tmpfs", None, [("size", "64k")])
    try:
        log = f"/proc/{os.getpid()}/fd/{small}/log"
        script = "for i in 1 2 3 4 5 6; do yes | head -c 30000; sleep 0.1; done; exit 4"
        box = store.container("sh", "-c", script, log=log)
        box.detached()
        assert box.ended()["status"] == 4
        data, sizes = Path(log).read_bytes(), []
        while data:
            _, length, stream = frames.HEADER.unpack_from(data)
            frame, data = data[frames.HEADER.size :][:length], data[frames.HEADER.size + length :]
            assert (len(frame), stream) == (length, frames.STDOUT)
            sizes.append(length)
        assert 0 < sum(sizes) < 65536
    finally:
        os.close(small)


def test_a_helper_that_is_killed_leaves_nothing(store, tmp_path):
    """While it waits for a hook: the container's first process is there, and so are its groups and locks."""
    hook, pipe, up = tmp_path / "hook", tmp_path / "pipe", tmp_path / "up"
    hook.write_text(f"#!/bin/sh\n: > {up}\nread line < {pipe}\n")
    hook.chmod(0o755)
    os.mkfifo(pipe)
    box = store.container("sleep", "60")
    config = json.loads(box.config.read_text())
    box.config.write_text(json.dumps({**config, "hooks": {"createRuntime": [{"path": str(hook)}]}}))
    command = box.start()
    until(up.exists)
    (first,) = [int(pid) for pid in Path(f"{box.groups()[0]}/cgroup.procs").read_text().split()]
    monitor = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
    (helper,) = {*children(monitor)} - {first}
    (hooked,) = children(helper)
    os.kill(helper, signal.SIGKILL)
    _, said = command.communicate(timeout=20)
    assert command.returncode == 125
    assert b"was killed" in said
    until(lambda: all(gone(pid) for pid in (first, hooked, monitor)))
    assert not box.groups()
    assert not store.held("monitors", box.number)
    assert not (box.place / "pid").exists()


def test_leftovers_of_a_container_are_killed(store):
    box = store.container("sh", "-c", "sleep 61 & echo up; sleep 60")
    command = box.start()
    assert command.stdout.readline() == b"up\n"
    others = [int(pid) for pid in Path(f"{box.groups()[0]}/cgroup.procs").read_text().split()]
    assert len(others) >= 2
    os.kill(box.pids()[0], signal.SIGKILL)
    command.communicate(timeout=20)
    until(lambda: all(gone(pid) for pid in others))
    assert not box.groups()


def test_a_command_killed_before_it_is_answered_leaves_a_monitored_container(store):
    for delay in (0.02, 0.06, 0.1, 0.14):
        box = store.container("sleep", "60")
        command = box.start()
        time.sleep(delay)
        command.kill()
        command.wait()
        time.sleep(0.3)
        if box.read("pid"):
            assert store.held("monitors", box.number)
        else:
            assert not store.held("monitors", box.number)
            assert not box.groups()


# What a command finds of the container's root when it is called with the descriptor of its mount: no process is left.
SETTLE = """import json, os, sys
os.mkdir("settled", dir_fd=int(sys.argv[2]))
json.dump([os.listdir(f"/proc/self/fd/{sys.argv[2]}"), os.path.exists(sys.argv[3])], open(sys.argv[1], "w"))
"""


def test_what_is_to_be_done_before_the_root_goes_is_done_before_the_end_is_told(store, tmp_path):
    """aufs keeps hard links only if they are settled while its mount lives."""
    said = tmp_path / "said"
    box = store.container("sh", "-c", "echo; exit 3")
    box.request["settle"] = [
        sys.executable,
        "-c",
        SETTLE.replace("sys.argv[3]", repr(str(box.place / "exit"))),
        str(said),
    ]
    box.detached()
    assert box.ended()["status"] == 3
    assert "error" not in box.ended()
    entries, told = json.loads(said.read_text())
    assert "settled" in entries
    assert told is False, "the end was told before"


def test_what_could_not_be_done_before_the_root_went_is_told(store):
    box = store.container("sh", "-c", "exit 4")
    box.request["settle"] = ["/bin/false"]
    box.detached()
    assert box.ended()["status"] == 4
    assert "several files" in box.ended()["error"]
