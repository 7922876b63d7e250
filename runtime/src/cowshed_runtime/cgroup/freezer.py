"""Stopping all processes of a container where they are, and letting them go on
(Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst, cgroup-v2.rst cgroup.freeze)."""

from __future__ import annotations

import os
from time import monotonic, sleep

from cowshed_runtime.cgroup.files import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed_runtime.cgroup.group import Group

_PATIENCE = 10.0


class _Interface:
    """file: what is written; frozen, thawed: with which values; state: what tells; all, part: what it says when all are
    stopped, and what it says when nothing can run on or start."""

    def __init__(self, file: str, frozen: bytes, thawed: bytes, state: str, full: str, begun: str) -> None:
        self.file, self.frozen, self.thawed = file, frozen, thawed
        self.state, self.full, self.begun = state, full, begun


_FIRST = _Interface("freezer.state", b"FROZEN", b"THAWED", "freezer.state", "FROZEN", "FR")
_SECOND = _Interface("cgroup.freeze", b"1", b"0", "cgroup.events", "frozen 1", "frozen 1")


def freeze(group: Group) -> None:
    """Freeze everything in the container's groups; on return nothing of it runs. Groups that are gone are success.

    OSError ENOENT if this host has no freezer, ETIMEDOUT if a process does not freeze within ten seconds (it sleeps in
    the kernel); then all go on.
    """
    folder, interface = _files(group)
    until = monotonic() + _PATIENCE
    try:
        _write(f"{folder}/{interface.file}", interface.frozen)
        while interface.full not in read(f"{folder}/{interface.state}"):
            if monotonic() > until:
                thaw(group)
                raise OSError(110, f"{folder}: its processes do not freeze")
            sleep(0.001)
    except FileNotFoundError:
        return


def thaw(group: Group) -> None:
    """Let everything in the groups go on; groups that are gone are success."""
    folder, interface = _files(group)
    try:
        _write(f"{folder}/{interface.file}", interface.thawed)
    except FileNotFoundError:
        return


def stop(group: Group) -> bool:
    """Begin to freeze and do not wait; whether there is a freezer and a group."""
    try:
        folder, interface = _files(group)
        _write(f"{folder}/{interface.file}", interface.frozen)
    except FileNotFoundError:
        return False
    return True


def frozen(group: Group) -> bool:
    """Whether all that is in the groups is stopped; False if there are no groups, or no freezer."""
    return _says(group, begun=False)


def stopped(group: Group) -> bool:
    """Whether the groups are being frozen, by themselves or from above: what enters them does not run."""
    return _says(group, begun=True)


def _says(group: Group, *, begun: bool) -> bool:
    try:
        folder, interface = _files(group)
        return (interface.begun if begun else interface.full) in read(f"{folder}/{interface.state}")
    except FileNotFoundError:
        return False


def _files(group: Group) -> tuple[str, _Interface]:
    within = group.layout
    at = within.find("freezer")
    if at and at != within.v2:
        return at + group.path, _FIRST
    if within.v2:
        return within.v2 + group.path, _SECOND
    raise OSError(2, "this host has no freezer cgroup controller")


def _write(path: str, value: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value)
    finally:
        os.close(fd)
