"""Which images a listing or a pruning is about: docker's filters."""

from __future__ import annotations

from cowshed.errors import BadUsage
from cowshed.filters import grouped
from cowshed.image.reference import familiar
from cowshed.state import images

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cowshed.state.rows import ImageRow
    from cowshed.state.store import Store

    Test = Callable[[ImageRow, list[str]], bool]

FILTERS = ("before", "dangling", "label", "reference", "since", "until")
PRUNE_FILTERS = ("label", "label!", "until")


def listing(
    store: Store, filters: Sequence[str] = (), *, find: Callable[[str], ImageRow], moment: Callable[[str], int]
) -> list[tuple[ImageRow, list[str]]]:
    """The images that fit all filters (NAME=VALUE each; of one name, any), newest first, each with those of its
    canonical names that fit.

    find gives the image that a user's word means, moment the time in ns. BadUsage, NotFound.
    """
    said = grouped(filters, FILTERS)
    patterns = [_pattern(text) for text in said.pop("reference", ())]
    fits = _all(said, find, moment)
    found = []
    for image, names in images.list_all(store):
        if not fits(image, names):
            continue
        if patterns:
            names = [name for name in names if any(matches(familiar(name)) for matches in patterns)]
            if not names:
                continue
        found.append((image, names))
    return found


def prunable(filters: Sequence[str], *, moment: Callable[[str], int]) -> Callable[[ImageRow], bool]:
    """Whether `image prune` with these filters may take an image. BadUsage."""
    fits = _all(grouped(filters, PRUNE_FILTERS), None, moment)
    return lambda image: fits(image, [])


def _all(said: dict[str, list[str]], find: Callable[[str], ImageRow] | None, moment: Callable[[str], int]) -> Test:
    tests: list[Test] = []
    for name, values in said.items():
        if name in ("label", "label!"):
            # unlike the others, every label must be there (docker does the same)
            tests += [_label(value, wanted=name == "label") for value in values]
        else:
            tests.append(_any([_test(name, value, find, moment) for value in values]))
    return lambda image, names: all(test(image, names) for test in tests)


def _any(tests: list[Test]) -> Test:
    return lambda image, names: any(test(image, names) for test in tests)


def _test(name: str, value: str, find: Callable[[str], ImageRow] | None, moment: Callable[[str], int]) -> Test:
    if name == "dangling":
        if value.lower() not in ("true", "false", "1", "0"):
            raise BadUsage(f"--filter dangling is true or false, not {value!r}")
        wanted = value.lower() in ("true", "1")
        return lambda image, names: bool(names) != wanted
    if name == "until":
        limit = moment(value)
        return lambda image, names: image.created < limit
    assert find is not None
    other = find(value)
    if name == "before":
        return lambda image, names: image.created < other.created and image.id != other.id
    return lambda image, names: image.created > other.created and image.id != other.id


def _label(value: str, *, wanted: bool) -> Test:
    from cowshed_runtime.fastjson import loads

    key, equals, text = value.partition("=")

    def test(image: ImageRow, names: list[str]) -> bool:
        labels = (loads(image.config).get("config") or {}).get("Labels") or {}
        return (key in labels and (not equals or labels[key] == text)) is wanted

    return test


def _pattern(text: str) -> Callable[[str], bool]:
    """REPOSITORY[:TAG] with `*`, `?`, `[…]`, none of which stands for a slash. Without a tag, any tag fits."""
    import re

    parts = []
    at = 0
    while at < len(text):
        character = text[at]
        at += 1
        if character == "*":
            parts.append("[^/]*")
        elif character == "?":
            parts.append("[^/]")
        elif character == "[" and (end := text.find("]", at + 1)) > 0:
            inside = text[at:end].replace("\\", "\\\\")
            parts.append(f"[^{inside[1:]}]" if inside[:1] in ("!", "^") else f"[{inside}]")
            at = end + 1
        else:
            parts.append(re.escape(character))
    try:
        compiled = re.compile("".join(parts))
    except re.error:
        raise BadUsage(f"{text!r} is no pattern of names") from None

    def matches(name: str) -> bool:
        repository, separator, _ = name.partition("@") if "@" in name else name.rpartition(":")
        forms = [name, repository] if separator else [name]
        return any(compiled.fullmatch(form) for form in forms)

    return matches
