"""Which driver serves: what was said, else what the store has, else the best probe; and every step that led there."""

from __future__ import annotations

from cowshed.errors import NotFound
from cowshed.storage import options, registry
from cowshed.storage.errors import StorageError
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.config.settings import Settings
    from cowshed.storage.api import Host, ProbeReport


@record(frozen=True)
class Step:
    source: str
    outcome: str


@record(frozen=True)
class Choice:
    name: str
    steps: tuple[Step, ...]


@record(frozen=True)
class Probed:
    """One installed driver at a place: its report, or why there is none."""

    name: str
    distribution: str
    report: ProbeReport | None
    error: str
    priority: int
    summary: str


def probe_all(settings: Settings, host: Host) -> list[Probed]:
    """Every installed driver, asked how it would serve at the store's place. Nothing is left behind."""
    result = []
    for found in registry.installed():
        if found.plugin is None:
            result.append(Probed(found.name, found.distribution, None, found.error, 0, ""))
            continue
        plugin = found.plugin
        try:
            chosen = options.check(plugin, settings.driver_options.get(plugin.name, {}))
            report, error = plugin.probe(f"{settings.root}/drivers/{plugin.name}", chosen, host), ""
        except StorageError as problem:
            report, error = None, f"{problem}" + (f"; {problem.remedy}" if problem.remedy else "")
        except Exception as problem:  # a plug-in's bug stops nobody else
            report, error = None, f"its probe failed: {type(problem).__name__}: {problem}"
        result.append(Probed(plugin.name, found.distribution, report, error, plugin.priority, plugin.summary))
    return result


def said(settings: Settings, stored: str) -> Choice | None:
    """The choice if it needs no probe."""
    if settings.driver:
        return Choice(settings.driver, (Step(settings.driver_from, f"says {settings.driver}"),))
    if stored:
        silent = Step("options, environment, configuration", "say nothing")
        return Choice(stored, (silent, Step("the store", f"has its layers in {stored}")))
    return None


def choose(settings: Settings, stored: str, host: Host) -> Choice:
    """NotFound if nothing is said and no driver is good here."""
    from cowshed.storage.api import Verdict

    choice = said(settings, stored)
    if choice is not None:
        return choice
    steps = [Step("options, environment, configuration", "say nothing"), Step("the store", "has no layers yet")]
    best: Probed | None = None
    poor = []
    for probed in probe_all(settings, host):
        if probed.report is None:
            steps.append(Step(f"driver {probed.name}", probed.error))
            continue
        verdict = probed.report.verdict
        steps.append(Step(f"driver {probed.name}", f"{verdict.value}: {probed.report.reasons[0].text}"))
        if verdict is Verdict.POOR:
            poor.append(probed.name)
        elif verdict is Verdict.GOOD and probed.priority and (best is None or probed.priority > best.priority):
            best = probed
    if best is None:
        ways = f"; choose one that is poor yourself: --driver {' or --driver '.join(poor)}" if poor else ""
        raise NotFound(f"no storage driver is good at {settings.root}", remedy=f"cowshed driver why tells more{ways}")
    steps.append(Step("the best of them", best.name))
    return Choice(best.name, tuple(steps))
