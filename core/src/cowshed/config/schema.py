"""What a configuration file may say. Imported only when one is parsed, which its cache makes rare."""

from __future__ import annotations

from cowshed.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    Rule = Callable[[Any, str], None]  # the value and its dotted name; raises ConfigError

_PLAIN = (str, int, bool)


def check(document: dict[str, Any], path: str) -> None:
    """Hold the content of the file at path against the schema. Raises ConfigError, which names file and setting."""
    try:
        _SCHEMA(document, "")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}", remedy=error.remedy) from None


def _table(keys: dict[str, Rule]) -> Rule:
    def rule(value: Any, name: str) -> None:
        for key, item in _items(value, name):
            if key not in keys:
                raise ConfigError(f"{_join(name, key)} is no setting", remedy=_nearest(key, name, keys))
            keys[key](item, _join(name, key))

    return rule


def _each(inner: Rule) -> Rule:
    """A table whose keys are names that users choose."""

    def rule(value: Any, name: str) -> None:
        for key, item in _items(value, name):
            inner(item, _join(name, key))

    return rule


def _text(value: Any, name: str) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"{name} is text in quotes, not {value!r}")
    if not value or "\0" in value:
        raise ConfigError(f"{name} is empty", remedy="leave it out")


def _choice(*words: str) -> Rule:
    def rule(value: Any, name: str) -> None:
        if value not in words:
            raise ConfigError(f"{name} is {' or '.join(words)}, not {value!r}", remedy=_nearest(str(value), "", words))

    return rule


def _absolute(value: Any, name: str) -> None:
    _text(value, name)
    if not value.startswith("/"):
        raise ConfigError(f"{name} is an absolute path, not {value!r}")


def _plain(value: Any, name: str) -> None:
    """Its own schema checks the rest: the driver's, where it is opened."""
    if not isinstance(value, _PLAIN):
        raise ConfigError(f"{name} is text, a whole number, true or false, not {value!r}")


def _anything(value: Any, name: str) -> None:
    """Text, numbers, booleans, and lists and tables of them: `cowshed.registry.endpoints` checks the rest."""
    if isinstance(value, dict):
        for key, item in value.items():
            _anything(item, _join(name, key))
    elif isinstance(value, list):
        for item in value:
            _anything(item, name)
    else:
        _plain(value, name)


def _registry(value: Any, name: str) -> None:
    _items(value, name)
    _anything(value, name)


def _items(value: Any, name: str) -> Iterable[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise ConfigError(f"{name} is a table, not {value!r}", remedy=f"write [{name}]")
    return value.items()


def _join(name: str, key: str) -> str:
    quoted = key if key.replace("-", "").replace("_", "").isalnum() else f'"{key}"'
    return f"{name}.{quoted}" if name else quoted


def _nearest(key: str, name: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    names = list(known)
    near = get_close_matches(key, names, 1)
    if near:
        return f"did you mean {_join(name, near[0])}?"
    return f"known here are {', '.join(names)}"


_SCHEMA = _table(
    {
        "storage": _table(
            {"driver": _text, "durability": _choice("commit", "none"), "drivers": _each(_each(_plain))},
        ),
        "runtime": _table({"default": _text, "binaries": _each(_absolute)}),
        "registries": _each(_registry),
    }
)
