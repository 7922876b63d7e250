"""--help, from the tables."""

from __future__ import annotations

from cowshed.cli import tables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.cli.parser import Command, Option


def overview() -> None:
    print("cowshed [OPTION…] COMMAND [ARGUMENT…]\n\nCommands:")
    for command in tables.COMMANDS:
        print(f"  {command.name:16}{command.help}")
    print("\nOptions, before the command:")
    _options(tables.GLOBAL)


def of(command: Command) -> None:
    print(f"cowshed {command.name} [OPTION…] {command.operands}\n\n{command.help}\n\nOptions:")
    _options(command.options)


def _options(options: tuple[Option, ...]) -> None:
    for option in options:
        value = "" if option.kind == "flag" else " NAME=VALUE" if option.kind == "pairs" else " VALUE"
        names = ", ".join(option.names.split())
        print(f"  {names + value:32}{option.help}")
