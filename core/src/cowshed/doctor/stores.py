"""Checks of the configuration, of the store, and of the drivers: what any driver tells of itself by its probe, health,
objects and self-check is heard here."""

from __future__ import annotations

import os

from cowshed.config import selection
from cowshed.doctor.host import scarcity
from cowshed.doctor.leftovers import removal
from cowshed.doctor.patient import Finding, Severity
from cowshed.errors import CowshedError
from cowshed.storage.api import ObjectKind, QuotaScope, Verdict
from cowshed.storage.errors import StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowshed.config.selection import Probed
    from cowshed.doctor.patient import Patient
    from cowshed.layers.layers import Layers
    from cowshed.storage.api import Health, Reason

_SEVERITIES = {Verdict.GOOD: Severity.NOTE, Verdict.POOR: Severity.WARNING, Verdict.UNUSABLE: Severity.ERROR}
_HARMLESS = frozenset(("orphan", "unfinished", "suspect"))  # of findings: space is lost, and nothing else
_TRIAL = ".cowshed-probe-"


def configuration(patient: Patient) -> Iterator[Finding]:
    """All that is wrong in the configuration."""
    if patient.place_error is not None:
        yield Finding(
            Severity.ERROR, "configuration.no-place", str(patient.place_error),
            "where the store is cannot be told, so it was not looked at", patient.place_error.remedy,
        )  # fmt: skip
    for problem in patient.whole.problems:
        if problem.text == str(patient.place_error):
            continue
        where = f"{problem.where}: " if problem.where else ""
        yield Finding(
            Severity.ERROR, "configuration.wrong", f"{where}{problem.text}",
            "commands that need it fail", problem.remedy or "cowshed config show tells what is in effect",
        )  # fmt: skip


def store(patient: Patient) -> Iterator[Finding]:
    """Whether there is a store and it can be read, and what it keeps for bad days."""
    if patient.settings is None:
        return
    error = patient.store_error
    if error is not None:
        yield Finding(
            Severity.ERROR, "store.cannot-be-read", str(error), "no command that uses the store works",
            getattr(error, "remedy", "") or "cowshed --debug ps shows where",
        )  # fmt: skip
        return
    root = patient.root
    if patient.store is None:
        left = [name for name in ("drivers", "containers", "blobs/sha256") if _has_entries(f"{root}/{name}")]
        if left:
            yield Finding(
                Severity.ERROR, "store.no-database", f"{root} has {left[0]} but no database",
                "no command works: it is what is left of a store", "restore db.sqlite, or choose another --root",
            )  # fmt: skip
        else:
            yield Finding(Severity.NOTE, "store.none", f"there is no store at {root} yet")
        return
    if patient.store.stale:
        yield Finding(
            Severity.ERROR, "store.full", "the database cannot be opened in place: its disk is full",
            "only looking and removing works", "cowshed container prune, image prune, or free space on the disk",
        )  # fmt: skip
    elif not os.path.exists(f"{root}/ballast"):
        yield Finding(
            Severity.WARNING, "store.no-ballast", f"{root} has no ballast, for which there was no room",
            "on a full disk nothing can be removed by Cowshed", "free space, then cowshed system prune makes it again",
        )  # fmt: skip
    from cowshed.state import conversions

    conversion = conversions.get(patient.store)
    if conversion is not None:
        yield Finding(
            Severity.NOTE, "store.conversion", f"a conversion to driver {conversion.target} is not accepted yet",
            "what it was made from is kept, and takes space", "cowshed storage accept, or cowshed storage rollback",
        )  # fmt: skip
    given = int(patient.store.value("given") or 0)
    noted, _ = patient.store.noted_numbers()
    if noted > given:
        text = f"the database is older than what lies beside it: {noted - given} layers were made since"
        yield Finding(
            Severity.WARNING, "store.older-database", text, "they take space and nobody knows them",
            "cowshed system check tells which, cowshed system prune removes them",
        )  # fmt: skip


def _has_entries(path: str) -> bool:
    try:
        return bool(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


# ---------------------------------------------------------------- drivers


def drivers(patient: Patient) -> Iterator[Finding]:
    """Which driver serves, and what the probe of each says: of those in use, what is bad; of others, as notes."""
    if patient.settings is None:
        return
    if patient.full:
        text = "drivers were not probed, as nothing can be made on the store's file system"
        yield Finding(Severity.NOTE, "drivers.not-probed", text)
        return
    found = patient.explanation()
    choice = found.choice.name if found.choice else ""
    used = patient.used()
    if found.choice is None:
        yield Finding(Severity.ERROR, "drivers.no-choice", found.problem, "no container can be made", found.remedy)
    else:
        yield Finding(Severity.NOTE, "drivers.choice", f"driver {choice} serves new containers")
    differ = selection.disagreement(patient.settings, patient.engine.stored_driver()) if patient.store else None
    if differ is not None:
        yield Finding(
            Severity.WARNING, "drivers.disagreement", differ[0], "images are laid out in both drivers", differ[1]
        )
    known = {one.name for one in found.probed}
    for name in sorted({choice, *used} - known - {""}):
        yield Finding(
            Severity.ERROR, "drivers.not-installed", f"driver {name} is not installed",
            "its containers cannot be started" if name in used else "no container can be made",
            found.remedy if name == choice else f"install the distribution that has driver {name}",
        )  # fmt: skip
    for one in found.probed:
        yield from _probed(one, needed=one.name == choice or one.name in used)


def _probed(one: Probed, *, needed: bool) -> Iterator[Finding]:
    consequence = "containers on it cannot be made or started" if needed else "it cannot be chosen"
    if one.report is None:
        severity = Severity.ERROR if needed or one.misconfigured is not None else Severity.WARNING
        yield Finding(severity, "drivers.broken", f"driver {one.name}: {one.error}", consequence, one.remedy)
        return
    facts = ", ".join(f"{key} = {str(value).lower()}" for key, value in one.report.facts.items())
    if needed and facts:
        yield Finding(Severity.NOTE, "drivers.facts", f"driver {one.name}: {facts}")
    for reason in one.report.reasons:
        bad = reason.verdict is not Verdict.GOOD
        if not bad and not reason.remedy:
            continue  # what works
        severity = _SEVERITIES[reason.verdict] if needed else Severity.NOTE
        told = consequence if reason.verdict is Verdict.UNUSABLE else "it is chosen by name only" if bad else ""
        yield Finding(severity, f"drivers.{reason.code}", f"driver {one.name}: {reason.text}", told, reason.remedy)


def back_ends(patient: Patient) -> Iterator[Finding]:
    """Of each driver in the store: whether it can be opened there, its health, its limits, its objects."""
    for name in patient.used():
        try:
            held = patient.layers(name)
        except (CowshedError, StorageError, OSError) as error:
            yield Finding(
                Severity.ERROR, "back-ends.cannot-be-opened", f"driver {name}: its store cannot be opened: {error}",
                "its containers and layers cannot be used", getattr(error, "remedy", "") or "see cowshed driver why",
            )  # fmt: skip
            continue
        try:
            yield from _health(patient, name, held.driver.health())
            yield from _quota(patient, held)
            yield from _objects(held)
        except (CowshedError, StorageError, OSError) as error:
            yield Finding(
                Severity.ERROR, "back-ends.cannot-be-read", f"driver {name}: {error}",
                "what it has could not be looked at", getattr(error, "remedy", "") or "cowshed --debug system check",
            )  # fmt: skip
        except Exception as error:  # a plug-in's bug hides nothing of the others
            yield Finding(
                Severity.ERROR, "back-ends.bug", f"driver {name} has a bug: {type(error).__name__}: {error}",
                "what it has could not be looked at", "report it to its author",
            )  # fmt: skip


def _health(patient: Patient, name: str, health: Health) -> Iterator[Finding]:
    status = os.statvfs(f"{patient.root}/drivers/{name}")
    same = (
        health.data_total == status.f_blocks * status.f_frsize
    )  # then `places` tells of its room, and that it is full
    told: dict[str, Reason] = {reason.code.rpartition(".")[2]: reason for reason in health.reasons}
    for what, total, free, consequence in (
        ("data", health.data_total, health.data_free, "pulls, commits and writes of containers fail"),
        (
            "metadata",
            health.metadata_total,
            health.metadata_free,
            "nothing can be made or removed, though data has room",
        ),
    ):
        if same and (what == "data" or not status.f_bavail):
            told.pop(f"{what}-low", None)
            continue
        judged = total is not None and free is not None
        lack = scarcity(total or 0, free or 0) if judged else None
        mine = told.pop(f"{what}-low", None)  # a driver that judges itself knows more than two figures
        if mine is not None and lack is not Severity.ERROR:
            lack = _SEVERITIES[mine.verdict]
        if lack is not None:
            patient.full = patient.full or same
            text = f"{(free or 0) >> 20:,} MiB of {(total or 0) >> 20:,} MiB for {what} are free"
            remedy = "cowshed storage df shows what takes it, cowshed system prune gives back"
            soon = "" if lack is Severity.ERROR else "soon "
            yield Finding(
                lack, f"back-ends.{what}", f"driver {name}: {mine.text if mine else text}", f"{soon}{consequence}",
                mine.remedy if mine and mine.remedy else remedy,
            )  # fmt: skip
    for reason in told.values():
        yield Finding(
            _SEVERITIES[reason.verdict], f"back-ends.{reason.code}", f"driver {name}: {reason.text}",
            "" if reason.verdict is Verdict.GOOD else "containers on it may become slow, stop, or lose data",
            reason.remedy,
        )  # fmt: skip


def _quota(patient: Patient, held: Layers) -> Iterator[Finding]:
    """Containers whose size limits nobody enforces any more."""
    from cowshed.state import containers

    assert patient.store is not None
    if held.driver.capabilities.quota is not QuotaScope.NONE:
        return
    limited = [
        row.name
        for row in containers.list_all(patient.store)
        if row.driver == held.name and row.config.get("storage_opt")
    ]
    if not limited:
        return
    reasons = next((p.report.reasons for p in patient.explanation().probed if p.name == held.name and p.report), ())
    remedy = next((r.remedy for r in reasons if "quota" in r.code and r.remedy), "")
    which = f"{', '.join(limited)} {'have one' if len(limited) > 1 else 'has one'}"
    yield Finding(
        Severity.ERROR, "back-ends.quota-off", f"driver {held.name}: no size limit is enforced, and {which}",
        "such a container can fill the disk",
        remedy or "cowshed driver why tells what size limits need",
    )  # fmt: skip


def _objects(held: Layers) -> Iterator[Finding]:
    """Where database and driver disagree, what the driver finds wrong with itself, and what waits for removal."""
    for finding in held.check():
        severity = Severity.WARNING if finding.code in _HARMLESS else Severity.ERROR
        consequence = "it takes space" if severity is Severity.WARNING else "what stands on it cannot be used"
        remedy = "cowshed system check tells more; pull the image again, or remove the container"
        if finding.code == "orphan":  # it may be somebody's whose row is lost
            remedy = "cowshed storage check tells what it may be"
        yield Finding(
            severity, f"back-ends.{finding.code}", f"driver {held.name}: {finding.text}", consequence,
            finding.repair or remedy,
        )  # fmt: skip
    trash = sum(1 for found in held.driver.scan() if found.kind is ObjectKind.TRASH)
    if trash:
        yield Finding(
            Severity.NOTE, "back-ends.trash", f"driver {held.name}: {trash} removed layers are not deleted yet",
            "they take space", "cowshed storage gc",
        )  # fmt: skip


def trials(patient: Patient) -> Iterator[Finding]:
    """What a killed probe left where it tried a driver out."""
    from time import time

    if patient.settings is None:
        return
    for folder in {patient.place, *(f"{patient.root}/drivers/{name}" for name in patient.used())}:
        try:
            names = [name for name in os.listdir(folder) if name.startswith(_TRIAL)]
        except OSError:
            continue
        for name in sorted(names):
            try:
                old = time() - os.lstat(f"{folder}/{name}").st_mtime > 60  # else one may just be going on
            except FileNotFoundError:
                continue
            if old:
                yield Finding(
                    Severity.WARNING, "leftovers.trial", f"{folder}/{name} is left of a probe that was killed",
                    "it takes little space", removal(f"{folder}/{name}"),
                )  # fmt: skip
