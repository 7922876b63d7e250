"""Which containers a listing or a pruning is about: docker's filters."""

from __future__ import annotations

from cowshed.errors import BadUsage, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cowshed.container.state import Now
    from cowshed.engine import Engine
    from cowshed.state.rows import ContainerRow

    Test = Callable[[ContainerRow, Now], bool]

FILTERS = ("ancestor", "before", "exited", "id", "label", "name", "network", "since", "status", "volume")
PRUNE_FILTERS = ("label", "label!", "until")
_STATES = ("creating", "created", "running", "exited", "removing", "paused", "restarting", "dead")


def fitting(engine: Engine, said: dict[str, list[str]], *, moment: Callable[[str], int] | None) -> Test:
    """Whether a container fits all filters: of one name any value, of labels every one. BadUsage, NotFound.

    moment: the time in ns that a user's words mean, for `until`.
    """
    tests: list[Test] = []
    for name, values in said.items():
        if name in ("label", "label!"):
            tests += [_label(value, wanted=name == "label") for value in values]
        else:
            tests.append(_any([_one(engine, name, value, moment) for value in values]))
    return lambda row, now: all(fits(row, now) for fits in tests)


def _any(tests: list[Test]) -> Test:
    return lambda row, now: any(fits(row, now) for fits in tests)


def _label(value: str, *, wanted: bool) -> Test:
    key, equals, text = value.partition("=")
    return lambda row, now: (key in row.labels and (not equals or row.labels[key] == text)) is wanted


def _one(engine: Engine, name: str, value: str, moment: Callable[[str], int] | None) -> Test:
    if name == "status":
        if value not in _STATES:
            raise BadUsage(f"--filter status={value}: there is no such state", remedy=f"states: {', '.join(_STATES)}")
        if value in ("running", "paused"):
            from cowshed.container import pausing

            return lambda row, now: now.state == "running" and pausing.paused(engine, row) is (value == "paused")
        return lambda row, now: now.state == value
    if name == "exited":
        if not value.lstrip("-").isdigit():
            raise BadUsage(f"--filter exited is an exit status, not {value!r}")
        return lambda row, now: now.state == "exited" and now.exit_code == int(value)
    if name == "id":
        return lambda row, now: row.id.startswith(value)
    if name == "name":
        import re

        try:
            pattern = re.compile(value)
        except re.error as error:
            raise BadUsage(f"--filter name={value} is no regular expression: {error}") from None
        return lambda row, now: bool(pattern.search(row.name) or pattern.search(f"/{row.name}"))
    if name == "network":
        return lambda row, now: row.config.get("network", "none") == value
    if name == "volume":
        return lambda row, now: any(value in (source, target) for _, source, target, _ in row.config.get("mounts", ()))
    if name == "until" and moment:
        limit = moment(value)
        return lambda row, now: row.created < limit
    if name == "ancestor":
        try:
            image = engine.image(value).id
        except NotFound:
            image = ""
        return lambda row, now: row.image_id == image or row.image_ref == value
    from cowshed.state import containers

    other = containers.find(engine.reader, value)
    if name == "before":
        return lambda row, now: (row.created, row.number) < (other.created, other.number)
    return lambda row, now: (row.created, row.number) > (other.created, other.number)
