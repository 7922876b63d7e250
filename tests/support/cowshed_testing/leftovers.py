"""What of a store is accounted for by nobody: files without a row, groups without a container, mounts, loop devices."""

from __future__ import annotations

import _sqlite3
import glob
import json
import os

_TOP = {
    *("db.sqlite", "db.sqlite-wal", "db.sqlite-shm", "ballast", "numbers"),
    *("locks", "blobs", "drivers", "containers", "volumes", "cache", "records"),
}


def _column(db: _sqlite3.Connection, sql: str) -> set[str]:
    return {str(row[0]) for row in db.execute(sql)}


def _names(folder: str) -> set[str]:
    return set(os.listdir(folder)) if os.path.isdir(folder) else set()


def files(root: str, run: str) -> list[str]:
    """Every path below a store at rest, and below its run directory, that nothing in the database accounts for; and
    what the database says is there and is not. For drivers whose layers are directories."""
    db = _sqlite3.connect(f"file:{root}/db.sqlite?mode=ro", uri=True)
    try:
        listed = [json.loads(row[0]) for row in db.execute("select blobs from images")]
        wanted = {
            root: _TOP,
            f"{root}/blobs": {"sha256", "partial"},
            f"{root}/blobs/sha256": {blob[0][7:] for blobs in listed for blob in blobs},
            f"{root}/blobs/partial": set(),
            f"{root}/drivers": _column(db, "select name from drivers"),
            f"{root}/containers": _column(db, "select id from containers"),
            f"{root}/volumes": _column(db, "select name from volumes"),
        }
        for driver in wanted[f"{root}/drivers"]:
            folder = f"{root}/drivers/{driver}"
            wanted[folder] = {"format", "store", "temp", "trash", "active", "committed"}
            wanted[f"{folder}/temp"] = wanted[f"{folder}/trash"] = set()
            for kind in ("active", "committed"):
                sql = f"select id from layers where driver = '{driver}' and kind = '{kind}'"
                wanted[f"{folder}/{kind}"] = _column(db, sql)
        ids = {id_[:32] for id_ in wanted[f"{root}/containers"]}
        unfinished = [f"row {row}" for row in db.execute("select * from journal")]
        unfinished += [f"row {row}" for row in db.execute("select * from loose_layers, loose_volumes")]
    finally:
        db.close()
    found = unfinished
    for folder, names in wanted.items():
        there = _names(folder)
        found += [f"left: {folder}/{name}" for name in sorted(there - names)]
        if folder != root:
            found += [f"missing: {folder}/{name}" for name in sorted(names - there)]
    found += [
        f"left: {run}/{name}"
        for name in sorted(_names(run))
        if name not in ("c", "metrics") and not name.startswith("zygote")
    ]
    found += [f"left: {run}/c/{name}" for name in sorted(_names(f"{run}/c") - ids)]
    return found


def groups(ids: set[str]) -> list[str]:
    """Control groups of these containers."""
    return [path for path in glob.glob("/sys/fs/cgroup/*/cowshed/*") + glob.glob("/sys/fs/cgroup/cowshed/*")
            if os.path.basename(path) in ids]  # fmt: skip


def mounts(root: str) -> list[str]:
    """Processes whose mount table names the store, and loop devices whose file lies in it."""
    mark, found = os.fsencode(root), []
    for path in glob.glob("/proc/[0-9]*/mountinfo") + glob.glob("/sys/block/loop*/loop/backing_file"):
        try:
            with open(path, "rb") as f:
                if mark in f.read():
                    found.append(path)
        except OSError:
            continue  # gone meanwhile; a zombie has none
    return found
