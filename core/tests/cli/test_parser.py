"""Docker's grammar of the command line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cowshed.cli import find, parser, tables
from cowshed.errors import BadUsage

RUN = find.names()["run"]
PS = find.names()["ps"]


def run(*words):
    return parser.parse(RUN.options, list(words), foreign=True, what="run")


def test_short_flags_are_joined_and_values_follow_in_every_way():
    one = run("-it", "-e", "A=1", "-eB=2", "-e=C=3", "--env", "D=4", "--env=E=5", "-m512m", "--name=x", "image")
    assert (one.interactive, one.tty, one.name, one.memory) == (True, True, "x", 512 << 20)
    assert one.env == ["A=1", "B=2", "C=3", "D=4", "E=5"]


def test_a_value_may_begin_with_a_dash():
    assert run("-e", "-x", "--name", "--odd", "image").env == ["-x"]


def test_what_follows_the_image_is_the_container_s():
    assert run("--rm", "image", "sh", "-c", "x", "--", "--rm", "-it")["operands"] == [
        "image", "sh", "-c", "x", "--", "--rm", "-it",
    ]  # fmt: skip
    assert run("--rm", "--", "image", "-x")["operands"] == ["image", "-x"]


def test_options_stand_between_operands_elsewhere():
    command = find.names()["rm"]
    values = parser.parse(command.options, ["one", "-f", "two"], foreign=False, what="rm")
    assert (values["operands"], values.force) == (["one", "two"], True)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("false", False), ("F", False)])
def test_a_flag_may_have_a_value(text, value):
    assert run(f"--rm={text}", "image").rm is value


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512), ("1b", 1), ("1k", 1 << 10), ("1.5g", 3 << 29), ("2GB", 2 << 30), ("1GiB", 1 << 30), ("1t", 1 << 40)],
)
def test_sizes(text, size):
    assert run("-m", text, "image").memory == size


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--nmae", "x"], "run: unknown option --nmae: did you mean --name?"),
        (["-Z"], "run: unknown option -Z: --help lists them"),
        (["--name"], "run: --name needs a value"),
        (["-e"], "run: -e needs a value"),
        (["--rm=perhaps"], "--rm is true or false, not 'perhaps'"),
        (["--pids-limit", "many"], "run: --pids-limit is a number, not 'many'"),
        (["-m", "lots"], "run: --memory is a size like 512m, not 'lots'"),
        (["--pull", "nevr"], "run: --pull is one of always, missing, never, not 'nevr'"),
    ],
)
def test_a_wrong_option_says_what_would_be_right(words, told):
    with pytest.raises(BadUsage) as caught:
        run(*words)
    assert told in f"{caught.value}: {caught.value.remedy}"


NAMES = sorted({n for command in tables.COMMANDS for o in command.options for n in o.names.split()})
WORDS = st.one_of(st.sampled_from(NAMES), st.text(max_size=8), st.sampled_from(["-", "--", "=", "-=", "--=", "-i-t"]))


@settings(derandomize=True, max_examples=500, deadline=None)
@given(st.lists(WORDS, max_size=6), st.sampled_from([RUN, PS]))
def test_any_line_is_taken_or_refused_by_type(words, command):
    try:
        values = parser.parse(command.options, words, foreign=command.foreign, what=command.name)
    except BadUsage:
        return
    assert isinstance(values["operands"], list)
