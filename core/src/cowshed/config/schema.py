"""What a configuration file may say. Imported only when one is parsed, which its cache makes rare."""

from __future__ import annotations

from cowshed.errors import ConfigError
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    Keys = tuple[str, ...]
    Rule = Callable[[Any, Keys], Iterator["Problem"]]  # the value and where it stands

_PLAIN = (str, int, bool)


@record(frozen=True)
class Problem:
    """One thing that is wrong in a configuration."""

    keys: tuple[str, ...]  # where
    text: str
    remedy: str = ""
    path: str = ""  # the file; else it is in no file, or between several
    line: int = 0

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}" if self.line else self.path


def check(document: dict[str, Any], path: str, text: str) -> None:
    """Hold the content of the file at path against the schema. Raises ConfigError, which names file, line and setting
    of the first problem and tells how many more there are."""
    found = problems(document, path, text)
    if found:
        more = f", and {len(found) - 1} more (cowshed config check {path})" if len(found) > 1 else ""
        raise ConfigError(f"{found[0].where}: {found[0].text}{more}", remedy=found[0].remedy)


def problems(document: dict[str, Any], path: str, text: str, *, strict: bool = False) -> list[Problem]:
    """All that is wrong in the content of the file at path. strict: also in the tables of registries, which are else
    checked when one is asked."""
    found = list((_STRICT if strict else _SCHEMA)(document, ()))
    if not found:
        return []
    from cowshed.config import lines

    known = lines.of(text)
    return [Problem(p.keys, p.text, p.remedy, path, lines.line_of(known, p.keys)) for p in found]


def _table(keys: dict[str, Rule]) -> Rule:
    def rule(value: Any, at: Keys) -> Iterator[Problem]:
        if not isinstance(value, dict):
            yield _no_table(value, at)
            return
        for key, item in value.items():
            if key in keys:
                yield from keys[key](item, (*at, key))
            else:
                yield Problem((*at, key), f"{name((*at, key))} is no setting", nearest(key, at, keys))

    return rule


def _each(inner: Rule) -> Rule:
    """A table whose keys are names that users choose."""

    def rule(value: Any, at: Keys) -> Iterator[Problem]:
        if not isinstance(value, dict):
            yield _no_table(value, at)
            return
        for key, item in value.items():
            yield from inner(item, (*at, key))

    return rule


def _no_table(value: Any, at: Keys) -> Problem:
    return Problem(at, f"{name(at)} is a table, not {value!r}", f"write [{name(at)}]")


def _text(value: Any, at: Keys) -> Iterator[Problem]:
    if not isinstance(value, str):
        yield Problem(at, f"{name(at)} is text in quotes, not {value!r}")
    elif not value or "\0" in value:
        yield Problem(at, f"{name(at)} is empty", "leave it out")


def _truth(value: Any, at: Keys) -> Iterator[Problem]:
    if not isinstance(value, bool):
        yield Problem(at, f"{name(at)} is true or false, not {value!r}")


def _choice(*words: str) -> Rule:
    def rule(value: Any, at: Keys) -> Iterator[Problem]:
        if value not in words:
            yield Problem(at, f"{name(at)} is {' or '.join(words)}, not {value!r}", nearest(str(value), (), words))

    return rule


def _absolute(value: Any, at: Keys) -> Iterator[Problem]:
    wrong = list(_text(value, at))
    yield from wrong
    if not wrong and not value.startswith("/"):
        yield Problem(at, f"{name(at)} is an absolute path, not {value!r}")


def _plain(value: Any, at: Keys) -> Iterator[Problem]:
    """Its own schema checks the rest: the driver's, where it is opened."""
    if not isinstance(value, _PLAIN):
        yield Problem(at, f"{name(at)} is text, a whole number, true or false, not {value!r}")


def _anything(value: Any, at: Keys) -> Iterator[Problem]:
    """Text, numbers, booleans, and lists and tables of them: `cowshed.registry.endpoints` checks the rest."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _anything(item, (*at, key))
    elif isinstance(value, list):
        for item in value:
            yield from _anything(item, at)
    else:
        yield from _plain(value, at)


def _registry(value: Any, at: Keys) -> Iterator[Problem]:
    yield from _anything(value, at) if isinstance(value, dict) else (_no_table(value, at),)


def _texts(value: Any, at: Keys) -> Iterator[Problem]:
    if not isinstance(value, list):
        yield Problem(at, f"{name(at)} is a list, not {value!r}")
        return
    for item in value:
        yield from _text(item, at)


def _mirrors(value: Any, at: Keys) -> Iterator[Problem]:
    if not isinstance(value, list):
        yield Problem(at, f"{name(at)} is a list, not {value!r}")
        return
    for item in value:
        if isinstance(item, dict):
            yield from _MIRROR(item, at)
            if "url" not in item:
                yield Problem(at, f"{name(at)} has an entry without a url", 'write "https://HOST[:PORT][/PREFIX]"')
        else:
            yield from _text(item, at)


def name(keys: Keys) -> str:
    """Keys as a file writes them, with dots between."""
    return ".".join(key if key.replace("-", "").replace("_", "").isalnum() else f'"{key}"' for key in keys)


def nearest(key: str, at: Keys, known: Iterable[str]) -> str:
    """The remedy for a word that is not among those known at a place."""
    from difflib import get_close_matches

    names = list(known)
    near = get_close_matches(key, names, 1)
    if near:
        return f"did you mean {name((*at, near[0]))}?"
    return f"known here are {', '.join(names)}"


def _program(value: Any, at: Keys) -> Iterator[Problem]:
    yield from _PROGRAM(value, at)
    if isinstance(value, dict) and "path" not in value:
        yield Problem(at, f"{name(at)} has no path", "write the absolute path of the program")


_PROGRAM = _table({"path": _absolute, "options": _texts, "settings": _absolute})
_TRUST: dict[str, Rule] = {"insecure": _truth, "ca": _absolute, "client_cert": _absolute, "client_key": _absolute}
_MIRROR = _table({"url": _text, **_TRUST})
_STORAGE: dict[str, Rule] = {
    "storage": _table({"driver": _text, "durability": _choice("commit", "none"), "drivers": _each(_each(_plain))}),
    "runtime": _table({"default": _text, "binaries": _each(_absolute)}),
    "runtimes": _each(_program),
    "trust": _table({"policy": _absolute}),
    "images": _table({"archives": _choice("keep", "drop"), "trailing": _choice("refuse", "ignore")}),
}
_SCHEMA = _table({**_STORAGE, "registries": _each(_registry)})
_STRICT = _table(
    {
        **_STORAGE,
        "registries": _each(
            _table(
                {
                    "mirrors": _mirrors, "fallback": _truth, "token_servers": _texts, "blocked": _truth,
                    "short_names": _truth, **_TRUST,
                }
            )
        ),
    }
)  # fmt: skip
