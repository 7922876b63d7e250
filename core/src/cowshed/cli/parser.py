"""The command line: options as data, docker's grammar.

Options may stand between operands, but for commands that end in a foreign command line (`run IMAGE COMMAND…`) the first
operand ends them: what follows belongs to that command, `--` and all. Short flags may be joined (`-it`), values follow
joined, after `=`, or as the next word, whatever they begin with.
"""

from __future__ import annotations

from cowshed.errors import BadUsage
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@record(frozen=True)
class Option:
    """names: "-t --tty"; kind: flag, text, list, int, size, pairs (list of NAME=VALUE)."""

    names: str
    kind: str
    help: str
    choices: tuple[str, ...] = ()
    value: str = ""  # what --help calls the value
    hidden: bool = False  # not for people
    secret: bool = False  # others are not to see it for longer than it takes to read it

    @property
    def metavar(self) -> str:
        if self.kind == "flag":
            return ""
        return self.value or {"pairs": "NAME=VALUE", "int": "NUMBER", "size": "SIZE"}.get(self.kind, "VALUE")

    @property
    def key(self) -> str:
        return self.names.split()[-1].lstrip("-").replace("-", "_")


@record(frozen=True)
class Command:
    """module:function is called with the engine's settings and the parsed values, and returns the exit status."""

    name: str
    module: str
    operands: str  # as shown: "IMAGE [COMMAND…]"
    help: str
    options: tuple[Option, ...] = ()
    least: int = 0
    most: int = -1  # -1: any number
    foreign: bool = False  # options end at the first operand
    hidden: bool = False  # not for people
    bare: bool = False  # is given the global options instead of an engine: works whatever the configuration says


class Values(dict):  # type: ignore[type-arg]
    """What was said: option keys, and `operands`."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)


def parse(
    options: tuple[Option, ...], words: list[str], *, foreign: bool, what: str, before: tuple[Option, ...] = ()
) -> Values:
    """BadUsage names the nearest option for a misspelt one. what: the command's name; before: options that may only
    stand before it."""
    known = {name: option for option in options for name in option.names.split()}
    values = Values()
    operands: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word == "--":
            operands += queue
            break
        if word == "-" or not word.startswith("-"):
            operands.append(word)
            if foreign:
                operands += queue
                break
            continue
        if word.startswith("--"):
            name, equals, text = word.partition("=")
            option = known.get(name)
            if option is None:
                early = any(name in option.names.split() for option in before)
                remedy = f"write it before the command: cowshed {word} {what} …" if early else _nearest(name, known)
                raise BadUsage(f"{what}: unknown option {name}", remedy=remedy)
            if option.kind == "flag":
                _store(values, option, _truth(name, text) if equals else True, what)
            elif equals:
                _store(values, option, text, what)
            elif queue:
                _store(values, option, queue.pop(0), what)
            else:
                raise BadUsage(f"{what}: {name} needs a value")
            continue
        letters = word[1:]
        while letters:
            name, letters = f"-{letters[0]}", letters[1:]
            option = known.get(name)
            if option is None:
                raise BadUsage(f"{what}: unknown option {name}", remedy="--help lists them")
            if option.kind == "flag":
                said = letters.startswith("=")
                _store(values, option, _truth(name, letters[1:]) if said else True, what)
                letters = "" if said else letters
                continue
            if letters:
                _store(values, option, letters.removeprefix("="), what)
            elif queue:
                _store(values, option, queue.pop(0), what)
            else:
                raise BadUsage(f"{what}: {name} needs a value")
            break
    values["operands"] = operands
    return values


def _store(values: Values, option: Option, value: Any, what: str) -> None:
    name = option.names.split()[-1]
    if option.secret:
        _hide(value)
    if option.kind == "list":
        values.setdefault(option.key, []).append(value)
        return
    if option.kind == "pairs":
        key, _, text = value.partition("=")
        values.setdefault(option.key, {})[key] = text
        return
    if option.kind == "int":
        try:
            value = int(value)
        except ValueError:
            raise BadUsage(f"{what}: {name} is a number, not {value!r}") from None
    elif option.kind == "size":
        value = size(value, f"{what}: {name}")
    if option.choices and value not in option.choices:
        raise BadUsage(f"{what}: {name} is one of {', '.join(option.choices)}, not {value!r}")
    values[option.key] = value


def _hide(text: str) -> None:
    from cowshed_linux import arguments

    try:
        arguments.hide(text)
    except OSError as error:
        from cowshed import log

        log.debug(f"a password stays in the list of processes: {error}")


def size(text: str, what: str) -> int:
    """Bytes: a number with b, k, m, g or t behind it."""
    units = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
    lower = text.lower().removesuffix("ib") if len(text) > 2 else text.lower()
    lower = lower.removesuffix("b") if len(lower) > 1 and lower[-2:-1] in units else lower
    unit = units.get(lower[-1:], 0)
    try:
        return int(float(lower[:-1] if unit else lower) * (unit or 1))
    except ValueError:
        raise BadUsage(f"{what} is a size like 512m, not {text!r}") from None


def _truth(name: str, text: str) -> bool:
    if text.lower() in ("true", "1", "t"):
        return True
    if text.lower() in ("false", "0", "f"):
        return False
    raise BadUsage(f"{name} is true or false, not {text!r}")


def _nearest(name: str, known: Any) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, [n for n in known if n.startswith("--")], 1)
    return f"did you mean {near[0]}?" if near else "--help lists them"
