"""What listings and prunings are told with --filter: NAME=VALUE, each as often as wanted."""

from __future__ import annotations

from cowshed.errors import BadUsage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def grouped(filters: Sequence[str], known: Sequence[str]) -> dict[str, list[str]]:
    """Filters by name. BadUsage for one that is unknown or has no value."""
    said: dict[str, list[str]] = {}
    for text in filters:
        name, equals, value = text.partition("=")
        if name not in known or not equals:
            raise BadUsage(f"--filter {text} is not known", remedy=f"write NAME=VALUE with {', '.join(known)}")
        said.setdefault(name, []).append(value)
    return said
