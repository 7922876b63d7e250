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
    "xfs-no-ftype": ["mkfs.xfs", "-q", "-f"],
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
        if kind == "xfs-no-ftype":
            _forget_ftype(image)
        subprocess.run(["mount", "-o", "loop", image, target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", "-l", target], check=True)


def _forget_ftype(image: str) -> None:
    """Make an empty xfs one without ftype. mkfs.xfs makes such only in format 4, which kernels no longer mount; in
    format 5 it is a bit of the superblock, and the empty root directory holds no entry that would contradict it."""
    command = ["xfs_db", "-x", "-c", "sb 0"]
    told = subprocess.run(
        [*command, "-c", "print features_incompat", image], check=True, capture_output=True, text=True
    )
    features = int(told.stdout.split("=")[1], 16)
    assert features & 1, f"{image} has no ftype already: {told.stdout}"
    write = f"write features_incompat {features & ~1:#x}"
    subprocess.run([*command, "-c", write, image], check=True, stdout=subprocess.DEVNULL)
