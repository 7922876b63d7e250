"""Project ids and their quota: ioctl_xfs_fsgetxattr(2), quotactl_fd(2) (Linux 5.14), linux/quota.h, linux/dqblk_xfs.h.

A project is a number that inodes of ext4 and xfs carry; the file system counts the blocks and inodes of each, and holds
it to a limit. A directory with the inherit flag gives its number to what is made in it.
"""

from __future__ import annotations

import errno
import fcntl
from _struct import Struct

from cowshed_linux.libc import QUOTACTL_FD, ffi, syscall

_FSGETXATTR, _FSSETXATTR = 0x801C581F, 0x401C5820
_XATTR = Struct("=5I8x")  # struct fsxattr: flags, extent size, extents, project id, extent size for copy on write
_INHERIT = 0x200  # FS_XFLAG_PROJINHERIT

_PROJECTS = 2  # PRJQUOTA
_GET, _SET, _GET_NEXT, _INFO = 0x800007, 0x800008, 0x800009, 0x800005  # Q_GETQUOTA, Q_SETQUOTA, …
_STATE = 0x5808  # Q_XGETQSTATV
_COUNTED, _ENFORCED = 0x10, 0x20  # FS_QUOTA_PDQ_ACCT, FS_QUOTA_PDQ_ENFD
_BLOCK = Struct("=8QII")  # struct if_nextdqblk: hard, soft, bytes; hard, soft, inodes; two grace times; valid, id
_LIMITS = 1 | 4  # QIF_BLIMITS, QIF_ILIMITS
_UNIT = 1024  # of limits in bytes


def project(fd: int) -> tuple[int, bool]:
    """(project id, whether it is inherited) of an open file or directory; (0, False) where there are none."""
    try:
        flags, _, _, number, _ = _XATTR.unpack(fcntl.ioctl(fd, _FSGETXATTR, bytes(_XATTR.size)))
    except OSError:
        return 0, False
    return number, bool(flags & _INHERIT)


def set_project(fd: int, number: int, *, inherit: bool) -> None:
    """Give an open file or directory a project id; what lies in the directory already keeps its own.

    OSError EOPNOTSUPP or ENOTTY where there are none, EINVAL in a user namespace.
    """
    flags, size, extents, _, copied = _XATTR.unpack(fcntl.ioctl(fd, _FSGETXATTR, bytes(_XATTR.size)))
    flags = flags | _INHERIT if inherit else flags & ~_INHERIT
    fcntl.ioctl(fd, _FSSETXATTR, _XATTR.pack(flags, size, extents, number, copied))


def state(fd: int) -> tuple[bool, bool]:
    """(counted, limits enforced): what the file system of fd does with projects. OSError ENOSYS for neither."""
    answer = ffi.new("char[]", 256)
    answer[0] = b"\x01"  # FS_QSTATV_VERSION1
    _call("Q_XGETQSTATV", fd, _STATE, 0, answer)
    flags = int.from_bytes(bytes(ffi.buffer(answer, 4))[2:4], "little")
    return bool(flags & _COUNTED), bool(flags & _ENFORCED)


def kernel_can(fd: int) -> bool:
    """Whether this kernel has quota for the file system of fd at all. An ext4 says yes without CONFIG_QFMT_V2 too."""
    try:
        _call("Q_GETINFO", fd, _INFO, 0, ffi.new("char[]", 64))
    except OSError as error:
        return error.errno != errno.ENOSYS
    return True


def used(fd: int, number: int) -> tuple[int, int]:
    """(bytes, inodes) of a project on the file system of fd."""
    _, _, size, _, _, inodes, _, _, _, _ = _block("Q_GETQUOTA", fd, _GET, number)
    return size, inodes


def limits(fd: int, number: int) -> tuple[int, int]:
    """(bytes, inodes) that a project may have; 0 = any number."""
    size, _, _, inodes, _, _, _, _, _, _ = _block("Q_GETQUOTA", fd, _GET, number)
    return size * _UNIT, inodes


def set_limits(fd: int, number: int, size: int, inodes: int) -> None:
    """Limit a project in bytes (rounded up to 1 KiB) and inodes; 0 = no limit. EPERM without CAP_SYS_ADMIN."""
    block = ffi.new("char[]", _BLOCK.pack(-(-size // _UNIT), 0, 0, inodes, 0, 0, 0, 0, _LIMITS, 0))
    _call("Q_SETQUOTA", fd, _SET, number, block)


def next_project(fd: int, number: int) -> tuple[int, tuple[int, int]] | None:
    """(project id, its limits) of the lowest id from `number` on that has a limit or that a file carries
    (Q_GETNEXTQUOTA, Linux 4.6); None if there is none."""
    try:
        size, _, _, inodes, _, _, _, _, _, found = _block("Q_GETNEXTQUOTA", fd, _GET_NEXT, number)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
    return found, (size * _UNIT, inodes)


def _block(what: str, fd: int, command: int, number: int) -> tuple[int, ...]:
    answer = ffi.new("char[]", _BLOCK.size)
    _call(what, fd, command, number, answer)
    return _BLOCK.unpack(bytes(ffi.buffer(answer, _BLOCK.size)))


def _call(what: str, fd: int, command: int, number: int, block: object) -> None:
    syscall(what, QUOTACTL_FD, fd, command << 8 | _PROJECTS, number, block)
