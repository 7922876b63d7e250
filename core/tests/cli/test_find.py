"""Names of commands, docker's other names for them, and what is offered for a wrong one."""

import pytest

from cowshed import log
from cowshed.cli import find, parser, tables
from cowshed.cli.main import run
from cowshed.errors import BadUsage


@pytest.fixture(autouse=True)
def level_of_a_new_process():
    """A command chooses what this process tells from then on: the tests after this one are told as always."""
    yield
    log.choose("warn")


@pytest.mark.parametrize(
    ("words", "name", "rest"),
    [
        ("run image ls", "run", ["image", "ls"]),
        ("container ls -a", "ps", ["-a"]),
        ("container run x", "run", ["x"]),
        ("container inspect x", "inspect", ["x"]),
        ("image ls", "images", []),
        ("image inspect x", "image inspect", ["x"]),
        ("image rm x", "rmi", ["x"]),
        ("driver ls", "driver list", []),
        ("driver why", "driver why", []),
        ("system info", "info", []),
    ],
)
def test_a_command_is_found_by_docker_s_names_too(words, name, rest):
    command, left = find.command(words.split())
    assert (command.name, left) == (name, rest)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("rnu x", "there is no command rnu: did you mean run?"),
        ("image inspct x", "there is no command image inspct: did you mean image inspect?"),
        ("driver wy", "there is no command driver wy: did you mean driver why?"),
        ("zzzzz", "there is no command zzzzz: cowshed --help lists them"),
        ("__complet", "did you mean completion?"),
    ],
)
def test_a_wrong_name_is_met_with_the_nearest(words, told):
    with pytest.raises(BadUsage) as caught:
        find.command(words.split())
    assert told in f"{caught.value}: {caught.value.remedy}"


def test_every_command_says_what_it_is_and_has_help():
    for command in tables.COMMANDS:
        assert command.help
        names = [n for o in command.options for n in o.names.split()]
        assert len(names) == len(set(names)), f"{command.name} has an option twice"
        assert command.hidden or "--help" in names
        for option in command.options:
            assert option.help, f"{command.name} {option.names}"
            assert option.kind in ("flag", "text", "list", "int", "size", "pairs")


def said(capsys, *words):
    status = run(list(words))
    out, error = capsys.readouterr()
    return status, out, error


def test_help_is_there_for_all_for_a_command_and_for_a_group(capsys):
    status, out, _ = said(capsys, "--help")
    assert status == 0
    assert all(f"  {command.name} " in out for command in tables.COMMANDS if not command.hidden)
    assert "__complete" not in out
    assert said(capsys, "run", "--help") == said(capsys, "help", "run") == said(capsys, "container", "run", "--help")
    status, out, _ = said(capsys, "driver", "--help")
    assert (status, "driver why" in out, "ps" in out.split()) == (0, True, False)
    assert said(capsys, "driver")[0] == 125
    status, _, error = said(capsys, "help", "rnu")
    assert (status, error) == (125, "cowshed: there is no command rnu: did you mean run?\n")


def test_a_help_flag_of_a_container_s_command_is_its_own():
    command, rest = find.command(["run", "image", "tool", "--help", "--debug"])
    values = parser.parse(command.options, rest, foreign=command.foreign, what="run")
    assert values["operands"] == ["image", "tool", "--help", "--debug"]
    assert not values.help


def test_debug_of_a_container_s_command_is_not_ours(capsys):
    """A command line that ends in `--debug` for the container shows no traceback of ours."""
    status, _, error = said(capsys, "--config", "/missing/file", "exec", "box", "tool", "--debug")
    assert status == 125
    assert error == "cowshed: there is no configuration file /missing/file\n"
    status, _, error = said(capsys, "--debug", "--config", "/missing/file", "ps")
    assert status == 125
    assert "Traceback" in error
    assert error.endswith("cowshed: there is no configuration file /missing/file\n")


def test_the_level_of_what_is_told_is_checked(capsys):
    status, _, error = said(capsys, "--log-level", "loud", "ps")
    assert status == 125
    assert "--log-level is one of debug, info, warn, error, not 'loud'" in error


def test_a_global_option_behind_the_command_is_sent_to_its_place(capsys):
    status, _, error = said(capsys, "ps", "--root", "/store")
    assert status == 125
    assert error == "cowshed: ps: unknown option --root: write it before the command: cowshed --root ps …\n"
