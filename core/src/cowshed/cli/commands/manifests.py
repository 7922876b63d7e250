"""image copy, and manifest: create, add, annotate, inspect, remove, push, rm, exists."""

from __future__ import annotations

import sys

from cowshed.cli import output, reaching
from cowshed.image import lists, progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.cli.parser import Values
    from cowshed.engine import Engine
    from cowshed.image.lists import Said


def copy(engine: Engine, said: Values) -> int:
    from cowshed.image import platform
    from cowshed.image.copying import copy as copy_

    source, target = said["operands"]
    ends = reaching.reach(said, "src"), reaching.reach(said, "dest")
    with progress.choose(sys.stderr, quiet=bool(said.quiet)) as shown:
        done = copy_(
            engine, source, target, every=bool(said.all), referrers=bool(said.referrers),
            platform=platform.parse(said.platform) if said.platform else None, progress=shown,
            reach_source=ends[0], reach_goal=ends[1],
        )  # fmt: skip
    if target.rpartition(":")[2] != "-":
        print(done.digest)
    return 0


def create(engine: Engine, said: Values) -> int:
    from cowshed.image import reference

    name, *images = said["operands"]
    lists.create(
        engine, name, images, amend=bool(said.amend), every=bool(said.all), annotations=said.annotation,
        reach=reaching.reach(said),
    )  # fmt: skip
    print(f"Created manifest list {reference.familiar(lists.canonical(name))}")
    return 0


def _said(said: Values) -> Said:
    return lists.Said(
        os=said.os or "",
        architecture=said.arch or "",
        variant=said.variant or "",
        os_version=said.os_version or "",
        features=tuple(said.features or ()),
        os_features=tuple(said.os_features or ()),
        annotations=said.annotation or {},
    )


def add(engine: Engine, said: Values) -> int:
    name, *images = said["operands"]
    reach = reaching.reach(said, registries=[lists.registry_of(image) for image in images])
    for image in images:
        print(lists.add(engine, name, image, every=bool(said.all), said=_said(said), reach=reach))
    return 0


def annotate(engine: Engine, said: Values) -> int:
    from cowshed.errors import BadUsage

    name, *rest = said["operands"]
    if bool(rest) == bool(said.index):
        raise BadUsage("manifest annotate needs an image of the list, or --index", remedy="--help tells more")
    lists.annotate(engine, name, rest[0] if rest else "", _said(said))
    return 0


def inspect(engine: Engine, said: Values) -> int:
    """Of a list and one of its images, as docker takes them, the image's manifest."""
    text = said["operands"][-1]
    if len(said["operands"]) == 2:
        lists.canonical(said["operands"][0])
    from cowshed_runtime.fastjson import pretty

    value = lists.show(engine, text, progress.Progress(), reaching.reach(said))
    if said.format:
        output.one(value, said.format)
    else:
        print(pretty(value))
    return 0


def remove_entry(engine: Engine, said: Values) -> int:
    name, *images = said["operands"]
    for image in images:
        print(lists.remove_entry(engine, name, image))
    return 0


def remove(engine: Engine, said: Values) -> int:
    from cowshed.image import reference

    for name in said["operands"]:
        lists.remove(engine, name)
        print(f"Deleted: {reference.familiar(lists.canonical(name))}")
    return 0


def exists(engine: Engine, said: Values) -> int:
    return 0 if lists.index(engine, said["operands"][0]) is not None else 1


def push(engine: Engine, said: Values) -> int:
    name, *rest = said["operands"]
    goal, reach = rest[0] if rest else "", reaching.reach(said)
    with progress.choose(sys.stderr, quiet=bool(said.quiet)) as shown:
        done = lists.push(engine, name, goal, docker=said.format == "v2s2", progress=shown, reach=reach)
    print(done.digest)
    if said.purge:
        lists.remove(engine, name)
    return 0
