"""In which line of a TOML document each key stands: what tomllib does not tell. The document is known to be valid."""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Keys = tuple[str, ...]

_STRING = re.compile(r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'', re.S)
_QUIET = re.compile(r"[^\"'#\[\]{}\n=]+")


def of(text: str) -> dict[Keys, int]:
    """The line, from 1, of each table and key that has one of its own; of what stands twice, as the tables of an array
    do, the first."""
    found: dict[Keys, int] = {}
    table: Keys = ()
    at = 0
    while at < len(text):
        if text[at] in " \t\r\n":
            at += 1
        elif text[at] == "#":
            at = _line_end(text, at)
        elif text[at] == "[":
            start = at + len(text[at:]) - len(text[at:].lstrip("["))
            end = _find(text, start, "]")
            table = _keys(text[start:end])
            found.setdefault(table, text.count("\n", 0, at) + 1)
            at = _line_end(text, end)
        else:
            end = _find(text, at, "=")
            keys = table + _keys(text[at:end])
            line = text.count("\n", 0, at) + 1
            for length in range(len(table) + 1, len(keys) + 1):
                found.setdefault(keys[:length], line)
            at = _value_end(text, end + 1)
    return found


def line_of(found: dict[Keys, int], keys: Keys) -> int:
    """The line of a key or, if it is inside of a value, of the nearest one around it; 0 for none."""
    while keys and keys not in found:
        keys = keys[:-1]
    return found.get(keys, 0)


def pointed(source: str, keys: Keys) -> str:
    """What `settings` calls a source, with the line of a key behind the path if it is a file."""
    from cowshed.config import files

    path = source.removeprefix("configuration file ")
    return source if path == source else f"{source}:{line_of(of(files.parse(path)[1]), keys)}"


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _find(text: str, at: int, character: str) -> int:
    """Where a character stands that is in no quotes."""
    while text[at] != character:
        quoted = _STRING.match(text, at)
        at = quoted.end() if quoted else at + 1
    return at


def _value_end(text: str, at: int) -> int:
    depth = 0
    while at < len(text):
        character = text[at]
        if character == "#":
            at = _line_end(text, at)
        elif character == "\n" and depth == 0:
            return at
        elif passed := _STRING.match(text, at) or _QUIET.match(text, at):
            at = passed.end()
        else:
            depth += (character in "[{") - (character in "]}")
            at += 1
    return at


def _keys(text: str) -> Keys:
    import tomllib

    keys: list[str] = []
    inner: Any = tomllib.loads(f"{text.strip()} = 0")
    while isinstance(inner, dict):
        ((key, inner),) = inner.items()
        keys.append(key)
    return tuple(keys)
