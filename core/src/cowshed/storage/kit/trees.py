"""Whole trees, for driver authors: copy one with every attribute, measure one, remove one whatever its modes say.

Names come from images, so every step is taken from a directory descriptor and no symbolic link is ever followed.
"""

from __future__ import annotations

import errno
import os
import stat

from cowshed_linux import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_REFLINK = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS)
_CHUNK = 1 << 20


def copy_tree(source: str, target: str, *, step: Callable[[], None] | None = None) -> None:
    """Copy the directory source, which must not change meanwhile, to target, which must not exist.

    Kept: kind, mode, owner, nanosecond times, extended attributes (ACLs and capabilities too), hard links, holes,
    devices, and shared extents where the file system can (FICLONE). Sockets are left out: nobody listens in a copy.
    step is called once per entry; what it raises ends the copy.
    """
    os.mkdir(target, 0o700)
    here = os.open(source, _DIRECTORY)
    there = os.open(target, _DIRECTORY)
    try:
        _Copy(there, step).directory(here, there, "")
    finally:
        os.close(here)
        os.close(there)


class _Copy:
    def __init__(self, root: int, step: Callable[[], None] | None) -> None:
        self.root, self.step = root, step
        self.links: dict[tuple[int, int], str] = {}
        self.reflink = True

    def directory(self, here: int, there: int, path: str) -> None:
        for name in os.listdir(here):
            if self.step is not None:
                self.step()
            self.entry(here, there, name, f"{path}/{name}" if path else name)
        copy_attributes(here, there, os.fstat(here))

    def entry(self, here: int, there: int, name: str, path: str) -> None:
        status = os.stat(name, dir_fd=here, follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=there)
            below, made = os.open(name, _DIRECTORY, dir_fd=here), os.open(name, _DIRECTORY, dir_fd=there)
            try:
                self.directory(below, made, path)
            finally:
                os.close(below)
                os.close(made)
            return
        if kind == stat.S_IFSOCK:
            return
        if status.st_nlink > 1:
            first = self.links.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                os.link(first, name, src_dir_fd=self.root, dst_dir_fd=there, follow_symlinks=False)
                return
        if kind == stat.S_IFREG:
            self.file(here, there, name, status)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=here), name, dir_fd=there)
            _attributes_by_name(here, there, name, status)
        else:
            os.mknod(name, kind | 0o600, status.st_rdev, dir_fd=there)
            _attributes_by_name(here, there, name, status)

    def file(self, here: int, there: int, name: str, status: os.stat_result) -> None:
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
        target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=there)
        try:
            self.data(source, target, status.st_size)
            copy_attributes(source, target, status)
        finally:
            os.close(source)
            os.close(target)

    def data(self, source: int, target: int, size: int) -> None:
        if self.reflink and size:
            try:
                files.reflink(source, target)
                return
            except OSError as error:
                if error.errno not in _NO_REFLINK:
                    raise
                self.reflink = False
        copy_data(source, target, size)


def copy_data(source: int, target: int, size: int) -> None:
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


def remove_tree(path: str, *, until: float | None = None) -> bool:
    """Remove a directory (or file) and all below; False if time (time.monotonic) ran out, and the rest may be removed
    by a later call.

    Another process may be removing the same tree: what is gone is success. Immutable and append-only flags are lifted.
    Mount points below are not entered (EBUSY comes from the kernel); no symbolic link is followed.
    """
    parent, _, name = path.rpartition("/")
    try:
        at = os.open(parent or "/", _DIRECTORY)
    except FileNotFoundError:
        return True
    try:
        return remove_entry(at, name, until)
    finally:
        os.close(at)


def remove_entry(at: int, name: str | bytes, until: float | None = None) -> bool:
    """`remove_tree` of a name in the directory that descriptor at refers to."""
    try:
        _unlink(at, name, directory=False)
        return True
    except FileNotFoundError:
        return True
    except (IsADirectoryError, PermissionError) as error:
        if not stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
            raise error from None
    if until is not None:
        from time import monotonic

        if monotonic() > until:
            return False
    try:
        below = os.open(name, _DIRECTORY, dir_fd=at)
    except FileNotFoundError:
        return True
    try:
        for entry in os.listdir(below):
            if not remove_entry(below, entry, until):
                return False
    finally:
        os.close(below)
    try:
        _unlink(at, name, directory=True)
    except FileNotFoundError:
        pass
    return True


def _unlink(at: int, name: str | bytes, *, directory: bool) -> None:
    remove = os.rmdir if directory else os.unlink
    try:
        remove(name, dir_fd=at)
    except PermissionError:
        if not (_lift(at, ".") | _lift(at, name)):
            raise
        remove(name, dir_fd=at)


def _lift(at: int, name: str | bytes) -> bool:
    """Take immutable and append-only away; whether there was one."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    except OSError:
        return False  # a symbolic link or a device: neither has such flags
    try:
        flags = files.inode_flags(fd)
        if not flags & (files.FS_IMMUTABLE | files.FS_APPEND):
            return False
        files.set_inode_flags(fd, flags & ~(files.FS_IMMUTABLE | files.FS_APPEND))
        return True
    finally:
        os.close(fd)


def measure_tree(path: str) -> tuple[int, int]:
    """(bytes allocated, inodes) of a tree; an inode with several names counts once. Shared extents count in full."""
    seen: set[tuple[int, int]] = set()
    fd = os.open(path, _DIRECTORY)
    try:
        status = os.fstat(fd)
        seen.add((status.st_dev, status.st_ino))
        return status.st_blocks * 512 + _measure(fd, seen), len(seen)
    finally:
        os.close(fd)


def _measure(directory: int, seen: set[tuple[int, int]]) -> int:
    total = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            key = status.st_dev, status.st_ino
            if key in seen:
                continue
            seen.add(key)
            total += status.st_blocks * 512
            if stat.S_ISDIR(status.st_mode):
                try:
                    below = os.open(entry.name, _DIRECTORY, dir_fd=directory)
                except FileNotFoundError:
                    continue
                try:
                    total += _measure(below, seen)
                finally:
                    os.close(below)
    return total
