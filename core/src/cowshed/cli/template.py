"""Go's text/template, as far as people use it with engines.

Fields (.A.B), variables ($, $x := …), pipes, parentheses, comments, {{- trimming -}}, if/else if/else, with, range with
else, break and continue, the functions below. What Go knows beside that (define, template, block, methods) is refused.
"""

from __future__ import annotations

import re
from json import dumps

from cowshed.errors import BadUsage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    Scope = dict[str, Any]

_ACTION = re.compile(r"\{\{(?:(-)\s)?((?:\"(?:[^\"\\]|\\.)*\"|`[^`]*`|/\*.*?\*/|.)*?)(?:\s(-))?\}\}", re.S)
_TOKEN = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|`[^`]*`|:=|[=|(),]|-?\d+(?:\.\d+)?(?![\w.])|[$.\w]+|\S)""")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}
_BLOCKS = ("if", "with", "range")
NOTHING = "<no value>"  # what Go prints for a key that a map lacks


class Headers(dict):  # type: ignore[type-arg]
    """Stands for a row when the heading of a table is rendered: each field gives its own title."""

    def __init__(self, title: Callable[[str], str]) -> None:
        super().__init__()
        self._title = title

    def __missing__(self, name: str) -> Any:
        return (lambda label: label) if name == "Label" else self._title(name)

    def __contains__(self, name: object) -> bool:
        return True


class Template:
    """Parsed once, rendered for each value. BadUsage if the text is no template, or does not fit a value."""

    def __init__(self, text: str) -> None:
        self._nodes = _Parser(text).parse()

    def render(self, value: Any) -> str:
        return self._render(value, _FUNCTIONS)

    def heading(self, title: Callable[[str], str]) -> str:
        """The line above a table: fields are replaced by their titles, functions hand on what they are given."""
        same = dict.fromkeys(_FUNCTIONS, lambda *values: next((v for v in values if isinstance(v, str)), ""))
        return self._render(Headers(title), same)

    def _render(self, value: Any, functions: Mapping[str, Any]) -> str:
        out: list[str] = []
        _render(self._nodes, value, {"$": value}, functions, out)
        return "".join(out)


# ---------------------------------------------------------------- parsing


class _Parser:
    """Recursive descent. A node is text, ("pipe", pipe) or (block, pipe, body, otherwise); a pipe is (names, commands);
    a command is a list of operands; an operand is (kind, what, fields)."""

    def __init__(self, text: str) -> None:
        self._parts: list[str | tuple[str]] = []
        at, trim = 0, False
        for found in _ACTION.finditer(text):
            before = text[at : found.start()]
            before = before.lstrip() if trim else before
            self._parts.append(before.rstrip() if found[1] else before)
            body = found[2].strip()
            if not (body.startswith("/*") and body.endswith("*/")):
                self._parts.append((body,))
            at, trim = found.end(), bool(found[3])
        rest = text[at:]
        if "{{" in rest:
            raise _wrong("an action has no end: }} is missing")
        self._parts.append(rest.lstrip() if trim else rest)
        self._at = 0
        self._tokens: list[str] = []
        self._loops = 0

    def parse(self) -> list[Any]:
        nodes, end = self._block()
        if end:
            raise _wrong(f"{{{{{end}}}}} stands outside of a block")
        return nodes

    def _block(self) -> tuple[list[Any], str]:
        """Nodes up to an {{end}} or {{else …}}, and what that says."""
        nodes: list[Any] = []
        while self._at < len(self._parts):
            part = self._parts[self._at]
            self._at += 1
            if isinstance(part, str):
                nodes.append(part)
                continue
            word, _, rest = part[0].partition(" ")
            if word in ("end", "else"):
                return nodes, part[0]
            if word in ("break", "continue"):
                if not self._loops:
                    raise _wrong(f"{{{{{word}}}}} stands outside of {{{{range …}}}}")
                nodes.append((word,))
            elif word in _BLOCKS:
                nodes.append(self._conditional(word, rest))
            else:
                nodes.append(("pipe", self._pipe(part[0])))
        return nodes, ""

    def _conditional(self, word: str, rest: str) -> tuple[str, Any, list[Any], list[Any]]:
        pipe = self._pipe(rest)
        self._loops += word == "range"
        body, end = self._block()
        self._loops -= word == "range"
        otherwise: list[Any] = []
        if end.startswith("else"):
            again, _, rest = end[4:].strip().partition(" ")
            if again in ("if", "with"):
                return word, pipe, body, [self._conditional(again, rest)]  # one {{end}} ends both
            otherwise, end = self._block()
        if end != "end":
            raise _wrong(f"the {{{{end}}}} of {{{{{word} …}}}} is missing")
        return word, pipe, body, otherwise

    def _pipe(self, text: str) -> Any:
        self._tokens = _TOKEN.findall(text)
        if not self._tokens:
            raise _wrong("an action is empty")
        pipe = self._pipeline()
        if self._tokens:
            raise _wrong(f"{self._tokens[0]!r} is not expected in {{{{{text}}}}}")
        return pipe

    def _pipeline(self) -> Any:
        names: list[str] = []
        for mark in (":=", "="):
            if mark in self._tokens and self._tokens[0].startswith("$"):
                at = self._tokens.index(mark)
                names = [word for word in self._tokens[:at] if word != ","]
                del self._tokens[: at + 1]
                break
        commands = [self._command()]
        while self._tokens and self._tokens[0] == "|":
            del self._tokens[0]
            commands.append(self._command())
        return names, commands

    def _command(self) -> list[Any]:
        operands = []
        while self._tokens and self._tokens[0] not in ("|", ")"):
            operands.append(self._operand())
        if not operands:
            raise _wrong("a command is missing")
        return operands

    def _operand(self) -> tuple[str, Any, list[str]]:
        word = self._tokens.pop(0)
        if word == "(":
            inner = self._pipeline()
            if not self._tokens or self._tokens.pop(0) != ")":
                raise _wrong("a closing parenthesis is missing")
            fields = self._tokens.pop(0) if self._tokens and self._tokens[0].startswith(".") else ""
            return "pipe", inner, _fields(fields)
        if word[0] == '"':
            return "value", re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[0]), word[1:-1]), []
        if word[0] == "`":
            return "value", word[1:-1], []
        if re.fullmatch(r"-?\d+", word):
            return "value", int(word), []
        if re.fullmatch(r"-?\d+\.\d+", word):
            return "value", float(word), []
        if word in ("true", "false", "nil"):
            return "value", {"true": True, "false": False, "nil": None}[word], []
        if word[0] == "." or word[0] == "$":
            start, _, rest = word.partition(".")
            return "name", start, _fields(rest)
        if word in _FUNCTIONS:
            return "function", word, []
        raise _wrong(f"there is no function {word}", _nearest(word, _FUNCTIONS))


def _fields(text: str) -> list[str]:
    return [name for name in text.split(".") if name]


def _wrong(text: str, remedy: str = "") -> BadUsage:
    return BadUsage(f"the template of --format is wrong: {text}", remedy=remedy)


# ---------------------------------------------------------------- rendering


class _Jump(Exception):
    """{{break}} or {{continue}}."""


def _render(nodes: list[Any], dot: Any, scope: Scope, functions: Mapping[str, Any], out: list[str]) -> None:
    for node in nodes:
        if isinstance(node, str):
            out.append(node)
        elif node[0] == "pipe":
            names, _ = node[1]
            value = _pipe(node[1], dot, scope, functions)
            if names:
                scope[names[0]] = value
            else:
                out.append(text_of(value))
        elif node[0] in _BLOCKS:
            _conditional(node, dot, scope, functions, out)
        else:
            raise _Jump(node[0])


def _conditional(node: Any, dot: Any, scope: Scope, functions: Mapping[str, Any], out: list[str]) -> None:
    kind, pipe, body, otherwise = node
    names, _ = pipe
    value = _pipe(pipe, dot, scope, functions)
    if not value:
        _render(otherwise, dot, scope, functions, out)
    elif kind == "range":
        _range(names, value, body, scope, functions, out)
    else:
        inner = {**scope, names[0]: value} if names else scope
        _render(body, value if kind == "with" else dot, inner, functions, out)


def _range(names: list[str], value: Any, body: Any, scope: Scope, functions: Mapping[str, Any], out: list[str]) -> None:
    if isinstance(value, dict):
        pairs = sorted(value.items())
    elif isinstance(value, (list, tuple)):
        pairs = list(enumerate(value))
    else:
        raise _wrong(f"range cannot go over {text_of(value)!r}")
    for key, item in pairs:
        given = (key, item) if len(names) == 2 else (item,)
        scope.update(zip(names, given, strict=False))
        try:
            _render(body, item, scope, functions, out)
        except _Jump as jump:
            if jump.args[0] == "break":
                return


def _pipe(pipe: Any, dot: Any, scope: Scope, functions: Mapping[str, Any]) -> Any:
    piped: list[Any] = []
    for command in pipe[1]:
        piped = [_command(command, piped, dot, scope, functions)]
    return piped[0]


def _command(operands: list[Any], piped: list[Any], dot: Any, scope: Scope, functions: Mapping[str, Any]) -> Any:
    kind, what, _ = operands[0]
    arguments = [_operand(operand, dot, scope, functions) for operand in operands[1:]] + piped
    if kind == "function":
        try:
            return functions[what](*arguments)
        except (TypeError, KeyError, IndexError, ValueError, AttributeError) as error:
            raise _wrong(f"{what} fails: {error}") from None
    value = _operand(operands[0], dot, scope, functions)
    if callable(value):
        return value(*arguments)
    if arguments:
        raise _wrong(f"{text_of(value)!r} is no function and takes no arguments")
    return value


def _operand(operand: Any, dot: Any, scope: Scope, functions: Mapping[str, Any]) -> Any:
    kind, what, fields = operand
    if kind == "value":
        return what
    if kind == "function":
        return _command([operand], [], dot, scope, functions)
    if kind == "pipe":
        value = _pipe(what, dot, scope, functions)
    elif what == "":
        value = dot
    elif what in scope:
        value = scope[what]
    else:
        raise _wrong(f"there is no variable {what}")
    for name in fields:
        value = _field(value, name)
    return value


def _field(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        if name in value:
            return value[name]
        if value and all(str(key)[:1].isupper() and str(key).isalnum() for key in value):  # no map of a user's
            raise _wrong(f"there is no field {name}", _nearest(name, value))
        return None
    if value is None:
        return None
    raise _wrong(f"there is no field {name} in {text_of(value)!r}")


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, list(known), 1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


# ---------------------------------------------------------------- values and functions


def text_of(value: Any) -> str:
    """A value as Go prints it."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(map(text_of, value)) + "]"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{text_of(item)}" for key, item in sorted(value.items())) + "]"
    return str(value)


def _json(value: Any) -> str:
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if not callable(item)}
    return dumps(value, separators=(",", ":"), ensure_ascii=False)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, dict):
            value = value.get(key, "")
        elif isinstance(key, int) and not 0 <= key < len(value):
            raise IndexError(f"{key} is out of range")
        else:
            value = value[key]
    return value


def _title(value: Any) -> str:
    return re.sub(r"\b\w", lambda m: m[0].upper(), str(value))


def _pad(value: Any, before: int, after: int) -> str:
    return " " * before + str(value) + " " * after if value else str(value)


def _printf(form: str, *values: Any) -> str:
    left = list(values)

    def one(found: re.Match[str]) -> str:
        flags, verb = found[1], found[2]
        if verb == "%":
            return "%"
        if not left:
            raise TypeError(f"{found[0]} has no value")
        value = left.pop(0)
        if verb in "vst":
            return str(f"%{flags}s" % text_of(value))
        if verb == "q":
            return dumps(str(value), ensure_ascii=False)
        return str(f"%{flags}{verb}" % value)

    result = re.sub(r"%([-+# 0-9.]*)([a-zA-Z%])", one, form)
    if left:
        raise TypeError(f"{len(left)} values too many")
    return result


def _print(*values: Any) -> str:
    """Go puts a space between two values of which neither is text."""
    out = ""
    for number, value in enumerate(values):
        if number and not isinstance(value, str) and not isinstance(values[number - 1], str):
            out += " "
        out += text_of(value)
    return out


def _either(value: Any, *others: Any) -> Any:
    return next((v for v in (value, *others) if v), (value, *others)[-1])


def _both(value: Any, *others: Any) -> Any:
    return next((v for v in (value, *others) if not v), (value, *others)[-1])


def _slice(value: Any, start: int = 0, end: int | None = None) -> Any:
    return value[start:end]


_FUNCTIONS: dict[str, Any] = {
    "json": _json,
    "index": _index,
    "slice": _slice,
    "len": len,
    "lower": lambda value: str(value).lower(),
    "upper": lambda value: str(value).upper(),
    "title": _title,
    "join": lambda values, separator: str(separator).join(map(text_of, values or ())),
    "split": lambda value, separator: str(value).split(separator),
    "pad": _pad,
    "truncate": lambda value, count: str(value)[:count],
    "print": _print,
    "println": lambda *values: " ".join(map(text_of, values)) + "\n",
    "printf": _printf,
    "and": _both,
    "or": _either,
    "not": lambda value: not value,
    "eq": lambda value, *others: value in others,
    "ne": lambda value, other: value != other,
    "lt": lambda value, other: value < other,
    "le": lambda value, other: value <= other,
    "gt": lambda value, other: value > other,
    "ge": lambda value, other: value >= other,
}
