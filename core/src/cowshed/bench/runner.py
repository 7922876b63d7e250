"""Does scenarios: fresh file systems for every subject, in turns, in random order; a digest of what each has done."""

from __future__ import annotations

import contextlib
import random
import time
from dataclasses import dataclass, field

from cowshed.bench import machine, subjects
from cowshed.bench.result import Row, ScenarioResult
from cowshed.bench.samples import FEW, figure
from cowshed.bench.scenario import Wrong
from cowshed.bench.scratch import WITH_QUOTA, Unavailable
from cowshed.errors import CowshedError
from cowshed.storage.errors import StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cowshed.bench.scenario import Scenario
    from cowshed.bench.scratch import FileSystem, Place, Scratch
    from cowshed.bench.stores import Subject
    from cowshed.bench.subjects import Chosen

_FAILS = (Wrong, CowshedError, StorageError, OSError)


@dataclass
class Plan:
    """How much is done."""

    rounds: int  # that are counted
    seconds: float  # for one scenario; what was begun is ended
    seed: int
    chosen: Sequence[Chosen]
    place: str = ""  # a directory of the user's, in the place of scratch file systems
    least: int = FEW  # counted rounds, however long they take, until there is no time at all
    looks: Sequence[int] = ()  # counted rounds after which it ends if all intervals are narrow (`_is_narrow`)
    until: float = float("inf")  # time.monotonic(), after which one is enough
    said: Callable[[str], None] = field(default=lambda _: None)  # progress: what is being done
    told: Callable[[str], None] = field(default=lambda _: None)  # progress: what has been done


def run(scenario: Scenario, plan: Plan, scratch: Scratch, folder: str) -> ScenarioResult:
    """One scenario. What a subject cannot do is a line in the result; only the machine's own failures come out."""
    began = time.monotonic()
    result = ScenarioResult(
        scenario.name, scenario.workloads, scenario.title, scenario.text, scenario.control, dict(scenario.sizes), 0.0,
        [], [], {},
    )  # fmt: skip
    chosen = list(plan.chosen)
    if scenario.control:
        chosen += subjects.bare([one.asked.kind for one in plan.chosen])
    kept, scratch.size = scratch.size, scenario.size or scratch.size
    try:
        with contextlib.ExitStack() as until:
            alive = list(_made(scenario, chosen, plan, scratch, result, until))
            set_up = time.monotonic() - began
            before = machine.baseline(folder)
            load = machine.load()
            count = _rounds(scenario, plan, alive, result, began)
            _verify(scenario, plan, alive, result)
            result.marks += machine.drifts(before, machine.baseline(folder))
    finally:
        scratch.size = kept
    if max(load, machine.load()) > machine.BUSY:
        result.marks.append(f"the machine was busy: load {max(load, machine.load()):.1f} for each processor")
    if count < FEW:
        result.marks.append(f"{count} samples only: intervals are rough")
    for row in scenario.rows.values():
        figures = {name: figure(found) for name, found in row.samples.items() if found and name not in result.failures}
        if figures:
            result.rows.append(Row(row.key, row.title, row.unit, row.versus, row.use, figures))
    result.seconds = round(time.monotonic() - began, 1)
    early = " (all intervals are narrow)" if result.narrow_after else ""
    plan.told(
        f"{scenario.name}: {count} rounds of {len(alive)}{early} in {result.seconds:.0f} s, {set_up:.0f} s of them to "
        "set up"
    )
    return result


def _made(
    scenario: Scenario, chosen: list[Chosen], plan: Plan, scratch: Scratch, result: ScenarioResult,
    until: contextlib.ExitStack,
) -> Iterator[Subject]:  # fmt: skip
    for one in chosen:
        plan.said(f"{scenario.name}: {one.name}")
        try:
            system = _system(one, scenario, plan, scratch)
            with contextlib.ExitStack() as half:
                half.callback(system.discard)
                subject = subjects.make(one, system, scratch.journal)
                half.pop_all()
            until.callback(_discard, subject, result)
            result.systems[one.name] = f"{system.kind}, {system.size >> 20} MiB" if system.size else plan.place
            scenario.setup(subject)
        except _FAILS as error:
            result.failures[one.name] = _line(error)
            continue
        yield subject


def _discard(subject: Subject, result: ScenarioResult) -> None:
    """What cannot be taken away now is taken by the supervisor at the end; the figures are none the worse for it."""
    try:
        subject.discard()
    except _FAILS as error:
        result.marks.append(f"what {subject.name} had made could not be taken away at once: {_line(error)}")


def _system(one: Chosen, scenario: Scenario, plan: Plan, scratch: Scratch) -> FileSystem | Place:
    if plan.place:
        return scratch.place()
    kind = one.asked.kind
    if scenario.quota and kind in WITH_QUOTA:
        try:
            return scratch.make(WITH_QUOTA[kind])
        except Unavailable:
            return scratch.make(kind)
    return scratch.make(kind)


def _rounds(scenario: Scenario, plan: Plan, alive: list[Subject], result: ScenarioResult, began: float) -> int:
    """Every subject once in each, in random order; the counted ones. One that fails is left out from then on."""
    order = random.Random(f"{plan.seed} {scenario.name}")
    wanted = scenario.rounds or plan.rounds
    done = 0
    while alive and done < wanted + scenario.warm_up:
        now = time.monotonic()
        least = 1 if now > plan.until else plan.least
        if now - began > plan.seconds and not scenario.rounds and done >= least + scenario.warm_up:
            break
        order.shuffle(alive)
        for subject in list(alive):
            turn = f"round {done + 1 - scenario.warm_up} of {wanted}" if done >= scenario.warm_up else "warm-up"
            plan.said(f"{scenario.name}: {turn}, {subject.name}")
            try:
                scenario.round(subject)
            except _FAILS as error:
                alive.remove(subject)
                result.failures[subject.name] = _line(error)
        done += 1
        if done == scenario.warm_up:
            for row in scenario.rows.values():
                row.samples.clear()
        counted = done - scenario.warm_up
        if counted in plan.looks and counted < wanted and not scenario.rounds and _is_narrow(scenario, alive):
            result.narrow_after = counted
            break
    return max(0, done - scenario.warm_up)


def _is_narrow(scenario: Scenario, alive: list[Subject]) -> bool:
    """Whether every interval that somebody would choose by is narrow. Not whether differences are shown: to end when
    one is would make differences of chance. That it is looked at a few times only, and all at once, keeps the intervals
    as true as those of a fixed number of rounds (docs/how-to/compare-drivers-and-file-systems.md)."""
    rows = [row for row in scenario.rows.values() if row.use] or list(scenario.rows.values())
    return all(
        figure(row.samples[subject.name]).narrow for row in rows for subject in alive if subject.name in row.samples
    )


def _verify(scenario: Scenario, plan: Plan, alive: list[Subject], result: ScenarioResult) -> None:
    """Hold what each has made against what it should be."""
    found: dict[str, str] = {}
    for subject in list(alive):
        plan.said(f"{scenario.name}: looks at what {subject.name} has made")
        try:
            found[subject.name] = scenario.verify(subject)
        except _FAILS as error:
            alive.remove(subject)
            result.failures[subject.name] = _line(error)
    wanted = scenario.expected() or _agreed(found, {subject.name for subject in alive if subject.bare})
    for subject in list(alive):
        if subject.name in found and found[subject.name] != wanted:
            alive.remove(subject)
            result.failures[subject.name] = "what it has made is not what it should be: its figures do not count"


def _agreed(found: dict[str, str], bare: set[str]) -> str:
    """What the bare file systems have; without one, what more than half have."""
    votes = [digest for name, digest in found.items() if name in bare or not bare]
    best = max(votes, key=votes.count, default="")
    return best if bare or votes.count(best) * 2 > len(votes) else "nobody agrees"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
