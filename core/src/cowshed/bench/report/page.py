"""The report as one page of HTML: no script, nothing from elsewhere, light and dark, narrow and wide."""

from __future__ import annotations

import math
import os
from html import escape

from cowshed.bench.report import charts
from cowshed.bench.report.advice import advise, best
from cowshed.bench.report.text import NO_DIFFERENCE, ended, relations, sizes
from cowshed.bench.report.words import size, spread, times, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from cowshed.bench.result import Result, Row, ScenarioResult

_SHOWN = 3  # lines of evidence for and against that are open
_HUES = (212, 24, 152, 282, 336, 48, 186, 96, 258, 4)  # of drivers
_STYLE = os.path.join(os.path.dirname(__file__), "page.css")


def render(result: Result) -> str:
    return "".join(_page(result))


def _page(result: Result) -> Iterator[str]:
    names = _names(result)
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width,initial-scale=1">'
    with open(_STYLE, encoding="ascii") as file:
        style = file.read() + _colours(names)
    yield f"<title>Storage drivers compared, {escape(result.began[:10])}</title><style>{style}</style></head>"
    yield "<body><main><h1>Storage drivers, compared on one host</h1>"
    yield f'<p class="soft">{escape(_subtitle(result))}</p>'
    if result.marks:
        yield '<div class="warn" role="note"><p><b>Take these figures with care.</b></p>'
        yield from (f"<p>{escape(_sentence(mark))}</p>" for mark in result.marks)
        yield "</div>"
    yield '<h2 id="advice">What they speak for</h2><div class="cards">'
    for advice in advise(result):
        who = " or ".join(advice.subjects) or "nothing yet"
        yield f'<div class="card"><h3>{escape(_sentence(advice.title))}</h3><div class="who">{escape(who)}</div>'
        yield f'<p class="small">{escape(advice.sentence)}</p>'
        yield from _evidence(advice.because[:_SHOWN], advice.but[:_SHOWN])
        rest = (advice.because[_SHOWN:], advice.but[_SHOWN:])
        if any(rest):
            yield f"<details><summary>{sum(map(len, rest))} more</summary>"
            yield from _evidence(*rest)
            yield "</details>"
        yield "</div>"
    yield "</div>"
    yield from _glance(result)
    yield '<nav aria-label="Scenarios">'
    yield from (f'<a href="#{one.name}">{escape(one.title)}</a>' for one in result.scenarios)
    yield '<a href="#machine">The machine</a><a href="#method">The method</a></nav>'
    yield '<div class="pick" role="group" aria-label="Shown">'
    for n, name in enumerate(names):
        yield f'<label class="c{n}"><input type="checkbox" id="p{n}" checked><span class="dot"></span>'
        yield f"{escape(name)}</label>"
    yield "</div>"
    for scenario in result.scenarios:
        yield from _scenario(scenario, result, names)
    yield from _machine(result)
    yield from _method(result)
    yield "</main></body></html>\n"


def _evidence(because: tuple[str, ...], but: tuple[str, ...]) -> Iterator[str]:
    if because or but:
        yield "<ul>"
        yield from (f"<li>{escape(line)}</li>" for line in because)
        yield from (f'<li class="but">but {escape(line)}</li>' for line in but)
        yield "</ul>"


def _glance(result: Result) -> Iterator[str]:
    """How many times the fastest each driver takes, in the rows that the advice is made of."""
    names = result.drivers()
    yield '<h2 id="glance">At a glance</h2><p>How many times as much as the least. Green: the least, or no '
    yield "difference from it is shown (=). The redder, the more.</p>"
    yield "<div class='scroll'><table class='glance'><thead><tr><th></th>"
    yield "".join(f"<th>{escape(name)}</th>" for name in names) + "</tr></thead>"
    for scenario in result.scenarios:
        rows = [row for row in scenario.rows if row.use and any(name in row.figures for name in names)]
        if rows:
            link = f'<a href="#{scenario.name}">{escape(scenario.title)}</a>'
            yield f'<tr class="group"><th colspan="{len(names) + 1}">{link}</th></tr>'
        for row in rows:
            yield f"<tr><th>{escape(row.title)}</th>" + "".join(_cell(row, name, names) for name in names) + "</tr>"
    yield "</table></div>"


def _cell(row: Row, name: str, names: list[str]) -> str:
    if name not in row.figures:
        return '<td class="soft">–</td>'
    first, alike = best(row, names)
    if name == first:
        return f'<td class="first">{value(row.figures[name].median, row.unit)}</td>'
    if name in alike:
        return '<td class="same">=</td>'
    least = row.figures[first].median
    if least <= 0:
        return "<td>more</td>"
    much = row.figures[name].median / least
    heat = min(0.6, 0.08 + 0.13 * math.log2(max(1.0, much)))
    return f'<td class="far" style="--heat:{heat:.2f}">{times(much)}</td>'


def _names(result: Result) -> list[str]:
    """Every subject, the controls last."""
    found = dict.fromkeys(result.drivers())
    for row in result.rows():
        found.update(dict.fromkeys(sorted(name for name in row.figures if name not in found)))
    return list(found)


def _colours(names: list[str]) -> str:
    """A colour for each driver, lighter or darker by its file system; grey for controls; and what hides a subject."""
    drivers = list(dict.fromkeys(name.partition("@")[0] for name in names if not name.startswith("bare@")))
    seen: dict[str, int] = {}
    rules = []
    for n, name in enumerate(names):
        driver = name.partition("@")[0]
        if driver == "bare":
            hue, strong = 220, 8
        else:
            hue, strong = _HUES[drivers.index(driver) % len(_HUES)], 68
        turn = seen[driver] = seen.get(driver, -1) + 1
        shift = (hue + turn * 14) % 360
        rules.append(
            f".c{n}{{--c:hsl({shift} {strong}% var(--light));--f:hsl({shift} {strong}% var(--fill))}}"
            f"body:has(#p{n}:not(:checked)) .row.c{n},body:has(#p{n}:not(:checked)) tr.c{n}{{display:none}}"
        )
    return "".join(rules)


def _scenario(scenario: ScenarioResult, result: Result, names: list[str]) -> Iterator[str]:
    yield f'<section id="{scenario.name}"><h2>{escape(scenario.title)}</h2><p>{escape(scenario.text)}</p>'
    told = ": ".join(filter(None, (f"{scenario.name}, {' '.join(scenario.workloads)}", sizes(scenario))))
    yield f'<p class="soft small">{escape(told)}</p>'
    if scenario.marks:
        yield f'<p class="small warn">{escape(_sentence("; ".join(scenario.marks)))}</p>'
    yield from (f'<p class="small">{escape(_sentence(line))}</p>' for line in ended(scenario))
    yield '<div class="figures">'
    for row in scenario.rows:
        yield from _row(row, result, scenario, names)
    yield "</div>"
    if scenario.failures:
        yield "<ul class='small'>"
        yield from (
            f"<li><b>{escape(name)}</b> has no figures: {escape(why)}</li>" for name, why in scenario.failures.items()
        )
        yield "</ul>"
    yield "</section>"


def _row(row: Row, result: Result, scenario: ScenarioResult, names: list[str]) -> Iterator[str]:
    scale = charts.Scale(row)
    kind = ' <small class="soft">logarithmic scale</small>' if scale.logarithmic else ""
    yield f'<figure><h3>{escape(_sentence(row.title))}{kind}</h3><div role="img" aria-label="{escape(_spoken(row))}">'
    order = sorted(row.figures, key=lambda name: (name.startswith("bare@"), row.figures[name].median))
    for name in order:
        figure = row.figures[name]
        to_best, to_control = relations(row, name, result)
        best = ' class="fastest"' if to_best in ("fastest", "the least") else ""
        beside = to_best if to_best in ("fastest", "the least", "control", NO_DIFFERENCE) else f"{to_best} the fastest"
        yield (
            f'<div class="row c{names.index(name)}"><div class="name">{escape(name)}</div>'
            f'<div class="chart">{charts.bar(figure, scale)}</div><div class="number">'
            f"<span{best}>{escape(beside)}</span><b>{value(figure.median, row.unit)}</b></div></div>"
        )
    yield (
        f'<div class="row scale"><div class="name"></div><div class="chart">{charts.axis(scale, row.unit)}</div>'
        f'<div class="number"></div></div></div>'
    )
    versus = result.row(row.versus) if row.versus else None
    against = f"to “{versus.title}”" if versus else "to the bare file system"
    related = versus is not None or scenario.control
    yield "<details><summary>Figures</summary><div class='scroll'><table><tr><th>subject</th>"
    yield "<th>median</th><th>95 %</th>"
    yield f"<th>to the fastest</th>{f'<th>{escape(against)}</th>' if related else ''}"
    yield "<th>processor</th><th>written</th><th>read</th><th>memory</th><th>samples</th></tr>"
    for name in order:
        figure = row.figures[name]
        to_best, to_control = relations(row, name, result)
        cells = [to_best, *([to_control] if related else [])]
        numbers = [
            "–" if figure.cpu is None else value(figure.cpu, "ms"),
            *["–" if found is None else size(found) for found in (figure.written, figure.read, figure.memory)],
            str(len(figure.samples)),
        ]
        yield f'<tr class="c{names.index(name)}"><th>{escape(name)}</th>'
        yield f'<td class="n">{value(figure.median, row.unit)}</td>'
        yield f'<td class="n">{escape(spread(figure, row.unit))}</td>'
        yield "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        yield "".join(f'<td class="n">{number}</td>' for number in numbers) + "</tr>"
    yield "</table></div></details></figure>"


def _spoken(row: Row) -> str:
    return f"{row.title}: " + ", ".join(f"{name} {value(one.median, row.unit)}" for name, one in row.figures.items())


def _machine(result: Result) -> Iterator[str]:
    yield '<section id="machine"><h2>The machine</h2><dl>'
    for key, found in _facts(result).items():
        yield f"<dt>{escape(key)}</dt><dd>{escape(str(found))}</dd>"
    yield "</dl><h3>What was compared</h3><div class='scroll'><table>"
    yield "<tr><th>subject</th><th>its own probe says</th></tr>"
    for it in result.subjects:
        said = it["verdict"] + (f": {it['reason']}" if it["reason"] else "")
        yield f"<tr><th>{escape(it['name'])}</th><td>{escape(said)}</td></tr>"
    yield "</table></div>"
    if result.refused:
        yield "<h3>What cannot be had here</h3><ul class='small'>"
        yield from (f"<li>{escape(line)}</li>" for line in result.refused)
        yield "</ul>"
    yield "</section>"


def _facts(result: Result) -> dict[str, Any]:
    machine, place = result.machine, result.machine["place"]
    return {
        "kernel": machine["kernel"], "processor": f"{machine['processors']} × {machine['processor']}",
        "governor": machine["governor"], "memory": f"{size(machine['memory'])}, {size(machine['memory_free'])} free",
        "system": machine["virtual"], "Python": machine["python"],
        "disk": ", ".join(f"{key} {found}" for key, found in place.items()),
        "file systems": f"{result.size >> 20} MiB each", "tools": "; ".join(machine["tools"].values()),
        "baseline before": _baseline(result, "before"), "baseline after": _baseline(result, "after"),
    }  # fmt: skip


def _baseline(result: Result, when: str) -> str:
    found = result.baseline[when]
    return f"processor {found['processor']:.1f} ms, disk {found['disk']:.1f} ms"


def _method(result: Result) -> Iterator[str]:
    yield '<section id="method"><h2>The method</h2>'
    yield (
        "<p>For each scenario every subject gets a fresh file system of the same size on a loop device. They take "
        f"turns, in random order in every round (seed {result.seed}); the first round is not counted, all others are "
        "kept. A bar is the median; the black line is the interval in which it lies with 95 % (bootstrap), small "
        "dots are the samples. Where two intervals overlap, no difference is shown, and none is claimed. Cold means "
        "that the file system was unmounted before. What a subject has made is held against what it should be: one "
        "that is quick and wrong has no figures.</p><p>Bare is the same work on the file system without a driver, "
        "in place. Processor time is that of the process, not of the kernel's own threads. Written is what reached "
        "the device, with what was written back afterwards.</p>"
    )
    yield "</section>"


def _subtitle(result: Result) -> str:
    machine = result.machine
    return (
        f"{result.began[:16].replace('T', ' ')} · {machine['kernel']} · {machine['processors']} × "
        f"{machine['processor']} · {result.mode} run of {result.seconds:.0f} s · cowshed {result.version}"
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
