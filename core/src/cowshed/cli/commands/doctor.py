"""doctor: status 0 if all is sound, 1 if there are warnings, 2 if there are errors."""

from __future__ import annotations

import os

from cowshed.cli import output
from cowshed.doctor.checks import examine
from cowshed.doctor.patient import Patient, Severity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.cli.parser import Values

_STATUS = {Severity.NOTE: 0, Severity.WARNING: 1, Severity.ERROR: 2}


def doctor(flags: Values, said: Values) -> int:
    found = list(examine(Patient(flags, os.environ)))
    shown = [finding for finding in found if said.all or finding.severity is not Severity.NOTE]
    if said.format:
        rows = [
            {
                "Severity": f.severity.value, "Code": f.code, "Text": f.text, "Consequence": f.consequence,
                "Remedy": f.remedy,
            }
            for f in shown
        ]  # fmt: skip
        output.listing(rows, ("Severity", "Code", "Text", "Consequence", "Remedy"), said.format, what="doctor")
        return max((_STATUS[f.severity] for f in found), default=0)
    for finding in shown:
        print(f"{finding.severity.value}: {finding.text}")
        for title, line in (("consequence", finding.consequence), ("what to do", finding.remedy)):
            if line:
                print(f"  {title}: {line}")
    counts = {s: sum(f.severity is s for f in found) for s in (Severity.ERROR, Severity.WARNING)}
    hidden = len(found) - len(shown)
    words = [f"{count} {s.value}{'s' * (count > 1)}" for s, count in counts.items() if count] or ["sound"]
    print(", ".join(words) + (f" ({hidden} notes: --all shows them)" if hidden else ""))
    return max((_STATUS[f.severity] for f in found), default=0)
