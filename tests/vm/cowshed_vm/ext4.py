"""ext4 images of directories, made without mounting anything."""

from __future__ import annotations

import os
from pathlib import Path

from cowshed_vm.programs import run

BLOCK = 4096


def image_of(tree: Path, image: Path) -> None:
    """A file system that holds what the tree holds and little room beside, for reading: without a journal."""
    inodes = room = 0
    for folder, folders, files in os.walk(tree):
        inodes += len(folders) + len(files)
        room += sum(_blocks(os.lstat(os.path.join(folder, name)).st_size) for name in files) + BLOCK * (
            len(folders) + 1
        )
    megabytes = (room + inodes * 512) * 21 // 20 // 1_000_000 + 8
    _make(image, f"{megabytes}M", "-O", "^has_journal", "-N", str(inodes + 200), "-d", str(tree))


def empty(image: Path, size: int) -> None:
    """A file system of size bytes, for writing; the file has holes."""
    with open(image, "wb") as file:
        file.truncate(size)
    _make(image, f"{size >> 10}k", "-E", "lazy_itable_init=1,lazy_journal_init=1")


def _make(image: Path, size: str, *words: str) -> None:
    run("mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK), "-m", "0", *words, image, size)


def _blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
