"""Locks that the kernel releases with the last descriptor of the open file: whoever dies, nothing stays locked.

Byte locks are open file description locks (fcntl(2), F_OFD_SETLK): one file serves any number of objects, a lock can be
seen without being taken. Both kinds are inherited by forked children, who share them.
"""

from __future__ import annotations

import fcntl
import os
from _struct import pack, unpack

_GETLK, _SETLK, _SETLKW = 36, 37, 38
_FLOCK = "@hhqqi4x"  # l_type, l_whence, l_start, l_len, l_pid


def open_file(path: str) -> int:
    """A descriptor to lock with. Lock files are never unlinked: two holders could be the result."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def lock_byte(fd: int, byte: int, *, shared: bool = False, wait: bool = True) -> bool:
    """Lock one byte; False if another holds it and wait is false."""
    try:
        fcntl.fcntl(
            fd, _SETLKW if wait else _SETLK, pack(_FLOCK, fcntl.F_RDLCK if shared else fcntl.F_WRLCK, 0, byte, 1, 0)
        )
    except (BlockingIOError, PermissionError):
        return False
    return True


def unlock_byte(fd: int, byte: int) -> None:
    fcntl.fcntl(fd, _SETLK, pack(_FLOCK, fcntl.F_UNLCK, 0, byte, 1, 0))


def byte_is_locked(fd: int, byte: int) -> bool:
    """Whether somebody else (another open file description) holds the byte. Takes nothing."""
    answer = fcntl.fcntl(fd, _GETLK, pack(_FLOCK, fcntl.F_WRLCK, 0, byte, 1, 0))
    return bool(unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


def first_locked(fd: int) -> int | None:
    """The first byte of the whole file that somebody else holds in any way, None if there is none. Takes nothing."""
    answer = unpack(_FLOCK, fcntl.fcntl(fd, _GETLK, pack(_FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0)))
    return None if answer[0] == fcntl.F_UNLCK else int(answer[2])


def lock_file(fd: int, *, shared: bool = False, wait: bool = True) -> bool:
    """flock(2); False if another holds it and wait is false."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
