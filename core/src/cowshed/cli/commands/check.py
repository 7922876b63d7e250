"""storage check, storage repair, storage rescue; system check."""

from __future__ import annotations

import sys

from cowshed.cli import pruning
from cowshed.errors import BadUsage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cowshed.check.findings import Finding
    from cowshed.check.rebuild import Rebuilt
    from cowshed.cli.parser import Values
    from cowshed.engine import Engine

COLUMNS = ("Severity", "Code", "Object", "Text")
_RESUME = "continue"  # a word of Python, so no attribute of what was said


def check(engine: Engine, said: Values) -> int:
    """`clean` is the last line if all fits, or how many findings there are. Nothing is changed."""
    engine.looking = True
    return _check(engine, said, notes=True)


def system(engine: Engine, said: Values) -> int:
    """The same, after what dead commands left is removed."""
    from cowshed.check import files
    from cowshed.container.prune import remove_leftovers

    if not any(map(files.is_blocking, files.look(engine.settings.root))):
        remove_leftovers(engine)
    return _check(engine, said, notes=False)


def _check(engine: Engine, said: Values, *, notes: bool) -> int:
    from cowshed.check.findings import NOTE
    from cowshed.check.look import check as look

    resume = bool(said.get(_RESUME))
    if resume and not said.deep:
        raise BadUsage("--continue goes on with a deep check", remedy="add --deep")
    found: list[Finding] = []
    count = 0
    try:
        for finding in look(engine, deep=bool(said.deep), resume=resume, told=told(said)):
            if finding.severity == NOTE and not notes:
                continue
            count += finding.severity != NOTE
            if said.format:
                found.append(finding)
            else:
                print(finding.line if finding.severity != NOTE else f"note: {finding.line}", flush=True)
    except KeyboardInterrupt:
        if not said.deep:
            raise
        return _interrupted(engine)
    if said.format:
        _listed(found, said)
    else:
        print("clean" if not count else f"{count} findings")
    return 1 if count else 0


def told(said: Values) -> Callable[[str], object]:
    """What tells how a check that reads everything goes: a line that is written over, on a terminal only."""
    if said.format or not sys.stderr.isatty():
        return lambda text: None
    return lambda text: sys.stderr.write(f"\r\x1b[K{text[:79]}\r")


def _interrupted(engine: Engine) -> int:
    from cowshed.check.memory import Memory

    how_far = Memory(engine.store, resume=True).said
    sys.stderr.write(f"cowshed: interrupted: {how_far}: cowshed storage check --deep --continue goes on from there\n")
    return 130


def _listed(found: Iterable[Finding], said: Values) -> None:
    from cowshed.cli import output

    output.listing([finding.document() for finding in found], COLUMNS, said.format, what="storage check")


def repair(engine: Engine, said: Values) -> int:
    """Show the plan, ask, do it step by step, check again."""
    if said.rebuild_database:
        if said.remove_layer:
            raise BadUsage("--remove-layer and --rebuild-database are two repairs", remedy="do one after the other")
        return _rebuild(engine, said)
    from cowshed.check import look
    from cowshed.check import repair as repairs
    from cowshed.image import progress

    engine.looking = True
    found = list(look.check(engine, deep=bool(said.deep)))
    found = repairs.removing(found, said.remove_layer or ())
    steps = repairs.plan(found)
    if said.format:
        _listed(steps, said)
        return 0
    for finding in steps:
        print(f"{finding.code}: {finding.text}: {finding.repair}")
    for finding in found:
        if not finding.repair:
            print(f"cannot be repaired: {finding.line}")
    if not found:
        print("clean")
        return 0
    if said.dry_run or not steps:
        return 0 if said.dry_run else 1
    if not said.force and not pruning.consented(f"This will do {len(steps)} steps, as they are told above."):
        return 0
    engine.freeing = True
    with progress.choose(sys.stderr, quiet=True) as shown:
        for done in repairs.repair(engine, steps, shown):
            print(f"{'failed' if done.error else 'done'}: {done.finding.code} {done.finding.object}", end="")
            print(f": {done.error}" if done.error else "")
    return _check(engine, said, notes=False)


def _rebuild(engine: Engine, said: Values) -> int:
    from cowshed.check.rebuild import rebuild

    root = engine.settings.root
    print(f"The database of {root} is made again from drivers, records, blobs, containers and volumes.")
    print("The old one is kept beside it as lost-N.sqlite.")
    if said.dry_run:
        return 0
    if not said.force and not pruning.consented(
        "What only the old database knew is lost: when containers ran, and how they ended."
    ):
        return 0
    whole, missing = bool(said.replace_whole), bool(said.without_missing)
    _tell(rebuild(engine.settings, replace_whole=whole, without_missing=missing))
    engine.looking = True
    return _check(engine, said, notes=False)


def _tell(done: Rebuilt) -> None:
    for line in done.lost:
        print(f"lost: {line}")
    print(
        f"found: {done.drivers} drivers, {done.images} images, {done.layers} layers, {done.containers} containers, "
        f"{done.volumes} volumes"
    )


def rescue(engine: Engine, said: Values) -> int:
    """Write what can be read elsewhere; status 1 if something could not be."""
    import os

    from cowshed.check.rescue import rescue as rescue_

    if not said.to:
        raise BadUsage("storage rescue needs a place to write to", remedy="--to DIRECTORY")
    lost = 0
    for saved in rescue_(engine, os.path.abspath(said.to), lambda text: print(text, file=sys.stderr)):
        print(f"{saved.kind} {saved.name}: {saved.error or 'saved'}", flush=True)
        lost += bool(saved.error)
    return 1 if lost else 0
