"""Messages with descriptors between the command, the zygote and monitors."""

from __future__ import annotations

import _socket
from _struct import pack, unpack

from cowshed.errors import LaunchFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOST = 1 << 18  # more than a socket's usual send buffer lets through
_DESCRIPTORS = 8
_CLOEXEC = 0x40000000  # MSG_CMSG_CLOEXEC


def send(connection: Any, message: bytes, descriptors: list[int]) -> None:
    extra = (
        [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pack(f"{len(descriptors)}i", *descriptors))] if descriptors else []
    )
    try:
        connection.sendmsg([message], extra)
    except OSError as error:
        if error.errno == 90:  # EMSGSIZE
            raise LaunchFailed(
                f"the request is too long ({len(message)} bytes)", remedy="shorten the environment or the arguments"
            ) from None
        raise


def receive(connection: Any) -> tuple[bytes, list[int]]:
    """One message; b"" when the other end is gone. The descriptors are close-on-exec."""
    try:
        message, extra, _, _ = connection.recvmsg(_MOST, _socket.CMSG_SPACE(4 * _DESCRIPTORS), _CLOEXEC)
    except ConnectionResetError:
        return b"", []  # it went before it took what was sent
    descriptors: list[int] = []
    for _, _, data in extra:
        descriptors += unpack(f"{len(data) // 4}i", data)
    return message, descriptors


def peer(connection: Any) -> int:
    """The user id at the other end."""
    _, uid, _ = unpack("3i", connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12))
    return int(uid)
