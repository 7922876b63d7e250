"""The kernel's /proc and nothing that somebody has put over it or in its place.

What is written below /proc decides about privileges (attr/exec, sys/). What the container has put
there instead takes what was meant for the kernel, or leads it elsewhere (CVE-2019-16884, CVE-2023-27561,
CVE-2025-52881): so a handle is verified once, and from it the kernel itself crosses no other mount.
"""

from __future__ import annotations

import os

from cowshed_linux.files import PROC_MAGIC, file_system_magic
from cowshed_linux.paths import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    open_in_root,
    openat2,
)

_ROOT_INODE = 1  # PROC_ROOT_INO of linux/proc_ns.h
_HANDLE = os.O_PATH | os.O_DIRECTORY


def handle(root: int = -1) -> int:
    """A descriptor (O_PATH) of /proc, of this process or inside a root. OSError ENODEV: it is no root of a procfs."""
    if root < 0:
        fd = os.open("/proc", _HANDLE | os.O_CLOEXEC)
    else:
        fd = open_in_root(root, "proc", _HANDLE, resolve=RESOLVE_NO_SYMLINKS)
    if file_system_magic(fd) == PROC_MAGIC and os.fstat(fd).st_ino == _ROOT_INODE:
        return fd
    os.close(fd)
    raise OSError(19, "/proc is not the kernel's")


def open_beneath(proc: int, path: str, flags: int) -> int:
    """Open a file of the procfs of a handle: no mount is crossed (OSError EXDEV), no magic link followed (ELOOP)."""
    return openat2(proc, path, flags, resolve=RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS)


def in_it(fd: int) -> bool:
    """Whether a descriptor is of a procfs."""
    return file_system_magic(fd) == PROC_MAGIC
