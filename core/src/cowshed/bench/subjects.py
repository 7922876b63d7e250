"""Which drivers on which file systems can be compared on this host: each installed driver is asked by its own probe."""

from __future__ import annotations

from dataclasses import dataclass, field

from cowshed.bench import scratch
from cowshed.bench.scratch import Unavailable
from cowshed.bench.stores import BARE, Bare, Store, Subject
from cowshed.errors import BadUsage, CowshedError
from cowshed.layers.host import EngineHost
from cowshed.storage import api, options, registry
from cowshed.storage.errors import StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cowshed.bench.journal import Journal
    from cowshed.bench.scratch import FileSystem, Place


@dataclass(frozen=True)
class Asked:
    """DRIVER[@KIND][,OPTION=VALUE…] as somebody has said it."""

    driver: str
    kind: str = ""  # "" is every kind, or the first that serves
    options: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        more = "".join(f",{key}={value}" for key, value in self.options.items())
        return f"{self.driver}@{self.kind}{more}"

    def on(self, kind: str) -> Asked:
        return Asked(self.driver, kind, self.options)


@dataclass(frozen=True)
class Chosen:
    """A subject that can be had: its probe has said so on a file system like those of the run."""

    asked: Asked
    plugin: api.DriverPlugin | None  # None: the bare file system
    verdict: str = ""
    reason: str = ""  # of a verdict that is not good

    @property
    def name(self) -> str:
        return self.asked.name


def parse(word: str) -> Asked:
    """BadUsage if it is not DRIVER[@KIND][,OPTION=VALUE…]."""
    name, *pairs = word.split(",")
    driver, at, kind = name.partition("@")
    if not driver or (at and not kind) or any("=" not in pair for pair in pairs):
        raise BadUsage(f"--subject {word}: write DRIVER[@KIND][,OPTION=VALUE…]", remedy="for example overlay@xfs")
    return Asked(driver, kind, dict(pair.split("=", 1) for pair in pairs))


def everything(*, one_each: bool) -> list[Asked]:
    """What is compared if nobody says what: each installed driver on each kind of file system, or on the first that
    serves it."""
    return [Asked(name) if one_each else Asked(name, "*") for name in registry.names()]


def choose(asked: Iterable[Asked], systems: dict[str, FileSystem | Place], absent: dict[str, str]) -> tuple[
    list[Chosen], list[str]
]:  # fmt: skip
    """Which of them can be had, by their probes on the file systems at hand (by kind), and why each other cannot.

    absent: why other kinds of file systems cannot be had.
    """
    chosen: list[Chosen] = []
    refused: list[str] = []
    for it in asked:
        kinds = list(systems) if it.kind in ("", "*") else [it.kind]
        why: dict[str, list[str]] = {}
        for kind in kinds:
            try:
                if kind not in systems:
                    raise Unavailable(absent.get(kind, f"{kind} is no kind of file system that is made here"))
                chosen.append(_probe(it.on(kind), systems[kind]))
            except (CowshedError, StorageError, OSError) as error:
                why.setdefault(str(error), []).append(kind)
                continue
            if it.kind == "":
                break
        if sum(map(len, why.values())) == len(kinds):
            told = "; ".join(f"on {', '.join(tried)}: {error}" for error, tried in why.items())
            refused.append(f"{it.driver} cannot be compared here: {told}")
    return list({one.name: one for one in chosen}.values()), refused


def _probe(asked: Asked, system: FileSystem | Place) -> Chosen:
    plugin, _ = registry.load(asked.driver)
    wanted = options.check(plugin, asked.options)
    for option in plugin.options:
        if option.outside and option.name in asked.options:
            raise Unavailable(f"option {option.name} leads out of the file systems of the run, to what others may use")
    report = plugin.probe(f"{system.path}/store", wanted, EngineHost())
    reason = next((r.text for r in report.reasons if r.verdict is report.verdict), "")
    if report.verdict is api.Verdict.UNUSABLE:
        raise Unavailable(reason or "its probe says so")
    return Chosen(asked, plugin, report.verdict.value, "" if report.verdict is api.Verdict.GOOD else reason)


def bare(kinds: Sequence[str]) -> list[Chosen]:
    """The controls."""
    return [Chosen(Asked(BARE, kind), None) for kind in dict.fromkeys(kinds)]


def make(chosen: Chosen, system: FileSystem | Place, journal: Journal) -> Subject:
    """A subject on a file system of its own, or in a directory. StorageError, OSError."""
    root = f"{system.path}/store"
    if chosen.plugin is None:
        store: Store | Bare = Bare(root)
    else:
        wanted = options.check(chosen.plugin, chosen.asked.options)
        if isinstance(system, scratch.Place):
            journal.add("stores", {"driver": chosen.asked.driver, "root": root, "options": wanted})
        store = Store(chosen.plugin, root, wanted)
    return Subject(chosen.name, chosen.asked.driver, chosen.asked.kind, system, store, chosen.verdict)
