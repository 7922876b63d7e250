"""Driver options: checked against the schema that the driver declares, completed with its defaults."""

from __future__ import annotations

from cowshed.storage.errors import BadOption

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cowshed.storage.api import DriverPlugin, Option, Options

    Value = str | int | bool | None

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_KINDS: dict[type, str] = {str: "text", int: "a number", bool: "yes or no"}


def check(plugin: DriverPlugin, wanted: Mapping[str, str | int | bool]) -> dict[str, Value]:
    """Every option of the schema, with the value wanted or its default.

    Text, as a command line gives it, is taken for numbers and for yes and no too. Raises BadOption: for an unknown name
    with the nearest one, for a value of the wrong type, for one that is no choice.
    """
    schema = {option.name: option for option in plugin.options}
    for name in wanted:
        if name not in schema:
            raise BadOption(
                f"driver {plugin.name} has no option {name}", option=name, remedy=_suggest(name, list(schema))
            )
    return {name: _value(plugin, o, wanted[name]) if name in wanted else o.default for name, o in schema.items()}


def fixed(plugin: DriverPlugin, options: Options) -> dict[str, Value]:
    """The options that creation fixes: what the engine keeps beside the store's identity."""
    return {o.name: options[o.name] for o in plugin.options if o.creation_only}


def again(plugin: DriverPlugin, kept: Mapping[str, Value], wanted: Mapping[str, str | int | bool]) -> dict[str, Value]:
    """`check`, of a store of which no more is known than what creation fixed (`fixed`, then): an option that was not
    given has no value there. Raises BadOption."""
    return check(plugin, {**{name: value for name, value in kept.items() if value is not None}, **wanted})


def compare(
    plugin: DriverPlugin,
    kept: Mapping[str, Value],
    wanted: Mapping[str, str | int | bool],
    chosen: dict[str, Value],
) -> None:
    """Hold what a store was made with (`fixed`, then) against what is wanted now; what is not said stays as it was, and
    is put into `chosen`, the result of `check`. Raises BadOption for a creation-only option that would change."""
    for option in plugin.options:
        if not option.creation_only or option.name not in kept:
            continue
        value = kept[option.name]
        if option.name in wanted and chosen[option.name] != value:
            mine, theirs = _shown(chosen[option.name]), _shown(value)
            raise BadOption(
                f"option {option.name} of driver {plugin.name} is {theirs} in this store and cannot become {mine}",
                option=option.name,
                remedy=f"take it out or say --driver-option {option.name}={_word(value)} to keep {theirs}; "
                f"make another store (--root DIRECTORY) to have {mine}",
            )
        chosen[option.name] = value


def _value(plugin: DriverPlugin, option: Option, value: str | int | bool) -> Value:
    where = f"option {option.name} of driver {plugin.name}"
    result: Value = value
    if option.kind is bool and isinstance(value, str):
        if value.lower() not in (*_TRUE, *_FALSE):
            raise BadOption(f"{where} is yes or no, not {value!r}", option=option.name)
        result = value.lower() in _TRUE
    elif option.kind is int and isinstance(value, str):
        try:
            result = int(value)
        except ValueError:
            raise BadOption(f"{where} is a number, not {value!r}", option=option.name) from None
    if type(result) is not option.kind:
        raise BadOption(f"{where} is {_KINDS[option.kind]}, not {_shown(result)}", option=option.name)
    if option.choices and result not in option.choices:
        remedy = _nearest(str(result), option.choices)
        text = f"{where} is one of {', '.join(option.choices)}, not {_shown(result)}"
        raise BadOption(text, option=option.name, remedy=remedy)
    return result


def _shown(value: Value) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else repr(value) if isinstance(value, str) else str(value)


def _word(value: Value) -> str:
    """A value as a command line writes it."""
    return _shown(value) if isinstance(value, bool) else str(value)


def _suggest(name: str, known: list[str]) -> str:
    return _nearest(name, known) or (f"it has {', '.join(known)}" if known else "it has no options")


def _nearest(word: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word, known, 1)
    return f"did you mean {near[0]}?" if near else ""
