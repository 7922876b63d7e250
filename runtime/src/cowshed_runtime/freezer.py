"""Stopping all processes of a container where they are, and letting them go on
(Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst, cgroup-v2.rst cgroup.freeze)."""

from __future__ import annotations

import os
from time import monotonic, sleep

from cowshed_runtime import cgroup

_PATIENCE = 10.0


def freeze(name: str) -> None:
    """Freeze everything in the container's groups; on return nothing of it runs. Groups that are gone are success.

    OSError ENOENT if this host has no freezer, ETIMEDOUT if a process does not freeze within ten seconds (it sleeps in
    the kernel); then all go on.
    """
    folder, file, frozen, state, wanted = _files(name)
    until = monotonic() + _PATIENCE
    try:
        _write(f"{folder}/{file}", frozen)
        while wanted not in _read(f"{folder}/{state}"):
            if monotonic() > until:
                thaw(name)
                raise OSError(110, f"{folder}: its processes do not freeze")
            sleep(0.001)
    except FileNotFoundError:
        return


def thaw(name: str) -> None:
    """Let everything in the groups go on; groups that are gone are success."""
    folder, file, frozen, _, _ = _files(name)
    try:
        _write(f"{folder}/{file}", b"THAWED" if frozen == b"FROZEN" else b"0")
    except FileNotFoundError:
        return


def _files(name: str) -> tuple[str, str, bytes, str, bytes]:
    """Directory, file to write, what freezes; file to read, what it says when all are frozen."""
    layout = cgroup.layout
    at = layout.find("freezer")
    if at and at != layout.v2:
        return f"{at}/{cgroup.PARENT}/{name}", "freezer.state", b"FROZEN", "freezer.state", b"FROZEN"
    if layout.v2:
        return f"{layout.v2}/{cgroup.PARENT}/{name}", "cgroup.freeze", b"1", "cgroup.events", b"frozen 1"
    raise OSError(2, "this host has no freezer cgroup controller")


def _write(path: str, value: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value)
    finally:
        os.close(fd)


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)
