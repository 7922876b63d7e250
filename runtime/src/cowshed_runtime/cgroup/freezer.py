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


def freeze(group: Group) -> None:
    """Freeze everything in the container's groups; on return nothing of it runs. Groups that are gone are success.

    OSError ENOENT if this host has no freezer, ETIMEDOUT if a process does not freeze within ten seconds (it sleeps in
    the kernel); then all go on.
    """
    folder, file, frozen, state, wanted = _files(group)
    until = monotonic() + _PATIENCE
    try:
        _write(f"{folder}/{file}", frozen)
        while wanted not in read(f"{folder}/{state}"):
            if monotonic() > until:
                thaw(group)
                raise OSError(110, f"{folder}: its processes do not freeze")
            sleep(0.001)
    except FileNotFoundError:
        return


def thaw(group: Group) -> None:
    """Let everything in the groups go on; groups that are gone are success."""
    folder, file, frozen, _, _ = _files(group)
    try:
        _write(f"{folder}/{file}", b"THAWED" if frozen == b"FROZEN" else b"0")
    except FileNotFoundError:
        return


def frozen(group: Group) -> bool:
    """Whether all that is in the groups is stopped; False if there are no groups, or no freezer."""
    try:
        folder, _, _, state, wanted = _files(group)
        return wanted in read(f"{folder}/{state}")
    except FileNotFoundError:
        return False


def _files(group: Group) -> tuple[str, str, bytes, str, str]:
    """Directory, file to write, what freezes; file to read, what it says when all are frozen."""
    within = group.layout
    at = within.find("freezer")
    if at and at != within.v2:
        return at + group.path, "freezer.state", b"FROZEN", "freezer.state", "FROZEN"
    if within.v2:
        return within.v2 + group.path, "cgroup.freeze", b"1", "cgroup.events", "frozen 1"
    raise OSError(2, "this host has no freezer cgroup controller")


def _write(path: str, value: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value)
    finally:
        os.close(fd)
