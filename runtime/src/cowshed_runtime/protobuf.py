"""Messages of protobuf (its encoding page) as dictionaries of field numbers: an int is a varint, bytes and str are of a
length, a list is repeated, and has its values also where they are empty. What is decoded has a list for each field."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[int, Any]


def encode(message: Message) -> bytes:
    """Empty values that are in no list are left out, as protobuf 3 does."""
    parts = []
    for number, value in message.items():
        for one in value if isinstance(value, list) else (value,):
            if not one and not isinstance(value, list):
                continue
            if isinstance(one, int):
                parts.append(_varint(number << 3) + _varint(one & (1 << 64) - 1))
            else:
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
