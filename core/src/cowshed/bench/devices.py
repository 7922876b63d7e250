"""Devices that drivers set up on files of a store, and leave to the next command: what holds a file system for ever."""

from __future__ import annotations

import os
import subprocess
import time

from cowshed import log
from cowshed_linux import loops

_PATIENCE = 10.0  # seconds for the last user of a device to go


def take_below(path: str) -> None:
    """Remove what stands on loop devices whose files lie below a path of this mount namespace. What is still in use
    after ten seconds stays."""
    until = time.monotonic() + _PATIENCE
    while found := [name for name in os.listdir("/sys/block") if _lies_below(name, path) and _holders(name)]:
        if time.monotonic() > until:
            break
        for name in found:
            take_holders(name)
        time.sleep(0.02)


def _lies_below(name: str, path: str) -> bool:
    try:
        with open(f"/sys/block/{name}/loop/backing_file", encoding="utf-8", errors="surrogateescape") as file:
            return file.read().startswith(f"{os.path.realpath(path)}/")
    except OSError:
        return False  # no loop device, or not in use


def _holders(name: str) -> list[str]:
    try:
        return os.listdir(f"/sys/block/{name}/holders")
    except FileNotFoundError:
        return []


def standing_on(device: int) -> list[str]:
    """Loop devices whose files lie on the file system of a device."""
    found = []
    for name in os.listdir("/sys/block"):
        if name.startswith("loop") and os.path.exists(f"/sys/block/{name}/loop"):
            try:
                if loops.lies_on(int(name[4:])) == device:
                    found.append(name)
            except OSError:
                continue  # it has just been freed
    return found


def take_holders(name: str) -> None:
    """Remove the device-mapper devices above a device, the highest first; one that is in use stays for the next try."""
    for holder in _holders(name):
        take_holders(holder)
        try:
            with open(f"/sys/block/{holder}/dm/name", encoding="utf-8") as file:
                mapped = file.read().strip()
        except OSError:
            continue
        done = subprocess.run(["dmsetup", "remove", mapped], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            log.info(f"dmsetup remove {mapped}: {done.stderr.strip()}")
