"""The table of the specification's MUSTs names tests that are there."""

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parents[3] / "docs/reference/registry.md"


def functions_of(name):
    path = HERE / f"test_{name}.py"
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_each_must_has_a_test_that_is_there():
    if not PAGE.exists():
        pytest.skip("the pages are not here")
    named = re.findall(r"`(\w+)::(test_\w+)`", PAGE.read_text())
    assert len(named) > 60
    there = {name: functions_of(name) for name, _ in named}
    assert [f"{name}::{test}" for name, test in named if test not in there[name]] == []
