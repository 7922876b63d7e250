"""The whole store against itself: database, drivers, blobs, the files of containers and volumes, monitors.

Read only: what is found is told. What commands are working on just now is left out: a finding is told if it is there at
two looks.
"""

from __future__ import annotations

import os

from cowshed.container import state
from cowshed.errors import CowshedError
from cowshed.image.blobs import BlobStore
from cowshed.layers.health import warn_of_health
from cowshed.monitor import client
from cowshed.state import containers, drivers, volumes
from cowshed.storage.errors import StorageError
from cowshed_runtime.fastjson import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cowshed.engine import Engine
    from cowshed.storage.api import Finding


def check(engine: Engine, *, deep: bool = False) -> list[str]:
    """What does not fit, a line each. With deep every blob is read, the database checked row by row, and drivers that
    check themselves read what is in their layers."""
    found = list(_database(engine, deep))
    for name in drivers.names(engine.store):
        try:
            held = engine.layers(name)
            warn_of_health(held)
            found += [f"driver {name}: {_words(finding)}" for finding in held.check(deep=deep)]
        except (CowshedError, StorageError, OSError) as error:
            found.append(f"driver {name}: cannot be opened: {error}")
    found += _at_two_looks(lambda: _blobs(engine))
    found += _at_two_looks(lambda: _folders(engine))
    found += _at_two_looks(lambda: _monitors(engine))
    if deep:
        found += _damaged_blobs(engine)
    return found


def _words(finding: Finding) -> str:
    return f"{finding.text}: {finding.repair}" if finding.repair else finding.text


def _at_two_looks(look: Callable[[], Iterator[str]]) -> list[str]:
    first = list(look())
    again = set(look()) if first else set()
    return [text for text in first if text in again]


def _database(engine: Engine, deep: bool) -> Iterator[str]:
    # Not quick_check: SQLite 3.40 takes a primary key in another order than its columns for a NULL in them.
    for (said,) in engine.store.query("pragma integrity_check") if deep else ():
        if said != "ok":
            yield f"database: {said}"
    for table, row, parent, _ in engine.store.query("pragma foreign_key_check"):
        yield f"database: row {row} of {table} names a row of {parent} that is not there"


def _blobs(engine: Engine) -> Iterator[str]:
    blobs = BlobStore(engine.store.root)
    seen: set[str] = set()
    for id_, listed in engine.store.query("select id, blobs from images"):
        for digest, _, size in loads(listed):
            there = -1 if digest in seen else blobs.size(digest)
            if digest in seen or there == size:
                seen.add(digest)
            elif there < 0:
                yield f"image {id_[7:19]}: blob {digest[:19]} is missing: pull the image again"
            else:
                yield f"image {id_[7:19]}: blob {digest[:19]} has {there} bytes, not {size}: pull the image again"


def _damaged_blobs(engine: Engine) -> Iterator[str]:
    import hashlib

    blobs = BlobStore(engine.store.root)
    for digest in blobs.digests():
        algorithm, _, wanted = digest.partition(":")
        found = hashlib.new(algorithm, usedforsecurity=False)
        try:
            for piece in blobs.read(digest):
                found.update(piece)
        except FileNotFoundError:
            continue  # removed meanwhile
        if found.hexdigest() != wanted:
            yield f"blob {digest[:19]} is damaged: remove {blobs.path(digest)} and pull its image again"


def _folders(engine: Engine) -> Iterator[str]:
    store = engine.store
    rows = {row.id: row for row in containers.list_all(store)}
    there = set(os.listdir(f"{store.root}/containers"))
    for id_ in sorted(there - rows.keys()):
        yield f"containers/{id_} belongs to no container"
    for row in rows.values():
        made = row.state not in ("creating", "removing")
        if made and not os.path.exists(f"{store.root}/containers/{row.id}/config.json"):
            yield f"container {row.name}: its configuration is missing: remove it"
    known = {volume.name for volume in volumes.list_all(store)} | set(volumes.loose(store))
    for name in sorted(set(os.listdir(f"{store.root}/volumes")) - known):
        yield f"volumes/{name} belongs to no volume"


def _monitors(engine: Engine) -> Iterator[str]:
    for row in containers.list_all(engine.store):
        if row.state != "running" or engine.store.locks.held("monitors", row.number):
            continue
        place = engine.place(row)
        if client.exit_record(place) is None and state.alive(place):
            yield f"container {row.name} runs without its monitor, which was killed: stop it, or remove it with -f"
