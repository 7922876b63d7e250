"""What the figures speak for, for each thing that people do, with the evidence; never one score for all."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cowshed.bench.report.words import times, value
from cowshed.bench.samples import ENOUGH, differ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.bench.result import Result, Row
    from cowshed.bench.samples import Figure

USES = {
    "builds": "building images",
    "containers": "many short-lived containers",
    "images": "pulling and exporting images",
    "databases": "databases and large files that are written to",
}
_MARKED = "The run is marked: repeat it on a quiet machine before you rely on it."
_LEAST = 2  # rows that must have been measured


@dataclass(frozen=True)
class Advice:
    use: str
    title: str
    subjects: tuple[str, ...]  # empty: nothing can be said; several: no difference is shown between them
    because: tuple[str, ...]
    but: tuple[str, ...]
    sentence: str


def advise(result: Result) -> list[Advice]:
    """For each use; of a run that is marked, with the advice to repeat it."""
    found = [_of(result, use, title) for use, title in USES.items()]
    if not result.marks:
        return found
    return [replace(one, sentence=f"{one.sentence} {_MARKED}") if one.subjects else one for one in found]


def best(row: Row, names: list[str]) -> tuple[str, list[str]]:
    """The subject with the smallest median in a row, and those from which no difference is shown, itself among them."""
    figures = {name: row.figures[name] for name in names if name in row.figures}
    first = min(figures, key=lambda name: figures[name].median)
    return first, [name for name, figure in figures.items() if not differ(figure, figures[first])]


def _of(result: Result, use: str, title: str) -> Advice:
    poor = {it["name"] for it in result.subjects if it["verdict"] == "poor"}
    names = [name for name in result.drivers() if name not in poor]
    rows = [row for row in result.rows() if use in row.use and _says_something(row, names)]
    able = [name for name in names if all(name in row.figures for row in rows)]
    if len(rows) < _LEAST or len(able) < 2:
        text = f"For {title} on this host: too little was measured to say."
        return Advice(use, title, (), (), (), text)
    good = {name: [row for row in rows if name in best(row, able)[1]] for name in able}
    most = max(len(found) for found in good.values())
    leaders = [name for name in able if len(good[name]) == most]
    leaders.sort(key=lambda name: max(_behind(row, name, able) for row in rows))
    if len(leaders) > 1 and all(_alike(rows, leaders[0], name) for name in leaders[1:]):
        text = f"For {title} on this host: {_and(leaders)}; no difference is shown between them."
        return Advice(
            use, title, tuple(leaders), tuple(_told(row, leaders[0], able) for row in good[leaders[0]]), (), text
        )
    first = leaders[0]
    because = tuple(_told(row, first, able) for row in sorted(good[first], key=lambda row: -_ahead(row, first, able)))
    behind = sorted((row for row in rows if row not in good[first]), key=lambda row: -_behind(row, first, able))
    but = tuple(_told(row, first, able) for row in behind)
    text = (
        f"For {title} on this host: {first}, because in {most} of {len(rows)} measurements it is the fastest, or no "
        f"difference from the fastest is shown."
    )
    return Advice(use, title, (first,), because, but, text)


def _says_something(row: Row, names: list[str]) -> bool:
    """Whether at least two were measured, and often enough."""
    found = [row.figures[name] for name in names if name in row.figures]
    return len(found) > 1 and all(len(figure.samples) >= ENOUGH for figure in found)


def _behind(row: Row, name: str, names: list[str]) -> float:
    least = row.figures[best(row, names)[0]].median
    return row.figures[name].median / least if least > 0 else 1.0


def _ahead(row: Row, name: str, names: list[str]) -> float:
    """How many times longer the next one takes that is shown to be slower."""
    others = [row.figures[other].median for other in _slower(row, name, names)]
    mine = row.figures[name].median
    return min(others) / mine if others and mine > 0 else 1.0


def _slower(row: Row, name: str, names: list[str]) -> list[str]:
    figure = row.figures[name]
    return [one for one in names if row.figures[one].median > figure.median and differ(row.figures[one], figure)]


def _alike(rows: list[Row], one: str, other: str) -> bool:
    return all(not differ(row.figures[one], row.figures[other]) for row in rows)


def _told(row: Row, name: str, names: list[str]) -> str:
    """How one stands in a row, in words."""
    first, alike = best(row, names)
    figure = row.figures[name]
    said = f"{row.title}: {value(figure.median, row.unit)}"
    if name not in alike:
        least = row.figures[first]
        return f"{said}, where {first} has {value(least.median, row.unit)} ({_times(figure, least)})"
    others = _slower(row, name, names)
    if not others:
        return f"{said}; no difference from {_and([other for other in names if other != name])} is shown"
    second = min(others, key=lambda other: row.figures[other].median)
    return f"{said}; {second} {value(row.figures[second].median, row.unit)} ({_times(row.figures[second], figure)})"


def _times(one: Figure, other: Figure) -> str:
    return times(one.median / other.median) if other.median > 0 else "–"


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
