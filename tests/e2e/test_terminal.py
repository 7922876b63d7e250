"""A terminal as a person uses it, through a pty: sizes, keys, detaching, and what is left of it afterwards."""

import fcntl
import os
import select
import signal
import struct
import termios
import time

import pytest


class Person:
    """One who sits at a terminal in which a command runs."""

    def __init__(self, shop, *words: str, rows: int = 30, columns: int = 90) -> None:
        self.master, self.slave = os.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""
        self.command = shop.spawn(*words, stdin=self.slave, stdout=self.slave, stderr=self.slave, preexec_fn=self._lead)

    def _lead(self) -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def until(self, text: bytes) -> None:
        """Read what appears until text has; what stood before it is forgotten."""
        deadline = time.monotonic() + 30
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.master], [], [], 0.5)[0]:
                self.seen += os.read(self.master, 4096)
        self.seen = self.seen[self.seen.index(text) + len(text) :]

    def ended(self) -> int:
        """The command's status; the terminal must be as it was."""
        status = self.command.wait(30)
        assert termios.tcgetattr(self.slave) == self.before, "the terminal is not restored"
        return status

    def close(self) -> None:
        self.command.kill()
        self.command.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def sit(shop):
    """sit(*words): a person at a terminal with that command."""
    people = []

    def start(*words, **how):
        people.append(Person(shop, *words, **how))
        return people[-1]

    yield start
    for person in people:
        person.close()
    for name in shop.ok("ps", "-aq").split():
        shop.ok("rm", "-f", name)


def test_size_and_resize(shop, sit):
    me = sit("run", "--rm", "-it", shop.image, "sh", rows=33, columns=101)
    me.until(b"# ")
    me.type(b"stty size\n")
    me.until(b"33 101")
    me.resize(44, 122)
    me.type(b"sleep 0.2; stty size; exit 3\n")
    me.until(b"44 122")
    assert me.ended() == 3


def test_ctrl_c_goes_to_the_program(shop, sit):
    me = sit(
        "run",
        "--rm",
        "-it",
        shop.image,
        "sh",
        "-c",
        "trap 'echo caught; exit 6' INT; echo up; while :; do sleep 0.1; done",
    )
    me.until(b"up")
    me.type(b"\x03")
    me.until(b"caught")
    assert me.ended() == 6


def test_detaching_with_keys_of_ones_own_and_attaching_again(shop, sit):
    me = sit("run", "-it", "--name", "stays", "--detach-keys", "ctrl-a,d", shop.image, "sh")
    me.until(b"# ")
    me.type(b"echo $((40+1))\x01")  # the first of the keys may be typed for itself
    me.type(b"\n")
    me.until(b"41")
    me.type(b"\x01d")
    assert me.ended() == 0
    again = sit("attach", "stays")
    again.type(b"echo $((40+2))\n")
    again.until(b"42")
    again.type(b"\x10\x11")
    assert again.ended() == 0
    assert shop.ok("inspect", "-f", "{{.State.Running}}", "stays") == "true\n"


def test_starting_again_with_the_terminal(shop, sit):
    shop.ok("create", "-it", "--name", "later", shop.image, "sh")
    for _ in range(2):
        me = sit("start", "-ai", "later", rows=25, columns=80)
        me.until(b"# ")
        me.type(b"stty size; exit 4\n")
        me.until(b"25 80")
        assert me.ended() == 4


def test_exec_with_a_terminal(shop, sit):
    shop.ok("run", "-d", "--name", "host", shop.image, "sleep", "1000")
    me = sit("exec", "-it", "host", "sh", rows=20, columns=70)
    me.until(b"# ")
    me.type(b"stty size; tty; exit 5\n")
    me.until(b"20 70")
    me.until(b"/dev/pts/")
    assert me.ended() == 5


def test_what_cannot_be_started_leaves_the_terminal_alone(shop, sit):
    me = sit("run", "--rm", "-it", shop.image, "/no/such/program")
    me.until(b"cowshed: ")
    assert me.ended() == 127


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_command_that_is_ended_restores_the_terminal(shop, sit, number):
    me = sit("run", "-it", "--name", "left", shop.image, "sh")
    me.until(b"# ")
    assert termios.tcgetattr(me.slave) != me.before
    me.command.send_signal(number)
    assert me.ended() == 128 + number
    assert shop.ok("inspect", "-f", "{{.State.Running}}", "left") == "true\n"


def test_a_container_that_is_removed_from_elsewhere_gives_the_terminal_back(shop, sit):
    me = sit("run", "-it", "--name", "taken", shop.image, "sh")
    me.until(b"# ")
    shop.ok("rm", "-f", "taken")
    assert me.ended() == 137


def test_a_terminal_needs_one(shop):
    done = shop("run", "--rm", "-it", shop.image, "true", feed=b"")
    assert done.returncode == 125
    assert b"terminal" in done.stderr
    assert shop("run", "--rm", "-t", shop.image, "tty").stdout.startswith(b"/dev/")
