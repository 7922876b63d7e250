"""Reading WWW-Authenticate (RFC 9110 section 11.6.1): several challenges, in one header or in many."""

from __future__ import annotations

from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


@record(frozen=True)
class Challenge:
    scheme: str  # lower case
    parameters: dict[str, str]  # names in lower case


def challenges(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """All challenges in order. What breaks the grammar ends its header: a server's noise is no error here."""
    found: list[Challenge] = []
    for header in headers:
        found += _parse(header)
    return tuple(found)


def _parse(text: str) -> list[Challenge]:
    found: list[Challenge] = []
    at = 0
    while True:
        at = _skip(text, at, " \t,")
        word, at = _word(text, at)
        if not word:
            return found
        after = _skip(text, at, " \t")
        if text[after : after + 1] == "=" and found:
            value, at = _value(text, _skip(text, after + 1, " \t"))
            found[-1].parameters[word.lower()] = value
        else:
            found.append(Challenge(word.lower(), {}))


def _skip(text: str, at: int, letters: str) -> int:
    while at < len(text) and text[at] in letters:
        at += 1
    return at


def _word(text: str, at: int) -> tuple[str, int]:
    start = at
    while at < len(text) and text[at] in _TOKEN:
        at += 1
    return text[start:at], at


def _value(text: str, at: int) -> tuple[str, int]:
    """A token or a quoted string with its backslashes undone."""
    if text[at : at + 1] != '"':
        end = at
        while end < len(text) and text[end] not in " \t,":
            end += 1
        return text[at:end], end
    out = []
    at += 1
    while at < len(text) and text[at] != '"':
        if text[at] == "\\":
            at += 1
        out.append(text[at : at + 1])
        at += 1
    return "".join(out), at + 1
