"""Work in several processes, and beside one."""

import os
import signal
import time

import pytest

from cowshed.bench.scenario import Wrong
from cowshed.bench.scenarios.parallel import SyncedWrites, at_once


def test_each_is_done_in_a_process_of_its_own(tmp_path):
    took = at_once([lambda n=n: (tmp_path / str(n)).write_text(str(os.getpid())) for n in range(3)])
    pids = {(tmp_path / str(n)).read_text() for n in range(3)}
    assert len(pids) == 3
    assert str(os.getpid()) not in pids
    assert all(seconds > 0 for seconds in took)


def test_one_that_fails_is_told_with_its_reason():
    def fail():
        raise Wrong("it is wrong")

    with pytest.raises(Wrong, match=r"1 of 2 processes failed: .* it is wrong$"):
        at_once([fail, lambda: None])


def test_one_that_is_killed_is_told():
    with pytest.raises(Wrong, match="1 of 1 processes failed: killed"):
        at_once([lambda: os.kill(os.getpid(), 9)])


def test_writes_beside_are_told_apart_by_when_they_ended(tmp_path):
    path = tmp_path / "file"
    with SyncedWrites(str(path)) as writes:
        writes.begin()
        while path.stat().st_size < SyncedWrites.SIZE:
            os.sched_yield()
    assert len(writes.before) >= 5
    assert len(writes.during) >= 1
    assert all(ms > 0 for ms in writes.before + writes.during)
    assert path.stat().st_size == SyncedWrites.SIZE


def test_nobody_is_left_though_one_cannot_be_begun(monkeypatch):
    begun, fork = [], os.fork

    def once():
        if begun:
            raise BlockingIOError("no more processes")
        pid = fork()
        begun.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", once)
    with pytest.raises(BlockingIOError):
        at_once([lambda: time.sleep(600)] * 2)
    with pytest.raises(ProcessLookupError):
        os.kill(begun[0], 0)


def test_writes_beside_that_cannot_begin_are_told(tmp_path):
    with pytest.raises(Wrong, match=r"writes beside failed: .*FileNotFoundError"), SyncedWrites(f"{tmp_path}/no/file"):
        pytest.fail("there are none")


def test_writes_beside_that_end_early_are_told(tmp_path):
    with pytest.raises(Wrong, match="writes beside failed: killed"), SyncedWrites(f"{tmp_path}/file") as writes:
        os.kill(writes._child._pid, signal.SIGKILL)
