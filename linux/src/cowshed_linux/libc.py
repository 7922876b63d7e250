"""The C library, and system calls that it does not wrap.

Every function of this package that fails raises OSError with the errno, and the call's name and operands as text.
A string with a NUL byte is refused: C would silently cut it there.
"""

from __future__ import annotations

import os

from cowshed_linux import _abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

ffi: Any = _abi.ffi
C: Any = ffi.dlopen(None)
NULL: Any = ffi.NULL

_cast = ffi.cast
_new = ffi.new
_string = os.fsencode

# System call numbers that are the same on every architecture since 5.1, and those that are not (asm/unistd.h).
OPEN_TREE, MOVE_MOUNT, FSOPEN, FSCONFIG, FSMOUNT, FSPICK = 428, 429, 430, 431, 432, 433
PIDFD_OPEN, CLONE3, CLOSE_RANGE, OPENAT2, PIDFD_GETFD, MOUNT_SETATTR = 434, 435, 436, 437, 438, 442
QUOTACTL_FD = 443
_machine = os.uname().machine
if _machine == "x86_64":
    SECCOMP, RENAMEAT2, KEYCTL, GETDENTS64, FSTATFS, RT_SIGACTION = 317, 316, 250, 217, 138, 13
    SYNC_FILE_RANGE = 277
else:  # the generic table: aarch64, riscv64, loongarch64
    SECCOMP, RENAMEAT2, KEYCTL, GETDENTS64, FSTATFS, RT_SIGACTION = 277, 276, 219, 61, 44, 134
    SYNC_FILE_RANGE = 84


def string(value: str | bytes) -> Any:
    """A C string of value (a str as the file system encodes it). ValueError if it holds a NUL byte."""
    raw = _string(value)
    if b"\0" in raw:
        raise ValueError(f"NUL byte in {value!r}")
    return _new("char[]", raw)


def fail(what: str) -> NoReturn:
    number = ffi.errno
    raise OSError(number, f"{what}: {os.strerror(number)}")


def check(result: int, what: str) -> int:
    if result < 0:
        fail(what)
    return result


def syscall(what: str, number: int, *arguments: Any) -> int:
    """Call by number; ints are passed as long, C data as it is."""
    result: int = C.syscall(number, *[_cast("long", a) if type(a) is int else a for a in arguments])
    if result < 0:
        fail(what)
    return result
