"""What dead commands and containers left outside of the drivers, and nothing claims: directories of containers that are
no more, copies of databases, loop devices. One look for `doctor`, `storage check` and `storage gc`."""

from __future__ import annotations

import os
from time import time

from cowshed import log
from cowshed.container import state
from cowshed.errors import StoreError
from cowshed.state import drivers, records
from cowshed.storage.kit.trees import remove_tree
from cowshed.storage.record import record
from cowshed_linux import loops, mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from cowshed.state.store import Store

_YOUNG = 60.0  # seconds in which a command may just be making or removing a directory


@record(frozen=True)
class Remains:
    path: str  # of a directory, or /dev/loopN
    what: str


def directories(store: Store) -> list[str]:
    """Names of the run directories of containers that neither the database nor a record knows."""
    known = {id_[:32] for (id_,) in store.query("select id from containers")}
    for id_ in _names(f"{store.root}/containers"):
        if records.read(records.path(store.root, "containers", id_)) is not None:
            known.add(id_[:32])  # it has lost its row, which the check tells
    return [name for name in _names(f"{store.run}/c") if name not in known]


def is_settled(path: str) -> bool:
    """Whether a directory is older than any command that may just be making or removing it."""
    try:
        return time() - os.stat(path).st_mtime > _YOUNG
    except FileNotFoundError:
        return False


def copies(run_root: str) -> list[str]:
    """Copies of databases that a command read on a full disk, and did not live to delete."""
    names = (name for name in _names(run_root) if name.startswith("stale."))
    return [f"{run_root}/{name}" for name in names if not os.path.exists(f"/proc/{name.partition('.')[2]}")]


def devices(root: str, known: list[str] | None) -> Iterator[tuple[str, str]]:
    """(/dev/loopN, what it is on) of the loop devices on files of the store that are gone, or of a driver that is none
    of those known, if any are told."""
    folder = f"{os.path.realpath(root)}/drivers/"
    for name in _names("/sys/block"):
        backing = _backing(name)
        if not backing.startswith(folder):
            continue
        driver = backing[len(folder) :].partition("/")[0]
        if backing.endswith(" (deleted)"):
            yield f"/dev/{name}", f"holds {backing}"
        elif known is not None and driver not in known:
            yield f"/dev/{name}", f"is on {backing}, of a driver that this store has not"


def known_drivers(store: Store) -> list[str]:
    """Those that the database or a record knows."""
    return [*drivers.names(store), *records.there(store.root, "drivers")]


def mounted_below(path: str) -> list[str]:
    """What is mounted in a tree, the lowest last."""
    path = os.path.realpath(path).rstrip("/")
    return [mount.point for mount in mounts.table() if f"{mount.point}/".startswith(f"{path}/")]


def look(store: Store, run_root: str) -> list[Remains]:
    """All of it that can be taken away: nothing lives or is mounted in it."""
    found = [Remains(path, "a copy of a database") for path in copies(run_root)]
    for name in directories(store):
        path = f"{store.run}/c/{name}"
        if is_settled(path) and not state.alive(path):
            found.append(Remains(path, "of no container"))
    found = [each for each in found if not mounted_below(each.path)]
    return [*found, *(Remains(path, what) for path, what in devices(store.root, known_drivers(store)))]


def clear(store: Store, run_root: str, wanted: Collection[Remains] | None = None) -> None:
    """Remove all of it, or what of it is wanted and still there. One that cannot be removed is told, and stays."""
    for each in look(store, run_root):
        if wanted is not None and each not in wanted:
            continue
        try:
            _remove(each)
        except (StoreError, OSError) as error:
            log.warn(f"{each.path} stays: {error}")


def _remove(each: Remains) -> None:
    """StoreError, OSError. A device that is in use goes with its last user."""
    if not each.path.startswith("/dev/"):
        remove_tree(each.path)
        return
    name = os.path.basename(each.path)
    device = os.open(each.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not (backing := _backing(name)) or backing not in each.what:
            raise StoreError(f"{each.path} is another's by now")
        loops.detach(device)
    finally:
        os.close(device)


def _backing(name: str) -> str:
    """The file of a loop device as the kernel tells it; "" if it has none, or is no loop device."""
    try:
        with open(f"/sys/block/{name}/loop/backing_file", encoding="utf-8", errors="surrogateescape") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""


def _names(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []
