"""Drivers by cases, from reports of several runs: what passed, what does not apply and by which capability, what did
not run and why. `condense` makes of a report what is worth keeping; `page` makes Markdown of what was kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from cowshed_conformance.catalogue import AREAS, ELSEWHERE, TITLES

FACTS = tuple(
    "driver distribution mounted_by kernel backing options date level seed suite suite_version python verdict".split()
)  # of a report, that are kept
WHOLE = 200  # numbers: a run with fewer was of chosen cases, and says nothing of the others
NOT_APPLICABLE = ("capability", "plan")  # other codes say that it could not be run there
_OWN_TESTS = {"suite": "the suite's own tests", "engine": "the engine's tests"}

Kept = dict[str, Any]


def condense(report: dict[str, Any]) -> Kept:
    """One result for each number: "passed", "failed", or the reasons (places in the list of reasons) for which some of
    its tests were skipped, after "passed" if others passed."""
    reasons: list[list[str]] = []
    cases: dict[str, Any] = {}
    for test in sorted(report["cases"], key=lambda test: (test["case"], test["test"])):
        number, outcome = test["case"], test["outcome"]
        found = cases.setdefault(number, [])
        if outcome == "skipped":
            reason = [test["code"], test["reason"]]
            if reason not in reasons:
                reasons.append(reason)
            outcome = reasons.index(reason)
        elif outcome == "error":
            outcome = "failed"
        if outcome not in found:
            found.append(outcome)
    for number, found in cases.items():
        if "failed" in found:
            cases[number] = "failed"
        elif found == ["passed"]:
            cases[number] = "passed"
        else:
            cases[number] = sorted(found, key=lambda each: (each != "passed", str(each)))
    facts = {name: report[name] for name in FACTS if name in report}
    return {
        **facts,
        "whole": len(cases) >= WHOLE,
        "reasons": reasons,
        "cases": {number: cases[number] for number in TITLES if number in cases},
    }


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One report of a run that was made in parts, or of which a part was made again: of a test that several have, the
    latest result, be it skipped only where it always was or where what failed turned out not to apply; of facts the
    latest, of the level the lowest."""
    parts = sorted(parts, key=lambda part: str(part["date"]))
    tests: dict[str, dict[str, Any]] = {}
    for test in (test for part in parts for test in part["cases"]):
        before = tests.get(test["test"], test)["outcome"]
        if (
            test["outcome"] != "skipped"
            or before == "skipped"
            or (before != "passed" and test["code"] in NOT_APPLICABLE)
        ):
            tests[test["test"]] = test
    seeds = dict.fromkeys(str(part["seed"]) for part in parts)
    level = "full" if all(part["level"] != "core" for part in parts) else "core"
    return {**parts[-1], "level": level, "seed": ", ".join(seeds), "cases": list(tests.values())}


def name_of(kept: Kept, run: str) -> str:
    """What to call the file that a run is kept in, which was called so: the next one of that name on such a machine
    replaces it."""
    words = [run, kept["backing"].partition(" ")[0], *release(kept).split(".")[:2], stand_in(kept)]
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


def stand_in(kept: Kept) -> str:
    """What has mounted in the place of a kernel that lacks a file system, or nothing."""
    said = kept.get("mounted_by", "the kernel")
    return "" if said == "the kernel" else str(said).partition(",")[0]


def release(kept: Kept) -> str:
    return str(kept["kernel"]).split()[1]


def page(kept: Sequence[Kept], note: str) -> str:
    """The matrix, for people."""
    kept = sorted(kept, key=lambda run: (run["driver"], not run["whole"], name_of(run, _options(run))))
    reasons: list[tuple[str, str]] = []
    for run in kept:
        reasons += [(code, text) for code, text in run["reasons"] if (code, text) not in reasons]
    drivers = len({run["driver"] for run in kept})
    lines = [
        "# Drivers by cases",
        "",
        note,
        "What the [conformance suite](../how-to/run-the-conformance-suite.md) found:",
        f"{len(TITLES)} cases on {drivers} drivers, in {len(kept)} runs.",
        "*n/a* does not apply: a capability that the driver does not claim, or a thing that its plans do not have.",
        "*not run* needs another kernel, file system or tool; without a number, nobody has tried it there.",
        "The number tells [the reason](#reasons);",
        "after *passed* it is the reason for which a part of the case was left out.",
        "A run of chosen cases has no word for the others.",
        "",
        "| | driver | kernel | on | date | level | seed | passed | n/a | not run | failed |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for n, run in enumerate(kept, 1):
        kinds = [kind(run, number) for number in TITLES]
        cells = [
            n, _name(run) + _options(run), release(run), run["backing"], run["date"][:10], run["level"], _seed(run),
            *[kinds.count(what) for what in ("passed", "n/a", "not run", "failed")],
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    area = ""
    for number, title in TITLES.items():
        if number[0] != area:
            area = number[0]
            heads = " | ".join(f"{_name(run)} ({n})" for n, run in enumerate(kept, 1))
            lines += ["", f"## {AREAS[area]}", "", f"| | case | {heads} |", "|---|---|" + "---|" * len(kept)]
        if number in ELSEWHERE:
            code, where_ = ELSEWHERE[number]
            said = f"issue {where_}" if code == "issue" else f"{_OWN_TESTS[code]}: `{where_.rpartition('::')[2]}`"
            cells = [f"*{said}*", *[""] * (len(kept) - 1)]
        else:
            cells = [_result(run, number, reasons) for run in kept]
        lines.append(f"| {number} | {_cell(title)} | {' | '.join(cells)} |")
    lines += ["", "## Reasons", ""]
    lines += [f"{n}. {code}: {_text(text)}" for n, (code, text) in enumerate(reasons, 1)]
    return "\n".join(lines) + "\n"


def kind(run: Kept, number: str) -> str:
    """passed, failed, n/a, not run; nothing if another test than the suite's cases has it."""
    found = run["cases"].get(number)
    if number in ELSEWHERE:
        return ""
    if found is None:
        return "not run" if run["whole"] else ""
    if isinstance(found, str):
        return found
    if "passed" in found:
        return "passed"
    return "n/a" if all(run["reasons"][n][0] in NOT_APPLICABLE for n in found) else "not run"


def _result(run: Kept, number: str, reasons: Sequence[tuple[str, str]]) -> str:
    found = run["cases"].get(number, ())
    told = [] if isinstance(found, str) else [n for n in found if n != "passed"]
    numbers = sorted(reasons.index((run["reasons"][n][0], run["reasons"][n][1])) + 1 for n in told)
    word = kind(run, number)
    if word == "failed":
        word = "**failed**"
    return " ".join([word, ", ".join(map(str, numbers))]).strip()


def _name(run: Kept) -> str:
    return str(run["driver"]) + (f", mounted by {stand_in(run)}" if stand_in(run) else "")


def _seed(run: Kept) -> str:
    """Of a run in many parts, each with its own, only their number: the kept file has them."""
    several = str(run["seed"]).count(",") + 1
    return str(run["seed"]) if several <= 2 else f"{several} seeds"


def _options(run: Kept) -> str:
    said = {key: value for key, value in run["options"].items() if value not in (None, "", False)}
    return f" ({', '.join(f'{key}={value}' for key, value in said.items())})" if said else ""


def _cell(value: object) -> str:
    return _text(str(value)).replace("|", "\\|")


def _text(text: str) -> str:
    return " ".join(text.replace("<", "&lt;").replace("*", "\\*").split())
