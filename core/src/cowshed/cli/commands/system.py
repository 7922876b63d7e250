"""system check, completion, version."""

from __future__ import annotations

from cowshed.errors import BadUsage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.cli.parser import Values
    from cowshed.engine import Engine


def check(engine: Engine, said: Values) -> int:
    """Every object of every driver against the rows, both ways; `clean` is the last line if all fits."""
    from cowshed.storage.api import ObjectKind

    store = engine.store
    findings = []
    for (name,) in store.query("select name from drivers"):
        layers = engine.layers(name)
        layers.purge(60.0)
        known = {r[0]: (r[1], r[2]) for r in store.query("select id, kind, number from layers where driver = ?", name)}
        there = {}
        for found in layers.driver.scan():
            if found.kind is ObjectKind.LAYER:
                there[str(found.layer)] = found
                if str(found.layer) not in known:
                    findings.append(f"driver {name}: object {found.name} belongs to no layer")
            elif found.kind is not ObjectKind.AUXILIARY and str(found.layer) not in known:
                findings.append(f"driver {name}: {found.kind.value} {found.name} could not be purged")
        for id_, (_, number) in known.items():
            if id_ not in there and not store.locks.held("layers", number):
                findings.append(f"driver {name}: layer {id_} is missing")
    for number, op in store.query("select number, op from journal"):
        if not store.locks.held("layers", number) and not store.locks.held("monitors", number):
            findings.append(f"layer {number}: {op} was begun and not ended")
    for finding in findings:
        print(finding)
    print("clean" if not findings else f"{len(findings)} findings")
    return 1 if findings else 0


def completion(engine: Engine, said: Values) -> int:
    from cowshed.cli import completion as scripts

    shell = said["operands"][0]
    if shell not in scripts.SHELLS:
        raise BadUsage(f"there is no completion for {shell}", remedy=f"there is for {', '.join(scripts.SHELLS)}")
    print(scripts.SHELLS[shell]())
    return 0


def version(engine: Engine, said: Values) -> int:
    from cowshed.cli.main import VERSION

    print(f"cowshed {VERSION}")
    return 0
