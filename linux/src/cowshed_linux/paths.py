"""openat2(2): opening names that others chose, beneath a directory and nowhere else."""

from __future__ import annotations

import os

from cowshed_linux import libc
from cowshed_linux.libc import ffi, string, syscall

RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT = 1, 2, 4, 8, 16
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4

_OPEN_HOW = ffi.sizeof("open_how")


def openat2(at: int, path: str | bytes, flags: int, *, resolve: int, mode: int = 0) -> int:
    how = ffi.new("open_how *")
    how.flags, how.mode, how.resolve = flags | os.O_CLOEXEC, mode, resolve
    return syscall(f"openat2 {os.fsdecode(path)}", libc.OPENAT2, at, string(path), how, _OPEN_HOW)


def open_in_root(root: int, path: str | bytes, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """Open path as a process whose root directory is `root` would: `..` and absolute symbolic links stay inside.

    Magic links of /proc are never followed. EAGAIN, which the kernel gives when a rename races, is tried again.
    """
    while True:
        try:
            return openat2(
                root, path or ".", flags, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | resolve, mode=mode
            )
        except BlockingIOError:
            continue


def rename2(source_at: int, source: str | bytes, target_at: int, target: str | bytes, flags: int) -> None:
    """renameat2(2)."""
    syscall(
        f"renameat2 {os.fsdecode(source)} {os.fsdecode(target)}",
        libc.RENAMEAT2,
        source_at,
        string(source),
        target_at,
        string(target),
        flags,
    )
