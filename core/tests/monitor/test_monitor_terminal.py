"""Terminals: size, raw mode and its end, detach keys."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest

from cowshed.monitor.frames import HEADER


class Terminal:
    """The user's side of a terminal that a command runs in."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(33, 77)
        self.before = termios.tcgetattr(self.slave)
        self.stdio = {"stdin": self.slave, "stdout": self.slave, "stderr": self.slave}
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def expect(self, text: bytes, seconds: float = 10) -> None:
        os.set_blocking(self.master, False)
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            try:
                self.seen += os.read(self.master, 65536)
            except BlockingIOError:
                time.sleep(0.01)
        self.seen = self.seen.partition(text)[2]

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    def is_as_before(self) -> bool:
        return termios.tcgetattr(self.slave) == self.before


@pytest.fixture
def terminal():
    made = Terminal()
    yield made
    os.close(made.master)
    os.close(made.slave)


def wait(process: subprocess.Popen) -> int:
    return process.wait(timeout=20)


def test_size_typing_and_the_end(store, terminal):
    box = store.container("sh", "-c", "stty size; read word; echo got $word; stty size; exit 6", tty=True)
    process = box.start(stdio=terminal.stdio)
    terminal.expect(b"33 77")
    assert terminal.is_raw()
    terminal.resize(10, 20)
    process.send_signal(signal.SIGWINCH)
    time.sleep(0.2)
    terminal.type(b"hello\r")
    terminal.expect(b"got hello")
    terminal.expect(b"10 20")
    assert wait(process) == 6
    assert terminal.is_as_before()
    assert box.ended()["status"] == 6
    log = Path(box.log).read_bytes()
    assert HEADER.unpack_from(log)[2] == 1
    assert b"got hello\r\n" in log


def test_keys_go_to_the_container_not_to_the_command(store, terminal):
    box = store.container(
        "sh", "-c", "trap 'echo caught; exit 3' INT; echo up; while true; do sleep 0.05; done", tty=True
    )
    process = box.start(stdio=terminal.stdio)
    terminal.expect(b"up")
    terminal.type(b"\x03")
    terminal.expect(b"caught")
    assert wait(process) == 3


def test_detach_and_attach_again(store, terminal):
    box = store.container("sh", "-c", "while read word; do echo got $word; done", tty=True)
    process = box.start(stdio=terminal.stdio)
    box.pids()
    terminal.type(b"one\r")
    terminal.expect(b"got one")
    terminal.type(b"\x10")
    time.sleep(0.1)
    terminal.type(b"\x11")
    assert wait(process) == 255  # DETACHED
    assert terminal.is_as_before()
    assert store.held("monitors", box.number)
    process = box.attach(stdio=terminal.stdio)
    time.sleep(0.3)
    terminal.type(b"two\r")
    terminal.expect(b"got two")
    terminal.type(b"\x10\x11")
    assert wait(process) == 255
    assert terminal.is_as_before()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_restored_when_the_command_is_ended(store, terminal, number):
    box = store.container("sh", "-c", "echo up; sleep 60", tty=True)
    process = box.start(stdio=terminal.stdio)
    terminal.expect(b"up")
    assert terminal.is_raw()
    process.send_signal(number)
    assert wait(process) == 128 + number
    assert terminal.is_as_before()


def test_the_terminal_is_restored_when_the_monitor_is_killed(store, terminal):
    box = store.container("sh", "-c", "echo up; sleep 60", tty=True)
    process = box.start(stdio=terminal.stdio)
    terminal.expect(b"up")
    first, _, monitor = box.pids()
    os.kill(monitor, signal.SIGKILL)
    assert wait(process) == 125
    assert terminal.is_as_before()
    os.kill(first, signal.SIGKILL)


def test_exec_with_a_terminal(store, terminal):
    box = store.container("sleep", "60")
    box.detached()
    process = box.execute("sh", "-c", "stty size; read word; echo got $word; exit 4", tty=True, stdio=terminal.stdio)
    terminal.expect(b"33 77")
    terminal.type(b"it\r")
    terminal.expect(b"got it")
    assert wait(process) == 4
    assert terminal.is_as_before()


def test_a_large_paste_into_exec_does_not_lock_up(store, terminal):
    box = store.container("sleep", "60")
    box.detached()
    process = box.execute("sh", "-c", "stty raw -echo; echo up; head -c 60000 | wc -c", tty=True, stdio=terminal.stdio)
    terminal.expect(b"up")
    os.set_blocking(terminal.master, True)
    for _ in range(60):
        terminal.type(b"x" * 1000)
    terminal.expect(b"60000")
    assert wait(process) == 0


def test_detaching_from_exec_does_not_hang_it_up(store, terminal):
    box = store.container("sleep", "60")
    box.detached()
    words = "echo up; seq 1 20000; echo > /tmp/survived"
    process = box.execute("sh", "-c", "read start; " + words, tty=True, stdio=terminal.stdio)
    time.sleep(0.3)
    terminal.type(b"go\r\x10\x11")
    assert wait(process) == 255
    check = box.execute("sh", "-c", "while test ! -e /tmp/survived; do sleep 0.02; done")
    assert check.communicate(timeout=20)[0] == b""
    assert check.returncode == 0
    os.unlink(store.tree / "tmp/survived")
