"""The report for a terminal, plain text."""

from __future__ import annotations

from cowshed.bench.report.advice import advise, best
from cowshed.bench.report.words import size, spread, times, value
from cowshed.bench.samples import NARROW, differ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowshed.bench.result import Result, Row, ScenarioResult
    from cowshed.bench.samples import Figure

NO_DIFFERENCE = "no difference shown"


def render(result: Result) -> str:
    return "\n".join(_lines(result)) + "\n"


def _lines(result: Result) -> Iterator[str]:
    yield from (f"WARNING: {mark}" for mark in result.marks)
    for advice in advise(result):
        yield advice.sentence
        yield from (f"    {line}" for line in advice.because)
        yield from (f"    but {line}" for line in advice.but)
    yield ""
    yield conditions(result)
    for scenario in result.scenarios:
        yield ""
        yield f"{scenario.title} ({scenario.name}, {' '.join(scenario.workloads)}; {sizes(scenario)})"
        yield from (f"  marked: {mark}" for mark in scenario.marks)
        yield from (f"  {line}" for line in ended(scenario))
        for row in scenario.rows:
            yield from _row(row, result, scenario)
        yield from (f"  {name}: {why}" for name, why in scenario.failures.items())
    yield ""
    yield from result.refused


def conditions(result: Result) -> str:
    """In one line, under which the figures were taken."""
    machine = result.machine
    place = machine["place"]
    return (
        f"{result.began}, {machine['kernel']}, {machine['processors']} × {machine['processor']}, "
        f"{size(machine['memory'])} of memory, disk {place.get('model', 'unknown')} with "
        f"{place.get('file_system', 'no file system')}, cowshed {result.version}, {result.mode}, seed {result.seed}, "
        f"{result.seconds:.0f} s"
    )


def ended(scenario: ScenarioResult) -> Iterator[str]:
    """Why it has fewer samples than were to be taken, if it ended by the rule that is told with it."""
    if scenario.narrow_after:
        yield (
            f"ended after {scenario.narrow_after} rounds: no interval was wider than {NARROW:.0%} of its median, which "
            "is looked at after 8 and 11 rounds"
        )


def sizes(scenario: ScenarioResult) -> str:
    """The sizes of a scenario in words."""
    told = []
    for key, found in scenario.sizes.items():
        numbers = found if isinstance(found, list | tuple) else [found]
        told.append(" ".join(map(size, numbers)) if key == "bytes" else f"{key} {' '.join(map(str, numbers))}")
    return ", ".join(told)


def control(row: Row, name: str) -> Figure | None:
    """What the bare file system of a subject has in a row."""
    kind = name.partition("@")[2].partition(",")[0]
    return None if name.startswith("bare@") else row.figures.get(f"bare@{kind}")


def compared(one: Figure, other: Figure | None) -> str:
    """As times of another figure, or that no difference is shown."""
    if other is None or other.median <= 0:
        return "–"
    return times(one.median / other.median) if differ(one, other) else NO_DIFFERENCE


def relations(row: Row, name: str, result: Result) -> tuple[str, str]:
    """What a subject's figure is to the fastest driver's, and to its control: the bare file system, or another row."""
    figure = row.figures[name]
    drivers = [one for one in result.drivers() if one in row.figures]
    first, alike = best(row, drivers) if drivers else (name, [name])
    if name == first:
        to_best = "the least" if row.unit == "bytes" else "fastest"
    else:
        to_best = (
            "control"
            if name.startswith("bare@")
            else NO_DIFFERENCE
            if name in alike
            else compared(figure, row.figures[first])
        )
    versus = result.row(row.versus) if row.versus else None
    return to_best, compared(figure, versus.figures.get(name) if versus else control(row, name))


def _row(row: Row, result: Result, scenario: ScenarioResult) -> Iterator[str]:
    versus = result.row(row.versus) if row.versus else None
    against = (
        f"to {versus.title.rpartition(', ')[2]}" if versus else "to the bare file system" if scenario.control else ""
    )
    yield f"  {row.title}"
    yield f"    {'':26}{'median':>10}  {'95 %':<22}  {'to the fastest':<20}{against:<24}{'cpu':>9}{'written':>10}  runs"
    for name, figure in sorted(row.figures.items(), key=lambda pair: pair[1].median):
        to_best, to_control = relations(row, name, result)
        cpu = "–" if figure.cpu is None else value(figure.cpu, "ms")
        written = "–" if figure.written is None else size(figure.written)
        yield (
            f"    {name:26}{value(figure.median, row.unit):>10}  {spread(figure, row.unit):<22}  {to_best:<20}"
            f"{to_control if against else '':<24}{cpu:>9}{written:>10}  {len(figure.samples)}"
        )
