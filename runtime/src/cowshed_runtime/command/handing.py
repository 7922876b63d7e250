"""What a command hands to its caller: a terminal, a pidfd, a pid."""

from __future__ import annotations

import _socket
import os
import sys

from cowshed_runtime.command.errors import CommandError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def check_terminal(terminal: bool, detached: bool, socket: str | None) -> None:
    """CommandError if a terminal would have nobody at its other end, or a socket would be sent none."""
    if detached and terminal and not socket:
        raise CommandError("cannot allocate tty if the runtime will detach without setting console socket")
    if socket and not (detached and terminal):
        raise CommandError("cannot use console socket if the runtime will not detach or allocate tty")


def connect(path: str) -> Any:
    """A connection to a caller's socket. Before anything is made: a wrong path must not cost a container."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        connection.connect(path)
    except OSError as error:
        connection.close()
        raise CommandError(f"cannot connect to the socket {path}: {error.strerror}") from None
    return connection


def send(connection: Any, fd: int, name: bytes) -> None:
    """One message with one descriptor; the connection is closed."""
    try:
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))]
        connection.sendmsg([name], rights)
    finally:
        connection.close()


def write_pid(path: str, pid: int) -> None:
    """By rename, so that a reader sees all of it. OSError."""
    temporary = f"{os.path.dirname(path)}/.{os.path.basename(path)}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, str(pid).encode())
    finally:
        os.close(fd)
    os.rename(temporary, path)


def inherited(preserve: int) -> int:
    """How many descriptors from 3 on the process is to inherit: those of socket activation (sd_listen_fds(3)), and the
    next `preserve`. CommandError if one is not open."""
    listening = 0
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        text = os.environ.get("LISTEN_FDS", "0")
        listening = int(text) if text.isdecimal() and len(text) < 5 else 0
    if not 0 <= preserve < 1 << 16:
        raise CommandError(f"--preserve-fds is a number from 0 on, not {preserve}")
    for fd in range(3, 3 + listening + preserve):
        try:
            os.fstat(fd)
        except OSError:
            raise CommandError(f"descriptor {fd} is to be preserved and is not open") from None
    return listening + preserve


def activation(work: dict[str, Any], preserve: int) -> None:
    """Tell a container's program of the sockets that it inherits: it is process 1 of its own."""
    listening = inherited(preserve) - preserve
    if listening:
        work["env"] = [*(work.get("env") or []), f"LISTEN_FDS={listening}", "LISTEN_PID=1"]
