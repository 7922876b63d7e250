"""sd_notify(3) from inside a container: a socket of its own, of which only READY goes on to the service manager.

What else a container could say there (MAINPID, FDSTORE, …) would be taken for the word of the service.
"""

from __future__ import annotations

import _socket
import os
import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_INSIDE = "/run/notify"
_NAME = "notify"


def prepare(config: dict[str, Any], folder: str, name: str) -> None:
    """Let the configuration mount the directory of the socket and name that; the directory itself: make."""
    options = ["bind", "nosuid", "noexec", "nodev", "ro"]
    mounts = list(config.get("mounts") or [])
    config["mounts"] = [*mounts, {"destination": _INSIDE, "source": f"{folder}/{name}/{_NAME}", "options": options}]
    work = config["process"]
    work["env"] = [*(work.get("env") or []), f"NOTIFY_SOCKET={_INSIDE}/{_NAME}.sock"]


def make(place: int) -> None:
    """The directory that is mounted; the container's user may be anybody."""
    os.mkdir(_NAME, 0o755, dir_fd=place)


def bind(place: int) -> Any:
    """The socket, on which messages wait until they are read."""
    socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    folder = os.open(_NAME, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place)
    try:
        socket.bind(f"/proc/self/fd/{folder}/{_NAME}.sock")
        os.chmod(f"{_NAME}.sock", 0o777, dir_fd=folder)
    finally:
        os.close(folder)
    return socket


def forward(socket: Any, host: str, pid: int, main: int) -> None:
    """Wait until the container says that it is ready, or ends (process pid), and tell the service manager at the path
    host, with main as the process to watch."""
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    for fd in (socket.fileno(), pidfd):
        poll.register(fd, select.POLLIN)
    try:
        while True:
            ready = dict(poll.poll())
            if socket.fileno() in ready:
                lines = socket.recv(4096).split(b"\n")
                if b"READY=1" in lines:
                    _tell(host, main)
                    return
            elif pidfd in ready:
                return
    finally:
        os.close(pidfd)
        socket.close()


def _tell(host: str, main: int) -> None:
    client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    address = f"\0{host[1:]}" if host[:1] == "@" else host
    read_end, write_end = os.pipe()
    try:
        client.connect(address)
        client.send(b"READY=1\n")
        client.send(b"MAINPID=%d\n" % main)
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, write_end.to_bytes(4, sys.byteorder))]
        client.sendmsg([b"BARRIER=1"], rights)
        os.close(write_end)
        write_end = -1
        select.select([read_end], [], [], 30)  # closed when the manager has taken it all (sd_notify_barrier(3))
    finally:
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)
        client.close()
