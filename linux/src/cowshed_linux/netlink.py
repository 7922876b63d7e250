"""Network devices by rtnetlink(7): looking one up, moving it to another network namespace, addresses, bringing it up.

A few messages of our own: a library for all of netlink takes ten times as long to import as a container to start.
"""

from __future__ import annotations

import _socket
import os
import sys
from _struct import Struct, pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_NETLINK_ROUTE = 0
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_NEWLINK, _GETLINK, _NEWADDR, _GETADDR = 16, 18, 20, 22
_REQUEST, _ACK, _DUMP, _REPLACE, _CREATE = 1, 4, 0x300, 0x100, 0x400
_IFNAME, _NET_NS_FD = 3, 28  # IFLA_
_LABEL, _CACHEINFO = 3, 6  # IFA_
_UP, _PERMANENT, _UNIVERSE = 1, 0x80, 0
_header, _link, _address, _attribute = Struct("=IHHII"), Struct("=BxHiII"), Struct("=BBBBi"), Struct("=HH")


class Address:
    """An address of a device, as the kernel told it: family, prefix, flags, scope, and attributes by number."""

    def __init__(self, body: bytes) -> None:
        self.family, self.prefix, self.flags, self.scope, self.index = _address.unpack_from(body)
        self.attributes = dict(_attributes(body[_address.size :]))

    @property
    def kept(self) -> bool:
        """Whether it is of global scope and was not given for a time (IFA_F_PERMANENT)."""
        return bool(self.flags & _PERMANENT) and self.scope == _UNIVERSE


class Netlink:
    """A socket in the network namespace that the process is in when it is made. OSError has the kernel's errno."""

    def __init__(self) -> None:
        self._socket = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def devices(self) -> dict[int, tuple[str, bool]]:
        """The names of all devices, and whether they are up, by their indexes."""
        found = {}
        for body in self._ask("list devices", _GETLINK, _REQUEST | _DUMP, _link.pack(0, 0, 0, 0, 0)):
            _, _, index, flags, _ = _link.unpack_from(body)
            name = dict(_attributes(body[_link.size :]))[_IFNAME].rstrip(b"\0")
            found[index] = os.fsdecode(name), bool(flags & _UP)
        return found

    def addresses(self, index: int) -> list[Address]:
        """The addresses of a device, of every family."""
        bodies = self._ask("list addresses", _GETADDR, _REQUEST | _DUMP, _address.pack(0, 0, 0, 0, 0))
        return [address for address in map(Address, bodies) if address.index == index]

    def set_up(self, index: int, *, up: bool) -> None:
        body = _link.pack(0, 0, index, _UP if up else 0, _UP)
        self._do(f"set device {index} {'up' if up else 'down'}", _NEWLINK, 0, body)

    def move(self, index: int, namespace: int, name: str) -> None:
        """Into the network namespace of a descriptor, under a name; one that ends in %d is made unique by the kernel.
        EEXIST: the name is taken there. EINVAL: the device belongs to this namespace for good."""
        body = _link.pack(0, 0, index, 0, 0)
        body += _packed(_NET_NS_FD, pack("=I", namespace)) + _packed(_IFNAME, name.encode() + b"\0")
        self._do(f"move device {index}", _NEWLINK, 0, body)

    def add(self, address: Address, index: int) -> None:
        """Give a device an address that another had, or itself before it was moved."""
        body = _address.pack(address.family, address.prefix, address.flags, address.scope, index)
        for kind, value in address.attributes.items():
            # A label has the old name in it, and the time of an address is counted by the kernel.
            if kind not in (_LABEL, _CACHEINFO):
                body += _packed(kind, value)
        self._do("add an address", _NEWADDR, _CREATE | _REPLACE, body)

    def _do(self, what: str, kind: int, flags: int, body: bytes) -> None:
        for _ in self._ask(what, kind, _REQUEST | _ACK | flags, body):
            pass

    def _ask(self, what: str, kind: int, flags: int, body: bytes) -> Iterator[bytes]:
        self._sequence += 1
        self._socket.send(_header.pack(_header.size + len(body), kind, flags, self._sequence, 0) + body)
        while True:
            received = self._socket.recv(1 << 16)
            at = 0
            while at < len(received):
                length, kind, _, _, _ = _header.unpack_from(received, at)
                content = received[at + _header.size : at + length]
                at += length + 3 & ~3
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    number = -int.from_bytes(content[:4], sys.byteorder, signed=True)
                    if number:
                        raise OSError(number, f"{what}: {os.strerror(number)}")
                    return
                yield content


def _packed(kind: int, value: bytes) -> bytes:
    length = _attribute.size + len(value)
    return _attribute.pack(length, kind) + value + bytes(-length & 3)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _attribute.size <= len(data):
        length, kind = _attribute.unpack_from(data, at)
        yield kind & 0x3FFF, data[at + _attribute.size : at + length]
        at += max(length, _attribute.size) + 3 & ~3
