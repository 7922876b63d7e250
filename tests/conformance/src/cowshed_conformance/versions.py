"""Which version of the suite a case came with, so that a new case breaks no plug-in's build unasked.

versions/N.txt names the tests that version N brought. One that no list names is of `VERSION`, the version that is being
made. A test that is to demand more than before gets a new name: what a version holds a driver to does not change.
"""

from __future__ import annotations

import functools
import importlib.resources

VERSION = 2


@functools.cache
def _lists() -> dict[str, int]:
    folder = importlib.resources.files("cowshed_conformance") / "versions"
    found: dict[str, int] = {}
    for version in range(1, VERSION):
        for name in (folder / f"{version}.txt").read_text(encoding="ascii").split():
            found.setdefault(name, version)
    return found


def since(test: str) -> int:
    """The version that brought a test, given by its name with or without parameters."""
    return _lists().get(test.partition("[")[0], VERSION)
