"""What `storage convert`, `accept` and `rollback` print and ask of the engine."""

from __future__ import annotations

import sys

from cowshed import log
from cowshed.cli import output
from cowshed.cli.pruning import consented
from cowshed.errors import BadUsage, Conflict
from cowshed.image import progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.cli.parser import Values
    from cowshed.convert.plan import Plan, Wanted
    from cowshed.convert.settle import Outlook
    from cowshed.engine import Engine


def convert(engine: Engine, said: Values) -> int:
    from cowshed.convert import execute, facts, plan

    target = said.to
    if not target:
        raise BadUsage("it is not said where to", remedy="--to DRIVER; cowshed driver list shows those of this host")
    for pair in said.to_option or ():
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise BadUsage(f"--to-option {pair}: write NAME=VALUE")
        engine.settings.driver_options.setdefault(target, {})[name] = text
    if said.format and not said.plan:
        raise BadUsage("--format is for a plan", remedy="add --plan")
    whole = bool(said.all)
    wanted = facts.wanted(
        engine, said["operands"], images_=whole or bool(said.images), containers_=whole or bool(said.containers),
        lossy=bool(said.lossy),
    )  # fmt: skip
    if said.plan:
        planned = plan.plan(facts.gather(engine, target), wanted)
        _show(planned, said)
        return 125 if planned.refused else 0
    _ = engine.store  # what a dead command had begun is undone first
    with execute.Alone(engine):  # what is planned is so until it is done
        return _convert(engine, said, target, wanted)


def _convert(engine: Engine, said: Values, target: str, wanted: Wanted) -> int:
    from cowshed.convert import execute, facts, plan

    planned = plan.plan(facts.gather(engine, target), wanted)
    if planned.refused:
        more = f" (and {len(planned.refused) - 1} more: --plan tells)" if len(planned.refused) > 1 else ""
        raise Conflict(f"{planned.refused[0]}{more}", remedy="nothing was begun")
    for text in planned.left_out:
        log.warn(f"left out: {text}")
    if not planned.steps:
        print(f"nothing to convert to {target}")
        return 0
    with progress.choose(sys.stderr, quiet=bool(said.quiet)) as shown:
        execute.begin(engine, planned, lossy=wanted.lossy)
        run = execute.Conversion(engine, planned, shown)
        run.run()
    for text in run.failed:
        log.warn(f"not converted: {text}")
    print(
        f"Converted to {target}: {run.layers} layers, {run.containers} containers; {output.size(run.copied)} copied, "
        f"{output.size(run.shared)} shared, {run.sent} sent"
    )
    _hint(engine, target)
    return 1 if run.failed else 0


def _hint(engine: Engine, target: str) -> None:
    """Tell how it goes on, and what new containers would be made on."""
    print("What they had stays until: cowshed storage accept (or back: cowshed storage rollback)")
    settings = engine.settings
    if settings.driver and settings.driver != target:
        log.warn(f"new containers go to {settings.driver}: {settings.driver_from} says so")


def _show(planned: Plan, said: Values) -> None:
    rows = [
        {
            "Step": n, "Kind": step.kind, "Name": step.name, "From": step.source, "To": planned.target, "How": step.how,
            "Size": output.size(step.size), "Inodes": step.inodes, "SizeBytes": step.size,
        }
        for n, step in enumerate(planned.steps, 1)
    ]  # fmt: skip
    output.listing(rows, ("Step", "Kind", "Name", "From", "How", "Size", "Inodes"), said.format, what="storage convert")
    if said.format:
        return
    free = "" if planned.free is None else f", {output.size(planned.free)} free"
    print(f"Space: {output.size(planned.size)} in {planned.target}{free}")
    print(f"Time: about {_duration(planned.seconds)}")
    for title, texts in (
        ("Lost", [loss.text for loss in planned.losses if loss.certain]),
        ("Lost, where there is such a thing", [loss.text for loss in planned.losses if not loss.certain]),
        ("Left out", planned.left_out),
        ("Refused", planned.refused),
    ):
        for text in texts:
            print(f"{title}: {text}")


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "a second"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def accept(engine: Engine, said: Values) -> int:
    from cowshed.convert import execute, settle

    engine.freeing = True
    if said.plan:
        _tell(settle.outlook_of_acceptance(engine), "would be let go", said)
        return 0
    if not said.force:
        _tell(settle.outlook_of_acceptance(engine), "would be let go", said)
        if not consented("This will remove what the conversion was made from: there is no way back then."):
            return 0
    with execute.Alone(engine):
        outlook = settle.accept(engine)
    _tell(outlook, "let go", said)
    return 0


def rollback(engine: Engine, said: Values) -> int:
    from cowshed.convert import execute, settle

    engine.freeing = True
    lossy = bool(said.lossy)
    if said.plan or not said.force:
        outlook = settle.outlook_of_return(engine, lossy=lossy)
        if not said.plan:
            settle.refuse(outlook)
        _tell(outlook, "would be undone", said)
        if said.plan:
            return 125 if outlook.refused else 0
        since = ", and what containers have written since then" if lossy else ""
        if not consented(f"This will remove what the conversion has made{since}."):
            return 0
    with execute.Alone(engine):
        outlook = settle.roll_back(engine, lossy=lossy)
    _tell(outlook, "undone", said)
    return 0


def _tell(outlook: Outlook, what: str, said: Values) -> None:
    for text in outlook.kept:
        log.warn(text)
    if said.quiet:
        return
    names = ", ".join(outlook.containers) or "none"
    print(f"Conversion from {', '.join(outlook.sources) or 'nothing'} to {outlook.target}: {what}")
    print(f"Layers of images: {outlook.layers}; containers: {names}")
    if outlook.gone:
        print(f"Layers of containers that were removed since: {outlook.gone}")
    for text in outlook.refused:
        print(f"Refused: {text}")
