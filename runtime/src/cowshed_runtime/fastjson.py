"""JSON without importing `json`, which brings `re` and costs 5-10 ms of each command: the same C code.

`loads` takes what json.loads takes, bar NaN and Infinity; `dumps` writes compact ASCII.
"""

from __future__ import annotations

from _json import encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


class _Context:
    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_refuse)
    memo: dict[str, str] = {}  # noqa: RUF012 - what the C scanner asks for; it clears it itself


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a name twice")
    return found


class _Unique(_Context):
    object_pairs_hook = staticmethod(_once)  # type: ignore[assignment]


_scan = make_scanner(_Context)  # type: ignore[arg-type]  # the stub wants its own result


def loads(text: str | bytes, *, unique: bool = False) -> Any:
    """The value of a JSON document. ValueError if it is not one; with `unique` also if an object has a name twice, of
    which readers differ in what they take."""
    if isinstance(text, bytes):
        text = text.decode()  # UnicodeDecodeError is a ValueError
    text = text.strip(" \t\r\n")
    try:
        value, end = (make_scanner(_Unique) if unique else _scan)(text, 0)  # type: ignore[arg-type]
    except StopIteration as stop:
        raise ValueError(f"not JSON at character {stop.value}") from None
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
    except SystemError:  # the C code could not find the error that `json` would have brought
        import json

        json.loads(text)
        raise
    if end != len(text):
        raise ValueError(f"JSON with more behind it at character {end}")
    return value


def _unknown(value: object) -> Any:
    raise TypeError(f"{type(value).__name__} has no JSON form")


_chunks = make_encoder(None, _unknown, encode_basestring_ascii, None, ":", ",", False, False, False)


def dumps(value: Any) -> str:
    """Compact JSON of dicts with string keys, lists, tuples, strings, numbers, booleans and None."""
    return "".join(_chunks(value, 0))


def pretty(value: Any, margin: str = "") -> str:
    """The same with a line for each value, four blanks deeper for each level."""
    inner = margin + "    "
    if isinstance(value, dict) and value:
        lines = [f"{inner}{encode_basestring_ascii(k)}: {pretty(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{margin}}}"
    if isinstance(value, (list, tuple)) and value:
        return "[\n" + ",\n".join([inner + pretty(v, inner) for v in value]) + f"\n{margin}]"
    return dumps(value)
