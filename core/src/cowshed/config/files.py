"""Reading configuration files: which there are, what they say, and a cache of that.

Importing tomllib and parsing cost 12 ms, a third of a short command. So what a file said is kept as JSON in the run
directory, under its path and its stamp (times, size, inode).
"""

from __future__ import annotations

import os
from time import time_ns

from cowshed.errors import ConfigError
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_FORMAT = 3  # of the cache; goes up with every change of the schema, so that old content is checked again
_SETTLED = 2_000_000_000  # ns: a younger file may be written again within one tick of the clock that stamps it
_MOST = 32  # files in the cache


def search(folders: Sequence[str]) -> list[str]:
    """The files that may exist, the weakest first: config.toml, then config.d/*.toml by name, folder by folder."""
    found = []
    for folder in folders:
        found.append(f"{folder}/config.toml")
        try:
            names = sorted(os.listdir(f"{folder}/config.d"))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ConfigError(f"{folder}/config.d: {error.strerror}") from None
        found += [f"{folder}/config.d/{name}" for name in names if name.endswith(".toml")]
    return found


def read(paths: Sequence[str], run_root: str) -> list[tuple[str, dict[str, Any]]]:
    """(path, content) of each file that exists, checked against the schema. Raises ConfigError."""
    stamps = [(path, stamp) for path in paths if (stamp := _stamp(path)) is not None]
    if not stamps:
        return []
    cache = f"{run_root}/config.cache"
    kept = _load(cache)
    result = []
    fresh = False
    for path, stamp in stamps:
        entry = kept.get(path)
        if entry is None or entry[0] != stamp:
            entry = kept[path] = [stamp, _parse(path)]
            fresh = fresh or time_ns() - max(stamp[:2]) > _SETTLED
        result.append((path, entry[1]))
    if fresh:
        now = time_ns()
        _keep(cache, {p: entry for p, entry in list(kept.items())[-_MOST:] if now - max(entry[0][:2]) > _SETTLED})
    return result


def _stamp(path: str) -> list[int] | None:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    return [status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev]


def _parse(path: str) -> dict[str, Any]:
    from cowshed.config import schema

    document, text = parse(path)
    schema.check(document, path, text)
    return document


def parse(path: str) -> tuple[dict[str, Any], str]:
    """What a file says, and its text. ConfigError if it cannot be read or is no TOML."""
    import tomllib

    try:
        with open(path, "rb") as file:
            text = file.read().decode().replace("\r\n", "\n")
        return tomllib.loads(text), text
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:  # TOMLDecodeError, and UnicodeDecodeError
        raise ConfigError(f"{path}: {error}") from None


def _load(cache: str) -> dict[str, Any]:
    """The cache's entries; none if it is missing, damaged, of another version, or could be another user's doing."""
    try:
        fd = os.open(cache, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            return {}
        data = b""
        while block := os.read(fd, 1 << 16):
            data += block
    finally:
        os.close(fd)
    try:
        version, entries = loads(data)
    except (ValueError, TypeError):
        return {}
    return entries if version == _FORMAT and isinstance(entries, dict) else {}


def _keep(cache: str, entries: dict[str, Any]) -> None:
    from cowshed_linux import files

    try:
        os.makedirs(os.path.dirname(cache), mode=0o700, exist_ok=True)
        files.write_atomically(cache, dumps([_FORMAT, entries]).encode(), durable=False)
    except OSError:
        return  # a full or read-only run directory: the next command parses again
