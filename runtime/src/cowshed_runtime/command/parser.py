"""The command line: options as data, in the grammar that callers of runc use.

Options may stand between operands, but for verbs that end in a foreign command line (exec, ps) the first operand ends
them. A value follows after `=` or as the next word; short flags may be joined; long options may have one dash, as Go
programs write them.
"""

from __future__ import annotations

from cowshed_runtime.command.errors import CommandError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Option:
    """names: "-t --tty"; kind: flag, text, list, int, or maybe (a flag that may have a value after `=`)."""

    def __init__(self, names: str, kind: str, help: str, value: str = "VALUE", *, hidden: bool = False) -> None:
        self.names, self.kind, self.help, self.hidden = names, kind, help, hidden
        self.metavar = "" if kind in ("flag", "maybe") else "NUMBER" if kind == "int" and value == "VALUE" else value

    @property
    def key(self) -> str:
        return self.names.split()[-1].lstrip("-").replace("-", "_")


class Verb:
    """module: of verbs/, whose function of the same name (`:NAME` for another) is called with the global options and
    the verb's, and returns the exit status. least, most: operands. foreign: options end at the first operand. enters:
    a process of this interpreter enters a container."""

    def __init__(
        self,
        name: str,
        operands: str,
        help: str,
        options: tuple[Option, ...] = (),
        *,
        module: str = "",
        least: int = 1,
        most: int = 1,
        foreign: bool = False,
        enters: bool = False,
    ) -> None:
        self.name, self.operands, self.help, self.options = name, operands, help, options
        self.module, _, self.function = (module or name).partition(":")
        self.function = self.function or name
        self.least, self.most, self.foreign, self.enters = least, most, foreign, enters


class Values(dict):  # type: ignore[type-arg]
    """What was said: option keys, and `operands`."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)


def parse(options: tuple[Option, ...], words: list[str], *, foreign: bool) -> Values:
    """CommandError for what is no option, lacks its value, or has a wrong one."""
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
        name, equals, text = word.partition("=")
        option = known.get(name) or (known.get(f"-{name}") if len(name) > 2 else None)
        if option is None:
            letters = [known.get(f"-{letter}") for letter in name[1:]] if name[1:2] != "-" else [None]
            flags = [one for one in letters if one and one.kind == "flag"]
            if equals or len(flags) != len(letters):
                raise CommandError(f"flag provided but not defined: {name}")
            for one in flags:
                values[one.key] = True
        elif option.kind == "flag":
            values[option.key] = _truth(name, text) if equals else True
        elif option.kind == "maybe":
            values[option.key] = text if equals else "true"
        elif equals or queue:
            _store(values, option, text if equals else queue.pop(0))
        else:
            raise CommandError(f"flag needs an argument: {name}")
    values["operands"] = operands
    return values


def _store(values: Values, option: Option, value: str) -> None:
    if option.kind == "list":
        values.setdefault(option.key, []).append(value)
    elif option.kind == "int":
        try:
            values[option.key] = int(value)
        except ValueError:
            raise CommandError(f"{option.names.split()[-1]} is a number, not {value!r}") from None
    else:
        values[option.key] = value


def _truth(name: str, text: str) -> bool:
    if text.lower() in ("true", "1", "t"):
        return True
    if text.lower() in ("false", "0", "f"):
        return False
    raise CommandError(f"{name} is true or false, not {text!r}")
