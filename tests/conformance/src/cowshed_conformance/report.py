"""What a run has found, for people (Markdown) and for programs (JSON)."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import pytest

_CASE = re.compile(r"test_([A-Z]\d\d)_")
_SKIP = re.compile(r"\[([a-z-]+)\] (.*)", re.DOTALL)


class Report:
    """One run: facts about the machine and the target, and a result for each case."""

    _this_run: ClassVar[Report | None] = None

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.cases: dict[str, dict[str, Any]] = {}

    @classmethod
    def of_this_run(cls) -> Report:
        if cls._this_run is None:
            cls._this_run = cls()
        return cls._this_run

    def note(self, report: pytest.TestReport) -> None:
        found = _CASE.search(report.nodeid)
        if found is None:
            return
        name = report.nodeid.rpartition("::")[2]
        entry = self.cases.setdefault(
            name, {"case": found[1], "test": name, "outcome": "passed", "seconds": 0.0, "code": "", "reason": ""}
        )
        entry["seconds"] = round(entry["seconds"] + report.duration, 3)
        if report.failed:
            entry["outcome"] = "failed" if report.when == "call" else "error"
            entry["reason"] = str(report.longrepr).strip().splitlines()[-1] if report.longrepr else ""
        elif report.skipped and entry["outcome"] == "passed":
            text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            text = text.removeprefix("Skipped: ")
            said = _SKIP.match(text)
            entry.update(outcome="skipped", code=said[1] if said else "other", reason=said[2] if said else text)

    def counts(self) -> dict[str, int]:
        counts = dict.fromkeys(("passed", "failed", "error", "skipped"), 0)
        for case in self.cases.values():
            counts[case["outcome"]] += 1
        return counts

    def skipped(self) -> dict[tuple[str, str], list[str]]:
        """(code, reason) → the cases that were skipped for it."""
        found: dict[tuple[str, str], list[str]] = {}
        for case in sorted(self.cases.values(), key=lambda c: (c["case"], c["test"])):
            if case["outcome"] == "skipped":
                found.setdefault((case["code"], case["reason"]), []).append(case["test"])
        return found

    def unexplained(self) -> list[str]:
        """Cases that were skipped without a code: those that programs cannot judge."""
        return [test for (code, _), tests in self.skipped().items() if code == "other" for test in tests]

    def finish(self, terminal: pytest.TerminalReporter, folder: str | None) -> None:
        if not self.cases:
            return
        counts = self.counts()
        facts = self.facts
        terminal.section(f"conformance of {facts.get('driver', '?')}")
        terminal.line(
            f"{len({c['case'] for c in self.cases.values()})} cases, "
            + ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        )
        terminal.line(f"on {facts.get('backing', '?')}, kernel {facts.get('kernel', '?')}, seed {facts.get('seed')}")
        terminal.line(f"mounted by {facts.get('mounted_by', '?')}")
        for test in self.unexplained():
            terminal.line(f"skipped without a code, which counts as a failure: {test}")
        if folder:
            os.makedirs(folder, exist_ok=True)
            for name, text in (("conformance.json", self.json()), ("conformance.md", self.markdown())):
                with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
                    file.write(text)
            terminal.line(f"report: {folder}/conformance.md")

    def json(self) -> str:
        cases = sorted(self.cases.values(), key=lambda c: (c["case"], c["test"]))
        skipped = [{"code": c, "reason": r, "tests": tests} for (c, r), tests in self.skipped().items()]
        found = {**self.facts, "counts": self.counts(), "skipped": skipped, "cases": cases}
        return json.dumps(found, indent=1, default=str) + "\n"

    def markdown(self) -> str:
        lines = [f"# Conformance of driver {self.facts.get('driver', '?')}", "", "| | |", "|---|---|"]
        for key, value in self.facts.items():
            text = ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
            lines.append(f"| {key} | {_cell(text)} |")
        lines.append(f"| result | {', '.join(f'{n} {what}' for what, n in self.counts().items() if n)} |")
        lines += ["", "| case | result | s | reason |", "|---|---|---|---|"]
        for case in sorted(self.cases.values(), key=lambda c: (c["case"], c["test"])):
            why = f"{case['code']}: {case['reason']}" if case["code"] else case["reason"]
            lines.append(f"| `{_cell(case['test'])}` | {case['outcome']} | {case['seconds']:.2f} | {_cell(why)} |")
        lines += ["", "## Skipped and why", ""]
        for (code, reason), tests in self.skipped().items():
            lines.append(f"- {code}: {reason}: {', '.join(f'`{test}`' for test in tests)}")
        if not self.skipped():
            lines.append("Nothing.")
        return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
