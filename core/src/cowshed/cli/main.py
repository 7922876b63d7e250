"""The command `cowshed`."""

from __future__ import annotations

import os
import sys

from cowshed.cli import parser, tables
from cowshed.errors import BadUsage, CowshedError
from cowshed.storage.errors import StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

VERSION = "0.1.0"


def main() -> NoReturn:
    """Run the command line; ends the process without the interpreter's shutdown, which costs some ms."""
    status = run(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or 1  # whoever read it is gone
    os._exit(status)


def run(words: list[str]) -> int:
    debug = "--debug" in words
    try:
        return _dispatch(words)
    except (CowshedError, StorageError) as error:
        if debug:
            raise
        _complain(str(error), error.remedy)
        return getattr(error, "status", 125)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except OSError as error:
        if debug:
            raise
        name = f"{error.filename}: " if error.filename else ""
        _complain(f"{name}{error.strerror or error}", "run again with --debug to see where")
        return 125
    except Exception as error:
        if debug:
            raise
        _complain(f"internal error: {type(error).__name__}: {error}", "please report it, with what --debug shows")
        return 125


def _complain(text: str, remedy: str) -> None:
    line = f"cowshed: {text}" + (f": {remedy}" if remedy else "")
    sys.stderr.write(" ".join(line.split()) + "\n")


def _dispatch(words: list[str]) -> int:
    flags = parser.parse(tables.GLOBAL, words, foreign=True, what="cowshed")
    rest = flags["operands"]
    if flags.version:
        print(f"cowshed {VERSION}")
        return 0
    if not rest or flags.help:
        from cowshed.cli import help as help_

        help_.overview()
        return 0 if flags.help else 125
    command, rest = _find(rest)
    said = parser.parse(command.options, rest, foreign=command.foreign, what=command.name)
    if said.help:
        from cowshed.cli import help as help_

        help_.of(command)
        return 0
    count = len(said["operands"])
    if count < command.least or (0 <= command.most < count):
        raise BadUsage(f"usage: cowshed {command.name} {command.operands}".rstrip(), remedy="--help tells more")
    from cowshed.config import settings
    from cowshed.engine import Engine

    engine = Engine(settings.load(flags, os.environ))
    module, _, function = command.module.partition(":")
    __import__(name := f"cowshed.cli.commands.{module}")  # importlib brings warnings
    result = getattr(sys.modules[name], function)(engine, said)
    return int(result or 0)


def _find(words: list[str]) -> tuple[parser.Command, list[str]]:
    names = {command.name: command for command in tables.COMMANDS}
    aliases = {"container": 1, "image ls": "images", "image list": "images", "image rm": "rmi", "image remove": "rmi",
               "image pull": "pull", "image tag": "tag", "image untag": "untag", "image load": "load",
               "image history": "history", "driver ls": "driver list"}  # fmt: skip
    if words[0] == "container" and len(words) > 1:
        words = ["ps" if words[1] in ("ls", "list") else words[1], *words[2:]]
    two = " ".join(words[:2])
    two = str(aliases.get(two, two))
    if two in names:
        return names[two], words[2:]
    if words[0] in names:
        return names[words[0]], words[1:]
    from difflib import get_close_matches

    near = get_close_matches(words[0], list(names), 1)
    raise BadUsage(f"there is no command {words[0]}", remedy=f"did you mean {near[0]}?" if near else "cowshed --help")
