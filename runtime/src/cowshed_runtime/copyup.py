"""`tmpcopyup`: what a tmpfs would hide is copied into it first. By descriptor throughout; links are copied as links."""

from __future__ import annotations

import os
import stat

_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW


def copy_tree(source: int, target: int) -> None:
    """Copy all below directory source into directory target, with modes, owners, times and extended attributes."""
    for name in os.listdir(source):
        there = os.stat(name, dir_fd=source, follow_symlinks=False)
        kind = stat.S_IFMT(there.st_mode)
        if kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            os.chown(name, there.st_uid, there.st_gid, dir_fd=target, follow_symlinks=False)
        elif kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=target)
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _OPEN, dir_fd=source)
            made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _OPEN, dir_fd=target)
            copy_tree(below, made)
            _attributes(below, made, there)
        elif kind == stat.S_IFREG:
            below = os.open(name, os.O_RDONLY | _OPEN, dir_fd=source)
            made = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600, dir_fd=target)
            while os.sendfile(made, below, None, 1 << 20):
                continue
            _attributes(below, made, there)
        else:
            os.mknod(name, there.st_mode, there.st_rdev, dir_fd=target)
            os.chown(name, there.st_uid, there.st_gid, dir_fd=target, follow_symlinks=False)
    there = os.fstat(source)
    os.utime(target, ns=(there.st_atime_ns, there.st_mtime_ns))


def _attributes(source: int, target: int, there: os.stat_result) -> None:
    os.fchown(target, there.st_uid, there.st_gid)
    os.fchmod(target, stat.S_IMODE(there.st_mode))
    for name in os.listxattr(source):
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError as error:
            if error.errno != 95:  # EOPNOTSUPP: tmpfs has no such attributes
                raise
    os.utime(target, ns=(there.st_atime_ns, there.st_mtime_ns))
    os.close(source)
    os.close(target)
