"""A client of ttrpc, containerd's small relative of gRPC (PROTOCOL.md of its repository), and the protobuf it needs.

A message of ttrpc has a head of ten bytes (length, stream, type, flags; big-endian) and a protobuf message: a request
with service, method and payload, or a response with status and payload.

Messages of protobuf (its encoding page) are dictionaries here, of field numbers: an int is a varint, bytes and str are
of a length, a list is repeated. What is decoded has a list for each field.
"""

from __future__ import annotations

import _socket
import os
from _struct import pack, unpack

from cowshed_runtime.errors import LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[int, Any]

_HEAD = 10
_REQUEST, _RESPONSE = 1, 2
_MOST = 4 << 20  # bytes of a message (PROTOCOL.md)
_PATIENCE = 60  # seconds for an answer that nobody has to wait for


def encode(message: Message) -> bytes:
    """Empty values are left out, as protobuf 3 does."""
    parts = []
    for number, value in message.items():
        for one in value if isinstance(value, list) else (value,):
            if isinstance(one, int):
                if one:
                    parts.append(_varint(number << 3) + _varint(one & (1 << 64) - 1))
            elif one or isinstance(value, list):
                data = one.encode() if isinstance(one, str) else one
                parts.append(_varint(number << 3 | 2) + _varint(len(data)) + data)
    return b"".join(parts)


def decode(data: bytes) -> dict[int, list[Any]]:
    """Varints and fixed numbers as int, what has a length as bytes. ValueError if it is no message."""
    found: dict[int, list[Any]] = {}
    at = 0
    while at < len(data):
        key, at = _number(data, at)
        kind = key & 7
        value: Any = None
        if kind == 0:
            value, at = _number(data, at)
        elif kind == 2:
            size, at = _number(data, at)
            value, at = data[at : at + size], at + size
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = int.from_bytes(data[at : at + size], "little"), at + size
        if value is None or at > len(data):
            raise ValueError("no protobuf message")
        found.setdefault(key >> 3, []).append(value)
    return found


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("no protobuf message")


def any_of(url: str, value: bytes) -> bytes:
    """google.protobuf.Any."""
    return encode({1: url, 2: value})


def text_of(message: dict[int, list[Any]], number: int) -> str:
    return str(message.get(number, [b""])[0].decode(errors="replace"))


class Refused(LaunchError):
    """The server answered with an error."""


class Client:
    """A connection to a server; its requests may be answered in any order. LaunchError when the server is gone."""

    def __init__(self, connection: Any, service: str) -> None:
        self._connection, self._service = connection, service
        self._stream = -1
        self._answers: dict[int, bytes] = {}
        self._buffer = b""

    def fileno(self) -> int:
        return int(self._connection.fileno())

    def close(self) -> None:
        self._connection.close()

    def send(self, method: str, message: Message) -> int:
        """Ask; the number of the stream that will have the answer."""
        self._stream += 2  # those of clients are odd
        request = encode({1: self._service, 2: method, 3: encode(message)})
        try:
            self._connection.sendall(pack(">IIBB", len(request), self._stream, _REQUEST, 0) + request)
        except OSError as error:
            raise LaunchError("runtime", error.errno or 0, f"the shim is gone: {error.strerror}") from None
        return self._stream

    def receive(self, stream: int) -> dict[int, list[Any]]:
        """Wait for an answer."""
        while stream not in self._answers:
            self.read()
        return self._answer(stream)

    def call(self, method: str, message: Message) -> dict[int, list[Any]]:
        """Ask, and wait for the answer, but not for ever."""
        self._connection.settimeout(_PATIENCE)
        try:
            return self.receive(self.send(method, message))
        finally:
            self._connection.settimeout(None)

    def arrived(self, stream: int) -> dict[int, list[Any]] | None:
        """An answer that is there, after `read`."""
        return self._answer(stream) if stream in self._answers else None

    def read(self) -> None:
        """Take what has arrived, at least one byte."""
        try:
            block = self._connection.recv(1 << 16)
        except TimeoutError:
            raise LaunchError("runtime", 110, f"the shim does not answer within {_PATIENCE} s") from None
        except OSError as error:
            raise LaunchError("runtime", error.errno or 0, f"the shim is gone: {error.strerror}") from None
        if not block:
            raise LaunchError("runtime", 0, "the shim is gone")
        self._buffer += block
        while len(self._buffer) >= _HEAD:
            length, stream, kind, _ = unpack(">IIBB", self._buffer[:_HEAD])
            if length > _MOST or kind != _RESPONSE:
                raise LaunchError("runtime", 0, "the shim does not speak ttrpc")
            if len(self._buffer) < _HEAD + length:
                return
            self._answers[stream] = self._buffer[_HEAD : _HEAD + length]
            self._buffer = self._buffer[_HEAD + length :]

    def _answer(self, stream: int) -> dict[int, list[Any]]:
        try:
            response = decode(self._answers.pop(stream))
            status = decode(response.get(1, [b""])[0])
            if status.get(1, [0])[0]:
                raise Refused("runtime", 0, text_of(status, 2) or f"status {status[1][0]}")
            return decode(response.get(2, [b""])[0])
        except ValueError:
            raise LaunchError("runtime", 0, "the shim does not speak ttrpc") from None


def answer_all(data: bytes) -> tuple[bytes, bytes]:
    """Of what a client has sent, the answers with nothing in them to each whole request, and the rest of it."""
    answers = b""
    while len(data) >= _HEAD:
        length, stream, _, _ = unpack(">IIBB", data[:_HEAD])
        if len(data) < _HEAD + length:
            break
        data = data[_HEAD + length :]
        empty = encode({1: b"", 2: b""})
        answers += pack(">IIBB", len(empty), stream, _RESPONSE, 0) + empty
    return answers, data


def connect(address: str) -> Any:
    """A socket to `unix://PATH`, also a long one, or to an abstract one, @NAME. LaunchError."""
    path = address.removeprefix("unix://")
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    folder = -1
    try:
        if path.startswith(("@", "\0")):
            connection.connect("\0" + path[1:])
        else:
            folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            connection.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    except OSError as error:
        connection.close()
        raise LaunchError("runtime", error.errno or 0, f"the shim at {path}: {error.strerror}") from None
    finally:
        if folder >= 0:
            os.close(folder)
    return connection
