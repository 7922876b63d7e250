"""What a run makes on the host that could outlive it, written down before it is made.

A run's own processes take all of it away at the end, after Ctrl-C and after an error; its supervisor does if they are
killed; and if that is killed too, the next run or `cowshed bench --clean` finds the entry.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import time

from cowshed.bench import devices, scratch
from cowshed.errors import Busy, CowshedError, NotFound
from cowshed.layers.host import EngineHost
from cowshed.storage import registry
from cowshed.storage.errors import StorageError
from cowshed.storage.kit.trees import remove_tree
from cowshed_linux import files, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from cowshed.bench.scratch import Device

_PATIENCE = 20.0  # seconds for the kernel to take the devices of processes that are gone


class Journal:
    """One run's entry: a file beside the store, and a folder where its file systems are mounted.

    Made by the supervisor before it forks: both processes may take it up.
    """

    def __init__(self, path: str, folder: str, device: Device | None = None) -> None:
        self.path, self.folder, self._device = path, folder, device
        pid = os.getpid()
        self._said: dict[str, Any] = {
            "version": 1, "processes": [[pid, process.start_time(pid)]], "boot": process.boot_id(), "folder": folder,
            "pools": [], "loops": [], "stores": [], "begun": False,
            "device": os.path.realpath(device.path) if device else "", "identity": device.identity() if device else 0,
        }  # fmt: skip

    @classmethod
    def begin(cls, root: str, place: str, device: Device | None = None) -> Journal:
        """OSError if nothing can be written beside the store or at place: nothing is left then."""
        token = os.urandom(6).hex()
        made = cls(f"{entries_folder(root)}/{token}.json", f"{os.path.abspath(place)}/cowshed-bench-{token}", device)
        made._said["made"] = _make_folders(os.path.dirname(made.path))
        made._write(durable=True)
        try:
            os.mkdir(made.folder, 0o700)
            files.sync_directory(os.path.dirname(made.folder))
            made._said["begun"] = True
            made._write(durable=True)
        except BaseException:
            _clean(made.path, device)
            raise
        return made

    def enter(self) -> None:
        """This process, too, is at work."""
        self.add("processes", [os.getpid(), process.start_time(os.getpid())])

    def add(self, what: str, value: Any) -> None:
        self._said[what].append(value)
        self._write(durable=what == "stores")

    def drop(self, what: str, value: Any) -> None:
        self._said[what].remove(value)
        self._write()

    def _write(self, *, durable: bool = False) -> None:
        """durable: a power cut leaves it behind, too; of processes, loop devices and pools it leaves nothing."""
        files.write_atomically(self.path, json.dumps(self._said).encode(), durable=durable)

    def clean(self) -> None:
        """Take away what the entry names, whoever has died; the processes of the run are gone. CowshedError if
        something cannot be taken away now: the entry stays."""
        _clean(self.path, self._device)


def entries_folder(root: str) -> str:
    return f"{root}/bench"


def clean_left(root: str, device: str = "") -> tuple[int, list[str]]:
    """Take away what dead runs left: how many were cleaned, and what could not be, in one line each. The block device
    that one had is emptied if it is named."""
    try:
        with _alone(entries_folder(root)):
            return _clean_left(root, device)
    except FileNotFoundError:
        return 0, [_foreign(device)] if device else []


def _foreign(device: str) -> str:
    return f"no dead run of this store has had {device}: it is left alone"


@contextlib.contextmanager
def _alone(folder: str) -> Iterator[None]:
    """No other process cleans up meanwhile."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _clean_left(root: str, device: str) -> tuple[int, list[str]]:
    cleaned, problems, known = 0, [], False
    wanted = os.path.realpath(device) if device else ""
    for name in sorted(os.listdir(entries_folder(root))):
        path = f"{entries_folder(root)}/{name}"
        if name.endswith(".new"):
            _take_unfinished(path)
        if not name.endswith(".json") or _runs(path):
            continue
        try:
            known = known or _read(path)["device"] == wanted
            problem = _clean(path, wanted=wanted)
            problems += [problem] if problem else []
            cleaned += 1
        except (CowshedError, StorageError, OSError) as error:
            remedy = getattr(error, "remedy", "")
            problems.append(f"{path}: {error}" + (f": {remedy}" if remedy else ""))
    if device and not known:
        problems.append(_foreign(device))
    return cleaned, problems


def _read(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        said: dict[str, Any] = json.load(file)
    return said


def _runs(path: str) -> bool:
    try:
        said = _read(path)
    except FileNotFoundError:
        return True  # another process has just cleaned it
    return said["boot"] == process.boot_id() and any(process.lives(pid, start) for pid, start in said["processes"])


def _clean(path: str, device: Device | None = None, wanted: str = "") -> str:
    """Take away what an entry names, and the entry; what somebody must look at himself, or "".

    device: the run's own, held still. wanted: the path of one that may be emptied, where nobody holds it any more.
    NotFound if the place of its folder is not there now, Busy if its block device may not be emptied: the entry stays.
    """
    said = _read(path)
    folder = said["folder"]
    if said["begun"] and not os.path.isdir(folder):
        raise NotFound(
            f"{folder} of a run that was killed is not there",
            remedy=f"mount what it was on, then bench --clean; if it is gone for good: rm {shlex.quote(path)}",
        )
    if said["boot"] == process.boot_id():
        for name in said["pools"]:
            scratch.destroy_pool(name)
        _release_loops(folder, said["device"], said["loops"])
    for store in said["stores"]:
        _destroy(store)
    remove_tree(folder)
    # Nothing of it is missed if this is interrupted now, and another run may have loop devices of the same numbers
    said.update(begun=False, pools=[], loops=[], stores=[])
    files.write_atomically(path, json.dumps(said).encode())
    problem = ""
    if device is not None:
        device.wipe()
    elif said["device"]:
        problem = _empty(path, said, wanted)
    for name in os.listdir(os.path.dirname(path)):
        if name.startswith(f"{os.path.basename(path)}."):  # it was being written
            os.unlink(f"{os.path.dirname(path)}/{name}")
    os.unlink(path)
    for made in reversed(said["made"]):
        try:
            os.rmdir(made)
        except OSError:
            break  # somebody has put something into it
    return problem


def _empty(path: str, said: dict[str, Any], wanted: str) -> str:
    """Empty the block device of a dead run, if it is the disk itself and not another that has its name now. Somebody
    may have used it since: not unless it is wanted."""
    name = said["device"]
    if said["boot"] != process.boot_id() or scratch.identity_of(name) != said["identity"]:
        return (
            f"a disk that was {name} may hold file systems of a run that was killed; whether it is {name} now cannot "
            f"be told: see wipefs --no-act {shlex.quote(name)}"
        )
    if name != wanted:
        raise Busy(
            f"{name} may hold file systems of a run that was killed",
            remedy=f"cowshed bench --clean --device {shlex.quote(name)}, or, if it has something of yours by now: "
            f"rm {shlex.quote(path)}",
        )
    device = scratch.Device(name)
    try:
        if device.identity() != said["identity"]:
            raise Busy(f"{name} has just become another disk", remedy="bench --clean once more")
        device.wipe()
    finally:
        device.close()
    return ""


def _take_unfinished(path: str) -> None:
    """A first entry that was being written (`files.write_atomically`: NAME.PID.new): nothing was made before it."""
    entry, pid, _ = path.rsplit(".", 2)
    if not os.path.exists(entry) and not os.path.exists(f"/proc/{pid}"):
        os.unlink(path)


def _destroy(store: dict[str, Any]) -> None:
    """Take away a driver's store in a directory of the user's own file system."""
    if not os.path.isdir(store["root"]):
        return
    plugin, _ = registry.load(store["driver"])
    host = EngineHost()
    identity = plugin.init(store["root"], store["options"], host)  # repeatable: it tells the identity
    plugin.destroy(store["root"], store["options"], host, store=identity)
    remove_tree(store["root"])


def _release_loops(folder: str, device: str, known: list[int]) -> None:
    """Wait until the kernel has taken the run's loop devices, and take what stands on files of their file systems:
    devices that a driver has set up, which would hold them for ever. Busy if some stay."""
    until = time.monotonic() + _PATIENCE
    while left := [number for number in known if _is_ours(number, folder, device)]:
        for number in left:
            for name in devices.standing_on(os.makedev(7, number)):
                devices.take_holders(name)
        if time.monotonic() > until:
            names = ", ".join(f"/dev/loop{number}" for number in left)
            raise Busy(f"{names} of a benchmark are still in use", remedy="end what uses them, then bench --clean")
        time.sleep(0.05)


def _is_ours(number: int, folder: str, device: str) -> bool:
    """By the ends of names: of a mount namespace that is gone, paths begin at the root of their mount."""
    try:
        with open(f"/sys/block/loop{number}/loop/backing_file", encoding="utf-8", errors="surrogateescape") as file:
            lies_on = file.read().strip()
    except OSError:
        return False  # not in use
    if device:
        return os.path.basename(lies_on) == os.path.basename(os.path.realpath(device))
    return f"/{os.path.basename(folder)}/" in lies_on


def _make_folders(path: str) -> list[str]:
    """Make a directory and those above it; which of them were made."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    missing.reverse()
    for folder in missing:
        os.mkdir(folder, 0o700)
    return missing
