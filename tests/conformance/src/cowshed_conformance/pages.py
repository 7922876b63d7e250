"""What a plug-in can show of a report: a page for people, self-contained, and a badge for a README."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from cowshed_conformance.catalogue import AREAS, TITLES

_STYLE = """\
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #cf222e; --dim: #6e7781;
  --back: #fff; --text: #1f2328 }
@media (prefers-color-scheme: dark) {
  :root { --good: #3fb950; --bad: #f85149; --dim: #8b949e; --back: #0d1117; --text: #e6edf3 } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  background: var(--back); color: var(--text) }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% }
td, th { border-bottom: 1px solid var(--line); padding: .3rem .6rem .3rem 0; text-align: left;
  vertical-align: top; overflow-wrap: anywhere }
th { font-weight: 600; width: 10rem } td:first-child { white-space: nowrap }
.passed { color: var(--good) } .failed { color: var(--bad); font-weight: 600 }
.skipped, .newer, .since, small { color: var(--dim) } td.passed, td.failed, td.skipped, .since { white-space: nowrap }
.verdict { font-size: 1.2rem; font-weight: 600; margin: 0 0 1rem }
"""
_SHOWN = {
    "driver": "driver", "distribution": "package", "level": "level", "suite_version": "version of the suite",
    "pinned": "held to the cases of version", "suite": "package of the suite", "options": "options", "verdict": "probe",
    "backing": "file system", "kernel": "kernel", "mounted_by": "mounted by", "python": "Python", "date": "date",
    "seed": "seed",
}  # fmt: skip
_GREEN, _RED, _GREY = "#2da44e", "#cf222e", "#6e7781"


def verdict(found: Mapping[str, Any]) -> str:
    """In a few words, as a badge has it: "core passed", "3 failed", "12 chosen cases passed"."""
    counts = found["counts"]
    failed = counts["failed"] + counts["error"]
    if failed:
        return f"{failed} failed"
    if found["whole"]:
        return f"{found['level']} passed"
    chosen = len({case["case"] for case in found["cases"]})
    return f"{chosen} chosen case{'s' if chosen != 1 else ''} passed"


def html(found: Mapping[str, Any]) -> str:
    """A page that needs nothing beside it."""
    name = escape(str(found.get("driver", "?")))
    failed = bool(found["counts"]["failed"] + found["counts"]["error"])
    rows = [(title, _text(found[key])) for key, title in _SHOWN.items() if found.get(key) not in (None, "", {})]
    counts = ", ".join(f"{count} {what}" for what, count in found["counts"].items() if count)
    rows.append(("tests", counts))
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>Conformance of {name}</title>',
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>',
        f"<h1>Storage driver {name}</h1>",
        f'<p class="verdict {"failed" if failed else "passed"}">Cowshed conformance: {escape(verdict(found))}</p>',
        "<table>",
        *[f"<tr><th>{escape(title)}</th><td>{escape(text)}</td></tr>" for title, text in rows],
        "</table>",
    ]
    area = ""
    for case in sorted(found["cases"], key=lambda case: (list(AREAS).index(case["case"][0]), case["test"])):
        if case["case"][0] != area:
            parts += ["</table>"] if area else []
            area = case["case"][0]
            parts.append(f"<h2>{escape(AREAS[area])}</h2><table>")
        parts.append(_row(case))
    parts += ["</table>"] if area else []
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _row(case: Mapping[str, Any]) -> str:
    outcome = "newer" if not case["counted"] and case["outcome"] != "passed" else case["outcome"]
    said = "failed" if outcome == "error" else outcome
    shown = {"newer": "failed, newer than the version held to", "error": "failed"}.get(outcome, outcome)
    words = case["test"].partition("_")[2].partition("_")[2].replace("_", " ")
    title = escape(TITLES.get(case["case"], ""))
    why = ": ".join(part for part in (case["code"], case["reason"]) if part)
    more = f"<br><small>{escape(why)}</small>" if why else ""
    return (
        f'<tr title="{title}"><td>{escape(case["case"])}</td><td>{escape(words)}{more}</td>'
        f'<td class="{said}">{shown}</td><td class="since">since {case["since"]}</td></tr>'
    )


def badge(found: Mapping[str, Any]) -> str:
    """A picture (SVG) of two fields: what was asked, and the answer."""
    counts = found["counts"]
    colour = _RED if counts["failed"] + counts["error"] else _GREEN if found["whole"] else _GREY
    left, right = "cowshed conformance", f"{verdict(found)} · suite {found.get('pinned') or found['suite_version']}"
    wide, more = (7 * len(text) + 12 for text in (left, right))  # a letter of this size is at most 7 wide
    whole = wide + more
    label = escape(f"{left}: {right}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole}" height="20" role="img" aria-label="{label}">'
        f'<title>{label}</title><clipPath id="r"><rect width="{whole}" height="20" rx="3"/></clipPath>'
        f'<g clip-path="url(#r)"><rect width="{wide}" height="20" fill="#444"/>'
        f'<rect x="{wide}" width="{more}" height="20" fill="{colour}"/></g>'
        '<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">'
        f'<text x="{wide / 2:g}" y="14">{escape(left)}</text>'
        f'<text x="{wide + more / 2:g}" y="14">{escape(right)}</text></g></svg>\n'
    )


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={one}" for key, one in value.items())
    return str(value)
