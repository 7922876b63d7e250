"""What long work shows: bars on a terminal of any width, lines elsewhere, nothing when asked to be quiet."""

import fcntl
import io
import os
import pty
import re
import struct
import termios
import threading

import pytest

from cowshed.image import progress

CONTROL = re.compile(r"\x1b\[(\d*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


def screen(text):
    """The lines that a terminal shows after text: as much of one as is used here; anything else fails."""
    lines, row, column = [""], 0, 0
    assert "".join(m.group() for m in CONTROL.finditer(text)) == text
    for number, letter, mark, plain in (m.groups() for m in CONTROL.finditer(text)):
        if letter == "A":
            row -= int(number)
            assert row >= 0, "above the screen"
        elif letter == "J":
            assert column == 0
            lines[row:] = [""]
        elif letter:
            raise AssertionError(f"an escape that is not expected: {letter}")
        elif mark == "\r":
            column = 0
        elif mark == "\n":
            row, column = row + 1, 0
            if row == len(lines):
                lines.append("")
        else:
            lines[row] = lines[row][:column] + plain
            column += len(plain)
    return lines


class Terminal:
    """A pseudo-terminal to write to, of a size that can change, and all that was written."""

    def __init__(self, columns=80, rows=24):
        self.master, slave = pty.openpty()
        attributes = termios.tcgetattr(slave)
        attributes[1] &= ~termios.OPOST
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        self.stream = os.fdopen(slave, "w")
        self.text = ""
        self.resize(columns, rows)

    def resize(self, columns, rows=24):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def shown(self):
        os.set_blocking(self.master, False)
        while True:
            try:
                self.text += os.read(self.master, 1 << 16).decode()
            except BlockingIOError:
                return screen(self.text)

    def close(self):
        self.stream.close()
        os.close(self.master)


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    made = []

    def make(*size):
        made.append(Terminal(*size))
        return made[-1]

    yield make
    for it in made:
        it.close()


@pytest.fixture
def always(monkeypatch):
    """Painted at every change."""
    monkeypatch.setattr(progress.Bars, "_EVERY", 0)


def test_the_right_one_for_a_stream(terminal, monkeypatch):
    there = terminal()
    assert type(progress.choose(there.stream)) is progress.Bars
    assert type(progress.choose(there.stream, quiet=True)) is progress.Progress
    assert type(progress.choose(io.StringIO())) is progress.Lines
    monkeypatch.setenv("TERM", "dumb")
    assert type(progress.choose(there.stream)) is progress.Lines


def test_lines():
    out = io.StringIO()
    with progress.choose(out) as it:
        it.step("one")
        it.begin("k", "name", 100)
        it.advance("k", 50)
        it.warn("odd\x1b[2J")
        it.end("k")
    assert out.getvalue() == "one\nwarning: odd?[2J\n"


@pytest.mark.parametrize("columns", [1, 5, 12, 20, 30, 40, 60, 79, 80, 81, 120, 300])
def test_every_width(terminal, always, columns):
    there = terminal(columns)
    with progress.choose(there.stream) as it:
        it.begin("a", "0123456789ab", 123_456_789)
        it.begin("b", "ba9876543210", 1000)
        for done in (0, 1, 999, 61_000_000, 123_456_789):
            it.advance("a", done)
            bars = there.shown()[:-1]
            assert len(bars) == 2
            assert all(len(line) < max(columns, 2) for line in bars)
        if columns >= 40:
            assert bars[0].startswith("0123456789ab: ")
            assert "123MB/123MB" in bars[0]
        if columns >= 79:
            assert "[================================]" in bars[0]
    assert there.shown() == [""]


def test_steps_stay_above_and_bars_go(terminal, always):
    there = terminal()
    with progress.choose(there.stream) as it:
        it.step("first")
        it.begin("a", "aaa", 10)
        it.begin("b", "bbb", 10)
        it.step("second\x1b]0;title\x07")
        assert [line[:4] for line in there.shown()] == ["firs", "seco", "aaa:", "bbb:", ""]
        assert there.shown()[1] == "second?]0;title?"
        it.end("a")
        assert [line[:4] for line in there.shown()] == ["firs", "seco", "bbb:", ""]
        it.advance("a", 5)  # too late: nobody minds
        it.end("unknown")
    it.close()
    assert there.shown() == ["first", "second?]0;title?", ""]


def test_a_window_that_changes(terminal, always):
    there = terminal(120)
    with progress.choose(there.stream) as it:
        it.begin("a", "aaa", 10)
        it.begin("b", "bbb", 10)
        assert len(there.shown()) == 3
        there.resize(30, 2)
        it.advance("a", 5)
        lines = there.shown()
        assert len(lines) == 2  # what is lower than the window cannot be painted over
        assert len(lines[0]) < 30
        there.resize(100, 24)
        it.advance("a", 6)
        assert len(there.shown()) == 3
    assert there.shown() == [""]


def test_an_error_leaves_the_terminal_clean(terminal, always):
    there = terminal()

    def work():
        with progress.choose(there.stream) as it:
            it.step("begun")
            it.begin("a", "aaa", 10)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert there.shown() == ["begun", ""]


def test_many_threads_at_once(always):
    """Transfers begin in several threads at the same moment."""
    out = io.StringIO()
    it = progress.Bars(out)
    out.fileno = lambda: (_ for _ in ()).throw(OSError())
    gate = threading.Barrier(8)
    failures = []

    def work(key):
        try:
            gate.wait()
            for n in range(40):
                it.begin(f"{key}{n}", key, 100)
                it.advance(f"{key}{n}", 50)
                it.step(f"{key} {n}")
                it.end(f"{key}{n}")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(str(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    it.close()
    assert failures == []
    lines = screen(out.getvalue())
    assert sorted(lines) == sorted([f"{key} {n}" for key in range(8) for n in range(40)] + [""])


def test_seldom_painted():
    """A thousand pieces a second are not a thousand paintings."""
    out = io.StringIO()
    it = progress.Bars(out)
    it.begin("a", "aaa", 10_000)
    for n in range(10_000):
        it.advance("a", n)
    it.close()
    assert out.getvalue().count("aaa") < 200
