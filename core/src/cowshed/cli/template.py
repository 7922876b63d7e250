"""The part of Go's text/template that people use with engines: {{.A.B}}, {{json .X}}, {{index .A "b"}}, {{len .A}},
{{lower .A}}, {{upper .A}}, {{join .A ","}}, {{range .A}}…{{end}}, {{range $k, $v := .A}}…{{end}},
{{if .A}}…{{else}}…{{end}}, {{println .A}}, pipes."""

from __future__ import annotations

import json
import re

from cowshed.errors import BadUsage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PART = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.S)
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|`[^`]*`|\(|\)|[^\s()]+')


class Template:
    def __init__(self, text: str) -> None:
        self._text = text
        parts = _PART.split(text)
        self._actions = parts[1::2]
        self._tree, rest = _block(parts, 0)
        if rest < len(parts):
            raise BadUsage(f"the template {text!r} has an {{{{end}}}} too many")

    def names(self) -> list[str]:
        return [action.rpartition(".")[2].upper() for action in self._actions]

    def render(self, value: Any) -> str:
        out: list[str] = []
        _render(self._tree, value, {"$": value}, out)
        return "".join(out)


def _block(parts: list[str], at: int) -> tuple[list[Any], int]:
    nodes: list[Any] = []
    while at < len(parts):
        if at % 2 == 0:
            nodes.append(parts[at])
            at += 1
            continue
        action = parts[at]
        word = action.split(None, 1)[0] if action else ""
        if word in ("end", "else"):
            return nodes, at
        if word in ("range", "if", "with"):
            body, at = _block(parts, at + 1)
            other: list[Any] = []
            if at < len(parts) and parts[at].startswith("else"):
                other, at = _block(parts, at + 1)
            if at >= len(parts):
                raise BadUsage(f"the template lacks the {{{{end}}}} of {{{{{action}}}}}")
            nodes.append((word, action[len(word) :].strip(), body, other))
        else:
            nodes.append((action,))
        at += 1
    return nodes, at


def _render(nodes: list[Any], dot: Any, names: dict[str, Any], out: list[str]) -> None:
    for node in nodes:
        if isinstance(node, str):
            out.append(node)
        elif len(node) == 1:
            out.append(_text(_pipe(node[0], dot, names)))
        else:
            kind, what, body, other = node
            variables, _, expression = what.rpartition(":=")
            value = _pipe(expression.strip(), dot, names)
            if not value:
                _render(other, dot, names, out)
            elif kind == "range":
                pairs = value.items() if isinstance(value, dict) else enumerate(value)
                bound = [v.strip() for v in variables.split(",") if v.strip()]
                for key, item in pairs:
                    given = (key, item) if len(bound) == 2 else (item,)
                    _render(body, item, {**names, **dict(zip(bound, given, strict=False))}, out)
            else:
                _render(body, value if kind == "with" else dot, names, out)


def _pipe(text: str, dot: Any, names: dict[str, Any]) -> Any:
    value: list[Any] = []
    for stage in text.split("|"):
        value = [_call(_WORD.findall(stage), value, dot, names)]
    return value[0]


def _call(words: list[str], piped: list[Any], dot: Any, names: dict[str, Any]) -> Any:
    if not words:
        raise BadUsage("the template has an empty action")
    first = words[0]
    if first not in _FUNCTIONS:
        return _operand(first, dot, names)
    arguments = [_operand(word, dot, names) for word in words[1:]] + piped
    try:
        return _FUNCTIONS[first](*arguments)
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise BadUsage(f"the template's {first} fails: {error}") from None


def _operand(word: str, dot: Any, names: dict[str, Any]) -> Any:
    if word[:1] in '"`':
        return word[1:-1]
    if word.lstrip("-").isdigit():
        return int(word)
    if word == ".":
        return dot
    start, value = word.split(".")[0], dot
    if start:
        if start not in names:
            raise BadUsage(f"the template has no function or variable {start}")
        value = names[start]
    for name in word.split(".")[1:]:
        if name == "":
            continue
        if not isinstance(value, dict):
            return None
        if name not in value and value is dot:
            raise BadUsage(f"there is no field {name}", remedy=f"there are {', '.join(value)}")
        value = value.get(name)
    return value


def _text(value: Any) -> str:
    if value is None:
        return "<no value>"
    if value is True or value is False:
        return str(value).lower()
    if isinstance(value, list):
        return "[" + " ".join(map(_text, value)) + "]"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{k}:{_text(v)}" for k, v in sorted(value.items())) + "]"
    return str(value)


_FUNCTIONS: dict[str, Any] = {
    "json": lambda value: json.dumps(value, separators=(",", ":")),
    "index": lambda value, *keys: _index(value, keys),
    "len": len,
    "lower": lambda value: str(value).lower(),
    "upper": lambda value: str(value).upper(),
    "title": lambda value: str(value).title(),
    "join": lambda value, separator: str(separator).join(map(str, value)),
    "split": lambda value, separator: str(value).split(separator),
    "println": lambda *values: " ".join(map(_text, values)) + "\n",
    "print": lambda *values: "".join(map(_text, values)),
    "not": lambda value: not value,
    "eq": lambda a, *others: a in others,
    "ne": lambda a, b: a != b,
}


def _index(value: Any, keys: tuple[Any, ...]) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else value[key]
    return value
