"""Dockerfile instructions that change an image's configuration: what `commit --change` takes (Dockerfile reference)."""

from __future__ import annotations

import json

from cowshed.errors import BadUsage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_SHELL = ["/bin/sh", "-c"]
_PROTOCOLS = ("tcp", "udp", "sctp")


def change(own: dict[str, Any], lines: Iterable[str]) -> None:
    """Carry out instructions, in order, on the `config` object of an image's configuration. BadUsage names the one that
    cannot be."""
    command_said = False
    for line in lines:
        name, _, rest = line.strip().partition(" ")
        name, rest = name.upper(), rest.strip()
        if name not in _KNOWN:
            raise BadUsage(f"--change {line!r}: {name or 'nothing'} is no instruction that can be committed",
                           remedy=f"one of {', '.join(sorted(_KNOWN))}")  # fmt: skip
        try:
            if not rest:
                raise ValueError("it says nothing")
            _KNOWN[name](own, rest)
        except ValueError as error:
            raise BadUsage(f"--change {line!r}: {error}") from None
        if name == "CMD":
            command_said = True
        elif name == "ENTRYPOINT" and not command_said:
            own.pop("Cmd", None)  # it was meant for the entry point before


def _list(text: str) -> list[str] | None:
    """The words of the JSON form; None if it is not in that form."""
    if not text.startswith("["):
        return None
    try:
        words = json.loads(text)
    except ValueError:
        return None  # a shell has a command called [
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("a list of texts is needed")
    return words


def _command(own: dict[str, Any], text: str) -> list[str]:
    words = _list(text)
    return [*(own.get("Shell") or _SHELL), text] if words is None else words


def _cmd(own: dict[str, Any], text: str) -> None:
    own["Cmd"] = _command(own, text)


def _entrypoint(own: dict[str, Any], text: str) -> None:
    own["Entrypoint"] = _command(own, text)


def words(text: str) -> list[str]:
    """Split at blanks; quotes keep them, a backslash keeps what follows. ValueError for a quote that does not end."""
    found: list[str] = []
    word, quote, within, at = "", "", False, 0
    while at < len(text):
        c = text[at]
        at += 1
        if c == "\\" and quote != "'" and at < len(text):
            word += text[at] if not quote or text[at] in '"\\$' else c + text[at]
            at, within = at + 1, True
        elif quote:
            word, quote = (word, "") if c == quote else (word + c, quote)
        elif c in "\"'":
            quote, within = c, True
        elif c.isspace():
            if within:
                found.append(word)
            word, within = "", False
        else:
            word, within = word + c, True
    if quote:
        raise ValueError("a quote is not closed")
    return [*found, word] if within else found


def _pairs(text: str) -> list[tuple[str, str]]:
    """NAME=VALUE …, or the old form NAME VALUE with the rest of the line as the value."""
    first, _, rest = text.partition(" ")
    if "=" not in first:
        if not rest.strip():
            raise ValueError("write NAME=VALUE")
        return [(first, rest.strip())]
    found = []
    for word in words(text):
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ValueError(f"{word!r} is not NAME=VALUE")
        found.append((name, value))
    return found


def _env(own: dict[str, Any], text: str) -> None:
    set_variables(own, [f"{name}={value}" for name, value in _pairs(text)])


def set_variables(own: dict[str, Any], entries: Iterable[str]) -> None:
    """Put NAME=VALUE entries into the environment; one that is there already gets the new value in its place."""
    found = {entry.partition("=")[0]: entry for entry in own.get("Env") or ()}
    for entry in entries:
        found[entry.partition("=")[0]] = entry
    own["Env"] = list(found.values())


def _label(own: dict[str, Any], text: str) -> None:
    own["Labels"] = {**(own.get("Labels") or {}), **dict(_pairs(text))}


def _expose(own: dict[str, Any], text: str) -> None:
    ports = dict(own.get("ExposedPorts") or {})
    for word in text.split():
        numbers, _, protocol = word.partition("/")
        first, _, last = numbers.partition("-")
        last = last or first
        if not (first.isdigit() and last.isdigit() and 0 < int(first) <= int(last) < 65536):
            raise ValueError(f"{word!r} is no port")
        if (protocol or "tcp").lower() not in _PROTOCOLS:
            raise ValueError(f"{protocol!r} is none of {', '.join(_PROTOCOLS)}")
        for port in range(int(first), int(last) + 1):
            ports[f"{port}/{(protocol or 'tcp').lower()}"] = {}
    own["ExposedPorts"] = ports


def _user(own: dict[str, Any], text: str) -> None:
    own["User"] = text


def _volume(own: dict[str, Any], text: str) -> None:
    listed = _list(text)
    own["Volumes"] = {
        **(own.get("Volumes") or {}),
        **{path: {} for path in (words(text) if listed is None else listed)},
    }


def _workdir(own: dict[str, Any], text: str) -> None:
    import posixpath

    path = posixpath.normpath(posixpath.join("/", own.get("WorkingDir") or "/", "".join(words(text))))
    own["WorkingDir"] = "/" + path.lstrip("/")


def _stopsignal(own: dict[str, Any], text: str) -> None:
    from cowshed.container.signals import number

    number(text)
    own["StopSignal"] = text


_KNOWN = {
    "CMD": _cmd, "ENTRYPOINT": _entrypoint, "ENV": _env, "EXPOSE": _expose, "LABEL": _label, "USER": _user,
    "VOLUME": _volume, "WORKDIR": _workdir, "STOPSIGNAL": _stopsignal,
}  # fmt: skip
