"""Checks of what dead commands and containers, or others, may have left: mounts, loop devices, control groups, run
directories, processes."""

from __future__ import annotations

import os
import shlex

from cowshed.container import remains, state
from cowshed.doctor.patient import Finding, Severity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowshed.doctor.patient import Patient
    from cowshed.state.rows import ContainerRow


def mounts(patient: Patient) -> Iterator[Finding]:
    """Layers are mounted in containers' namespaces only: what is mounted inside of a driver's directory on this host,
    or by any other process, was left or made by hand."""
    if patient.settings is None:
        return
    found = set()
    root, run_root = os.path.realpath(patient.root), os.path.realpath(patient.settings.run_root)
    for point in remains.mounted_below("/"):
        for name in patient.used():
            if point.startswith(f"{root}/drivers/{name}/"):
                found.add(point)
                yield _stale(point, "what it covers or holds open cannot be removed")
        if point.startswith(f"{run_root}/"):
            yield _stale(point, "run directories below it cannot be removed")
    yield from _elsewhere(patient, found)


def _stale(point: str, consequence: str) -> Finding:
    text, remedy = f"{point} is mounted on this host", f"umount {shlex.quote(point)}"
    return Finding(Severity.WARNING, "leftovers.mount", text, consequence, remedy)


def removal(path: str) -> str:
    """The command that takes a tree away, but nothing that is mounted in it: that is unmounted first, or nothing is
    removed."""
    path = os.path.realpath(path)
    steps = [f"umount {shlex.quote(point)}" for point in reversed(remains.mounted_below(path))]
    return " && ".join([*steps, f"rm -r --one-file-system {shlex.quote(path)}"])


def _elsewhere(patient: Patient, told: set[str]) -> Iterator[Finding]:
    """Layers of containers that do not run and are mounted in some namespace, or on this host at another place."""
    if patient.store is None:
        return
    from cowshed.layers.unused import Shown
    from cowshed.state import containers

    shown: Shown | None = None
    for row in containers.list_all(patient.store):
        locks = patient.store.locks
        if locks.held("monitors", row.number) or locks.held("mounts", row.number) or locks.held("layers", row.number):
            continue
        layer = patient.store.query("select id from layers where number = ?", row.number)
        if state.now(patient.engine, row).state == "running" or not layer:
            continue
        if any(layer[0][0] in point for point in told):
            continue
        shown = shown or Shown()
        pid = shown.by([str(layer[0][0]).encode()])
        if pid:
            yield Finding(
                Severity.WARNING, "leftovers.mount",
                f"process {pid} has the layer of container {row.name} mounted, which does not run",
                "the container cannot be started or removed", f"end it, or umount there: nsenter -m -t {pid}",
            )  # fmt: skip


def loops(patient: Patient) -> Iterator[Finding]:
    """Loop devices on files of the store that are gone, or of a driver that the store has not."""
    if patient.settings is None:
        return
    known = remains.known_drivers(patient.store) if patient.store is not None else None
    for device, what in remains.devices(patient.root, known):
        consequence = "its space does not come back" if what.endswith(" (deleted)") else "it takes space"
        remedy = f"cowshed storage gc, or losetup -d {device}"
        yield Finding(Severity.WARNING, "leftovers.loop", f"{device} {what}", consequence, remedy)


def control_groups(patient: Patient) -> Iterator[Finding]:
    """Of containers that do not run. Those of containers that this store does not know may be another store's: nothing
    is said of them."""
    from cowshed_runtime.cgroup.group import Group

    if patient.store is None:
        return
    rows = _rows(patient)
    parents = list(dict.fromkeys(os.path.dirname(path) for path in Group("x").directories()))
    names: dict[str, str] = {}
    for parent in parents:
        try:
            with os.scandir(parent) as entries:
                names.update((entry.name, entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            continue
    for name, path in sorted(names.items()):
        row = rows.get(name)
        if row is None or patient.store.locks.held("monitors", row.number):
            continue
        if patient.store.locks.held("layers", row.number) or patient.store.locks.held("containers", row.number):
            continue  # being started or removed just now
        pids = _processes(path)
        if pids:
            yield Finding(
                Severity.ERROR, "leftovers.processes",
                f"container {row.name}: process {pids[0]} lives on without its monitor, which was killed",
                "its output and exit status are lost, and it cannot be started again", f"cowshed rm -f {row.name}",
            )  # fmt: skip
        else:
            yield Finding(
                Severity.WARNING, "leftovers.cgroup", f"{path} is left of container {row.name}, which does not run",
                "the container cannot be started if it cannot be removed",
                f"rmdir {shlex.quote(path)}, or cowshed rm {row.name}",
            )  # fmt: skip


def _rows(patient: Patient) -> dict[str, ContainerRow]:
    from cowshed.state import containers

    return {row.id: row for row in containers.list_all(patient.store)} if patient.store is not None else {}


def _processes(path: str) -> list[str]:
    try:
        with open(f"{path}/cgroup.procs", encoding="ascii") as file:
            return file.read().split()
    except OSError:
        return []


def run_directories(patient: Patient) -> Iterator[Finding]:
    """Of containers that are no more, and copies of databases that a killed command read on a full disk."""
    if patient.settings is None:
        return
    for path in remains.copies(patient.settings.run_root):
        yield Finding(
            Severity.NOTE, "leftovers.copy", f"{path} is left of a command that was killed",
            "it takes memory until the next boot", f"cowshed storage gc, or {removal(path)}",
        )  # fmt: skip
    if patient.store is None:
        return
    for name in remains.directories(patient.store):
        path = f"{patient.store.run}/c/{name}"
        pid = state.alive(path)
        if pid:
            yield Finding(
                Severity.ERROR, "leftovers.processes", f"process {pid} is of a container that nothing tells of: {path}",
                "no command of cowshed can stop it", f"kill {pid}",
            )  # fmt: skip
        elif remains.is_settled(path):
            yield Finding(
                Severity.WARNING, "leftovers.run-directory", f"{path} belongs to no container",
                "it takes memory until the next boot", f"cowshed storage gc, or {removal(path)}",
            )  # fmt: skip


def zygotes(patient: Patient) -> Iterator[Finding]:
    """Processes that start containers for a run directory that is no more."""
    if patient.settings is None:
        return
    mark = f"zygote.main('{patient.settings.run_root}/"
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/cmdline", encoding="utf-8", errors="surrogateescape") as file:
                line = file.read()
        except OSError:
            continue  # it has ended
        if mark not in line:
            continue
        path = line[line.index(mark) + len("zygote.main('") :].partition("'")[0]
        if not os.path.isdir(os.path.dirname(path)):
            yield Finding(
                Severity.WARNING, "leftovers.zygote",
                f"process {entry} starts containers for {os.path.dirname(path)}, which is gone",
                "containers that it has started cannot be reached", f"kill {entry}",
            )  # fmt: skip
