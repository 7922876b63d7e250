"""The walker of the tables of rules, and the checks that they are made of. Pure.

A rule is (place, check, section). In a place, `a.b` goes into an object and `[]` into each entry of a list; an absent
value is not checked, unless its place ends in `!`. A check returns what is wrong, or "". The section is the heading of
the specification that says so. All rules together become one tree, so that a document is walked once and what it does
not have costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any

    Check = Callable[[Any], str]
    Rule = tuple[str, Check, str]


class Problem:
    """A breach: where in the document, what is wrong, and the section of the specification that says so."""

    def __init__(self, where: str, text: str, section: str) -> None:
        self.where, self.text, self.section = where, text, section

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"

    __repr__ = __str__


class Node:
    """What is known of one place: its own check, and the places inside it."""

    __slots__ = ("check", "entries", "keys", "needed", "section")

    def __init__(self, section: str) -> None:
        self.section = section
        self.check: Check | None = None
        self.needed = False
        self.keys: dict[str, Node] | None = None
        self.entries: Node | None = None


def section(name: str, *rules: tuple[str, Check]) -> tuple[Rule, ...]:
    """Rules of one section, named as in a link: `config.md#process`."""
    return tuple((place, check, name) for place, check in rules)


def tree(rules: tuple[Rule, ...]) -> Node:
    """The tree that `problems` walks. A place has one rule."""
    root = Node("config.md")
    for place, check, name in rules:
        at = root
        for part in place.rstrip("!").replace("[]", ".[]").split("."):
            if part == "[]":
                at.entries = below = at.entries or Node(name)
            else:
                if at.keys is None:
                    at.keys = {}
                below = at.keys.get(part) or at.keys.setdefault(part, Node(name))
            at = below
        assert at.check is None, f"{place} has two rules"
        at.check, at.section, at.needed = check, name, place[-1] == "!"
    return root


def problems(value: Any, node: Node, where: str, found: list[Problem]) -> None:
    """Append to found every breach in value, which stands at where; below a breach nothing is looked at."""
    if node.check:
        text = node.check(value)
        if text:
            found.append(Problem(where, text, node.section))
            return
    if node.keys is not None:
        if not isinstance(value, dict):
            found.append(Problem(where or "document", "must be an object", node.section))
            return
        for key, child in node.keys.items():
            below = value.get(key)
            if below is not None:
                problems(below, child, f"{where}.{key}" if where else key, found)
            elif child.needed:
                found.append(Problem(f"{where}.{key}" if where else key, "is missing", child.section))
    entries = node.entries
    if entries:
        if not isinstance(value, list):
            found.append(Problem(where, "must be a list", node.section))
            return
        leaf = entries.keys is None and entries.entries is None
        for number, entry in enumerate(value):
            # most entries are plain values that are well: no name is made for these
            if not leaf or (entries.check and entries.check(entry)):
                problems(entry, entries, f"{where}[{number}]", found)


def string(value: Any) -> str:
    if not isinstance(value, str):
        return "must be a string"
    if "\0" in value:
        return "must not contain a NUL byte"
    if not value.isascii():
        try:
            value.encode(errors="surrogateescape")
        except UnicodeEncodeError:
            return "must be text that can be encoded: it has half of a surrogate pair"
    return ""


def filled(value: Any) -> str:
    return string(value) or ("" if value else "must not be empty")


def absolute(value: Any) -> str:
    return string(value) or ("" if value[:1] == "/" else f"must be an absolute path, not {value!r}")


def boolean(value: Any) -> str:
    return "" if isinstance(value, bool) else "must be true or false"


def mapping(value: Any) -> str:
    return "" if isinstance(value, dict) else "must be an object"


def strings(value: Any) -> str:
    """An object whose values are strings."""
    if not isinstance(value, dict):
        return "must be an object"
    return next((f"{k}: must be a string" for k, v in value.items() if string(k) or string(v)), "")


def variable(value: Any) -> str:
    """An entry of an environment."""
    return string(value) or ("" if "=" in value[1:] else f"must be NAME=VALUE, not {value!r}")


def unsupported(value: Any) -> str:
    return "is not supported by this runtime" if value else ""


def whole(low: int, high: int) -> Check:
    """Whole numbers from low to high."""

    def check(value: Any) -> str:
        if not isinstance(value, int) or isinstance(value, bool):
            return "must be a whole number"
        return "" if low <= value <= high else f"must be between {low} and {high}, not {value}"

    return check


def one_of(words: Collection[str]) -> Check:
    def check(value: Any) -> str:
        return "" if isinstance(value, str) and value in words else f"must be one of {', '.join(words)}, not {value!r}"

    return check


U32, S64, U64 = whole(0, 2**32 - 1), whole(-(2**63), 2**63 - 1), whole(0, 2**64 - 1)
# uid 2**32 - 1 means "leave as it is" to the kernel
ID = whole(0, 2**32 - 2)
