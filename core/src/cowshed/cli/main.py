"""The command `cowshed`."""

from __future__ import annotations

import gc
import os
import sys

from cowshed.cli import find, parser, tables
from cowshed.errors import BadUsage, CowshedError
from cowshed.storage.errors import StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

VERSION = "0.1.0"


def main() -> NoReturn:
    """Run the command line; ends the process without the interpreter's shutdown, which costs some ms."""
    gc.set_threshold(50_000)  # nothing that a start makes is garbage
    status = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = status or 141
    except OSError as error:
        status = _failed(f"standard output: {error.strerror}", "", trace=False)
    try:
        sys.stderr.flush()
    except OSError:
        status = status or 125  # nobody can be told
    os._exit(status)


def run(words: list[str]) -> int:
    debug = False
    try:
        flags = parser.parse(tables.GLOBAL, words, foreign=True, what="global options")
        debug = bool(flags.debug)
        return _dispatch(flags)
    except (CowshedError, StorageError) as error:
        return _failed(str(error), error.remedy, getattr(error, "status", 125), trace=debug)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _failed(f"{name}{error.strerror or error}", "run again with --debug to see where", trace=debug)
    except Exception as error:
        text = f"internal error: {type(error).__name__}: {error}"
        return _failed(text, "please report it, with what --debug shows", trace=debug)


def _failed(text: str, remedy: str, status: int = 125, *, trace: bool) -> int:
    if trace:
        from traceback import print_exc

        print_exc()
    line = f"cowshed: {text}" + (f": {remedy}" if remedy else "")
    sys.stderr.write(" ".join(line.split()) + "\n")
    return status


def _dispatch(flags: parser.Values) -> int:
    words = flags["operands"]
    if flags.debug or flags.log_level:
        from cowshed import log

        log.choose("debug" if flags.debug else flags.log_level)
    if flags.version:
        print(f"cowshed {VERSION}")
        return 0
    if not words or flags.help:
        from cowshed.cli import help as help_

        help_.show(words)
        return 0 if flags.help else 125
    if find.group(words[0]) and (len(words) == 1 or words[1] in ("-h", "--help")):
        from cowshed.cli import help as help_

        help_.show(words[:1])
        return 0 if len(words) > 1 else 125
    command, rest = find.command(words)
    said = parser.parse(command.options, rest, foreign=command.foreign, what=command.name, before=tables.GLOBAL)
    if said.help:
        from cowshed.cli import help as help_

        help_.of(command)
        return 0
    count = len(said["operands"])
    if count < command.least or (0 <= command.most < count):
        raise BadUsage(f"usage: cowshed {command.name} {command.operands}".rstrip(), remedy="--help tells more")
    for key in ("driver", "driver_option", "runtime"):  # also options of commands that make a container
        if key in said:
            flags[key] = said[key]
    module, _, function = command.module.partition(":")
    name = f"cowshed.cli.commands.{module}"
    if command.bare:
        __import__(name)
        return int(getattr(sys.modules[name], function)(flags, said) or 0)
    from cowshed.config import settings
    from cowshed.engine import Engine

    engine = Engine(settings.load(flags, os.environ))
    trace = None
    if path := flags.trace or os.environ.get("COWSHED_TRACE"):
        from cowshed.layers import tracing

        trace = tracing.begin(path, engine.settings.root)
    __import__(name)  # importlib brings warnings
    try:
        result = getattr(sys.modules[name], function)(engine, said)
    finally:
        engine.done()
        if trace is not None:
            trace.close()
    return int(result or 0)
