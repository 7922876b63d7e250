"""Two results held against each other: what is shown to have become slower or faster, and what is not comparable."""

from __future__ import annotations

from dataclasses import dataclass

from cowshed.bench.report.words import spread, times, value
from cowshed.bench.samples import differ, ratio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowshed.bench.result import Result, Row

SLOWER, FASTER, SAME = "slower", "faster", "no difference shown"
_FACTS = ("kernel", "processor", "processors", "memory", "virtual", "governor", "python", "tools")


@dataclass(frozen=True)
class Difference:
    row: Row
    subject: str
    ratio: tuple[float, float, float] | None  # B / A: median, least, most
    verdict: str  # slower, faster, no difference shown; more and less for bytes


def compare(a: Result, b: Result) -> tuple[list[Difference], list[str]]:
    """What differs in every row and subject that both have, and what to know before one believes it."""
    warnings = [f"A: {mark}" for mark in a.marks] + [f"B: {mark}" for mark in b.marks]
    warnings += [
        f"{key} differs: {a.machine.get(key)} and {b.machine.get(key)}"
        for key in _FACTS
        if a.machine.get(key) != b.machine.get(key)
    ]
    if a.size != b.size:
        warnings.append(f"the file systems differ in size: {a.size >> 20} and {b.size >> 20} MiB")
    theirs = {scenario.name: scenario for scenario in b.scenarios}
    found: list[Difference] = []
    for scenario in a.scenarios:
        other = theirs.get(scenario.name)
        if other is None:
            warnings.append(f"{scenario.name} is only in A")
            continue
        if scenario.sizes != other.sizes:
            warnings.append(f"{scenario.name} has other sizes in B ({other.sizes}) than in A ({scenario.sizes})")
            continue
        rows = {row.key: row for row in other.rows}
        for row in scenario.rows:
            for name, figure in row.figures.items():
                now = rows[row.key].figures.get(name) if row.key in rows else None
                if now is None:
                    warnings.append(f"{row.title}, {name}: only in A")
                    continue
                worse, better = ("more", "less") if row.unit == "bytes" else (SLOWER, FASTER)
                verdict = SAME if not differ(now, figure) else worse if now.median > figure.median else better
                found.append(Difference(row, name, ratio(now, figure), verdict))
    warnings += [f"{scenario.name} is only in B" for scenario in b.scenarios if scenario.name not in
                 {one.name for one in a.scenarios}]  # fmt: skip
    return found, warnings


def render(a: Result, b: Result) -> str:
    return "\n".join(_lines(a, b)) + "\n"


def _lines(a: Result, b: Result) -> Iterator[str]:
    found, warnings = compare(a, b)
    shown = [one for one in found if one.verdict != SAME]
    counts = {
        verdict: sum(one.verdict == verdict for one in found) for verdict in (SLOWER, FASTER, "more", "less", SAME)
    }
    yield ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "nothing is in both"
    yield from (f"WARNING: {warning}" for warning in warnings)
    theirs = {row.key: row for row in b.rows()}
    for one in sorted(shown, key=lambda one: -(one.ratio[0] if one.ratio else 0)):
        before, now = one.row.figures[one.subject], theirs[one.row.key].figures[one.subject]
        unit = one.row.unit
        span = f"{times(one.ratio[0])} ({times(one.ratio[1])} … {times(one.ratio[2])})" if one.ratio else "–"
        yield (
            f"{one.verdict:<8}{span:<26}{one.subject}, {one.row.title}: {value(before.median, unit)} "
            f"({spread(before, unit)}), now {value(now.median, unit)} ({spread(now, unit)})"
        )


def as_json(a: Result, b: Result) -> dict[str, object]:
    found, warnings = compare(a, b)
    return {
        "format": "cowshed-bench-compare", "format_version": 1, "warnings": warnings,
        "differences": [
            {"row": one.row.key, "subject": one.subject, "ratio": one.ratio, "verdict": one.verdict} for one in found
        ],
    }  # fmt: skip
