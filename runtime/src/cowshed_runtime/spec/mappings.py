"""Rules of id mappings (config-linux.md, User namespace mappings): of the container and of single mounts."""

from __future__ import annotations

from cowshed_runtime.spec.walk import Problem, whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from cowshed_runtime.spec.walk import Check

MOST = 340  # extents that the kernel keeps (user_namespaces(7))
_LAST = 2**32 - 2  # 2**32 - 1 is no id


def _extents(value: Any) -> str:
    if not isinstance(value, list):
        return "must be a list"
    return f"{len(value)} mappings, of which the kernel keeps {MOST}" if len(value) > MOST else ""


def mapping_rules(place: str) -> tuple[tuple[str, Check], ...]:
    """The rules for a list of mappings at a place."""
    return (
        (place, _extents),
        (f"{place}[].containerID!", whole(0, _LAST)),
        (f"{place}[].hostID!", whole(0, _LAST)),
        (f"{place}[].size!", whole(1, _LAST + 1)),
    )


def overlapping(mappings: Sequence[dict[str, Any]], where: str, section: str) -> Iterator[Problem]:
    """Extents that the kernel refuses."""
    for key in ("containerID", "hostID"):
        end = -1
        for first, count in sorted((entry[key], entry["size"]) for entry in mappings):
            if first + count - 1 > _LAST:
                yield Problem(where, f"{count} ids from {key} {first} on are more than there are", section)
            if first <= end:
                yield Problem(where, f"{key} {first} is mapped twice", section)
            end = first + count - 1


def mapped(mappings: Sequence[dict[str, Any]], identity: int) -> bool:
    """Whether an id of the container is one of the host."""
    return any(0 <= identity - entry["containerID"] < entry["size"] for entry in mappings)
