"""Levels, time budgets, skips with a reason that a program can read, and the check of claims."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

SLOWDOWN = float(os.environ.get("COWSHED_TEST_SLOWDOWN", "1"))  # of this machine: an emulated one needs more of them

core = pytest.mark.conformance_level("core")  # every plug-in must pass these
full = pytest.mark.conformance_level("full")
faults = pytest.mark.conformance_level("faults")  # minutes of random kills, changes and operations
last = pytest.mark.conformance_last  # after all others


def budget(seconds: float) -> pytest.MarkDecorator:
    """More time than the twenty seconds that a case has."""
    return pytest.mark.conformance_budget(seconds)


def skip(code: str, text: str) -> NoReturn:
    """Skip a case. code is for programs: capability, kernel, tool, privilege, file-system, plan."""
    pytest.skip(f"[{code}] {text}")


def claim(name: str, claimed: object, observed: object, how: str) -> None:
    """A capability must say what is seen: claiming too much and claiming too little are both wrong."""
    assert claimed == observed, f"capabilities.{name} says {claimed!r}, but {how}: {observed!r}"
