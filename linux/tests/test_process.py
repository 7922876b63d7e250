"""Processes by pid and start time."""

import os

import pytest

from cowshed_linux import process


def test_a_process_lives_until_it_has_ended_reaped_or_not():
    me = os.getpid()
    assert process.lives(me, process.start_time(me))
    assert not process.lives(me, process.start_time(me) + 1)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    started = process.start_time(child)
    assert process.lives(child, started)
    os.close(write)
    os.close(read)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # a zombie now
    assert process.start_time(child) == started
    assert not process.lives(child, started)
    os.waitpid(child, 0)
    assert not process.lives(child, started)
    with pytest.raises(ProcessLookupError):
        process.start_time(child)
