"""JSON without `json` agrees with `json`."""

import json
import subprocess
import sys

import pytest

from cowshed_runtime import fastjson

VALUES = [
    None, True, 0, -1.5, "", 'quote " back \\ line \n nul \0 snow \u2603', [], {}, [[]], [{}], {"a": []},
    {"a": {"b": [1, "two", None, {"c": False}]}, "d": "e"}, ["x"] * 3, {"": ""},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_both_forms_are_read_back_and_look_as_json_writes_them(value):
    assert fastjson.dumps(value) == json.dumps(value, separators=(",", ":"))
    assert fastjson.pretty(value) == json.dumps(value, indent=4)
    assert fastjson.loads(fastjson.pretty(value)) == value
    assert fastjson.loads(fastjson.dumps(value)) == value


@pytest.mark.parametrize("value", [b"bytes", {"a": {1, 2}}, float("nan"), [float("inf")]], ids=repr)
def test_what_json_cannot_say_is_refused(value):
    with pytest.raises((TypeError, ValueError)):
        fastjson.dumps(value)


def test_a_document_that_ends_too_early_is_told_in_a_command_that_has_not_imported_json():
    code = "from cowshed_runtime.fastjson import loads\ntry:\n loads('{')\nexcept ValueError as error:\n print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "line 1 column 2" in done.stdout


def test_a_name_that_comes_twice():
    assert fastjson.loads('{"a": 1, "a": 2}') == {"a": 2}
    assert fastjson.loads('[{"a": 1}, {"a": {"a": 2}}]', unique=True) == [{"a": 1}, {"a": {"a": 2}}]
    for text in ('{"a": 1, "a": 1}', '{"b": [{"a": 1, "a": 2}]}'):
        with pytest.raises(ValueError, match="twice"):
            fastjson.loads(text, unique=True)
