"""Completion scripts, from the tables."""

from __future__ import annotations

from cowshed.cli import tables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def _options(name: str) -> str:
    command = next(c for c in tables.COMMANDS if c.name == name)
    return " ".join(n for o in command.options for n in o.names.split())


def _first_words() -> str:
    return " ".join(dict.fromkeys(c.name.split()[0] for c in tables.COMMANDS))


def bash() -> str:
    cases = "\n".join(
        f'        {c.name.split()[0]}) words="{_options(c.name)}" ;;' for c in tables.COMMANDS if " " not in c.name
    )
    return f"""_cowshed() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} words command=${{COMP_WORDS[1]}}
    if [ "$COMP_CWORD" = 1 ]; then COMPREPLY=($(compgen -W "{_first_words()}" -- "$word")); return; fi
    case $command in
{cases}
        *) words= ;;
    esac
    case $word in
        -*) COMPREPLY=($(compgen -W "$words" -- "$word")) ;;
        *) COMPREPLY=($(compgen -W "$(cowshed ps -a --format '{{{{.Names}}}}' 2>/dev/null)" -- "$word")) ;;
    esac
}}
complete -o default -F _cowshed cowshed"""


def zsh() -> str:
    return "#compdef cowshed\nautoload -U +X bashcompinit && bashcompinit\n" + bash()


def fish() -> str:
    lines = ["complete -c cowshed -f"]
    for command in tables.COMMANDS:
        first = command.name.split()[0]
        lines.append(f"complete -c cowshed -n __fish_use_subcommand -a {first} -d '{command.help}'")
        for option in command.options:
            flags = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in option.names.split())
            text = option.help.replace("'", "")
            lines.append(f"complete -c cowshed -n '__fish_seen_subcommand_from {first}' {flags} -d '{text}'")
    return "\n".join(lines)


SHELLS: dict[str, Callable[[], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
