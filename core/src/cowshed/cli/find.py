"""Which command is meant: names of one word or two, docker's other names for them, and the nearest of a wrong one."""

from __future__ import annotations

from cowshed.cli import tables
from cowshed.errors import BadUsage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.cli.parser import Command

ALIASES = {
    "container ls": "ps", "container list": "ps", "image ls": "images", "image list": "images", "image rm": "rmi",
    "image remove": "rmi", "image pull": "pull", "image load": "load", "image save": "save", "image tag": "tag",
    "image history": "history", "image import": "import", "image push": "push",
    "image umount": "image unmount",
    "image untag": "untag", "driver ls": "driver list", "volume list": "volume ls", "volume remove": "volume rm",
    "system info": "info",
}  # fmt: skip
_OF_CONTAINERS = frozenset(
    "run create start stop kill restart rm ps logs exec attach wait inspect diff cp commit export rename port top "
    "stats pause unpause update prune".split()
)


def names() -> dict[str, Command]:
    """Every command by its name."""
    return {command.name: command for command in tables.COMMANDS}


def known() -> dict[str, Command]:
    """Every command by every name that finds it."""
    found = names()
    aliases = {alias: found[name] for alias, name in ALIASES.items() if name in found}
    prefixed = {f"container {name}": found[name] for name in _OF_CONTAINERS if name in found}
    return {**found, **aliases, **prefixed}


def group(word: str) -> list[Command]:
    """The commands whose first word this is, for a word that is no command by itself."""
    return [] if word in names() else list({c.name: c for n, c in known().items() if n.split()[0] == word}.values())


def command(words: list[str]) -> tuple[Command, list[str]]:
    """The command that words begin with, and the words behind it. BadUsage offers the nearest name."""
    ours = known()
    two = " ".join(words[:2])
    if len(words) > 1 and two in ours:
        return ours[two], words[2:]
    if words[0] in ours:
        return ours[words[0]], words[1:]
    from difflib import get_close_matches

    wrong = two if group(words[0]) else words[0]
    near = get_close_matches(wrong, [name for name in ours if not ours[name].hidden], 1)
    remedy = f"did you mean {near[0]}?" if near else "cowshed --help lists them"
    raise BadUsage(f"there is no command {wrong}", remedy=remedy)
