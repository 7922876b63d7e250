"""driver list, driver why, driver stats, driver new."""

from __future__ import annotations

import sys

from cowshed import log
from cowshed.cli import output
from cowshed.config import selection
from cowshed.layers import host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.cli.parser import Values
    from cowshed.config.selection import Probed
    from cowshed.engine import Engine


def _document(probed: Probed) -> dict[str, Any]:
    report = probed.report
    if report is None:
        verdict, facts = "broken", {}
        reasons = [{"Code": "broken", "Text": probed.error, "Remedy": probed.remedy, "Verdict": "broken"}]
    else:
        verdict, facts = report.verdict.value, dict(report.facts)
        reasons = [
            {"Code": r.code, "Text": r.text, "Remedy": r.remedy, "Verdict": r.verdict.value} for r in report.reasons
        ]
    return {
        "Name": probed.name, "Distribution": probed.distribution, "Verdict": verdict, "Summary": probed.summary,
        "Options": probed.options, "Facts": facts, "Reasons": reasons,
    }  # fmt: skip


def list_(engine: Engine, said: Values) -> int:
    if said.refresh:
        _refresh(engine)
    probed = selection.probe_all(engine.settings, host.make(), engine.stored_driver(), engine.kept_options())
    if said.quiet:
        for one in probed:
            print(one.name)
        return 0
    rows = []
    for one in probed:
        row = _document(one)
        reason = next((r for r in row["Reasons"] if r["Verdict"] == row["Verdict"]), {"Text": "", "Remedy": ""})
        rows.append({**row, "Reason": reason["Text"], "Remedy": reason["Remedy"]})
    output.listing(rows, ("Name", "Verdict", "Distribution", "Reason"), said.format, what="driver list")
    sys.stdout.flush()
    for one in probed:
        _trace(one)
    return 0


def _trace(probed: Probed) -> None:
    if probed.trace:
        log.debug_block(f"driver {probed.name} of {probed.distribution} failed here", probed.trace)


def _refresh(engine: Engine) -> None:
    """Look again for every driver that the store remembers, whatever the times of its files say."""
    from cowshed.errors import NotFound
    from cowshed.state import drivers
    from cowshed.storage import registry
    from cowshed.storage.errors import Unsupported

    for name in drivers.names(engine.store):
        row = drivers.get(engine.store, name)
        try:
            _, found = registry.load(name, refresh=True)
        except (NotFound, Unsupported):
            continue  # the list tells why
        fresh = registry.as_dict(found)
        if row is not None and row.remembered != fresh:
            with engine.store.transaction() as tx:
                drivers.set_remembered(tx, name, fresh)
            before = " of ".join(str(row.remembered.get(key, "?")) for key in ("attr", "path"))
            now = f"{found.attr} of {found.path}"
            if now == before:
                log.info(f"driver {name} was installed again")
            else:
                log.warn(f"driver {name} was remembered as {before}; it is {now}")


def why(engine: Engine, said: Values) -> int:
    told = selection.explain(engine.settings, engine.stored_driver(), host.make(), engine.kept_options())
    for one in told.probed:
        _trace(one)
    document: dict[str, Any] = {
        "Choice": told.choice.name if told.choice else "", "Root": engine.settings.root,
        "Steps": [{"Source": s.source, "Outcome": s.outcome, "Kind": s.kind} for s in told.steps],
        "Problem": told.problem, "Remedy": told.remedy, "Drivers": [_document(p) for p in told.probed],
    }  # fmt: skip
    if said.format:
        output.one(document, said.format)
        return 0
    print(f"For the store at {document['Root']}: {document['Choice'] or 'no driver'}")
    for step in document["Steps"]:
        print(f"  {step['Source']}: {step['Outcome']}")
    if told.problem:
        print(f"  problem: {told.problem}")
        if told.remedy:
            print(f"  what to do: {told.remedy}")
    for driver in document["Drivers"]:
        print(f"\n{driver['Name']} ({driver['Distribution']}): {driver['Verdict']}")
        if driver["Summary"]:
            print(f"  {driver['Summary']}")
        for title, values in (("option", driver["Options"]), ("fact", driver["Facts"])):
            for key, value in values.items():
                print(f"  {title}: {key} = {_shown(value)}")
        for reason in driver["Reasons"]:
            print(f"  {reason['Verdict']}: {reason['Text']}")
            if reason["Remedy"]:
                print(f"    what to do: {reason['Remedy']}")
    return 0


def stats(engine: Engine, said: Values) -> int:
    """Of all drivers that this store has, or of those that are named."""
    from cowshed.errors import NotFound
    from cowshed.layers import metrics
    from cowshed.state import drivers

    known, names = drivers.names(engine.reader), said["operands"]
    for name in names:
        if name not in known:
            raise NotFound(f"this store has not been used with driver {name}", remedy="cowshed info tells with which")
    rows = [
        {
            "Driver": row.driver, "Kind": row.kind, "Name": row.name, "Count": row.count, "Failed": row.failed,
            "Total": _seconds(row.seconds), "Mean": _seconds(row.seconds / row.count),
            "Longest": _seconds(row.longest), "TotalSeconds": row.seconds, "LongestSeconds": row.longest,
        }
        for row in metrics.read(engine.reader.run)
        if not names or row.driver in names
    ]  # fmt: skip
    columns = ("Driver", "Kind", "Name", "Count", "Failed", "Total", "Mean", "Longest")
    output.listing(rows, columns, said.format, what="driver stats")
    if said.reset:
        metrics.forget(engine.reader.run)
    return 0


def _seconds(value: float) -> str:
    if value < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} s" if value < 1000 else f"{value:.0f} s"


def new(engine: Engine, said: Values) -> int:
    from cowshed.scaffold.new import write

    words = said["operands"]
    directory, made = write(*words)
    if said.quiet:
        print(directory)
        return 0
    for path in made:
        print(f"{directory}/{path}")
    print(f"\nTo install it: pip install -e {directory}")
    print(f"To see it:     cowshed driver list\nTo test it:    cowshed-conformance {words[0]} --level core")
    return 0


def _shown(value: str | int | bool | None) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "not set" if value is None else str(value)
