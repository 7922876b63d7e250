"""Files and directories: syncfs(2), sync_file_range(2), FICLONE, inode flags, directory fsync."""

from __future__ import annotations

import fcntl
import os
from _struct import pack, unpack

from cowshed_linux.libc import FSTATFS, GETDENTS64, SYNC_FILE_RANGE, C, check, ffi, syscall

_FICLONE = 0x40049409
_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602
FS_IMMUTABLE, FS_APPEND = 0x10, 0x20
_SYNC_FILE_RANGE_WRITE = 2


def syncfs(fd: int) -> None:
    """Write back the file system of fd. Reports errors only since fd was opened: open it before the first write."""
    check(C.syncfs(fd), "syncfs")


def begin_writeback(fd: int, at: int, count: int) -> None:
    """Let the kernel begin to write a range of a file (sync_file_range(2)), without waiting for its end."""
    syscall("sync_file_range", SYNC_FILE_RANGE, fd, at, count, _SYNC_FILE_RANGE_WRITE)


def sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def reflink(source: int, target: int) -> None:
    """Let target share all data of source (ioctl_ficlone(2)). EOPNOTSUPP, EXDEV or EINVAL where that cannot be."""
    fcntl.ioctl(target, _FICLONE, source)


def inode_flags(fd: int) -> int:
    """FS_IOC_GETFLAGS; 0 where the file system has none."""
    try:
        return int(unpack("@l", fcntl.ioctl(fd, _GETFLAGS, pack("@l", 0)))[0])
    except OSError:
        return 0


def set_inode_flags(fd: int, flags: int) -> None:
    fcntl.ioctl(fd, _SETFLAGS, pack("@l", flags))


def write_atomically(path: str, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace path by data: a reader sees the old file or the new one, also after a power cut if durable."""
    temporary = f"{path}.{os.getpid()}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if durable:
            os.fsync(fd)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    os.rename(temporary, path)
    if durable:
        sync_directory(os.path.dirname(path) or ".")


def directory_tells_types(fd: int) -> bool:
    """Whether getdents64(2) says what kind each entry is (d_type), or DT_UNKNOWN. fd: a directory with entries."""
    buffer = ffi.new("char[]", 4096)
    count = syscall("getdents64", GETDENTS64, fd, buffer, 4096)
    raw = bytes(ffi.buffer(buffer, count))
    at = 0
    while at < count:
        length, kind = unpack("=HB", raw[at + 16 : at + 19])
        if kind == 0:
            return False
        at += length
    return True


PROC_MAGIC, DEVPTS_MAGIC = 0x9FA0, 0x1CD1


def file_system_magic(fd: int) -> int:
    """f_type of fstatfs(2), which os.fstatvfs leaves out (linux/magic.h)."""
    buffer = ffi.new("long[]", 32)
    syscall("fstatfs", FSTATFS, fd, buffer)
    return int(buffer[0]) & 0xFFFFFFFF
