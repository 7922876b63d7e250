"""A client of ttrpc, containerd's small relative of gRPC (PROTOCOL.md of its repository).

A message of ttrpc has a head of ten bytes (length, stream, type, flags; big-endian) and a protobuf message: a request
with service, method and payload, or a response with status and payload.
"""

from __future__ import annotations

import _socket
import os
from _struct import pack, unpack

from cowshed_runtime.errors import LaunchError
from cowshed_runtime.protobuf import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed_runtime.protobuf import Message

_HEAD = 10
_REQUEST, _RESPONSE = 1, 2
_MOST = 4 << 20  # bytes of a message (PROTOCOL.md)
_PATIENCE = 60  # seconds for an answer that nobody has to wait for


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
