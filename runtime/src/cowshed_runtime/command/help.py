"""--help, from the tables."""

from __future__ import annotations

import sys

from cowshed_runtime.command import tables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed_runtime.command.parser import Option


def show(words: list[str]) -> None:
    """Print what a verb does, or with no known verb what verbs there are."""
    verb = tables.find(words[0]) if words else None
    if verb:
        lines = [f"usage: cowshed-runtime {verb.name} [OPTION…] {verb.operands}".rstrip(), "", verb.help, ""]
        options = verb.options
    else:
        lines = ["usage: cowshed-runtime [OPTION…] VERB [OPTION…] [OPERAND…]", "", "An OCI runtime.", ""]
        lines += [f"  {one.name:<12}{one.help}" for one in tables.VERBS] + [""]
        options = tables.GLOBAL
    lines += [_line(option) for option in options if not option.hidden]
    sys.stdout.write("\n".join(lines) + "\n")


def _line(option: Option) -> str:
    names = f"{', '.join(option.names.split())} {option.metavar}".rstrip()
    return f"  {names:<34}{option.help}" if len(names) < 33 else f"  {names}\n  {'':<34}{option.help}"
