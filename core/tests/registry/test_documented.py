"""The page on the client names tests that are there."""

import ast
import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[3]
FOLDERS = {"": "core/tests/registry", "image/": "core/tests/image", "e2e/": "tests/e2e"}


def test_each_test_that_is_named_is_there():
    page = TOP / "docs/reference/registry-client.md"
    if not page.exists():
        pytest.skip("the pages are not here")
    named = re.findall(r"`(\w+/)?(test_\w+)::(test_\w+)`", page.read_text())
    assert len(named) > 80
    there = {}
    for folder, module, _ in named:
        path = TOP / FOLDERS[folder] / f"{module}.py"
        tree = ast.parse(path.read_text())
        there[folder, module] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert [f"{folder}{module}::{test}" for folder, module, test in named if test not in there[folder, module]] == []
