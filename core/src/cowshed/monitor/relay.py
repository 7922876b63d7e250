"""Being attached: this process's streams and the container's, until one of them ends.

The terminal is restored whatever happens.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` brings enum
import os
import select

from cowshed.errors import BadUsage, CowshedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.monitor.client import Session

DETACHED = -1
LOST = 128 + 13  # as if by SIGPIPE: nobody reads this process's output any more
_GET_SIZE, _SET_SIZE = 0x5413, 0x5414  # TIOCGWINSZ, TIOCSWINSZ: ioctl_tty(2)
_CHUNK = 1 << 18
_ENDING = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM)
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
    """Copy the streams until the container ends; its exit status, or DETACHED if the detach keys were typed, or
    LOST when nobody reads the output any more. CowshedError if the output cannot be written (a full disk)."""
    saved = _raw() if session.terminal and stdin else None
    try:
        return _Relay(session, stdin=stdin, detach=detach, proxy=proxy and not session.terminal).run()
    finally:
        if saved is not None:
            import termios

            termios.tcsetattr(0, termios.TCSANOW, saved)  # at once: a terminal stopped by ctrl-S would never drain


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
        self.session, self.keys = session, detach if session.terminal else b""
        self.held = self.pending = b""
        self.reading = stdin and session.input >= 0
        self.poll = select.poll()
        self.targets = dict(zip(session.outputs, (1, 2), strict=False))
        self.plain: set[int] = set()
        self.lost = False
        self.wake, self.wake_end = os.pipe()
        for fd in (self.wake, self.wake_end):
            os.set_blocking(fd, False)
        self.proxied: tuple[int, ...] = _PROXIED if proxy else ()

    def run(self) -> int:
        session = self.session
        old = {number: _signal.signal(number, self.signalled) for number in (*self.proxied, _signal.SIGWINCH)}
        if session.terminal:  # what is typed goes to the container, so these come from outside and end this process
            old.update({number: _signal.signal(number, _leave) for number in _ENDING})
        # The handlers do the work, also when this process waits for whoever reads its output; the pipe is there for a
        # signal that arrives just before poll.
        before = _signal.set_wakeup_fd(self.wake_end, warn_on_full_buffer=False)
        try:
            self.resize()
            for fd in (*self.targets, session.connection.fileno(), self.wake):
                self.poll.register(fd, select.POLLIN)
            if session.input >= 0:
                os.set_blocking(session.input, False)
            if self.reading:
                self.poll.register(0, select.POLLIN)
            elif session.input >= 0 and not session.terminal:
                self.end_of_input()
            return self.loop()
        finally:
            _signal.set_wakeup_fd(before)
            for number, handler in old.items():
                _signal.signal(number, handler)
            os.close(self.wake)
            os.close(self.wake_end)

    def loop(self) -> int:
        control = self.session.connection.fileno()
        while True:
            for fd, _ in self.poll.poll():
                if fd in self.targets:
                    if not self.output(fd):
                        self.poll.unregister(fd)
                        del self.targets[fd]
                elif fd == control:
                    return self.rest()
                elif fd == self.wake:
                    os.read(self.wake, 4096)
                elif fd == 0 and self.reading:
                    if self.typed():
                        return DETACHED
                elif fd == self.session.input:
                    self.push()
                if self.lost:
                    return LOST

    def rest(self) -> int:
        """The container or process has ended: what is still in its streams, and its status.

        The ends of an executed process's streams may be held by others, so the end of a stream is not waited for.
        """
        for fd in self.targets:
            os.set_blocking(fd, False)
            while self.output(fd, rest=True):
                continue
        return LOST if self.lost else self.session.wait()

    def output(self, fd: int, *, rest: bool = False) -> bool:
        """Move what is there; False at the end of the stream, and, for the rest of it, if nothing is there."""
        target = self.targets[fd]
        try:
            if fd not in self.plain:
                try:
                    return os.splice(fd, target, _CHUNK) > 0
                except BlockingIOError:
                    pass  # either there is nothing, or the target takes nothing and may not be waited for
                except OSError as error:
                    if error.errno != 22:  # EINVAL: a target opened for appending, a terminal on an older kernel
                        raise
                    self.plain.add(fd)
            try:
                data = os.read(fd, _CHUNK)
            except BlockingIOError:
                return not rest
            except OSError:
                return False  # EIO: the last slave of a terminal is closed
            self.write(target, data)
            return bool(data)
        except OSError as error:
            if error.errno == 5 and fd == self.session.input:
                return False
            if error.errno != 32:
                raise CowshedError(f"the container's output cannot be written: {error.strerror}") from None
            self.lost = True  # EPIPE
            return False

    @staticmethod
    def write(target: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(target, view) :]
            except BlockingIOError:  # somebody who shares it made it so
                ready = select.poll()
                ready.register(target, select.POLLOUT)
                ready.poll()

    def typed(self) -> bool:
        """Take input; whether the detach keys were in it."""
        try:
            data = os.read(0, 1 << 16)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.poll.unregister(0)
            self.reading = False
            self.pending, self.held = self.pending + self.held, b""
            self.push()
            return False
        data, self.held, detached = split_keys(self.held + data, self.keys)
        self.pending += data
        self.push()
        return detached

    def push(self) -> None:
        """Write what was typed; while the container does not take it, read no more."""
        if self.session.input < 0:
            return
        try:
            while self.pending:
                self.pending = self.pending[os.write(self.session.input, self.pending) :]
        except BlockingIOError:
            self.watch(0 if self.reading else -1, 0)
            self.watch(self.session.input, select.POLLOUT)
            return
        except OSError:  # the container has closed its stdin
            self.pending = b""
            if self.reading:
                self.watch(0, 0)
                self.reading = False
        self.watch(self.session.input, 0)
        if self.reading:
            self.watch(0, select.POLLIN)
        elif not self.session.terminal:
            self.end_of_input()

    def watch(self, fd: int, events: int) -> None:
        """Wait for these events of a descriptor of input; for none, not even for its end."""
        if fd < 0:
            return
        if events:
            self.poll.register(fd, events)
            return
        try:
            self.poll.unregister(fd)
        except KeyError:
            pass  # it was not waited for

    def end_of_input(self) -> None:
        if self.session.input >= 0:
            os.close(self.session.input)
            self.session.input = -1

    def signalled(self, number: int, frame: object) -> None:
        if number == _signal.SIGWINCH:
            self.resize()
        elif self.session.signal is not None:
            self.session.signal(number)
        elif self.session.pid > 0:
            try:
                os.kill(self.session.pid, number)
            except ProcessLookupError:
                return  # it has just ended

    def resize(self) -> None:
        """Give the container's terminal the size of this one."""
        if not self.session.terminal or self.session.input < 0:
            return
        import fcntl

        for fd in (0, 1, 2):
            try:
                size = fcntl.ioctl(fd, _GET_SIZE, bytes(8))
                fcntl.ioctl(self.session.input, _SET_SIZE, size)
                return
            except OSError:
                continue  # no terminal


def _leave(number: int, frame: object) -> None:
    """End this process by way of what restores the terminal."""
    raise SystemExit(128 + number)


def split_keys(data: bytes, keys: bytes) -> tuple[bytes, bytes, bool]:
    """(what to pass on, what to hold back since it may begin the detach keys, whether they are in data)."""
    if not keys:
        return data, b"", False
    at = data.find(keys)
    if at >= 0:
        return data[:at], b"", True
    for length in range(min(len(keys) - 1, len(data)), 0, -1):
        if keys.startswith(data[-length:]):
            return data[:-length], data[-length:], False
    return data, b"", False
