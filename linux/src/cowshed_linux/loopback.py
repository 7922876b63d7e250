"""The loopback device of a new network namespace (netdevice(7))."""

from __future__ import annotations

import _socket
import fcntl
from _struct import pack, unpack

_GETFLAGS, _SETFLAGS, _UP = 0x8913, 0x8914, 1


def up() -> None:
    """Bring `lo` up in this process's network namespace."""
    probe = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        answer = fcntl.ioctl(probe.fileno(), _GETFLAGS, pack("16sh22x", b"lo", 0))
        (flags,) = unpack("16xh22x", answer)
        fcntl.ioctl(probe.fileno(), _SETFLAGS, pack("16sh22x", b"lo", flags | _UP))
    finally:
        probe.close()
