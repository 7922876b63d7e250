"""A client of D-Bus, as far as systemd's manager needs one (D-Bus Specification: Marshaling, Message Protocol,
Authentication Protocol): method calls, replies and signals over one socket, of a bus or of systemd itself.

Values are Python's: an array is a list, a struct or an entry of a dictionary a tuple, a variant (signature, value).
"""

from __future__ import annotations

import _socket
from _struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FIXED = {
    "y": Struct("<B"), "b": Struct("<I"), "n": Struct("<h"), "q": Struct("<H"), "i": Struct("<i"), "u": Struct("<I"),
    "x": Struct("<q"), "t": Struct("<Q"), "d": Struct("<d"),
}  # fmt: skip
_ALIGNMENT = {"s": 4, "o": 4, "a": 4, "g": 1, "v": 1, "(": 8, "{": 8}
_CALL, _RETURN, _ERROR, _SIGNAL = 1, 2, 3, 4
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _DESTINATION, _SIGNATURE = 1, 2, 3, 4, 5, 6, 8
_HEADER = "yyyyuua(yv)"
_LONGEST = 1 << 27  # of a message, by the specification
_U32 = Struct("<I")


class Refused(OSError):
    """An error that the other side returned: its name, and its text. errno EIO."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(5, text or name)
        self.name = name


def split(signature: str) -> list[str]:
    """The complete types of a signature. ValueError for one that is none."""
    found, at = [], 0
    while at < len(signature):
        end = _end(signature, at)
        found.append(signature[at:end])
        at = end
    return found


def _end(signature: str, at: int) -> int:
    kind = signature[at : at + 1]
    if kind == "a":
        return _end(signature, at + 1)
    if kind and kind in "({":
        closing, at = {"(": ")", "{": "}"}[kind], at + 1
        while signature[at : at + 1] != closing:
            at = _end(signature, at)
        return at + 1
    if not kind or (kind not in _FIXED and kind not in "sogv"):
        raise ValueError(f"{signature!r} is no D-Bus signature")
    return at + 1


def _alignment(kind: str) -> int:
    return _FIXED[kind].size if kind in _FIXED else _ALIGNMENT[kind[0]]


def _pad(out: bytearray, alignment: int) -> None:
    out += bytes(-len(out) % alignment)


def put(signature: str, values: Any, out: bytearray) -> None:
    """Append values, one for each complete type of the signature."""
    for kind, value in zip(split(signature), values, strict=True):
        _put(kind, value, out)


def _put(kind: str, value: Any, out: bytearray) -> None:
    _pad(out, _alignment(kind))
    if kind in _FIXED:
        out += _FIXED[kind].pack(value)
    elif kind in ("s", "o", "g"):
        text = value.encode("utf-8")
        if b"\0" in text:
            raise ValueError("a string of D-Bus has no NUL byte")
        out += _FIXED["y" if kind == "g" else "u"].pack(len(text)) + text + b"\0"
    elif kind == "v":
        _put("g", value[0], out)
        _put(value[0], value[1], out)
    elif kind[0] == "a":
        at = len(out)
        out += bytes(4)
        _pad(out, _alignment(kind[1:]))
        start = len(out)
        for element in value:
            _put(kind[1:], element, out)
        _U32.pack_into(out, at, len(out) - start)
    else:
        put(kind[1:-1], value, out)


class Reader:
    """Takes values from the bytes of a message. ValueError for what is not of the signature."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, signature: str) -> list[Any]:
        return [self._take(kind) for kind in split(signature)]

    def _bytes(self, size: int) -> bytes:
        if size < 0 or self.at + size > len(self.data):
            raise ValueError("a D-Bus message ends too early")
        self.at += size
        return self.data[self.at - size : self.at]

    def _take(self, kind: str) -> Any:
        self.at += -self.at % _alignment(kind)
        if kind in _FIXED:
            (value,) = _FIXED[kind].unpack(self._bytes(_FIXED[kind].size))
            return bool(value) if kind == "b" else value
        if kind in ("s", "o", "g"):
            text = self._bytes(self._take("y" if kind == "g" else "u"))
            self._bytes(1)
            return text.decode("utf-8", "replace")
        if kind == "v":
            (inner,) = split(self._take("g"))
            return inner, self._take(inner)
        if kind[0] == "a":
            size = self._take("u")
            self.at += -self.at % _alignment(kind[1:])
            end, found = self.at + size, []
            while self.at < end:
                found.append(self._take(kind[1:]))
            return found
        return tuple(self.take(kind[1:-1]))


class Message:
    """One message, read: what of its header is used here, and its body."""

    def __init__(self, head: bytes, body: bytes) -> None:
        _, self.kind, _, _, _, self.serial, fields = Reader(head).take(_HEADER)
        known = {code: value for code, (_, value) in fields}
        self.path, self.member = known.get(_PATH, ""), known.get(_MEMBER, "")
        self.error, self.answers = known.get(_ERROR_NAME, ""), known.get(_REPLY_SERIAL, 0)
        self.body = Reader(body).take(known.get(_SIGNATURE, ""))


class Connection:
    """A socket of systemd (direct), or of a bus, on which `destination` is called.

    OSError if there is nobody, or nothing is said for ten seconds; Refused for an error that is returned.
    """

    def __init__(self, address: str, destination: str = "") -> None:
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        self._destination, self._serial, self._pending = "", 0, b""
        self.signals: list[Message] = []
        try:
            self._socket.settimeout(10)
            self._socket.connect("\0" + address[1:] if address[:1] == "@" else address)
            self._authenticate()
            if destination:
                self._destination = "org.freedesktop.DBus"
                self.call("/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
                self._destination = destination
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def _authenticate(self) -> None:
        """EXTERNAL without a name: the other side knows by the socket who we are, also from a user namespace.

        All at once: a call that reaches systemd together with BEGIN would lie there until something follows it.
        """
        self._send(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")
        while (line := self._line()) == b"DATA":
            continue
        if line[:3] != b"OK ":
            raise PermissionError(13, f"D-Bus does not let this user in: {line.decode(errors='replace')}")

    def _send(self, data: bytes | bytearray) -> None:
        while data:
            data = data[self._socket.send(data) :]

    def _line(self) -> bytes:
        while b"\r\n" not in self._pending:
            self._fill()
        line, _, self._pending = self._pending.partition(b"\r\n")
        return line

    def _fill(self) -> None:
        block = self._socket.recv(1 << 16)
        if not block:
            raise ConnectionResetError(104, "D-Bus: the other side has closed the connection")
        self._pending += block

    def _exactly(self, size: int) -> bytes:
        if size > _LONGEST:
            raise OSError(90, "D-Bus: a message that is too long")
        while len(self._pending) < size:
            self._fill()
        found, self._pending = self._pending[:size], self._pending[size:]
        return found

    def read(self) -> Message:
        """The next message, whatever it is."""
        head = self._exactly(16)
        if head[:1] != b"l":
            raise OSError(71, "D-Bus: a message of the other byte order")
        body, fields = _U32.unpack_from(head, 4)[0], _U32.unpack_from(head, 12)[0]
        head += self._exactly(fields + -fields % 8)
        try:
            return Message(head, self._exactly(body))
        except (ValueError, TypeError) as error:
            raise OSError(71, f"D-Bus: {error}") from None

    def call(self, path: str, interface: str, member: str, signature: str = "", *values: Any) -> list[Any]:
        """Call a method and return what its answer holds; signals that come before it are kept in `signals`."""
        self._serial += 1
        fields = [(_PATH, ("o", path)), (_INTERFACE, ("s", interface)), (_MEMBER, ("s", member))]
        if self._destination:
            fields.append((_DESTINATION, ("s", self._destination)))
        body = bytearray()
        if signature:
            fields.append((_SIGNATURE, ("g", signature)))
            put(signature, values, body)
        message = bytearray()
        put(_HEADER, (ord("l"), _CALL, 0, 1, len(body), self._serial, fields), message)
        _pad(message, 8)
        self._send(message + body)
        while True:
            found = self.read()
            if found.kind == _SIGNAL:
                self.signals.append(found)
            elif found.answers == self._serial:
                if found.kind == _ERROR:
                    text = found.body[0] if found.body and isinstance(found.body[0], str) else ""
                    raise Refused(found.error, text)
                return found.body

    def match(self, rule: str) -> None:
        """Let the bus pass on the signals that a rule describes; systemd's own socket does without being asked."""
        there, self._destination = self._destination, "org.freedesktop.DBus"
        self.call("/org/freedesktop/DBus", self._destination, "AddMatch", "s", rule)
        self._destination = there

    def signal(self) -> Message:
        """The next signal."""
        while not self.signals:
            found = self.read()
            if found.kind == _SIGNAL:
                self.signals.append(found)
        return self.signals.pop(0)
