"""Streams through pipes: everything arrives, and the error of either side is the one that is raised."""

import io
import os
import threading

import pytest

from cowshed.storage.kit import streams

DATA = os.urandom(3_000_000)


def write_all(fd):
    rest = memoryview(DATA)
    while rest:
        rest = rest[os.write(fd, rest) :]


def read_all(fd):
    found = b""
    while piece := os.read(fd, 1 << 16):
        found += piece
    return found


def test_all_that_is_written_arrives():
    out = io.BytesIO()
    streams.to(out, write_all)
    assert out.getvalue() == DATA


def test_all_that_is_read_was_there():
    found = []
    streams.of(io.BytesIO(DATA), lambda fd: found.append(read_all(fd)))
    assert found == [DATA]


class Full(io.BytesIO):
    def write(self, data):
        raise OSError(28, "No space left on device")


def test_a_full_target_is_the_error_and_the_writer_ends():
    with pytest.raises(OSError, match="No space left"):
        streams.to(Full(), write_all)


class Torn(io.BytesIO):
    def read(self, size=-1):
        raise ConnectionResetError(104, "the other side has gone")


def test_a_torn_source_is_the_error():
    with pytest.raises(ConnectionResetError):
        streams.of(Torn(), read_all)


def test_a_reader_that_wants_no_more_says_why():
    def refuse(fd):
        os.read(fd, 10)
        raise ValueError("not a stream")

    with pytest.raises(ValueError, match="not a stream"):
        streams.of(io.BytesIO(DATA), refuse)


def test_nothing_stays_behind():
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        streams.to(io.BytesIO(), write_all)
        streams.of(io.BytesIO(DATA), read_all)
        with pytest.raises(OSError, match="No space"):
            streams.to(Full(), write_all)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
