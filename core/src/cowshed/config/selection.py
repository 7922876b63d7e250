"""Which driver serves: what was said, else what the store has, else the best probe; and every step that led there."""

from __future__ import annotations

from cowshed.errors import NotFound
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cowshed.config.settings import Settings
    from cowshed.storage.api import Host, ProbeReport, Verdict


@record(frozen=True)
class Step:
    """One source that was asked, and what came of it."""

    source: str
    outcome: str  # for people
    kind: str = "silent"  # silent, says (but a stronger source did too), considered, chosen


@record(frozen=True)
class Choice:
    name: str
    steps: tuple[Step, ...]
    verdict: Verdict | None = None  # None: not probed, as somebody said the name


@record(frozen=True)
class Probed:
    """One installed driver at a place: its report, or why there is none."""

    name: str
    distribution: str
    report: ProbeReport | None
    error: str
    priority: int
    summary: str


@record(frozen=True)
class Explanation:
    """All that `cowshed driver why` tells."""

    choice: Choice | None
    steps: tuple[Step, ...]
    problem: str  # why there is no choice
    remedy: str
    probed: tuple[Probed, ...]


def probe_all(settings: Settings, host: Host) -> list[Probed]:
    """Every installed driver, asked how it would serve at the store's place. Nothing is left behind."""
    from cowshed.storage import options, registry
    from cowshed.storage.errors import StorageError

    result = []
    for found in registry.installed():
        if found.plugin is None:
            result.append(Probed(found.name, found.distribution, None, found.error, 0, ""))
            continue
        plugin = found.plugin
        try:
            chosen = options.check(plugin, settings.options_of(plugin.name) if _meant(settings, plugin.name) else {})
            report, error = plugin.probe(f"{settings.root}/drivers/{plugin.name}", chosen, host), ""
        except StorageError as problem:
            report, error = None, f"{problem}" + (f"; {problem.remedy}" if problem.remedy else "")
        except Exception as problem:  # a plug-in's bug stops nobody else
            report, error = None, f"its probe failed: {type(problem).__name__}: {problem}"
        result.append(Probed(plugin.name, found.distribution, report, error, plugin.priority, plugin.summary))
    return result


def _meant(settings: Settings, name: str) -> bool:
    """Whether there are options for this driver. Those of a command line that names none are for the one chosen, and
    must not make the others look broken."""
    return name in settings.driver_options or settings.driver == name


def said(settings: Settings, stored: str) -> Choice | None:
    """The choice if it needs no probe."""
    if settings.driver:
        return Choice(settings.driver, _asked(settings))
    if stored:
        return Choice(stored, (*_asked(settings), Step("the store", f"has its layers in {stored}", "chosen")))
    return None


def _asked(settings: Settings) -> tuple[Step, ...]:
    steps, chosen = [], False
    for one in settings.drivers_said:
        if not one.value:
            steps.append(Step(one.source, "says nothing"))
        elif chosen:
            steps.append(Step(one.source, f"says {one.value}, which is overruled", "says"))
        else:
            steps.append(Step(one.source, f"says {one.value}", "chosen"))
            chosen = True
    return tuple(steps)


def choose(settings: Settings, stored: str, host: Host, probed: Sequence[Probed] | None = None) -> Choice:
    """The driver for new layers; stored is the one that holds most of the store's layers, or "".

    Raises NotFound if nothing is said and no driver is good here: a poor one is never chosen in silence.
    """
    choice = said(settings, stored)
    if choice is not None:
        return choice
    probed = probe_all(settings, host) if probed is None else probed
    steps, best = _weighed(settings, probed)
    if best is None:
        raise _nothing(settings, probed)
    assert best.report is not None
    return Choice(best.name, (*steps, Step("the best of them", best.name, "chosen")), best.report.verdict)


def _weighed(settings: Settings, probed: Sequence[Probed]) -> tuple[list[Step], Probed | None]:
    from cowshed.storage.api import Verdict

    steps = [*_asked(settings), Step("the store", "has no layers yet")]
    best: Probed | None = None
    for one in sorted(probed, key=lambda p: (-p.priority, p.name)):
        if one.report is None:
            steps.append(Step(f"driver {one.name}", f"cannot be asked: {one.error}", "considered"))
            continue
        verdict = one.report.verdict
        why = next((r.text for r in one.report.reasons if r.verdict is verdict), "no reason given")
        steps.append(Step(f"driver {one.name}", f"{verdict.value}: {why}", "considered"))
        if verdict is Verdict.GOOD and one.priority > 0 and best is None:
            best = one
    return steps, best


def _nothing(settings: Settings, probed: Sequence[Probed]) -> NotFound:
    from cowshed.storage.api import Verdict

    if not probed:
        return NotFound("no storage driver is installed", remedy="install one, such as cowshed-driver-overlay")
    poor = [p.name for p in probed if p.report is not None and p.report.verdict is Verdict.POOR]
    ways = f"; or take one that works poorly here: --driver {' or --driver '.join(poor)}" if poor else ""
    return NotFound(
        f"no storage driver is good for a store at {settings.root}",
        remedy=f"cowshed driver why tells the reasons{ways}",
    )


def explain(settings: Settings, stored: str, host: Host) -> Explanation:
    """The choice with all that led there, and every driver's report; never raises for want of a driver."""
    probed = probe_all(settings, host)
    try:
        choice = choose(settings, stored, host, probed)
    except NotFound as error:
        return Explanation(None, tuple(_weighed(settings, probed)[0]), str(error), error.remedy, tuple(probed))
    mine = next((p for p in probed if p.name == choice.name), None)
    if mine is None:
        problem = f"driver {choice.name} is not installed"
        return Explanation(choice, choice.steps, problem, "install it, or choose another: --driver", tuple(probed))
    if mine.report is None:
        problem = f"driver {choice.name} cannot be used: {mine.error}"
        return Explanation(choice, choice.steps, problem, "", tuple(probed))
    weighed = Choice(choice.name, choice.steps, mine.report.verdict)
    return Explanation(weighed, choice.steps, "", "", tuple(probed))
