"""What a check finds, as data: for people a line, for programs an object, for `storage repair` what to do."""

from __future__ import annotations

from cowshed.storage.record import field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

ERROR, WARNING, NOTE = "error", "warning", "note"


@record(frozen=True)
class Finding:
    """One thing that does not fit. Two of the same code, object and text are the same."""

    code: str  # stable, "KIND.what"
    object: str  # which one: an id, a digest, a path below the store's root
    text: str  # what is wrong, in one line
    severity: str = ERROR  # ERROR: lost or unusable; WARNING: left over, or wrong and still usable; NOTE: to know
    repair: str = ""  # what `storage repair` does about it; "" = it cannot
    remedy: str = ""  # what a person may do, if repair cannot
    driver: str = ""
    data: dict[str, Any] = field(default_factory=dict)  # what its repair needs to know

    @property
    def kind(self) -> str:
        return self.code.partition(".")[0]

    @property
    def key(self) -> tuple[str, str, str]:
        return self.code, self.object, self.text

    @property
    def line(self) -> str:
        what = self.repair or self.remedy
        return f"{self.text}: {what}" if what else self.text

    def document(self) -> dict[str, Any]:
        """For --format json."""
        return {
            "Code": self.code, "Kind": self.kind, "Object": self.object, "Driver": self.driver, "Text": self.text,
            "Severity": self.severity, "Repair": self.repair, "Remedy": self.remedy,
        }  # fmt: skip


def twice(look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """What is there at two looks: what a command is working on just now is gone at the second."""
    first = list(look())
    again = {finding.key for finding in look()} if first else set()
    return [finding for finding in first if finding.key in again]
