"""A container between create and start: all is set up, and it waits before it executes its program.

It waits at a socket in the state directory, which belongs to root alone; whoever connects lets it go, and is told over
that connection why it could not execute its program. That it waits is known by a lock that the kernel releases when the
program is executed or the process dies: no record of it can be wrong.
"""

from __future__ import annotations

import _socket
import fcntl
import os

_NAME, _GUARD = "start", "waits"


class Hold:
    """Where a container waits: a listening socket and a locked file in a directory. Both close on exec."""

    def __init__(self, place: int) -> None:
        """place: the descriptor of the state directory. OSError."""
        self.listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        self.guard = -1
        try:
            # By descriptor: the path may be longer than a socket address holds.
            old = os.umask(0o177)
            try:
                self.listener.bind(f"/proc/self/fd/{place}/{_NAME}")
            finally:
                os.umask(old)
            self.listener.listen(1)
            self.guard = os.open(_GUARD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=place)
            fcntl.flock(self.guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            self.close()
            raise

    def descriptors(self) -> tuple[int, int]:
        return self.listener.fileno(), self.guard

    def wait(self, created: int) -> int:
        """Close `created`, which tells the creator, and wait to be let go; where to report errors from here on."""
        os.close(created)
        fd, _ = self.listener._accept()  # type: ignore[attr-defined]  # of _socket
        self.listener.close()
        return int(fd)

    def close(self) -> None:
        """In the creator: only the container's process keeps them."""
        self.listener.close()
        if self.guard >= 0:
            os.close(self.guard)


def holds(place: int) -> bool:
    """Whether the container of a state directory, which lives, has not executed its program yet."""
    try:
        fd = os.open(_GUARD, os.O_RDWR | os.O_CLOEXEC, dir_fd=place)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def release(place: int) -> bytes:
    """Let the container go, and return when its program has been executed: b"", else the error that it reports
    (launcher). ConnectionRefusedError if nothing waits there."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{place}/{_NAME}")
        said = b""
        while block := connection.recv(1 << 16):
            said += block
        return said
    finally:
        connection.close()
