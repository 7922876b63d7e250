"""Rendering logs: files of frames, written as a monitor writes them."""

import os
import subprocess
import sys
import time

import pytest

from cowshed.monitor import logs
from cowshed.monitor.frames import HEADER, STDERR, STDOUT

SECOND = 10**9


def frame(data: bytes, *, at: int = 0, stream: int = STDOUT) -> bytes:
    return HEADER.pack(at, len(data), stream) + data


@pytest.fixture
def show(tmp_path, capfdbinary):
    def render(*frames: bytes, **how) -> tuple[bytes, bytes]:
        path = tmp_path / "log"
        path.write_bytes(b"".join(frames))
        logs.render(str(path), **how)
        return capfdbinary.readouterr()

    return render


def test_streams_are_kept_apart_and_in_order(show):
    out, err = show(frame(b"a\n"), frame(b"E\n", stream=STDERR), frame(b"b\n"), frame(b"c"))
    assert (out, err) == (b"a\nb\nc", b"E\n")


def test_no_log_is_no_output(tmp_path, capfdbinary):
    logs.render(str(tmp_path / "none"))
    assert capfdbinary.readouterr() == (b"", b"")


@pytest.mark.parametrize("lines", range(6))
def test_tail_counts_lines_also_across_and_inside_frames(show, lines):
    out, _ = show(frame(b"1\n2\n"), frame(b"3\n4"), frame(b"\n5\n"), tail=lines)
    assert out == b"".join([b"%d\n" % n for n in range(6 - lines, 6)])


def test_tail_counts_a_last_line_without_an_end(show):
    assert show(frame(b"1\n2\n3"), tail=1)[0] == b"3"
    assert show(frame(b"1\n2\n3"), tail=9)[0] == b"1\n2\n3"


def test_since_and_until_are_inclusive(show):
    frames = [frame(b"%d\n" % n, at=n * SECOND) for n in range(1, 6)]
    assert show(*frames, since=2 * SECOND, until=4 * SECOND)[0] == b"2\n3\n4\n"


def test_tail_counts_within_since_and_until(show):
    frames = [frame(b"%d\n" % n, at=n * SECOND) for n in range(1, 6)]
    assert show(*frames, until=3 * SECOND, tail=2)[0] == b"2\n3\n"


def test_timestamps_begin_each_line_once(show):
    out, _ = show(frame(b"a\nb", at=SECOND + 5), frame(b"c\n", at=2 * SECOND), timestamps=True)
    assert out == b"1970-01-01T00:00:01.000000005Z a\n1970-01-01T00:00:01.000000005Z bc\n"


def test_a_torn_last_frame_is_left_out(show):
    whole = frame(b"whole\n")
    for cut in range(1, len(whole)):
        assert show(whole, whole[:cut])[0] == b"whole\n"


def test_many_small_and_some_large_frames(show):
    data = [b"x" * (n * 7919 % 300) + b"\n" for n in range(5000)] + [b"y" * 3_000_000]
    assert show(*map(frame, data))[0] == b"".join(data)


def test_follow_shows_what_is_written_until_the_container_ends(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(frame(b"before\n"))
    running = tmp_path / "running"
    running.touch()
    code = (
        "import os, sys; from cowshed.monitor import logs; "
        "logs.render(sys.argv[1], follow=lambda: os.path.exists(sys.argv[2]))"
    )
    reader = subprocess.Popen([sys.executable, "-c", code, path, running], stdout=subprocess.PIPE)
    assert reader.stdout.readline() == b"before\n"
    late = frame(b"after\n")
    with open(path, "ab", buffering=0) as f:
        f.write(late[:10])
        time.sleep(0.1)
        f.write(late[10:])
        assert reader.stdout.readline() == b"after\n"
        f.write(frame(b"last\n"))
    os.unlink(running)
    assert reader.communicate(timeout=20)[0] == b"last\n"
