"""Tables, JSON and Go-like templates."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def listing(
    rows: list[dict[str, Any]],
    columns: tuple[str, ...],
    wanted: str | None,
    *,
    what: str,
    headings: Mapping[str, str] | None = None,
) -> None:
    """Print rows: a table of columns, or as `wanted` says: json (an object a line), table TEMPLATE, or a template for
    each row.

    headings: what stands above a column where that is not its own name in words, by the name in upper case.
    """
    known = headings or {}

    def title(field: str) -> str:
        words = "".join(f" {c}" if c.isupper() and field != "ID" else c for c in field)
        return known.get(field.upper()) or words.strip().upper()

    if wanted == "json":
        wanted = "{{json .}}"
    if wanted and wanted != "table":
        from cowshed.cli.template import Template

        as_table = wanted.startswith("table ")
        template = Template(wanted.removeprefix("table ").replace("\\t", "\t").replace("\\n", "\n"))
        lines = [template.render(row) for row in rows]
        if as_table:
            _table([line.split("\t") for line in [template.heading(title), *lines]])
            return
        for line in lines:
            print(line)
        return
    _table([[title(c) for c in columns], *[[str(row[c]) for c in columns] for row in rows]])


def _table(lines: list[list[str]]) -> None:
    widths = [max(len(line[n]) for line in lines if n < len(line)) for n in range(max(map(len, lines)))]
    for line in lines:
        print("   ".join([cell.ljust(width) for cell, width in zip(line, widths, strict=False)]).rstrip())


def document(values: list[Any], wanted: str | None) -> None:
    """Print an inspection: indented JSON, or a template for each."""
    if wanted and wanted != "json":
        from cowshed.cli.template import Template

        template = Template(wanted)
        for value in values:
            print(template.render(value))
        return
    from cowshed_runtime.fastjson import dumps, pretty

    print(dumps(values) if wanted == "json" else pretty(values))


def one(value: dict[str, Any], wanted: str) -> None:
    """Print a single document: json in one line, or a template."""
    from cowshed.cli.template import Template

    print(Template("{{json .}}" if wanted == "json" else wanted).render(value))


def ago(ns: int) -> str:
    """How long ago a time was, in docker's words."""
    from time import time_ns

    seconds = max(0, (time_ns() - ns) // 10**9)
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return f"{seconds} second{'s' * (seconds != 1)}"
    if seconds < 120:
        return "About a minute"
    if seconds < 3600:
        return f"{seconds // 60} minutes"
    if seconds < 5400:
        return "About an hour"
    hours = round(seconds / 3600)
    for name, length, least in (("year", 8760, 17520), ("month", 720, 1440), ("week", 168, 336), ("day", 24, 48)):
        if hours >= least:
            return f"{hours // length} {name}s"
    return f"{hours} hours"


def size(count: int) -> str:
    from cowshed import words

    return words.size(count, "")


def rfc3339(ns: int) -> str:
    from time import gmtime, strftime

    if not ns:
        return "0001-01-01T00:00:00Z"
    return f"{strftime('%Y-%m-%dT%H:%M:%S', gmtime(ns // 10**9))}.{ns % 10**9:09d}Z"


def moment(text: str | None) -> int:
    """A time in ns: seconds since the epoch, RFC 3339, or how long ago (90s, 10m, 2h, 1h30m). BadUsage."""
    from time import time_ns

    from cowshed.errors import BadUsage

    if not text:
        return 0
    try:
        if text.replace(".", "", 1).isdigit():
            seconds, _, fraction = text.partition(".")
            return int(seconds or 0) * 10**9 + _nanoseconds(fraction)
        if text[0].isdigit() and text[-1] in _UNITS and "T" not in text:
            return time_ns() - _duration(text)
        from datetime import datetime

        whole, point, rest = text.replace("Z", "+00:00").partition(".")
        fraction = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        then = datetime.fromisoformat(whole + rest[len(fraction) :])
        return int(then.timestamp()) * 10**9 + (_nanoseconds(fraction) if point else 0)
    except ValueError:
        raise BadUsage(
            f"{text!r} is no time", remedy="write 10m, 2h, seconds since the epoch, or 2026-01-31T12:00:00Z"
        ) from None


def _nanoseconds(fraction: str) -> int:
    return int(fraction[:9].ljust(9, "0"))


_UNITS = {"s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def _duration(text: str) -> int:
    total, number = 0.0, ""
    for character in text:
        if character in _UNITS:
            total += float(number) * _UNITS[character]
            number = ""
        else:
            number += character
    return int(total)
