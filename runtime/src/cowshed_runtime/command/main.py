"""The command `cowshed-runtime`: an OCI runtime for podman, docker, containerd and whoever else calls runc.

It is started several times for each container, so that it imports little: the verb's module, when the verb is known.
"""

from __future__ import annotations

import gc
import os
import sys

from cowshed_runtime.command import parser, tables
from cowshed_runtime.command.errors import CommandError, told
from cowshed_runtime.command.log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

VERSION, SPECIFICATION = "0.1.0", "1.3.0"


def main() -> NoReturn:
    """Run the command line; ends the process without the interpreter's shutdown, which costs some ms."""
    gc.disable()  # a start makes nothing that is garbage
    status = run(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or 1  # nobody can be told
    os._exit(status)


def run(words: list[str]) -> int:
    debug = False
    try:
        flags = parser.parse(tables.GLOBAL, words, foreign=True)
        debug = bool(flags.debug)
        log.choose(flags.log or "", flags.log_format or "", debug=debug)
        return _dispatch(flags)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if debug:
            from traceback import format_exc

            log.write("debug", format_exc())
        log.error(told(error))
        return error.status if isinstance(error, CommandError) else 1


def _dispatch(flags: parser.Values) -> int:
    words = flags["operands"]
    if flags.version:
        from cowshed_linux import seccomp

        try:
            library = f"libseccomp: {seccomp.version()}\n"
        except OSError:
            library = ""  # it is not installed
        sys.stdout.write(f"cowshed-runtime version {VERSION}\nspec: {SPECIFICATION}\n{library}")
        return 0
    if not words or flags.help or words[0] == "help":
        from cowshed_runtime.command import help as help_

        help_.show(words[-1:] if words[:1] != ["help"] else words[1:])
        return 0 if words or flags.help else 1
    verb = tables.find(words[0])
    if verb is None:
        raise CommandError(f"no such verb: {words[0]} (cowshed-runtime --help lists them)")
    said = parser.parse(verb.options, words[1:], foreign=verb.foreign)
    if said.help:
        from cowshed_runtime.command import help as help_

        help_.show([verb.name])
        return 0
    count = len(said["operands"])
    if count < verb.least or 0 <= verb.most < count:
        raise CommandError(f"usage: cowshed-runtime {verb.name} [OPTION…] {verb.operands}".rstrip())
    if verb.enters:
        from cowshed_runtime import interpreter

        interpreter.protect(keep=True)
    name = f"cowshed_runtime.command.verbs.{verb.module}"
    __import__(name)  # importlib brings warnings
    return int(getattr(sys.modules[name], verb.function)(flags, said) or 0)
