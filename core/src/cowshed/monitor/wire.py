"""Messages with descriptors between the command, the zygote and monitors."""

from __future__ import annotations

import _socket
from _struct import pack, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOST = 1 << 17
_DESCRIPTORS = 8


def send(connection: Any, message: bytes, descriptors: list[int]) -> None:
    extra = (
        [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pack(f"{len(descriptors)}i", *descriptors))] if descriptors else []
    )
    connection.sendmsg([message], extra)


def receive(connection: Any) -> tuple[bytes, list[int]]:
    """One message; b"" when the other end is gone. The descriptors are close-on-exec."""
    message, extra, _, _ = connection.recvmsg(
        _MOST, _socket.CMSG_SPACE(4 * _DESCRIPTORS), 0x40000000
    )  # MSG_CMSG_CLOEXEC
    descriptors: list[int] = []
    for _, _, data in extra:
        descriptors += unpack(f"{len(data) // 4}i", data)
    return message, descriptors


def peer(connection: Any) -> int:
    """The user id at the other end."""
    _, uid, _ = unpack("3i", connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12))
    return int(uid)
