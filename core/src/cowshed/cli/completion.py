"""Shell completion. The scripts are thin: for each key press they ask `cowshed __complete -- WORD…` what may stand for
the last word, so that all three shells know the same, and what is installed and in the store now.

It prints a candidate a line, with a tab and a description if there is one. Status FILES: file names belong here.
"""

from __future__ import annotations

import os

from cowshed.cli import find, parser, tables
from cowshed.errors import CowshedError
from cowshed.storage.errors import StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cowshed.cli.parser import Command, Option, Values
    from cowshed.engine import Engine

FILES = 10

_BASH = r"""# bash completion for cowshed
_cowshed() {
    local line=${COMP_LINE:0:COMP_POINT} words last skip= out status candidate
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    last=${words[-1]}
    # readline puts a candidate in place of what stands behind the last of its own word breaks
    [[ $COMP_WORDBREAKS == *:* && $last == *:* ]] && skip=${last%"${last##*:}"}
    [[ $COMP_WORDBREAKS == *=* && ${last##*:} == *=* ]] && skip=${last%"${last##*=}"}
    COMPREPLY=()
    out=$("${words[0]/#\~/$HOME}" __complete -- "${words[@]:1}" 2> /dev/null)
    status=$?
    if [ $status = 10 ]; then compopt -o default; return; fi
    [ -n "$out" ] || return 0
    while IFS= read -r candidate; do
        candidate=${candidate%%$'\t'*}
        COMPREPLY+=("${candidate#"$skip"}")
    done <<< "$out"
    [[ $candidate != *[:=] ]] || compopt -o nospace
}
complete -F _cowshed cowshed
"""

_ZSH = r"""#compdef cowshed
_cowshed() {
    local out line name code
    local -a found
    out=$("${words[1]}" __complete -- "${(@)words[2,CURRENT-1]}" "$PREFIX" 2> /dev/null)
    code=$?
    if (( code == 10 )); then _files; return; fi
    for line in "${(@f)out}"; do
        name=${line%%$'\t'*}
        [[ -n $name ]] || continue
        if [[ $line == *$'\t'* ]]; then
            found+=("${name//:/\\:}:${line#*$'\t'}")
        else
            found+=("${name//:/\\:}")
        fi
    done
    _describe cowshed found
}
if [[ $funcstack[1] == _cowshed ]]; then _cowshed "$@"; else compdef _cowshed cowshed; fi
"""

_FISH = r"""# fish completion for cowshed
function __cowshed_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l found ($words[1] __complete -- $words[2..] "$current" 2> /dev/null)
    if test $status -eq 10
        __fish_complete_path "$current"
        return
    end
    printf '%s\n' $found
end
complete -c cowshed -f -a '(__cowshed_complete)'
"""

SHELLS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def complete(words: list[str]) -> int:
    """Print what may stand for the last of words."""
    try:
        found = _candidates(words[:-1], words[-1] if words else "")
    except (CowshedError, StorageError, OSError):
        return 0  # a line that is wrong already, or a store that cannot be read, has no continuation
    if found is None:
        return FILES
    for line in dict.fromkeys(found):
        print(line)
    return 0


def _candidates(before: list[str], word: str) -> Iterable[str] | None:
    """None: file names."""
    at, pending = _options_end(tables.GLOBAL, before)
    flags = parser.parse(tables.GLOBAL, before[: at - 1 if pending else at], foreign=True, what="global options")
    if at == len(before):
        return _word(tables.GLOBAL, pending, word, flags, lambda: _first_words())
    members = find.group(before[at])
    if members and at + 1 == len(before):
        seconds = {name.split()[1]: c.help for name, c in find.known().items() if name.startswith(f"{before[at]} ")}
        return _begin(word, (f"{name}\t{text}" for name, text in seconds.items()))
    command, rest = find.command(before[at:])
    for name in ("--driver", "--to"):  # `run` takes the first too, `storage convert` has the other
        if name in rest[:-1]:
            flags["driver"] = rest[rest.index(name) + 1]
    operands, pending = 0, None
    while rest:
        end, pending = _options_end(command.options, rest)
        if end == len(rest):
            break
        if command.foreign and operands == 0 and end + 1 < len(rest):
            return None  # the rest is a command line of the container's
        operands += 1
        rest = rest[end + 1 :]
    if command.foreign and operands:
        return None
    if command.name == "cp" and pending is None and not word.startswith("-"):
        engine = _engine(flags)
        names = [f"{name}:" for name in _containers(engine, "cp")] if engine is not None else []
        return _begin(word, names) or None
    return _word(command.options, pending, word, flags, lambda: _operand(command, operands, flags))


def _options_end(options: tuple[Option, ...], words: list[str]) -> tuple[int, Option | None]:
    """How many words are options and their values, and the option whose value comes next, if one does."""
    known = {name: option for option in options for name in option.names.split()}
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] != "-":
        name, equals, _ = words[at].partition("=")
        at += 1
        if not name.startswith("--"):
            letters = name[1:]
            while letters and (option := known.get(f"-{letters[0]}")) and option.kind == "flag":
                letters = letters[1:]
            if len(letters) != 1:
                continue
            name = f"-{letters}"
        option = known.get(name)
        if option is not None and option.kind != "flag" and not equals:
            if at == len(words):
                return at, option
            at += 1
    return at, None


def _word(
    options: tuple[Option, ...],
    pending: Option | None,
    word: str,
    flags: Values,
    otherwise: Callable[[], list[str] | None],
) -> Iterable[str] | None:
    if pending is not None:
        values = _values(pending, flags)
        return None if values is None else _begin(word, values)
    if word.startswith("--") and "=" in word:
        name = word.partition("=")[0]
        option = next((o for o in options if name in o.names.split()), None)
        values = _values(option, flags) if option is not None else []
        return None if values is None else _begin(word, (f"{name}={value}" for value in values))
    if word.startswith("-"):
        return _begin(
            word, (f"{name}\t{option.help}" for option in options for name in option.names.split() if not option.hidden)
        )
    found = otherwise()
    return None if found is None else _begin(word, found)


def _begin(word: str, lines: Iterable[str]) -> list[str]:
    return [line for line in lines if line.partition("\t")[0].startswith(word)]


def _first_words() -> list[str]:
    ours = [c for c in tables.COMMANDS if not c.hidden]
    groups = [name.split()[0] for name in find.known() if " " in name]
    return [f"{c.name}\t{c.help}" for c in ours if " " not in c.name] + groups


# ---------------------------------------------------------------- what values there are


def _values(option: Option, flags: Values) -> list[str] | None:
    if option.choices:
        return list(option.choices)
    key = option.key
    if key in ("driver", "to"):
        return _drivers()
    if key in ("driver_option", "to_option"):
        return _driver_options(flags)
    if key in ("signal", "stop_signal"):
        from cowshed.container.signals import NAMES

        return list(NAMES)
    if key in ("cap_add", "cap_drop"):
        from cowshed_linux.capabilities import NUMBERS

        return ["ALL", *(name.removeprefix("CAP_") for name in NUMBERS)]
    if key == "runtime":
        from cowshed.runtimes import choice

        return ["native", *(one["name"] for one in choice.programs())]
    if key in _WORDS:
        return _WORDS[key].split()
    return None if key in _FILES or option.metavar in ("FILE", "DIRECTORY") else []


_WORDS = {
    "format": "json table", "network": "none host", "net": "none host",
    "restart": "no always unless-stopped on-failure",
    "security_opt": "no-new-privileges seccomp=unconfined apparmor=",
    "platform": "linux/amd64 linux/arm64 linux/arm/v7",
}  # fmt: skip
_FILES = frozenset("root run_root config env_file label_file cidfile volume device input output".split())


def _operand(command: Command, number: int, flags: Values) -> list[str] | None:
    kinds = command.operands.split()
    if not kinds or (number >= len(kinds) and not kinds[-1].rstrip("]").endswith("…")):
        return []
    kind = kinds[min(number, len(kinds) - 1)].strip("[]…")
    if kind == "NAME" and command.name != "inspect":
        return []  # a name that is new
    if kind == "SHELL":
        return list(SHELLS)
    if kind == "COMMAND" and command.name == "help":
        return _first_words()
    words = ("CONTAINER", "IMAGE", "VOLUME") if kind == "NAME" else kind.split("|")
    wanted = [_OF_KIND[word] for word in words if word in _OF_KIND]
    if not wanted:
        return None
    engine = _engine(flags)
    return [name for names in wanted for name in names(engine, command.name)] if engine is not None else []


def _engine(flags: Values) -> Engine | None:
    """On the store that the line means; a key press makes none."""
    from cowshed.config import settings
    from cowshed.engine import Engine

    engine = Engine(settings.load(flags, os.environ))
    return engine if os.path.exists(f"{engine.settings.root}/db.sqlite") else None


def _containers(engine: Engine, command: str) -> list[str]:
    from cowshed.container import state
    from cowshed.state import containers

    running = {"stop": True, "kill": True, "exec": True, "attach": True, "start": False}.get(command)
    rows = containers.list_all(engine.reader)
    return [r.name for r in rows if running is None or (state.now(engine, r).state == "running") == running]


def _volumes(engine: Engine, command: str) -> list[str]:
    from cowshed.state import volumes

    return [row.name for row in volumes.list_all(engine.reader)]


def _images(engine: Engine, command: str) -> list[str]:
    from cowshed.image import reference
    from cowshed.state import images

    return [reference.familiar(name) for _, names in images.list_all(engine.reader) for name in names]


_OF_KIND = {"CONTAINER": _containers, "IMAGE": _images, "VOLUME": _volumes}


def _drivers() -> list[str]:
    from cowshed.storage import registry

    return registry.names()


def _driver_options(flags: Values) -> list[str]:
    from cowshed.config import settings
    from cowshed.storage import registry

    driver = settings.load(flags, os.environ).driver
    if not driver:
        return []
    plugin, _ = registry.load(driver)
    return [f"{o.name}={value}\t{o.doc}" for o in plugin.options for value in (o.choices or ("",))]
