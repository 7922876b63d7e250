"""Tables, JSON and Go-like templates."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def listing(rows: list[dict[str, Any]], columns: tuple[str, ...], wanted: str | None, *, what: str) -> None:
    """Print rows: a table of columns, or as `wanted` says: json, table TEMPLATE, or a template per row."""
    if wanted == "json":
        from cowshed_runtime.fastjson import dumps

        for row in rows:
            print(dumps(row))
        return
    if wanted and wanted != "table":
        from cowshed.cli.template import Template

        as_table = wanted.startswith("table ")
        template = Template(wanted.removeprefix("table ").replace("\\t", "\t").replace("\\n", "\n"))
        lines = [template.render(row) for row in rows]
        if as_table:
            _table([template.names(), *[line.split("\t") for line in lines]])
            return
        for line in lines:
            print(line)
        return
    _table([[c.upper() for c in columns], *[[str(row[c]) for c in columns] for row in rows]])


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
    import json

    print(json.dumps(values, indent=None if wanted == "json" else 4))


def ago(ns: int) -> str:
    """How long ago a time was, in words."""
    from time import time_ns

    seconds = max(0, (time_ns() - ns) // 10**9)
    for name, length in (("week", 604800), ("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {name}s"
    return f"{seconds} second{'s' * (seconds != 1)}" if seconds < 60 else "About a minute"


def size(count: int) -> str:
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g}{unit}"
        amount /= 1000
    return f"{amount:.3g}TB"


def rfc3339(ns: int) -> str:
    from time import gmtime, strftime

    if not ns:
        return "0001-01-01T00:00:00Z"
    return f"{strftime('%Y-%m-%dT%H:%M:%S', gmtime(ns // 10**9))}.{ns % 10**9:09d}Z"
