"""The configuration as a whole: every value with its origin, and all that is wrong, told at once.

`settings` reads what a command needs and stops at the first error. Here every source is read as far as it can be.
"""

from __future__ import annotations

import os

from cowshed.config import files, lines, schema, settings
from cowshed.config.schema import Problem
from cowshed.errors import ConfigError, CowshedError
from cowshed.storage import options, registry
from cowshed.storage.errors import BadOption
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from cowshed.storage.registry import Found

    Keys = tuple[str, ...]

_DEFAULTS: dict[Keys, Any] = {
    ("storage", "driver"): "", ("storage", "durability"): "commit", ("runtime", "default"): "native",
    ("images", "archives"): "keep",
    ("images", "trailing"): "refuse",
}  # fmt: skip
_VARIABLES = {("storage", "driver"): "driver", ("runtime", "default"): "runtime"}


@record(frozen=True)
class Value:
    """One value and who said it."""

    name: str  # as a file writes it
    value: Any
    origin: str  # default, the store, FILE:LINE, environment variable NAME, option --NAME
    overruled: tuple[str, ...] = ()  # weaker ones that said something too: ORIGIN says VALUE


@record(frozen=True)
class _File:
    path: str
    content: dict[str, Any]
    lines: dict[Keys, int]

    def where(self, keys: Keys) -> str:
        return f"{self.path}:{lines.line_of(self.lines, keys)}"


class Whole:
    """What flags, environment and files say together. flags, environ: as `settings.load` takes them.

    kept: by driver, what the creation of its store has fixed, which options of today cannot change.
    """

    def __init__(
        self,
        flags: Mapping[str, Any],
        environ: Mapping[str, str],
        kept: Mapping[str, Mapping[str, Any]] | None = None,
        stored: str = "",
    ) -> None:
        self._flags, self._environ, self._kept, self._stored = flags, environ, kept or {}, stored
        self.problems: list[Problem] = []
        self._files: list[_File] = []
        try:
            for path in settings.file_paths(flags, environ):
                self._read(path)
        except ConfigError as error:
            self.problems.append(Problem((), str(error), error.remedy))
        self._plugins: dict[str, Found] = {found.name: found for found in registry.installed()}
        self.problems += list(self._contradictions())
        self.problems.sort(key=lambda problem: (problem.path, problem.line))

    def _read(self, path: str) -> None:
        named = self._flags.get("config") or self._environ.get("COWSHED_CONFIG")
        if not os.path.exists(path):
            if named:
                self.problems.append(Problem((), f"there is no configuration file {path}"))
            return
        try:
            content, text = files.parse(path)
        except ConfigError as error:
            self.problems.append(Problem((), str(error).removeprefix(f"{path}: "), error.remedy, path))
            return
        found = schema.problems(content, path, text, strict=True)
        self.problems += found
        for problem in found:
            _drop(content, problem.keys)
        self._files.append(_File(path, content, lines.of(text)))

    # ------------------------------------------------------------ values

    def values(self, *, every_driver: bool = False) -> list[Value]:
        """Places, settings, and the options of the drivers that are configured, chosen or in the store, or of all."""
        return [*self._places(), *self._settings(), *self._options(every_driver)]

    def _places(self) -> Iterator[Value]:
        try:
            root, run_root = settings.places(self._flags, self._environ)
        except ConfigError as error:
            if str(error) not in [problem.text for problem in self.problems]:
                self.problems.append(Problem((), str(error), error.remedy))
            return
        for key, value in (("root", root), ("run_root", run_root)):
            yield Value(key, value, self._said_outside(key) or "default")

    def _said_outside(self, key: str) -> str:
        if self._flags.get(key):
            return f"option --{key.replace('_', '-')}"
        variable = f"COWSHED_{key.upper()}"
        return f"environment variable {variable}" if self._environ.get(variable) else ""

    def _settings(self) -> Iterator[Value]:
        said = {keys for file in self._files for keys in _leaves(file.content) if keys[:2] != ("storage", "drivers")}
        for keys in (*_DEFAULTS, *sorted(said - _DEFAULTS.keys())):
            yield self._value(keys, self._voices(keys))

    def _voices(self, keys: Keys) -> list[tuple[Any, str]]:
        """(value, origin) of everybody who says something, the strongest first."""
        found: list[tuple[Any, str]] = []
        if keys in _VARIABLES:
            word = _VARIABLES[keys]
            for value, origin in (
                (self._flags.get(word), f"option --{word}"),
                (self._environ.get(f"COWSHED_{word.upper()}"), f"environment variable COWSHED_{word.upper()}"),
            ):
                if value:
                    found.append((value, origin))
        for file in reversed(self._files):
            at: Any = file.content
            for key in keys:
                at = at.get(key) if isinstance(at, dict) else None
            if at is not None:
                found.append((at, file.where(keys)))
        if keys == ("storage", "driver") and self._stored:
            found.append((self._stored, "the store, which has its layers there"))
        return found

    def _value(self, keys: Keys, voices: Sequence[tuple[Any, str]]) -> Value:
        voices = voices or [(_DEFAULTS.get(keys), "default")]
        weaker = tuple(f"{origin} says {value}" for value, origin in voices[1:])
        return Value(schema.name(keys), voices[0][0], voices[0][1], weaker)

    def driver(self) -> tuple[str, str]:
        """The driver that is named, and who names it; ("", …) if nobody does."""
        voices = self._voices(("storage", "driver"))
        return voices[0] if voices else ("", "default")

    def _tables(self) -> dict[str, set[str]]:
        """By driver, the options that files have for it."""
        found: dict[str, set[str]] = {}
        for file in self._files:
            for name, table in file.content.get("storage", {}).get("drivers", {}).items():
                found.setdefault(name, set()).update(table)
        return found

    def _options(self, every: bool) -> Iterator[Value]:
        tables = self._tables()
        names = {*tables, *self._kept, self.driver()[0], *(self._plugins if every else ())}
        for name in sorted(names):
            plugin = self._plugins[name].plugin if name in self._plugins else None
            defaults = {o.name: o.default for o in plugin.options} if plugin is not None else {}
            for option in sorted(defaults.keys() | tables.get(name, set())):
                keys = ("storage", "drivers", name, option)
                voices = [*self._given(name, option), *self._voices(keys)]
                if option in self._kept.get(name, {}):
                    voices.insert(0, (self._kept[name][option], "the store, whose creation has fixed it"))
                yield self._value(keys, voices or [(defaults.get(option), "default")])

    def _given(self, driver: str, option: str) -> list[tuple[Any, str]]:
        """What the command line says of an option, if it is meant for this driver."""
        if driver != self.driver()[0]:
            return []
        said = [word.partition("=") for word in self._flags.get("driver_option") or ()]
        return [(text, "option --driver-option") for name, _, text in reversed(said) if name == option][:1]

    # ------------------------------------------------------------ what contradicts itself

    def _contradictions(self) -> Iterator[Problem]:
        yield from self._of_drivers()
        yield from self._of_runtime()
        yield from self._of_policy()
        wrong = {problem.keys[:2] for problem in self.problems}
        for file in self._files:
            for host in file.content.get("registries", {}):
                if ("registries", host) not in wrong:
                    yield from self._of_registry(host, file)

    def _of_drivers(self) -> Iterator[Problem]:
        name, origin = self.driver()
        if name and name not in self._plugins:
            remedy = schema.nearest(name, (), self._plugins) if self._plugins else "install it"
            yield _problem(("storage", "driver"), f"driver {name} is not installed", origin, remedy)
        for driver, named in sorted(self._tables().items()):
            found = self._plugins.get(driver)
            keys = ("storage", "drivers", driver)
            if found is None:
                text = f"{schema.name(keys)} is for a driver that is not installed"
                yield _problem(keys, text, self._voice_of(keys), schema.nearest(driver, keys[:2], self._plugins))
            for option in sorted(named) if found is not None and found.plugin is not None else ():
                yield from self._of_option(found, (*keys, option))
        for word in self._flags.get("driver_option") or ():
            found = self._plugins.get(name)
            option, equals, text = word.partition("=")
            if not option or not equals:
                yield Problem((), f"--driver-option {word} is not NAME=VALUE")
            elif found is not None and found.plugin is not None:
                yield from self._wrong(found, option, text, (), "option --driver-option")

    def _of_option(self, found: Any, keys: Keys) -> Iterator[Problem]:
        value, origin = self._voices(keys)[0]
        yield from self._wrong(found, keys[-1], value, keys, origin)

    def _wrong(self, found: Any, option: str, value: Any, keys: Keys, origin: str) -> Iterator[Problem]:
        try:
            chosen = options.check(found.plugin, {option: value})
            kept = {option: self._kept[found.name][option]} if option in self._kept.get(found.name, {}) else {}
            options.compare(found.plugin, kept, {option: value}, chosen)
        except BadOption as error:
            yield _problem(keys, str(error), origin, error.remedy)

    def _voice_of(self, keys: Keys) -> str:
        return self._voices(keys)[0][1]

    def _of_runtime(self) -> Iterator[Problem]:
        keys = ("runtime", "default")
        tables: set[str] = set()
        for file in self._files:
            short, long = file.content.get("runtime", {}).get("binaries", {}), file.content.get("runtimes", {})
            tables |= {*short, *long}
            for name in sorted({*short} & {*long}):
                text = f"runtime {name} is in [runtime.binaries] and in [runtimes]"
                yield _problem(("runtimes", name), text, file.where(("runtimes", name)), "take one of the two out")
        from cowshed.runtimes import choice

        for value, origin in self._voices(keys)[:1]:
            if value not in tables and not choice.by_itself(value):
                text = f"runtime {value} is neither native nor in [runtimes] nor a program"
                yield _problem(keys, text, origin, schema.nearest(value, (), ["native", *sorted(tables)]))

    def _of_policy(self) -> Iterator[Problem]:
        from cowshed.trust import policy

        keys = ("trust", "policy")
        for path, origin in self._voices(keys)[:1]:
            try:
                policy.read(path)
            except ConfigError as error:
                yield _problem(keys, str(error), origin, error.remedy)

    def _of_registry(self, host: str, file: _File) -> Iterator[Problem]:
        """Of one file's table, whatever the others add to it."""
        from cowshed.registry.endpoints import endpoints

        keys = ("registries", host)
        table = {key: self._voices((*keys, key))[0][0] for key in file.content["registries"][host]}
        said = schema.name(keys)
        more = {key for other in self._files for key in other.content.get("registries", {}).get(host, {})}
        if table.get("blocked") and {"mirrors", "fallback"} & more:
            yield _problem(
                (*keys, "blocked"), f"{said} is blocked and has mirrors or a fallback, which nobody asks then",
                file.where((*keys, "blocked")), "take one of the two out",
            )  # fmt: skip
        if table.get("fallback") is False and "mirrors" not in more:
            yield _problem(
                (*keys, "fallback"), f"{said}.fallback = false has no mirrors that could serve instead",
                file.where((*keys, "fallback")), "name mirrors, or say blocked = true",
            )  # fmt: skip
        if table.get("insecure") and table.get("ca"):
            yield _problem(
                (*keys, "ca"), f"{said} has insecure = true and a ca: plain HTTP uses no certificates",
                file.where((*keys, "ca")), "take one of the two out",
            )  # fmt: skip
        try:
            endpoints(host, {key: value for key, value in table.items() if key != "blocked"})
        except CowshedError as error:
            yield _problem(keys, str(error), file.where((*keys, "mirrors")), error.remedy)


def _problem(keys: Keys, text: str, origin: str, remedy: str) -> Problem:
    """origin: FILE:LINE, or in words who said it."""
    path, _, line = origin.rpartition(":")
    if path.startswith("/") and line.isdigit():
        return Problem(keys, text, remedy, path, int(line))
    return Problem(keys, f"{text} ({origin})", remedy)


def _leaves(table: dict[str, Any], above: Keys = ()) -> Iterator[Keys]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key)


def _drop(table: dict[str, Any], keys: Keys) -> None:
    """Take a value that is wrong out, so that the rest can be looked at."""
    for key in keys[:-1]:
        inner = table.get(key)
        if not isinstance(inner, dict):
            return
        table = inner
    table.pop(keys[-1], None)
