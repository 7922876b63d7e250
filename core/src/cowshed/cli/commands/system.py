"""system check, completion, version."""

from __future__ import annotations

from cowshed.errors import BadUsage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.cli.parser import Values
    from cowshed.engine import Engine


def check(engine: Engine, said: Values) -> int:
    """Every object of every driver against the rows, both ways; `clean` is the last line if all fits."""
    from cowshed.state import drivers

    findings = []
    for name in drivers.names(engine.store):
        layers = engine.layers(name)
        layers.remove_unreferenced()
        layers.purge(60.0)
        findings.extend([f"driver {name}: {finding.text}" for finding in layers.check()])
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
