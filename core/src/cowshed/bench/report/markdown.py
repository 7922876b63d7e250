"""The report as Markdown, to be kept beside others or pasted."""

from __future__ import annotations

from cowshed.bench.report.advice import advise
from cowshed.bench.report.text import conditions, ended, relations, sizes
from cowshed.bench.report.words import size, spread, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowshed.bench.result import Result, Row, ScenarioResult


def render(result: Result) -> str:
    return "\n".join(_lines(result)).rstrip() + "\n"


def _lines(result: Result) -> Iterator[str]:
    yield f"- {conditions(result)}"
    yield from (f"- **{mark}**" for mark in result.marks)
    yield from (f"- {one.sentence}" for one in advise(result) if one.subjects)
    for scenario in result.scenarios:
        yield ""
        yield f"## {scenario.title} ({scenario.name}; {sizes(scenario)})"
        yield from (f"\n*{mark}*" for mark in scenario.marks)
        yield from (f"\n{line}" for line in ended(scenario))
        for row in scenario.rows:
            yield from _row(row, result, scenario)
        if scenario.failures:
            yield ""
            yield from (f"- {name} has no figures: {why}" for name, why in scenario.failures.items())
    if result.refused:
        yield ""
        yield from (f"- {line}" for line in result.refused)


def _row(row: Row, result: Result, scenario: ScenarioResult) -> Iterator[str]:
    versus = result.row(row.versus) if row.versus else None
    control = versus.title if versus else "the bare file system" if scenario.control else "–"
    yield f"\n### {row.title}\n"
    yield f"| subject | median | 95 % | to the fastest | to {control} | processor | written | runs |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, figure in row.figures.items():
        to_best, to_control = relations(row, name, result)
        cpu = "–" if figure.cpu is None else value(figure.cpu, "ms")
        written = "–" if figure.written is None else size(figure.written)
        yield (
            f"| {name} | **{value(figure.median, row.unit)}** | {spread(figure, row.unit)} | {to_best} | {to_control} "
            f"| {cpu} | {written} | {len(figure.samples)} |"
        )
