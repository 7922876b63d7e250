"""runtime list, runtime why."""

from __future__ import annotations

from cowshed.cli import output
from cowshed.errors import CowshedError, NotFound
from cowshed.runtimes import choice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.cli.parser import Values
    from cowshed.engine import Engine
    from cowshed.runtimes.trial import Trial


def _document(engine: Engine, known: choice.Known) -> dict[str, Any]:
    """Of one runtime, asked and tried anew."""
    name, found = known.found["name"], known.found
    try:
        if known.error:
            raise NotFound(known.error, remedy=known.remedy)
        trial = choice.tried(engine, choice.find(engine.settings, name) if known.find else found, again=True)
    except CowshedError as error:
        return _row(known, "broken", "", str(error), error.remedy, {}, [])
    tries = [{"Way": way, "Text": text} for way, text in trial.refusals]
    if trial.error:
        remedy = f"options that it needs here go into [runtimes.{name}]; see docs/how-to/use-another-runtime.md"
        return _row(known, "unusable", trial.kind, trial.error, remedy, trial.facts, tries)
    return _row(known, "good", trial.kind, _needs(trial), "", trial.facts, tries)


def _needs(trial: Trial) -> str:
    if not trial.way:
        return "it has run a container here"
    return f"as it is it refuses this host ({trial.refusals[0][1]}), so {trial.way}, and has run a container"


def _row(
    known: choice.Known, verdict: str, kind: str, reason: str, remedy: str, facts: dict[str, Any], tries: list[Any]
) -> dict[str, Any]:
    found = known.found
    return {
        "Name": found["name"], "Verdict": verdict, "Kind": kind, "Path": found["path"],
        "Options": list(found["options"]), "Settings": found["settings"], "Source": known.source, "Reason": reason,
        "Remedy": remedy, "Facts": facts, "Refusals": tries,
    }  # fmt: skip


def list_(engine: Engine, said: Values) -> int:
    found = choice.known(engine.settings)
    if said.quiet:
        for one in found:
            print(one.found["name"])
        return 0
    rows = [_document(engine, one) for one in found]
    output.listing(rows, ("Name", "Verdict", "Kind", "Path", "Reason"), said.format, what="runtime list")
    return 0


def why(engine: Engine, said: Values) -> int:
    settings = engine.settings
    steps, chosen = [], False
    for one in settings.runtimes_said:
        outcome = f"says {one.value}" if one.value else "says nothing"
        if one.value and chosen:
            outcome += ", which is overruled"
        chosen = chosen or bool(one.value)
        steps.append({"Source": one.source, "Outcome": outcome})
    if not chosen:
        steps.append({"Source": "the default", "Outcome": "native"})
    rows = [_document(engine, one) for one in choice.known(settings)]
    mine = next((row for row in rows if row["Name"] == settings.runtime), None)
    if mine is None:
        problem, remedy = choice.missing(settings, settings.runtime)
    else:
        problem, remedy = ("", "") if mine["Verdict"] == "good" else (mine["Reason"], mine["Remedy"])
    document: dict[str, Any] = {
        "Choice": settings.runtime, "Steps": steps, "Problem": problem, "Remedy": remedy, "Runtimes": rows,
    }  # fmt: skip
    if said.format:
        output.one(document, said.format)
        return 0
    print(f"Containers are started by {settings.runtime}")
    for step in steps:
        print(f"  {step['Source']}: {step['Outcome']}")
    if problem:
        print(f"  problem: {problem}\n  what to do: {remedy}")
    for row in rows:
        _show(row)
    return 0


def _show(row: dict[str, Any]) -> None:
    print(f"\n{row['Name']} ({row['Source']}): {row['Verdict']}")
    for title, value in (
        ("program", row["Path"]), ("options", " ".join(row["Options"])), ("settings", row["Settings"]),
        ("driven as", row["Kind"]),
    ):  # fmt: skip
        if value:
            print(f"  {title}: {value}")
    for key, value in row["Facts"].items():
        print(f"  fact: {key} = {str(value).lower() if isinstance(value, bool) else value}")
    for one in row["Refusals"]:
        print(f"  tried: {one['Way']}: {one['Text']}")
    print(f"  {row['Verdict']}: {row['Reason']}")
    if row["Remedy"]:
        print(f"    what to do: {row['Remedy']}")
