"""Which driver serves: what was said, else what the store has, else the best probe; and every step that led there."""

from __future__ import annotations

from cowshed.errors import NotFound
from cowshed.storage.record import field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cowshed.config.settings import Settings
    from cowshed.storage.api import DriverPlugin, Host, ProbeReport, Verdict
    from cowshed.storage.errors import BadOption
    from cowshed.storage.options import Value

    Kept = Mapping[str, Mapping[str, Value]]

BY_FLAG = "option --driver"


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
    priority: int = 0
    summary: str = ""
    remedy: str = ""  # for the error
    trace: str = ""  # where the plug-in failed
    misconfigured: BadOption | None = None
    options: dict[str, Value] = field(default_factory=dict)  # in effect


@record(frozen=True)
class Explanation:
    """All that `cowshed driver why` tells."""

    choice: Choice | None
    steps: tuple[Step, ...]
    problem: str  # why there is no choice
    remedy: str
    probed: tuple[Probed, ...]


def probe_all(settings: Settings, host: Host, stored: str = "", kept: Kept | None = None) -> list[Probed]:
    """Every installed driver, asked how it would serve at the store's place. Nothing is left behind.

    stored: the driver that the store has, which options of a command line without a driver are for. kept: what creation
    fixed, of the drivers that the store has been used with.
    """
    from cowshed.storage import registry

    result = []
    for found in registry.installed():
        if found.plugin is None:
            error, remedy = found.error, found.remedy
            result.append(Probed(found.name, found.distribution, None, error, remedy=remedy, trace=found.trace))
        else:
            wanted = dict(settings.driver_options.get(found.name, {}))
            if found.name == stored:
                wanted.update(settings.driver_options.get("", {}))
            root = f"{settings.root}/drivers/{found.name}"
            result.append(
                _probe(found.plugin, found.distribution, root, wanted, (kept or {}).get(found.name, {}), host)
            )
    return result


def _probe(
    plugin: DriverPlugin,
    distribution: str,
    root: str,
    wanted: Mapping[str, str | int | bool],
    kept: Mapping[str, Value],
    host: Host,
) -> Probed:
    from cowshed.storage import options
    from cowshed.storage.api import Verdict
    from cowshed.storage.errors import BadOption, StorageError

    report, error, remedy, trace, misconfigured = None, "", "", "", None
    chosen: dict[str, Value] = {}
    try:
        chosen = options.check(plugin, wanted)
        options.compare(plugin, kept, wanted, chosen)
        report = plugin.probe(root, chosen, host)
        if report.capabilities is None and report.verdict is not Verdict.UNUSABLE:
            raise ValueError("it tells neither what it can do nor why it cannot")
    except StorageError as problem:
        report, error, remedy = None, str(problem), problem.remedy
        misconfigured = problem if wanted and isinstance(problem, BadOption) else None
    except Exception as problem:  # a plug-in's bug stops nobody else
        from traceback import format_exc

        report, error, trace = None, f"its probe failed: {type(problem).__name__}: {problem}", format_exc()
        remedy = "report it to its author"
    return Probed(
        plugin.name, distribution, report, error, plugin.priority, plugin.summary, remedy, trace, misconfigured, chosen
    )


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

    Raises NotFound if nothing is said and no driver is good here: a poor one is never chosen in silence. Raises
    BadOption if the configuration has wrong options for one that might have been, as another is not taken instead, or
    if the command line has them for the one that is.
    """
    choice = said(settings, stored)
    if choice is not None:
        return choice
    probed = probe_all(settings, host) if probed is None else probed
    for one in probed:
        if one.misconfigured is not None:
            raise one.misconfigured
    steps, best = _weighed(settings, probed)
    if best is None:
        raise _nothing(settings, probed)
    assert best.report is not None
    if "" in settings.driver_options:
        from cowshed.storage import options, registry

        options.check(registry.load(best.name)[0], settings.options_of(best.name))
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
        why = _lack(one)
        if verdict is Verdict.GOOD and one.priority <= 0:
            why += "; its author wants it to be chosen by name only"
        elif verdict is Verdict.POOR:
            why += "; chosen by name only"
        elif verdict is Verdict.GOOD and best is None:
            best = one
        steps.append(Step(f"driver {one.name}", f"{verdict.value}: {why}", "considered"))
    return steps, best


def _nothing(settings: Settings, probed: Sequence[Probed]) -> NotFound:
    from cowshed.storage.api import Verdict

    if not probed:
        return NotFound("no storage driver is installed", remedy="install one, such as cowshed-driver-overlay")
    able = [p for p in probed if p.report is not None and p.report.verdict is not Verdict.UNUSABLE]
    ways = "".join(f"; or consent to one that is {_rank(p)} here: --driver {p.name}" for p in able)
    refused = sorted((p for p in probed if p not in able), key=lambda p: -p.priority)
    lacks = "; ".join(f"{p.name}: {_lack(p)}" for p in refused)
    return NotFound(
        f"no storage driver is good for a store at {settings.root}" + (f" ({lacks})" if lacks else ""),
        remedy=f"cowshed driver why tells the reasons{ways}",
    )


def _lack(probed: Probed) -> str:
    """Why a driver's verdict is what it is."""
    if probed.report is None:
        return probed.error
    reasons = probed.report.reasons
    return next((r.text for r in reasons if r.verdict is probed.report.verdict), "no reason given")


def _rank(probed: Probed) -> str:
    from cowshed.storage.api import Verdict

    poor = probed.report is not None and probed.report.verdict is Verdict.POOR
    return "poor" if poor else "never chosen by itself"


def disagreement(settings: Settings, stored: str) -> tuple[str, str] | None:
    """(what both say, the commands that make either true) if the configuration or the environment names another driver
    than the store has its layers in. The command line's word is for one command, and no disagreement."""
    if not settings.driver or not stored or settings.driver == stored or settings.driver_from == BY_FLAG:
        return None
    name, root = settings.driver, settings.root
    return (
        f"{settings.driver_from} says {name}, and the store at {root} has its layers in {stored}",
        f"cowshed storage convert --to {name}; or to stay with {stored} take the setting out, or say --driver {stored}",
    )


def explain(settings: Settings, stored: str, host: Host, kept: Kept | None = None) -> Explanation:
    """The choice with all that led there, and every driver's report; never raises for want of a driver."""
    from cowshed.storage.errors import BadOption

    probed = probe_all(settings, host, stored, kept)
    strangers = _strangers(settings, probed)
    try:
        choice = choose(settings, stored, host, probed)
    except (NotFound, BadOption) as error:
        steps = (*_weighed(settings, probed)[0], *strangers)
        return Explanation(None, steps, str(error), error.remedy, tuple(probed))
    problem, remedy, verdict = "", "", choice.verdict
    claims = [p for p in probed if p.name == choice.name]
    if not claims:
        problem, remedy = f"driver {choice.name} is not installed", _instead(choice.name, probed)
    elif claims[0].report is None:
        problem, remedy = f"driver {choice.name} cannot be used: {claims[0].error}", claims[0].remedy
    else:
        verdict = claims[0].report.verdict
        bad = next((r for r in claims[0].report.reasons if r.verdict is verdict), None)
        if claims[0].report.capabilities is None and bad is not None:
            problem, remedy = f"driver {choice.name} cannot be used: {bad.text}", bad.remedy
    differ = disagreement(settings, stored)
    if differ is not None:
        strangers = (*strangers, Step("the store", f"disagrees: {differ[0]}: {differ[1]}", "says"))
    steps = (*choice.steps, *strangers)
    return Explanation(Choice(choice.name, steps, verdict), steps, problem, remedy, tuple(probed))


def _strangers(settings: Settings, probed: Sequence[Probed]) -> tuple[Step, ...]:
    """Tables of options for drivers that are not installed: perhaps misspelt."""
    installed = [p.name for p in probed]
    return tuple(
        Step(
            f"table storage.drivers.{name}", f"is for a driver that is not installed: {_instead(name, probed)}", "says"
        )
        for name in settings.driver_options
        if name and name not in installed and name != settings.driver
    )


def _instead(name: str, probed: Sequence[Probed]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, [p.name for p in probed], 1)
    return f"did you mean {near[0]}?" if near else "install it, or choose another: --driver"
