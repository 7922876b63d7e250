"""Settings: flags, environment, the user's configuration, the system's, in this order; and where each came from."""

from __future__ import annotations

import os

from cowshed.errors import ConfigError
from cowshed.storage.record import field, record
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_SECTIONS = {"storage": ("driver", "durability", "drivers"), "runtime": ("default", "binaries"), "registries": None}


@record(frozen=True)
class Settings:
    root: str
    run_root: str
    driver: str  # "" if nobody said one
    driver_from: str
    driver_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    durability: str = "commit"
    registries: dict[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()


def load(flags: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """flags: root, run_root, config, driver, driver_option as the command line gave them. ConfigError."""
    mine = os.geteuid() == 0
    home = environ.get("HOME", "/")
    data = "/var/lib" if mine else environ.get("XDG_DATA_HOME") or f"{home}/.local/share"
    run = "/run" if mine else environ.get("XDG_RUNTIME_DIR") or f"/tmp/cowshed-{os.geteuid()}"
    run_root = _absolute(flags.get("run_root") or environ.get("COWSHED_RUN_ROOT") or f"{run}/cowshed")
    merged: dict[str, Any] = {}
    origin = ""
    read = []
    for path, kind in _paths(flags, environ, home):
        value = _parsed(path, run_root)
        if value is None:
            if kind == "named":
                raise ConfigError(f"there is no configuration file {path}")
            continue
        read.append(path)
        _check(value, path)
        if value.get("storage", {}).get("driver"):
            origin = f"configuration file {path}"
        _merge(merged, value)
    storage = merged.get("storage", {})
    driver, where = str(storage.get("driver", "")), origin
    if environ.get("COWSHED_DRIVER"):
        driver, where = environ["COWSHED_DRIVER"], "environment variable COWSHED_DRIVER"
    if flags.get("driver"):
        driver, where = flags["driver"], "option --driver"
    options = {name: dict(table) for name, table in storage.get("drivers", {}).items()}
    for word in flags.get("driver_option") or ():
        name, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"--driver-option {word}: write NAME=VALUE")
        options.setdefault(driver, {})[name] = text
    durability = storage.get("durability", "commit")
    if durability not in ("none", "commit"):
        raise ConfigError(f"storage.durability is none or commit, not {durability!r}")
    return Settings(
        _absolute(flags.get("root") or environ.get("COWSHED_ROOT") or f"{data}/cowshed"),
        run_root, driver, where, options, durability, merged.get("registries", {}), tuple(read),
    )  # fmt: skip


def _absolute(path: str) -> str:
    return os.path.abspath(path)


def _paths(flags: Mapping[str, Any], environ: Mapping[str, str], home: str) -> list[tuple[str, str]]:
    """The files to read, the weakest first."""
    named = flags.get("config") or environ.get("COWSHED_CONFIG")
    if named:
        return [(_absolute(named), "named")]
    found = []
    user = f"{environ.get('XDG_CONFIG_HOME') or home + '/.config'}/cowshed"
    for folder in ("/etc/cowshed", user):
        found.append((f"{folder}/config.toml", "default"))
        try:
            names = sorted(os.listdir(f"{folder}/config.d"))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        found += [(f"{folder}/config.d/{name}", "default") for name in names if name.endswith(".toml")]
    return found


def _parsed(path: str, run_root: str) -> dict[str, Any] | None:
    """A file's content; None if there is none. Parsing TOML costs 12 ms, so the result is kept by time and size."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    key = [path, status.st_mtime_ns, status.st_size]
    cache = f"{run_root}/config-{sum((n + 1) * b for n, b in enumerate(os.fsencode(path))):x}.json"
    try:
        with open(cache, "rb") as f:
            kept = loads(f.read())
        if kept[0] == key:
            value: dict[str, Any] = kept[1]
            return value
    except (OSError, ValueError):
        pass  # parsed again below
    import tomllib

    try:
        with open(path, "rb") as f:
            value = tomllib.load(f)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    try:
        from cowshed_linux import files

        os.makedirs(run_root, mode=0o700, exist_ok=True)
        files.write_atomically(cache, dumps([key, value]).encode(), durable=False)
    except (OSError, TypeError):
        return value  # a cache that cannot be kept, or a date in the file
    return value


def _check(value: dict[str, Any], path: str) -> None:
    _known(value, tuple(_SECTIONS), path, "")
    for name, keys in _SECTIONS.items():
        table = value.get(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {name} is a table")
        if keys is not None:
            _known(table, keys, path, f"{name}.")


def _known(table: dict[str, Any], keys: tuple[str, ...], path: str, where: str) -> None:
    for key in table:
        if key not in keys:
            from difflib import get_close_matches

            near = get_close_matches(key, keys, 1)
            raise ConfigError(
                f"{path}: {where}{key} is no setting", remedy=f"did you mean {where}{near[0]}?" if near else ""
            )


def _merge(into: dict[str, Any], value: dict[str, Any]) -> None:
    for key, item in value.items():
        if isinstance(item, dict) and isinstance(into.get(key), dict):
            _merge(into[key], item)
        else:
            into[key] = item
