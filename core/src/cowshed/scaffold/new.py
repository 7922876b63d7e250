"""`cowshed driver new`: a package with a driver that works, for a plug-in author to replace piece by piece.

The files lie in `template/`, as they will be but for four words: @name@, @module@, @Class@ and @suite@.
"""

from __future__ import annotations

import os

from cowshed.errors import BadUsage, Conflict, StoreError
from cowshed.storage import registry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_TEMPLATE = os.path.join(os.path.dirname(__file__), "template")
_SUFFIX = ".in"  # so that no tool takes a template for a module or a test of ours
_LONGEST = 40  # letters of a name, which becomes a part of file names
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
SUITE = 2  # the version of the conformance suite that a new package is held to


def write(name: str, directory: str = "") -> tuple[str, list[str]]:
    """Write a package cowshed-driver-NAME into a directory that is not there or empty, by default one of that name.

    Gives the directory and the files in it. Raises BadUsage for what can be no driver's name, Conflict if a driver of
    that name is installed or the directory holds something, OSError; what was begun is taken away again.
    """
    _check(name)
    directory = directory or f"cowshed-driver-{name}"
    if os.path.lexists(directory) and (not os.path.isdir(directory) or os.listdir(directory)):
        raise Conflict(f"{directory} is there and not empty", remedy="name another directory")
    words = {
        "@name@": name,
        "@module@": f"cowshed_driver_{name.replace('-', '_')}",
        "@Class@": "".join(part.capitalize() for part in name.split("-")),
        "@suite@": str(SUITE),
    }
    made: list[str] = []
    try:
        for source, target in _files(words):
            with open(source, encoding="utf-8") as file:
                text = file.read()
            path = f"{directory}/{target}"
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "x", encoding="utf-8") as file:
                made.append(target)
                file.write(_replaced(text, words))
    except OSError as error:
        _undo(directory, made)
        raise StoreError(f"{directory} cannot be written: {error.strerror}", remedy="name another directory") from error
    return directory, made


def _check(name: str) -> None:
    parts = name.split("-")
    if not (name[:1].isalpha() and len(name) <= _LONGEST and all(parts) and _LETTERS.issuperset(name)):
        raise BadUsage(
            f"{name!r} can be no driver's name",
            remedy=f"take at most {_LONGEST} lower-case letters, digits and single hyphens, a letter first",
        )
    if name in registry.names():
        raise Conflict(f"a storage driver called {name} is installed", remedy="choose another name, or uninstall it")


def _files(words: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(template, path in the new package), in an order that is always the same."""
    for folder, folders, names in os.walk(_TEMPLATE):
        folders.sort()
        for file in sorted(names):
            if file.endswith(_SUFFIX):
                path = os.path.relpath(f"{folder}/{file}", _TEMPLATE)
                yield f"{folder}/{file}", _replaced(path.removesuffix(_SUFFIX), words)


def _replaced(text: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def _undo(directory: str, made: list[str]) -> None:
    """Take away the files that were made, and the directories that are empty then."""
    for target in made:
        os.unlink(f"{directory}/{target}")
    if os.path.isdir(directory):
        for folder, _, _ in os.walk(directory, topdown=False):
            try:
                os.rmdir(folder)
            except OSError:
                return  # it holds something that is not ours
