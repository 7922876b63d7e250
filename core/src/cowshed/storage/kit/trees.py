"""Whole trees, for driver authors: remove one whatever its modes say, measure one; `copy_tree` is in copying.py.

Names come from images, so every step is taken from a directory descriptor and no symbolic link is ever followed.
"""

from __future__ import annotations

import errno
import os
import stat
from time import monotonic

from cowshed.storage.kit.descent import DIRECTORY, Descent, Moved, enter, names
from cowshed_linux import files

__all__ = ["copy_top", "copy_tree", "measure_tree", "remove_entry", "remove_tree"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_TRIES = 5  # a directory that others fill while it is removed


def copy_tree(source: str, target: str, *, step: Callable[[], None] | None = None) -> None:
    """See `cowshed.storage.kit.copying.copy_tree`, which commands that copy nothing need not import."""
    from cowshed.storage.kit import copying

    copying.copy_tree(source, target, step=step)


def copy_top(source: str, target: str, without: str) -> None:
    """Give the directory target the owner, mode, times and extended attributes of the directory source, but for
    attributes whose names begin with `without`."""
    status = os.stat(source)
    os.chown(target, status.st_uid, status.st_gid)
    os.chmod(target, status.st_mode & 0o7777)
    for name in os.listxattr(source):
        if not name.startswith(without):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def remove_tree(path: str, *, until: float | None = None) -> bool:
    """Remove a directory (or file) and all below; False if time (time.monotonic) ran out, and the rest may be removed
    by a later call.

    Another process may be removing the same tree: what is gone is success. Immutable and append-only flags are lifted.
    A mount point below is not entered: OSError EBUSY. Trees of any depth are removed.
    """
    parent, _, name = path.rstrip("/").rpartition("/")
    try:
        # The way to the tree may lead through links, as a store may lie behind one; in the tree none is followed.
        at = os.open(parent or ("/" if path.startswith("/") else "."), DIRECTORY & ~os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        return remove_entry(at, name, until)
    finally:
        os.close(at)


def remove_entry(at: int, name: str | bytes, until: float | None = None) -> bool:
    """`remove_tree` of a name in the directory that descriptor at refers to."""
    for _ in range(_TRIES):
        if _unlinked(at, name):
            return True
        try:
            tree = Descent(enter(at, name))
        except FileNotFoundError:
            return True
        try:
            if not _emptied(tree, until):
                return False
        finally:
            tree.close()
        if _removed_directory(at, name):
            return True
    raise OSError(errno.ENOTEMPTY, f"{os.fsdecode(name)}: entries appear while it is removed")


def _emptied(tree: Descent, until: float | None) -> bool:
    stack: list[tuple[str, list[str]]] = [("", names(tree.fd))]
    again = 0
    while True:
        if until is not None and monotonic() > until:
            return False
        name, entries = stack[-1]
        if entries:
            entry = entries.pop()
            if not _unlinked(tree.fd, entry):
                try:
                    tree.down(entry)
                except FileNotFoundError:
                    continue
                stack.append((entry, names(tree.fd)))
            continue
        stack.pop()
        if not stack:
            return True
        try:
            tree.up()
        except Moved:
            return False  # a process that knows better has put it elsewhere: what is left here comes next time
        if not _removed_directory(tree.fd, name):
            again += 1
            if again > _TRIES:
                raise OSError(errno.ENOTEMPTY, f"{name}: entries appear while it is removed")
            stack[-1][1].append(name)


def _unlinked(at: int, name: str | bytes) -> bool:
    """Whether the name is gone; False if it is a directory."""
    try:
        _lifting(os.unlink, at, name)
    except FileNotFoundError:
        return True
    except IsADirectoryError:
        return False
    return True


def _removed_directory(at: int, name: str | bytes) -> bool:
    """Whether the directory is gone; False if it is not empty."""
    try:
        _lifting(os.rmdir, at, name)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _lifting(remove: Callable[..., None], at: int, name: str | bytes) -> None:
    """Do it; if flags of the entry or of its directory forbid it, take them away and do it again."""
    try:
        remove(name, dir_fd=at)
    except PermissionError:
        if not (_lift(at, ".") | _lift(at, name)):
            raise
        remove(name, dir_fd=at)


def _lift(at: int, name: str | bytes) -> bool:
    """Take immutable and append-only away; whether there was one."""
    try:
        kind = stat.S_IFMT(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR):
            return False  # links have no such flags, and opening a device may do anything
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    except FileNotFoundError:
        return True  # another process was faster
    try:
        flags = files.inode_flags(fd)
        if not flags & (files.FS_IMMUTABLE | files.FS_APPEND):
            return False
        files.set_inode_flags(fd, flags & ~(files.FS_IMMUTABLE | files.FS_APPEND))
        return True
    finally:
        os.close(fd)


def measure_tree(path: str) -> tuple[int, int]:
    """(bytes allocated, inodes) of a tree; an inode with several names counts once. Shared extents count in full.

    The tree may change meanwhile; what goes or moves during the walk may or may not be counted.
    """
    tree = Descent(os.open(path, DIRECTORY))
    try:
        return _measured(tree)
    finally:
        tree.close()


def _measured(tree: Descent) -> tuple[int, int]:
    several: set[tuple[int, int]] = set()
    total, inodes = os.fstat(tree.fd).st_blocks * 512, 1
    stack = [names(tree.fd)]
    while True:
        if not stack[-1]:
            stack.pop()
            if not stack:
                return total, inodes
            try:
                tree.up()
            except Moved:
                return total, inodes
            continue
        name = stack[-1].pop()
        try:
            status = os.stat(name, dir_fd=tree.fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                tree.down(name)
                stack.append(names(tree.fd))
            elif status.st_nlink > 1:
                key = status.st_dev, status.st_ino
                if key in several:
                    continue
                several.add(key)
        except (FileNotFoundError, NotADirectoryError):
            continue
        total += status.st_blocks * 512
        inodes += 1
