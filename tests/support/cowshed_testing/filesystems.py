"""Real file systems to lay a store on: loop images made on the spot, and an overlay as backing."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "xfs-no-ftype": ["mkfs.xfs", "-q", "-f", "-m", "crc=0", "-n", "ftype=0"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}


@contextlib.contextmanager
def mounted(kind: str, folder: str, size: str = "400M") -> Iterator[str]:
    """A fresh file system of this kind, mounted at a path below folder. Call in a private mount namespace."""
    target = f"{folder}/{kind}"
    os.makedirs(target)
    if kind == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", target], check=True)
    elif kind == "overlay":
        for name in ("lower", "upper", "work"):
            os.makedirs(f"{folder}/{name}")
        options = f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", target], check=True)
    else:
        image = f"{folder}/{kind}.img"
        subprocess.run(["truncate", "-s", size, image], check=True)
        subprocess.run([*MAKE[kind], image], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["mount", "-o", "loop", image, target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", "-l", target], check=True)
