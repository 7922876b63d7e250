"""What a run makes on the host that could outlive it, written down before it is made.

A run's own processes take all of it away at the end, after Ctrl-C and after an error; its supervisor does if they are
killed; and if that is killed too, the next run or `cowshed bench --clean` finds the entry.
"""

from __future__ import annotations

import json
import os
import time

from cowshed.bench import devices, scratch
from cowshed.errors import Busy, CowshedError
from cowshed.layers.host import EngineHost
from cowshed.storage import registry
from cowshed.storage.errors import StorageError
from cowshed.storage.kit.trees import remove_tree
from cowshed_linux import files, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PATIENCE = 20.0  # seconds for the kernel to take the devices of processes that are gone


class Journal:
    """One run's entry: a file beside the store, and a folder where its file systems are mounted.

    Made by the supervisor before it forks: both processes may take it up.
    """

    def __init__(self, path: str, folder: str) -> None:
        self.path, self.folder = path, folder
        pid = os.getpid()
        self._said: dict[str, Any] = {
            "version": 1, "processes": [[pid, process.start_time(pid)]], "boot": process.boot_id(), "folder": folder,
            "pools": [], "loops": [], "stores": [], "device": "", "slices": 0,
        }  # fmt: skip

    @classmethod
    def begin(cls, root: str, place: str) -> Journal:
        """OSError if nothing can be written beside the store or at place."""
        token = os.urandom(6).hex()
        made = cls(f"{entries_folder(root)}/{token}.json", f"{os.path.abspath(place)}/cowshed-bench-{token}")
        made._said["made"] = _make_folders(os.path.dirname(made.path))
        made._write(durable=True)
        os.mkdir(made.folder, 0o700)
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

    def use_device(self, device: str, slices: int) -> None:
        self._said["device"], self._said["slices"] = device, slices
        self._write(durable=True)

    def _write(self, *, durable: bool = False) -> None:
        """durable: a power cut leaves it behind, too; of processes, loop devices and pools it leaves nothing."""
        files.write_atomically(self.path, json.dumps(self._said).encode(), durable=durable)

    def clean(self) -> None:
        """Take away what the entry names, whoever has died; the processes of the run are gone. CowshedError if
        something cannot be taken away now: the entry stays."""
        said = _clean(self.path)
        if said["device"]:
            scratch.wipe(said["device"], said["slices"])


def entries_folder(root: str) -> str:
    return f"{root}/bench"


def clean_left(root: str) -> tuple[int, list[str]]:
    """Take away what dead runs left: how many were cleaned, and what could not be, in one line each."""
    cleaned, problems = 0, []
    try:
        names = sorted(os.listdir(entries_folder(root)))
    except FileNotFoundError:
        return 0, []
    for name in names:
        path = f"{entries_folder(root)}/{name}"
        if name.endswith(".new"):
            _take_unfinished(path)
        if not name.endswith(".json") or _runs(path):
            continue
        try:
            said = _clean(path)
            cleaned += 1
            if said["device"]:  # somebody may have used it since: it is not for us to empty it now
                device = said["device"]
                problems.append(f"{device} may hold file systems of a run that was killed: wipefs --all {device}")
        except (CowshedError, StorageError, OSError) as error:
            problems.append(f"{path}: {error}")
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


def _clean(path: str) -> dict[str, Any]:
    """Take away what an entry names, and the entry; what it said."""
    said = _read(path)
    folder = said["folder"]
    if said["boot"] == process.boot_id():
        for name in said["pools"]:
            scratch.destroy_pool(name)
        _release_loops(folder, said["device"], said["loops"])
    for store in said["stores"]:
        _destroy(store)
    remove_tree(folder)
    for name in os.listdir(os.path.dirname(path)):
        if name.startswith(f"{os.path.basename(path)}."):  # it was being written
            os.unlink(f"{os.path.dirname(path)}/{name}")
    os.unlink(path)
    for made in reversed(said["made"]):
        try:
            os.rmdir(made)
        except OSError:
            break  # somebody has put something into it
    return said


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
