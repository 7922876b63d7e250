"""Copying a tree with everything that it consists of."""

from __future__ import annotations

import errno
import os
import stat

from cowshed.storage.kit.descent import DIRECTORY, Descent
from cowshed_linux import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_NEVER_SHARES = (errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTTY, errno.ENOSYS)
_CHUNK = 1 << 20
# ioctl_iflags(2): what chattr(1) can set and every file system takes alike; no-copy-on-write must precede the data
_LOCKING = files.FS_IMMUTABLE | files.FS_APPEND
_KEPT_FLAGS = _LOCKING | 0x8 | 0x40 | 0x80 | 0x10000  # sync, nodump, noatime, dirsync
_NO_COW = 0x800000


def copy_tree(source: str, target: str, *, step: Callable[[], None] | None = None) -> None:
    """Copy the directory source, which must not change meanwhile, to target, which must not exist.

    Kept: kind, mode, owner, nanosecond times, extended attributes (ACLs and capabilities too), inode flags, hard links,
    holes, devices, sockets, and shared extents where the file system can (FICLONE). Mount points below source are not
    entered: OSError EBUSY. step is called once per entry; what it raises ends the copy. Nothing is synced.
    """
    os.mkdir(target, 0o700)
    _Copy(source, target, step).run()


class _Directory:
    __slots__ = ("name", "names", "status")

    def __init__(self, name: str, fd: int) -> None:
        self.name, self.status = name, os.fstat(fd)  # before the listing, which may touch the time of access
        self.names = os.listdir(fd)


class _Copy:
    def __init__(self, source: str, target: str, step: Callable[[], None] | None) -> None:
        self._source, self._target, self._step = source, target, step
        self._first: dict[tuple[int, int], list[str]] = {}  # of files with several names: the way to the copy
        self._lock_last: list[tuple[list[str], int]] = []  # a file that is immutable can get no further name
        self._contents = Contents()
        self._no_atime = os.O_NOATIME

    def run(self) -> None:
        here = Descent(os.open(self._source, DIRECTORY))
        try:
            there = Descent(os.open(self._target, DIRECTORY))
            try:
                self._tree(here, there)
            finally:
                there.close()
        finally:
            here.close()
        for way, flags in self._lock_last:
            place = self._folder(way)
            try:
                _add_flags(place.fd, way[-1], flags)
            finally:
                place.close()

    def _tree(self, here: Descent, there: Descent) -> None:
        stack = [_Directory("", here.fd)]
        while stack:
            current = stack[-1]
            if current.names:
                name = current.names.pop()
                if self._step is not None:
                    self._step()
                status = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    os.mkdir(name, 0o700, dir_fd=there.fd)
                    here.down(name)
                    there.down(name)
                    stack.append(_Directory(name, here.fd))
                else:
                    self._entry(here.fd, there.fd, name, status, stack)
                continue
            # All entries are made: only now, as making them changed the directory's times.
            above = there.parent() if there.depth else -1  # before the mode that may forbid it
            try:
                copy_attributes(here.fd, there.fd, current.status)
                _set_flags(there.fd, files.inode_flags(here.fd) & _KEPT_FLAGS)
            except BaseException:
                if above >= 0:
                    os.close(above)
                raise
            stack.pop()
            if stack:
                here.up()
                there.up(above)

    def _entry(self, here: int, there: int, name: str, status: os.stat_result, stack: list[_Directory]) -> None:
        several = status.st_nlink > 1
        way: list[str] = []
        if several:
            way = [*(directory.name for directory in stack[1:]), name]
            first = self._first.setdefault((status.st_dev, status.st_ino), way)
            if first is not way:
                place = self._folder(first)
                try:
                    os.link(first[-1], name, src_dir_fd=place.fd, dst_dir_fd=there, follow_symlinks=False)
                finally:
                    place.close()
                return
        if stat.S_ISREG(status.st_mode):
            self._file(here, there, name, status, way)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=here), name, dir_fd=there)
            _attributes_by_name(here, there, name, status)
        else:
            os.mknod(name, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev, dir_fd=there)
            _attributes_by_name(here, there, name, status)

    def _file(self, here: int, there: int, name: str, status: os.stat_result, way: list[str]) -> None:
        source = self._open_file(here, name)
        try:
            target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=there)
            try:
                flags = files.inode_flags(source)
                _set_flags(target, flags & _NO_COW)
                self._contents.copy(source, target, status.st_size)
                copy_attributes(source, target, status)
                if way and flags & _LOCKING:
                    self._lock_last.append((way, flags & _KEPT_FLAGS))
                else:
                    _set_flags(target, flags & _KEPT_FLAGS)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _open_file(self, at: int, name: str) -> int:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        if self._no_atime:
            try:
                return os.open(name, flags | os.O_NOATIME, dir_fd=at)
            except PermissionError:  # only owners and CAP_FOWNER may
                self._no_atime = 0
        return os.open(name, flags, dir_fd=at)

    def _folder(self, way: list[str]) -> Descent:
        """The directory of an entry of the copy, however long its path is."""
        place = Descent(os.open(self._target, DIRECTORY))
        try:
            for name in way[:-1]:
                place.down(name)
        except BaseException:
            place.close()
            raise
        return place


class Contents:
    """Bytes of files, from one file system to one other: shared where they can (FICLONE), else copied, holes kept."""

    def __init__(self) -> None:
        self._may_share = True

    def copy(self, source: int, target: int, size: int) -> bool:
        """Give an empty file the bytes of another; whether the two share them."""
        if self._may_share and size:
            try:
                files.reflink(source, target)
                return True
            except OSError as error:
                if error.errno in _NEVER_SHARES:
                    self._may_share = False
                elif error.errno != errno.EINVAL:  # this file cannot; others may
                    raise
        _copy_data(source, target, size)
        return False


def _copy_data(source: int, target: int, size: int) -> None:
    """Copy a file's bytes and keep its holes."""
    at = 0
    while at < size:
        try:
            start = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # nothing but a hole up to the end
        at = start
        end = min(os.lseek(source, start, os.SEEK_HOLE), size)
        os.lseek(source, start, os.SEEK_SET)
        os.lseek(target, start, os.SEEK_SET)
        while at < end:
            sent = os.sendfile(target, source, None, min(end - at, _CHUNK))
            if sent == 0:
                break
            at += sent
        at = max(at, end)
    os.ftruncate(target, size)


def copy_attributes(source: int, target: int, status: os.stat_result) -> None:
    """Owner, then mode (chown clears set-id bits), then extended attributes (chown clears capabilities), then times."""
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _attributes_by_name(here: int, there: int, name: str, status: os.stat_result) -> None:
    os.chown(name, status.st_uid, status.st_gid, dir_fd=there, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=there)
    # The descriptor's path in /proc leads to the directory itself; the last part is not followed.
    source, target = f"/proc/self/fd/{here}/{name}", f"/proc/self/fd/{there}/{name}"
    for key in os.listxattr(source, follow_symlinks=False):
        os.setxattr(target, key, os.getxattr(source, key, follow_symlinks=False), follow_symlinks=False)
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=there, follow_symlinks=False)


def _set_flags(fd: int, flags: int) -> None:
    if flags:
        files.set_inode_flags(fd, files.inode_flags(fd) | flags)


def _add_flags(at: int, name: str, flags: int) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    try:
        _set_flags(fd, flags)
    finally:
        os.close(fd)
