"""Settings: flags, environment, the user's configuration, the system's, in this order; and where each came from.

This is the one module that knows absolute places of the system, and what differs for a plain user.
"""

from __future__ import annotations

import os
import stat

from cowshed.config import files
from cowshed.errors import ConfigError
from cowshed.storage.record import field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

SYSTEM_FOLDER = "/etc/cowshed"
POLICIES = (f"{SYSTEM_FOLDER}/policy.json", "/etc/containers/policy.json")  # the first that is there


@record(frozen=True)
class Said:
    """One source that may name a driver or runtime, and what it says: "" for nothing."""

    source: str
    value: str


@record(frozen=True)
class Settings:
    root: str  # the store: layers, images, containers
    run_root: str  # what a reboot may take
    driver: str  # "" if nobody said one
    driver_from: str  # who said it
    driver_options: dict[str, dict[str, Any]] = field(default_factory=dict)  # by driver; "" is whichever is chosen
    durability: str = "commit"  # none, commit
    registries: dict[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()  # that were read, the weakest first
    runtime: str = "native"
    runtime_from: str = "the default"
    runtimes: dict[str, dict[str, Any]] = field(default_factory=dict)  # by name: path, perhaps options and settings
    drivers_said: tuple[Said, ...] = ()  # every source, the strongest first
    runtimes_said: tuple[Said, ...] = ()
    options_said: dict[tuple[str, str], str] = field(default_factory=dict)  # by driver and option: who said it
    policy: str = ""  # the file that says which images are accepted; "" for the usual ones
    archives: str = "keep"  # of layers that are in a driver: keep, drop
    trailing: str = "refuse"  # what lies behind the gzip data of a layer: refuse, ignore
    named: str = ""  # the configuration file that was named; "" for the usual ones

    def options_of(self, driver: str) -> dict[str, Any]:
        """The options for a driver: from the files, and from the command line if they are meant for it."""
        options = dict(self.driver_options.get(driver, {}))
        if self.driver in ("", driver):
            options.update(self.driver_options.get("", {}))
        return options

    @property
    def policy_file(self) -> str:
        """The file with the policy of images that is in force, "" for none. One that is there and cannot be read is in
        force too, and so is a link that leads nowhere: nothing is accepted then."""
        if self.policy:
            return self.policy
        for path in POLICIES:
            try:
                os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                pass  # it may be there
            return path
        return ""

    def who_said(self, driver: str, option: str) -> str:
        """The source of an option's value, "" for none: the driver's default."""
        found = self.options_said.get((driver, option), "")
        if self.driver in ("", driver):
            found = self.options_said.get(("", option), found)
        return found


def load(flags: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Put all sources together.

    flags: root, run_root, config, driver, driver_option (a list of NAME=VALUE) and runtime, as the command line gave
    them. Raises ConfigError.
    """
    root, run_root = places(flags, environ)
    read = _read(flags, environ, run_root)
    merged: dict[str, Any] = {}
    for _, content in read:
        _merge(merged, content)
    storage, runtime = merged.get("storage", {}), merged.get("runtime", {})
    drivers = _said("driver", "storage", "driver", flags, environ, read)
    runtimes = _said("runtime", "runtime", "default", flags, environ, read)
    driver = next((one for one in drivers if one.value), Said("", ""))
    chosen = next((one for one in runtimes if one.value), Said("the default", "native"))
    options = {name: dict(table) for name, table in storage.get("drivers", {}).items()}
    sources = {
        (name, option): f"configuration file {path}"
        for path, content in read
        for name, table in content.get("storage", {}).get("drivers", {}).items()
        for option in table
    }
    for word in flags.get("driver_option") or ():
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"--driver-option {word}: write NAME=VALUE")
        options.setdefault(driver.value, {})[name] = text
        sources[driver.value, name] = "option --driver-option"
    return Settings(
        root,
        run_root,
        driver.value,
        driver.source,
        options,
        storage.get("durability", "commit"),
        merged.get("registries", {}),
        tuple(path for path, _ in read),
        chosen.value,
        chosen.source,
        {**{name: {"path": path} for name, path in runtime.get("binaries", {}).items()}, **merged.get("runtimes", {})},
        drivers,
        runtimes,
        sources,
        merged.get("trust", {}).get("policy", ""),
        merged.get("images", {}).get("archives", "keep"),
        merged.get("images", {}).get("trailing", "refuse"),
        os.path.abspath(named) if (named := _named(flags, environ)) else "",
    )


def places(flags: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[str, str]:
    """The store and the run directory; no file has a say in that. ConfigError."""
    root = flags.get("root") or environ.get("COWSHED_ROOT")
    run_root = flags.get("run_root") or environ.get("COWSHED_RUN_ROOT")
    if not root:
        data = "/var/lib" if _is_root() else _base(environ, "XDG_DATA_HOME") or f"{_home(environ)}/.local/share"
        root = f"{data}/cowshed"
    if not run_root:
        run = "/run" if _is_root() else _base(environ, "XDG_RUNTIME_DIR")
        run_root = f"{run}/cowshed" if run else _private(f"/tmp/cowshed-{os.geteuid()}")
    return os.path.abspath(root), os.path.abspath(run_root)


def _is_root() -> bool:
    return os.geteuid() == 0


def _base(environ: Mapping[str, str], name: str) -> str:
    """A base directory; one that is not absolute is to be ignored (XDG Base Directory Specification)."""
    path = environ.get(name, "")
    return path if path.startswith("/") else ""


def _home(environ: Mapping[str, str]) -> str:
    home = environ.get("HOME", "")
    if home.startswith("/"):
        return home.rstrip("/")
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        raise ConfigError(f"user {os.geteuid()} has no home directory", remedy="set HOME, or --root") from None


def _private(path: str) -> str:
    """A directory below a place where everybody may write: it must be ours, if it is there already."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return path
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ConfigError(f"{path} is not a directory of this user alone", remedy="set XDG_RUNTIME_DIR or --run-root")
    return path


def _read(flags: Mapping[str, Any], environ: Mapping[str, str], run_root: str) -> list[tuple[str, dict[str, Any]]]:
    paths = file_paths(flags, environ)
    read = files.read(paths, run_root)
    if not read and _named(flags, environ):
        raise ConfigError(f"there is no configuration file {paths[0]}")
    return read


def _named(flags: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    return flags.get("config") or environ.get("COWSHED_CONFIG") or ""


def file_paths(flags: Mapping[str, Any], environ: Mapping[str, str]) -> list[str]:
    """The configuration files that may exist, the weakest first: the one that is named, else the usual ones."""
    named = _named(flags, environ)
    if named:
        return [os.path.abspath(named)]
    home = _base(environ, "XDG_CONFIG_HOME") or f"{_home(environ)}/.config"
    return files.search([SYSTEM_FOLDER, f"{home}/cowshed"])


def _said(
    name: str,
    section: str,
    key: str,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    read: list[tuple[str, dict[str, Any]]],
) -> tuple[Said, ...]:
    variable = f"COWSHED_{name.upper()}"
    return (
        Said(f"option --{name}", flags.get(name) or ""),
        Said(f"environment variable {variable}", environ.get(variable, "")),
        *[
            Said(f"configuration file {path}", content.get(section, {}).get(key, ""))
            for path, content in reversed(read)
        ],
    )


def _merge(into: dict[str, Any], value: dict[str, Any]) -> None:
    """Tables are merged; anything else replaces what a weaker file said."""
    for key, item in value.items():
        if isinstance(item, dict):
            below = into.get(key)
            into[key] = fresh = dict(below) if isinstance(below, dict) else {}
            _merge(fresh, item)
        else:
            into[key] = item
