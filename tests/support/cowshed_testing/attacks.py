"""Tests named after holes that other programs had, and the proof that each would see the hole.

`@attack` registers a test with what takes its defence away. A second test takes it away and insists that the first then
raises `Succeeded`: that the host was reached, not that something else went wrong.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

ROUNDS = int(os.environ.get("COWSHED_RACE_ROUNDS", "0"))  # of the racing tests; 0: as few as show that they work


class Succeeded(AssertionError):
    """The attack reached what it must not."""


class Attack:
    def __init__(self, test: Callable[..., None], remove: Callable[..., None], given: dict[str, Any]) -> None:
        self.test, self.remove, self.given = test, remove, given
        self.cve = "CVE-" + "-".join(test.__name__.split("_")[2:4])


_KNOWN: dict[str, list[Attack]] = {}


def attack(remove: Callable[..., None], **given: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """remove(monkeypatch, box) takes the defence away; given are values for parameters of the test."""

    def register(test: Callable[..., None]) -> Callable[..., None]:
        _KNOWN.setdefault(test.__module__, []).append(Attack(test, remove, given))
        return test

    return register


def of(module: str) -> list[Attack]:
    return _KNOWN.get(module, [])


def succeeds(one: Attack, request: Any, monkeypatch: Any, box: Any) -> None:
    """Take the defence away and run the attack; AssertionError if it does not succeed."""
    one.remove(monkeypatch, box)
    known = {"box": box, "monkeypatch": monkeypatch, **one.given}
    wanted = [p.name for p in inspect.signature(one.test).parameters.values() if p.default is p.empty]
    values = {**one.given, **{name: known[name] if name in known else request.getfixturevalue(name) for name in wanted}}
    try:
        one.test(**values)
    except Succeeded:
        return
    raise AssertionError(f"{one.test.__name__} passes without the defence that it is there to hold")


def reached(what: object, why: str) -> None:
    """Succeeded if what is true."""
    if what:
        raise Succeeded(f"{why}: {what!r}")
