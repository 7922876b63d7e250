"""Being attached: this process's streams and the container's, until one of them ends.

The terminal is restored whatever happens.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` brings enum
import os
import select

from cowshed.errors import BadUsage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.monitor.client import Session

DETACHED = -1
_CHUNK = 1 << 18
_PROXIED = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM, _signal.SIGUSR1, _signal.SIGUSR2)


def detach_sequence(text: str) -> bytes:
    """The bytes of docker's notation: letters, ctrl-X, comma-separated; empty for none."""
    keys = bytearray()
    for key in text.split(",") if text else ():
        if len(key) == 1:
            keys += key.encode()
        elif key.startswith("ctrl-") and len(key) == 6 and key[5] in "abcdefghijklmnopqrstuvwxyz@[\\]^_":
            keys.append(ord(key[5].upper()) & 0x1F)
        else:
            raise BadUsage(f"{key!r} is no detach key", remedy="write a letter or ctrl-LETTER, separated by commas")
    return bytes(keys)


def relay(session: Session, *, stdin: bool, detach: bytes = b"", proxy: bool = True) -> int:
    """Copy the streams until the container ends; its exit status, or DETACHED if the detach keys were typed."""
    saved = _raw() if session.terminal and stdin else None
    try:
        return _Relay(session, stdin=stdin, detach=detach, proxy=proxy and not session.terminal).run()
    finally:
        if saved is not None:
            import termios

            termios.tcsetattr(0, termios.TCSADRAIN, saved)


def _raw() -> Any:
    """Put this process's terminal into raw mode; what it was before, or None if stdin is none."""
    import termios

    try:
        before = termios.tcgetattr(0)
    except termios.error:
        return None
    raw = termios.tcgetattr(0)
    raw[0] &= ~(termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON)
    raw[1] &= ~termios.OPOST
    raw[2] = raw[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    raw[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
    termios.tcsetattr(0, termios.TCSADRAIN, raw)
    return before


class _Relay:
    def __init__(self, session: Session, *, stdin: bool, detach: bytes, proxy: bool) -> None:
        self.session, self.detach, self.matched = session, detach if session.terminal else b"", 0
        self.pending = b""
        self.reading = stdin and session.input >= 0
        self.poll = select.poll()
        self.targets = dict(zip(session.outputs, (1, 2), strict=False))
        self.wake, self.wake_end = os.pipe()
        os.set_blocking(self.wake_end, False)
        os.set_blocking(self.wake, False)
        self.proxied: tuple[int, ...] = _PROXIED if proxy else ()

    def run(self) -> int:
        session = self.session
        old = {number: _signal.signal(number, _note) for number in (*self.proxied, _signal.SIGWINCH)}
        _signal.set_wakeup_fd(self.wake_end)
        try:
            self.resize()
            for fd in self.targets:
                self.poll.register(fd, select.POLLIN)
            self.poll.register(session.connection.fileno(), select.POLLIN)
            self.poll.register(self.wake, select.POLLIN)
            if session.input >= 0 and not session.terminal:
                os.set_blocking(session.input, False)
            if self.reading:
                self.poll.register(0, select.POLLIN)
            elif session.input >= 0 and not session.terminal:
                self.end_of_input()
            return self.loop()
        finally:
            _signal.set_wakeup_fd(-1)
            for number, handler in old.items():
                _signal.signal(number, handler)

    def loop(self) -> int:
        control = self.session.connection.fileno()
        ended = False
        while True:
            if ended and not self.targets:
                return self.session.wait()
            for fd, _ in self.poll.poll():
                if fd in self.targets:
                    if not self.output(fd):
                        self.poll.unregister(fd)
                        del self.targets[fd]
                elif fd == control:
                    ended = True
                    self.poll.unregister(control)
                    if (
                        self.session.terminal
                        and self.session.outputs[0] in self.targets
                        and len(self.session.outputs) == 1
                    ):
                        self.drain(self.session.outputs[0])
                elif fd == self.wake:
                    self.signals()
                elif fd == 0:
                    if self.typed():
                        return DETACHED
                elif fd == self.session.input:
                    self.push()

    def drain(self, fd: int) -> None:
        """The rest of an executed process's terminal, which has no end of its own while this process holds it."""
        os.set_blocking(fd, False)
        while self.output(fd):
            continue
        self.poll.unregister(fd)
        del self.targets[fd]

    def output(self, fd: int) -> bool:
        target = self.targets[fd]
        try:
            return os.splice(fd, target, _CHUNK) > 0
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (22, 5):
                return self.gone(error)
        try:
            data = os.read(fd, _CHUNK)
        except OSError:
            return False
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(target, view) :]
        except OSError as error:
            return self.gone(error)
        return bool(data)

    @staticmethod
    def gone(error: OSError) -> bool:
        """Nobody reads what the container says any more; the closed pipe tells it."""
        if error.errno != 32:
            raise error
        return False

    def typed(self) -> bool:
        """Take input; whether the detach keys were in it."""
        try:
            data = os.read(0, 1 << 16)
        except OSError:
            data = b""
        if not data:
            self.poll.unregister(0)
            self.reading = False
            if not self.session.terminal and not self.pending:
                self.end_of_input()
            return False
        if self.detach:
            for n, byte in enumerate(data):
                self.matched = self.matched + 1 if byte == self.detach[self.matched] else int(byte == self.detach[0])
                if self.matched == len(self.detach):
                    kept = data[: max(0, n + 1 - len(self.detach))]
                    if kept:
                        os.write(self.session.input, kept)
                    return True
            if self.matched:  # the beginning of the sequence: held back until it is decided
                data, self.held = data[: -self.matched] if len(data) > self.matched else b"", data[-self.matched :]
                if not data:
                    return False
            elif getattr(self, "held", b""):
                data, self.held = self.held + data, b""
        self.pending += data
        self.push()
        return False

    def push(self) -> None:
        """Write what was typed; while the container does not take it, read no more."""
        try:
            while self.pending:
                self.pending = self.pending[os.write(self.session.input, self.pending) :]
        except BlockingIOError:
            self.poll.register(self.session.input, select.POLLOUT)
            if self.reading:
                self.poll.modify(0, 0)
            return
        except OSError:
            self.pending = b""
            if self.reading:
                self.poll.unregister(0)
                self.reading = False
        try:
            self.poll.unregister(self.session.input)
        except KeyError:
            pass  # it was not waited for
        if self.reading:
            self.poll.modify(0, select.POLLIN)
        elif not self.session.terminal:
            self.end_of_input()

    def end_of_input(self) -> None:
        if self.session.input >= 0:
            os.close(self.session.input)
            self.session.input = -1

    def signals(self) -> None:
        for number in os.read(self.wake, 256):
            if number == _signal.SIGWINCH:
                self.resize()
            elif number in self.proxied:
                try:
                    os.kill(self.session.pid, number)
                except ProcessLookupError:
                    continue

    def resize(self) -> None:
        if self.session.terminal and self.session.input >= 0:
            import fcntl

            try:
                size = fcntl.ioctl(0, 0x5413, bytes(8))  # TIOCGWINSZ
                fcntl.ioctl(self.session.input, 0x5414, size)  # TIOCSWINSZ
            except OSError:
                return  # stdin is no terminal


def _note(number: int, frame: object) -> None:
    """Signals are read from the wake-up pipe; the handler only has to exist."""
