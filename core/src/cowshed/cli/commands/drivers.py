"""driver list, driver why."""

from __future__ import annotations

from cowshed.cli import output
from cowshed.config import selection
from cowshed.errors import CowshedError
from cowshed.layers.host import EngineHost
from cowshed_runtime.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.cli.parser import Values
    from cowshed.config.selection import Probed
    from cowshed.engine import Engine


def _document(probed: Probed) -> dict[str, Any]:
    report = probed.report
    if report is None:
        return {
            "name": probed.name, "distribution": probed.distribution, "verdict": "broken", "summary": probed.summary,
            "facts": {}, "reasons": [{"code": "broken", "text": probed.error, "remedy": "", "verdict": "unusable"}],
        }  # fmt: skip
    reasons = [{"code": r.code, "text": r.text, "remedy": r.remedy, "verdict": r.verdict.value} for r in report.reasons]
    return {
        "name": probed.name, "distribution": probed.distribution, "verdict": report.verdict.value,
        "summary": probed.summary, "facts": dict(report.facts), "reasons": reasons,
    }  # fmt: skip


def list_(engine: Engine, said: Values) -> int:
    found = [_document(p) for p in selection.probe_all(engine.settings, EngineHost())]
    if said.format == "json":
        output.document(found, "json")
        return 0
    rows = [{
        "Name": d["name"], "Verdict": d["verdict"], "Distribution": d["distribution"], "Summary": d["summary"],
        "Reason": d["reasons"][0]["text"] if d["reasons"] else "",
    } for d in found]  # fmt: skip
    output.listing(rows, ("Name", "Verdict", "Distribution", "Reason"), said.format, what="driver list")
    return 0


def why(engine: Engine, said: Values) -> int:
    probed = selection.probe_all(engine.settings, EngineHost())
    problem = ""
    try:
        choice = selection.choose(engine.settings, engine.stored_driver(), EngineHost())
        name, steps = choice.name, [{"source": s.source, "outcome": s.outcome} for s in choice.steps]
    except CowshedError as error:
        name, steps, problem = "", [], f"{error}: {error.remedy}"
    document: dict[str, Any] = {
        "choice": name, "root": engine.settings.root, "steps": steps, "problem": problem,
        "drivers": [_document(p) for p in probed],
    }  # fmt: skip
    if said.format == "json":
        print(dumps(document))
        return 0
    if said.format:
        output.document([document], said.format)
        return 0
    print(f"For the store at {engine.settings.root}: {name or 'no driver'}")
    for line in steps:
        print(f"  {line['source']}: {line['outcome']}")
    if problem:
        print(f"  {problem}")
    for driver in document["drivers"]:
        print(f"\n{driver['name']} ({driver['distribution']}): {driver['verdict']}")
        for key, value in driver["facts"].items():
            print(f"  {key}: {str(value).lower() if isinstance(value, bool) else value}")
        for reason in driver["reasons"]:
            print(f"  {reason['text']}" + (f" ({reason['remedy']})" if reason["remedy"] else ""))
    return 0
