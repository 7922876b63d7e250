"""What a run has found, for people (Markdown) and for programs (JSON)."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any, ClassVar

from cowshed_conformance import versions

if TYPE_CHECKING:
    import pytest

FILES = {"conformance.json": "json", "conformance.md": "markdown", "conformance.html": "html", "badge.svg": "badge"}
KINDS = tuple(FILES.values())
_CASE = re.compile(r"test_([A-Z]\d\d)_")
_SKIP = re.compile(r"\[([a-z-]+)\] (.*)", re.DOTALL)


class Report:
    """One run: facts about the machine and the target, and a result for each case."""

    _this_run: ClassVar[Report | None] = None

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.cases: dict[str, dict[str, Any]] = {}
        self.known: dict[str, dict[str, Any]] = {}  # by node: level, since, and whether a failure counts
        self._begun: dict[str, float] = {}  # seconds that the fixtures took of a case that has no result yet
        self.modules: set[str] = set()  # of cases, that were collected
        self.pinned: int | None = None  # the version of the suite whose cases count, if not all do

    def know(self, item: pytest.Item, level: str, *, since: int, counted: bool) -> None:
        """A case that belongs to the level of the run, chosen or not."""
        self.known[item.nodeid] = {"level": level, "since": since, "counted": counted}

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
        if report.when == "setup" and report.passed:
            self._begun[name] = report.duration  # should the run be interrupted now, nothing is known of the case
            return
        entry = self.cases.setdefault(
            name,
            {
                "case": found[1],
                "test": name,
                **self.known.get(report.nodeid, {"level": "", "since": versions.since(name), "counted": True}),
                "outcome": "passed",
                "seconds": 0.0,
                "code": "",
                "reason": "",
            },
        )
        entry["seconds"] = round(entry["seconds"] + self._begun.pop(name, 0.0) + report.duration, 3)
        if report.skipped and hasattr(report, "wasxfail"):  # newer than the version that is held to
            entry.update(outcome="failed", reason=_why(report))
        elif report.failed:
            entry["outcome"] = "failed" if report.when == "call" else "error"
            entry["reason"] = _why(report)
        elif report.skipped and entry["outcome"] == "passed":
            text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            text = text.removeprefix("Skipped: ")
            said = _SKIP.match(text)
            entry.update(outcome="skipped", code=said[1] if said else "other", reason=said[2] if said else text)

    def counts(self) -> dict[str, int]:
        """Tests by what came of them. newer: failed, but newer than the version that is held to."""
        counts = dict.fromkeys(("passed", "failed", "error", "skipped", "newer"), 0)
        for case in self.cases.values():
            counts[case["outcome"] if case["counted"] or case["outcome"] in ("passed", "skipped") else "newer"] += 1
        return counts

    @property
    def whole(self) -> bool:
        """Whether every case of the level has run, and not some that were chosen."""
        from cowshed_conformance.suite import MODULES

        ran = {name for name in self.known if name.rpartition("::")[2] in self.cases}
        return bool(ran) and len(ran) == len(self.known) and self.modules >= set(MODULES)

    def found(self) -> dict[str, Any]:
        """All of it, as the JSON report has it."""
        cases = sorted(self.cases.values(), key=lambda c: (c["case"], c["test"]))
        skipped = [{"code": c, "reason": r, "tests": tests} for (c, r), tests in self.skipped().items()]
        more = {"suite_version": versions.VERSION, "pinned": self.pinned, "whole": self.whole}
        return {**self.facts, **more, "counts": self.counts(), "skipped": skipped, "cases": cases}

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
        for case in self.cases.values():
            if case["outcome"] == "failed" and not case["counted"]:
                terminal.line(f"newer than version {self.pinned}, told and not counted: {case['test']} failed")
        for test in self.unexplained():
            terminal.line(f"skipped without a code, which counts as a failure: {test}")
        if folder:
            os.makedirs(folder, exist_ok=True)
            for name, kind in FILES.items():
                with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
                    file.write(self.text(kind))
            terminal.line(f"report: {folder}/conformance.md")

    def text(self, kind: str) -> str:
        """The report as one of `KINDS`."""
        if kind == "json":
            return json.dumps(self.found(), indent=1, default=str) + "\n"
        if kind == "markdown":
            return self.markdown()
        from cowshed_conformance import pages

        return pages.html(self.found()) if kind == "html" else pages.badge(self.found())

    def markdown(self) -> str:
        lines = [f"# Conformance of driver {self.facts.get('driver', '?')}", "", "| | |", "|---|---|"]
        facts = {**self.facts, "suite_version": versions.VERSION, "pinned": self.pinned or "no version"}
        for key, value in facts.items():
            text = ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
            lines.append(f"| {key} | {_cell(text)} |")
        lines.append(f"| result | {', '.join(f'{n} {what}' for what, n in self.counts().items() if n)} |")
        lines += ["", "| case | result | s | since | reason |", "|---|---|---|---|---|"]
        for case in sorted(self.cases.values(), key=lambda c: (c["case"], c["test"])):
            why = f"{case['code']}: {case['reason']}" if case["code"] else case["reason"]
            cells = [f"`{_cell(case['test'])}`", _outcome(case), f"{case['seconds']:.2f}", case["since"], _cell(why)]
            lines.append(f"| {' | '.join(map(str, cells))} |")
        lines += ["", "## Skipped and why", ""]
        for (code, reason), tests in self.skipped().items():
            lines.append(f"- {code}: {reason}: {', '.join(f'`{test}`' for test in tests)}")
        if not self.skipped():
            lines.append("Nothing.")
        return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _outcome(case: dict[str, Any]) -> str:
    newer = case["outcome"] == "failed" and not case["counted"]
    return "failed, not counted" if newer else str(case["outcome"])


def _why(report: pytest.TestReport) -> str:
    """What went wrong, in one line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    said = str(crash.message if crash is not None else report.longrepr or "").strip()
    return (said.splitlines() or [""])[0 if crash is not None else -1]
