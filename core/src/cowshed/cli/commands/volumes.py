"""volume create, ls, inspect, rm, prune."""

from __future__ import annotations

import os
import sys
import time

from cowshed.cli import output, pruning
from cowshed.container import lifecycle
from cowshed.container.mounts import check_volume_name
from cowshed.errors import BadUsage, Conflict, CowshedError, NotFound
from cowshed.filters import grouped
from cowshed.state import volumes
from cowshed.state.rows import VolumeRow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cowshed.cli.parser import Values
    from cowshed.engine import Engine


def create(engine: Engine, said: Values) -> int:
    name = said["operands"][0] if said["operands"] else os.urandom(32).hex()
    check_volume_name(name)
    with engine.store.transaction() as tx:
        volumes.insert(tx, VolumeRow(name, time.time_ns(), not said["operands"], said.label or {}))
    os.makedirs(f"{engine.store.root}/volumes/{name}/_data", exist_ok=True)
    print(name)
    return 0


def document(engine: Engine, row: VolumeRow) -> dict[str, Any]:
    return {
        "Name": row.name,
        "Driver": "local",
        "Mountpoint": f"{engine.reader.root}/volumes/{row.name}/_data",
        "CreatedAt": output.rfc3339(row.created),
        "Labels": row.labels,
        "Anonymous": row.anonymous,
        "Options": None,
        "Scope": "local",
    }


def _dangling(engine: Engine, value: str) -> Callable[[VolumeRow], bool]:
    if value not in ("true", "false", "1", "0"):
        raise BadUsage(f"--filter dangling is true or false, not {value!r}")
    wanted = value in ("true", "1")
    return lambda row: (not volumes.users(engine.reader, row.name)) is wanted


def _label(value: str, *, wanted: bool = True) -> Callable[[VolumeRow], bool]:
    key, equals, text = value.partition("=")
    return lambda row: (key in row.labels and (not equals or row.labels[key] == text)) is wanted


def list_(engine: Engine, said: Values) -> int:
    filters = grouped(said.filter or (), ("dangling", "label", "name"))
    tests = [_dangling(engine, value) for value in filters.get("dangling", ())[-1:]]
    tests += [_label(value) for value in filters.get("label", ())]
    if "name" in filters:
        tests.append(lambda row: any(value in row.name for value in filters["name"]))
    rows = [row for row in volumes.list_all(engine.reader) if all(fits(row) for fits in tests)]
    if said.quiet:
        for row in rows:
            print(row.name)
        return 0
    told = [
        {
            "Driver": "local",
            "Name": row.name,
            "Scope": "local",
            "Mountpoint": f"{engine.reader.root}/volumes/{row.name}/_data",
            "Labels": ",".join(f"{k}={v}" for k, v in row.labels.items()),
            "Label": lambda name, labels=row.labels: labels.get(name, ""),
        }
        for row in rows
    ]
    output.listing(told, ("Driver", "Name"), said.format, what="volume ls", headings={"NAME": "VOLUME NAME"})
    return 0


def inspect(engine: Engine, said: Values) -> int:
    found, status = [], 0
    for name in said["operands"]:
        try:
            found.append(document(engine, volumes.find(engine.reader, name)))
        except NotFound as error:
            sys.stderr.write(f"cowshed: {error}: {error.remedy}\n")
            status = 1
    if found or not said.format:
        output.document(found, said.format)
    return status


def _remove(engine: Engine, name: str) -> None:
    with engine.store.transaction() as tx:
        volumes.find(tx, name)
        rows = tx.execute(
            "select containers.name from volume_users join containers on number = container where volume = ?", name
        )
        if rows:
            names = ", ".join(row[0] for row in rows)
            raise Conflict(f"volume {name} is used by the container {names}", remedy="remove the container first")
        volumes.delete(tx, name)


def remove(engine: Engine, said: Values) -> int:
    engine.freeing = True
    status = 0
    for name in said["operands"]:
        try:
            _remove(engine, name)
        except NotFound as error:
            if not said.force:
                status = _complain(error)
                continue
        except CowshedError as error:
            status = _complain(error)
            continue
        print(name)
    lifecycle.remove_loose_volumes(engine)
    return status


def _complain(error: CowshedError) -> int:
    sys.stderr.write(f"cowshed: {error}: {error.remedy}\n")
    return 1


def prune(engine: Engine, said: Values) -> int:
    filters = grouped(said.filter or (), ("label", "label!"))
    tests = [_label(value, wanted=name == "label") for name, values in filters.items() for value in values]
    if not said.all:
        tests.append(lambda row: row.anonymous)
    what = "all volumes" if said.all else "anonymous volumes"
    if not (said.force or pruning.agreed(f"{what} that no container has")):
        return 0
    removed, freed = pruning.remove_volumes(engine, lambda row: all(fits(row) for fits in tests))
    pruning.tell("Volumes", removed)
    pruning.tell_freed(freed)
    return 0
