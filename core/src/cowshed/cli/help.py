"""--help and `cowshed help`, from the tables."""

from __future__ import annotations

from cowshed.cli import find, tables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cowshed.cli.parser import Command, Option


def show(words: list[str]) -> None:
    """Of the command that words begin with, of a group of commands, or of all. BadUsage if there is no such command."""
    if not words:
        print("cowshed [OPTION…] COMMAND [ARGUMENT…]\n\nCommands:")
        _commands(c for c in tables.COMMANDS if not c.hidden)
        print("\nOptions, before the command:")
        _options(tables.GLOBAL)
        print("\n`cowshed COMMAND --help` tells what a command takes.")
    elif len(words) == 1 and (members := find.group(words[0])):
        print(f"cowshed {words[0]} COMMAND [ARGUMENT…]\n\nCommands:")
        _commands(members)
    else:
        of(find.command(words)[0])


def of(command: Command) -> None:
    print(f"{usage(command)}\n\n{command.help}\n\nOptions:")
    _options(command.options)


def usage(command: Command) -> str:
    return f"cowshed {command.name} [OPTION…] {command.operands}".rstrip()


def _commands(commands: Iterable[Command]) -> None:
    for command in commands:
        print(f"  {command.name:20}{command.help}")


def _options(options: tuple[Option, ...]) -> None:
    rows = [(f"{', '.join(o.names.split())} {o.metavar}".rstrip(), o.help) for o in options if not o.hidden]
    width = min(30, max(len(names) for names, _ in rows)) + 2
    for names, text in rows:
        print(f"  {names:{width}}{text}" if len(names) < width else f"  {names}\n  {'':{width}}{text}")
