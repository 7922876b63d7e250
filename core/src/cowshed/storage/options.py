"""Driver options: checked against the schema that the driver declares, completed with its defaults."""

from __future__ import annotations

from cowshed.storage.errors import BadOption

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cowshed.storage.api import DriverPlugin, Option, Options

    Value = str | int | bool | None

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def check(plugin: DriverPlugin, wanted: Mapping[str, str | int | bool]) -> Options:
    """Every option of the schema, with the value wanted or its default. BadOption, with the nearest name, otherwise."""
    schema = {option.name: option for option in plugin.options}
    for name in wanted:
        if name not in schema:
            raise BadOption(f"driver {plugin.name} has no option {name}", remedy=_suggest(name, list(schema)))
    return {name: _value(plugin, o, wanted[name]) if name in wanted else o.default for name, o in schema.items()}


def fixed(plugin: DriverPlugin, options: Options) -> dict[str, Value]:
    """Those that creation fixes."""
    return {o.name: options[o.name] for o in plugin.options if o.creation_only}


def compare(
    plugin: DriverPlugin, kept: Mapping[str, Value], wanted: Mapping[str, str | int | bool], chosen: Options
) -> None:
    """Hold what a store was made with against what is wanted now; what is not said stays as it was."""
    for name, value in kept.items():
        if name in wanted and chosen[name] != value:
            raise BadOption(
                f"option {name} of driver {plugin.name} is {value} in this store and cannot become {chosen[name]}",
                remedy="make another store (--root) with the other value",
            )
    if isinstance(chosen, dict):
        chosen.update(kept)


def _value(plugin: DriverPlugin, option: Option, value: str | int | bool) -> Value:
    where = f"option {option.name} of driver {plugin.name}"
    result: Value = value
    if option.kind is bool and isinstance(value, str):
        if value.lower() not in (*_TRUE, *_FALSE):
            raise BadOption(f"{where} is yes or no, not {value!r}")
        result = value.lower() in _TRUE
    elif option.kind is int and isinstance(value, str):
        try:
            result = int(value)
        except ValueError:
            raise BadOption(f"{where} is a number, not {value!r}") from None
    if type(result) is not option.kind:
        raise BadOption(f"{where} is of type {option.kind.__name__}, not {value!r}")
    if option.choices and result not in option.choices:
        raise BadOption(f"{where} is one of {', '.join(option.choices)}, not {value!r}")
    return result


def _suggest(name: str, known: list[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, known, 1)
    if near:
        return f"did you mean {near[0]}?"
    return f"it has {', '.join(known)}" if known else "it has no options"
