"""Where a store is to lie: what probes ask before anything is made there."""

from __future__ import annotations

import os

from cowshed_linux import files

# linux/magic.h; a name is a fact for people, nothing is decided by it
_NAMES = {
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0x01021994: "tmpfs",
    0x794C7630: "overlay",
    0x2FC12FC1: "zfs",
    0xCA451A4E: "bcachefs",
    0xF2F52010: "f2fs",
    0x6969: "nfs",
    0xFF534D42: "cifs",
    0xFE534D42: "smb",
    0x65735546: "fuse",
    0x01021997: "9p",
    0x61756673: "aufs",
    0xF15F: "ecryptfs",
    0x4D44: "vfat",
    0xE0F5E1E2: "erofs",
    0x73717368: "squashfs",
    0x858458F6: "ramfs",
}

SHARING = ("btrfs", "xfs")  # a copy may share what it was copied from: its size is not what comes back
IN_MEMORY = ("tmpfs", "ramfs")  # what lies there is gone at the next boot


def nearest_directory(path: str) -> str:
    """The directory at path or, while that is not made yet, the nearest one above: the same file system."""
    place = os.path.abspath(path)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    return place


def file_system_name(path: str) -> str:
    """What kind of file system a directory lies on, as mount(8) calls it, or its magic number."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        magic = files.file_system_magic(fd)
    finally:
        os.close(fd)
    return _NAMES.get(magic, f"0x{magic:x}")


def private_namespace() -> bool:
    """Whether this process is in a user namespace of its own, and so root of nothing outside."""
    fd = os.open("/proc/self/uid_map", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 128).split() != [b"0", b"0", b"4294967295"]
    finally:
        os.close(fd)
