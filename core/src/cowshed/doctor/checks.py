"""The list of checks. Each is a function of a patient that tells what it finds; none changes anything."""

from __future__ import annotations

from cowshed.doctor import host, leftovers, stores
from cowshed.doctor.patient import Finding, Patient, Severity
from cowshed.errors import CowshedError
from cowshed.storage.errors import StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Check = Callable[[Patient], Iterator[Finding]]

CHECKS: tuple[tuple[str, Check], ...] = (
    ("versions", host.versions),
    ("user", host.user),
    ("kernel", host.kernel),
    ("control groups", host.control_groups),
    ("limits", host.limits),
    ("configuration", stores.configuration),
    ("places", host.places),
    ("store", stores.store),
    ("back ends", stores.back_ends),
    ("drivers", stores.drivers),
    ("mounts", leftovers.mounts),
    ("loop devices", leftovers.loops),
    ("left control groups", leftovers.control_groups),
    ("run directories", leftovers.run_directories),
    ("zygotes", leftovers.zygotes),
    ("trials", stores.trials),
)
_FULL = frozenset(("places.data", "places.inodes", "places.metadata"))


def examine(patient: Patient) -> Iterator[Finding]:
    """What all checks find, in their order. One that fails is told, and stops no other."""
    for name, check in CHECKS:
        try:
            for finding in check(patient):
                patient.full = patient.full or (finding.severity is Severity.ERROR and finding.code in _FULL)
                yield finding
        except (CowshedError, StorageError, OSError) as error:
            yield Finding(
                Severity.ERROR, "doctor.failed", f"the check of {name} failed: {error}",
                "what it looks for may be there", getattr(error, "remedy", "") or "cowshed --debug doctor shows where",
            )  # fmt: skip
