"""One run from beginning to end: what can be compared here, scenario by scenario, into one result."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from cowshed.bench import machine, runner, subjects
from cowshed.bench.result import Result
from cowshed.bench.samples import ENOUGH, FEW
from cowshed.bench.scenarios import ALL
from cowshed.bench.scratch import KINDS, Scratch, Unavailable
from cowshed.errors import BadUsage, Busy, NoSpace, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cowshed.bench.journal import Journal
    from cowshed.bench.scenario import Scenario
    from cowshed.bench.scratch import Device, FileSystem, Place
    from cowshed.bench.subjects import Chosen

QUICK, FULL = "quick", "full"
_SECONDS = {QUICK: 85.0, FULL: 1740.0}  # for all scenarios; in a quick run none begins afterwards
_ROUNDS = {QUICK: 10, FULL: 15}
_LOOKS = {QUICK: (), FULL: (8, 11)}  # counted rounds after which narrow intervals are enough
_SIZE = {QUICK: 1 << 30, FULL: 8 << 30}
_TAKES = {QUICK: 512 << 20, FULL: 5 << 30}  # bytes that an image comes to at most: of a driver that copies whole layers


@dataclass
class Asked:
    """What somebody wants of a run."""

    mode: str = FULL
    subjects: Sequence[str] = ()
    scenarios: Sequence[str] = ()
    place: str = ""  # where the images lie
    path: str = ""  # a directory to work in, instead of scratch file systems
    device: str = ""  # a block device for them, instead of images; its file systems share it out
    size: int = 0  # bytes of each file system
    one_each: bool = False  # each driver on one file system only
    scale: float = 1.0
    rounds: int = 0
    seconds: float = 0.0  # for all scenarios
    seed: int = 1
    strict: bool = False  # refuse a machine that is busy
    version: str = ""
    said: Callable[[str], None] = field(default=lambda _: None)
    told: Callable[[str], None] = field(default=lambda _: None)


def scenarios(names: Sequence[str], mode: str) -> list[type[Scenario]]:
    """Those of the names, or all that the mode has. A name may be a scenario's or one of W1 … W22. BadUsage."""
    if not names:
        return [one for one in ALL if mode == FULL or one.quick is not None]
    found: list[type[Scenario]] = []
    for name in [part for word in names for part in word.split(",") if part]:
        fitting = [one for one in ALL if name == one.name or name.upper() in one.workloads]
        if not fitting:
            raise BadUsage(f"there is no scenario {name}", remedy="bench --list has them all")
        found += [one for one in fitting if one not in found]
    return [one for one in ALL if one in found]


def check(asked: Asked) -> None:
    """Refuse what cannot be done before anything is made. BadUsage, Busy, NoSpace, Unsupported."""
    _, filling = _harmless(asked)
    if filling and asked.scenarios:
        raise BadUsage(f"scenario {filling[0]} fills a file system: leave out --path, or the scenario")
    for word in asked.subjects:
        subjects.parse(word)
    if os.geteuid() != 0:
        raise Unsupported("bench mounts file systems, which root alone may do", remedy="run it as root")
    if asked.path and asked.device:
        raise BadUsage("--path and --device exclude each other")
    if asked.path and not os.path.isdir(asked.path):
        raise BadUsage(f"--path {asked.path} is no directory")
    if asked.size and (asked.path or asked.device):
        raise BadUsage("--size is for images: with --path and --device it can have no effect")
    if not asked.path and not os.path.isdir(asked.place):
        raise BadUsage(f"--place {asked.place} is no directory")
    _want_room(asked, max(1, len(asked.subjects)))
    if asked.strict and machine.load() > machine.BUSY:
        raise Busy(
            f"the machine is busy: load {machine.load():.1f} for each processor", remedy="wait, or leave --strict out"
        )


def _harmless(asked: Asked) -> tuple[list[type[Scenario]], list[str]]:
    """The scenarios, and the names of those that are left out because they would fill the user's own file system."""
    wanted = scenarios(asked.scenarios, asked.mode)
    filling = [cls for cls in wanted if asked.path and cls.size]
    return [cls for cls in wanted if cls not in filling], [cls.name for cls in filling]


def _want_room(asked: Asked, count: int) -> None:
    """NoSpace if so many images could fill the disk that they lie on."""
    if asked.path or asked.device:
        return
    status = os.statvfs(asked.place)
    free, wanted = status.f_bavail * status.f_frsize, count * min(asked.size or _SIZE[asked.mode], _TAKES[asked.mode])
    if free < wanted:
        raise NoSpace(
            f"{asked.place} has {free >> 20} MiB free, and the images of {count} file systems can come to "
            f"{wanted >> 20} MiB",
            remedy="--place DIRECTORY on another disk, a smaller --size, or fewer with --subject",
        )


def run(asked: Asked, journal: Journal, device: Device | None = None) -> Result:
    """All of it; the process has a mount namespace of its own. Unsupported if nothing can be compared here."""
    began, stamp = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%S%z")
    size = asked.size or _SIZE[asked.mode]
    place = Scratch(journal, size, device)
    load = machine.load()
    chosen, refused = _choose(asked, place)
    if asked.subjects and refused:
        raise Unsupported(refused[0], remedy="cowshed driver why tells more; leave it out")
    if not chosen:
        raise Unsupported(f"no driver can be compared here: {'; '.join(refused)}", remedy="cowshed driver why")
    classes, filling = _harmless(asked)
    controls = {one.asked.kind for one in chosen} if any(cls.control for cls in classes) else ()
    _want_room(asked, len(chosen) + len(controls))
    asked.told(f"compares {', '.join(one.name for one in chosen)}")
    facts = machine.facts(asked.path or asked.device or asked.place)
    before = machine.baseline(journal.folder)
    results, late = [], []
    until = time.monotonic() + (asked.seconds or _SECONDS[asked.mode])
    for n, cls in enumerate(classes):
        sizes = cls.quick if asked.mode == QUICK and cls.quick is not None else cls.full
        scenario = cls(sizes, asked.scale, asked.seed)
        if asked.mode == QUICK and time.monotonic() > until:
            late.append(cls.name)
            continue
        share = (until - time.monotonic()) / (len(classes) - n)
        plan = runner.Plan(
            asked.rounds or _ROUNDS[asked.mode], share, asked.seed, chosen, asked.path,
            least=ENOUGH if asked.mode == QUICK else FEW, until=until if asked.mode == QUICK else float("inf"),
            looks=() if asked.rounds else _LOOKS[asked.mode],
            said=_numbered(asked.said, n + 1, len(classes)), told=asked.told,
        )  # fmt: skip
        results.append(runner.run(scenario, plan, place, journal.folder))
    after = machine.baseline(journal.folder)
    marks = machine.drifts(before, after)
    if max(load, machine.load()) > machine.BUSY:
        marks.insert(
            0,
            f"the machine was busy (load {load:.1f} for each processor at the start, {machine.load():.1f} at the end)",
        )
    if late:
        marks.append(f"there was no time for {', '.join(late)}")
    if filling:
        marks.append(f"{', '.join(filling)} was left out: it fills a file system, and that of --path is not its own")
    if facts["on_battery"]:
        marks.append("the machine ran on its battery")
    if facts["place"].get("file_system") == "tmpfs":
        marks.append("the images lay in memory: no disk was measured")
    return Result(
        stamp, round(time.monotonic() - began, 1), asked.mode, asked.seed, place.size, asked.version, facts,
        [_described(one) for one in chosen], refused, marks, {"before": before, "after": after}, results,
    )  # fmt: skip


def _numbered(said: Callable[[str], None], n: int, count: int) -> Callable[[str], None]:
    return lambda text: said(f"{n}/{count} {text}")


def _described(one: Chosen) -> dict[str, object]:
    return {
        "name": one.name, "driver": one.asked.driver, "kind": one.asked.kind, "options": one.asked.options,
        "verdict": one.verdict, "reason": one.reason,
    }  # fmt: skip


def _choose(asked: Asked, place: Scratch) -> tuple[list[Chosen], list[str]]:
    wanted = [subjects.parse(word) for word in asked.subjects] or subjects.everything(
        one_each=asked.one_each or asked.mode == QUICK
    )
    if asked.path:
        here = place.place()
        try:
            return subjects.choose(wanted, {"path": here}, {})
        finally:
            here.discard()
    kinds = list(dict.fromkeys([*KINDS, *[one.kind for one in wanted if one.kind not in ("", "*")]]))
    systems: dict[str, FileSystem | Place] = {}
    absent: dict[str, str] = {}
    try:
        for kind in kinds:
            asked.said(f"makes a file system: {kind}")
            try:
                systems[kind] = place.make(kind)
            except Unavailable as error:
                absent[kind] = str(error)
        return subjects.choose(wanted, systems, absent)
    finally:
        for system in systems.values():
            system.discard()
