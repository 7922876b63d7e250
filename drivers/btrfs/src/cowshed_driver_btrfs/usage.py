"""How many bytes a layer added to those below it, where no quota group tells."""

from __future__ import annotations

import errno
import os
import stat
from _struct import unpack_from

from cowshed.storage.kit.descent import DIRECTORY, Descent, Moved, names
from cowshed_driver_btrfs import ioctls, subvolumes


def written(path: str) -> int:
    """Bytes of the extents that a subvolume wrote since it was made: its own, also if snapshots share them by now.

    Looks only at the parts of the tree that are newer than the subvolume. What holds the names is left out.
    """
    fd = ioctls.directory(path)
    try:
        since = subvolumes.made_in(path)
        first, last = (ioctls.FIRST_FREE, 0, 0), (ioctls.LAST_FREE, 255, ioctls.MOST)
        extents: dict[int, int] = {}
        inline = 0
        for item in ioctls.search(fd, 0, first, last, since=since):
            if item.kind != ioctls.EXTENT_DATA:
                continue
            # struct btrfs_file_extent_item: generation, ram bytes, compression, …, type; then where it lies on the disk
            generation, _, _, _, _, kind = unpack_from("<QQBBHB", item.data)
            if generation <= since:
                continue
            if kind == 0:
                inline += len(item.data) - 21
            else:
                place, size = unpack_from("<QQ", item.data, 21)
                extents[place] = size
        extents.pop(0, None)  # a hole
        return sum(extents.values()) + inline
    finally:
        os.close(fd)


def unshared(path: str) -> int:
    """Bytes of a tree that no other file or snapshot shares: what a plain user can ask for."""
    tree = Descent(os.open(path, DIRECTORY))
    try:
        return _unshared(tree)
    finally:
        tree.close()


def _unshared(tree: Descent) -> int:
    several: set[int] = set()
    total = 0
    stack = [names(tree.fd)]
    while True:
        if not stack[-1]:
            stack.pop()
            if not stack:
                return total
            try:
                tree.up()
            except Moved:
                return total
            continue
        name = stack[-1].pop()
        try:
            status = os.stat(name, dir_fd=tree.fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                tree.down(name)
                stack.append(names(tree.fd))
            elif stat.S_ISREG(status.st_mode) and status.st_blocks and status.st_ino not in several:
                if status.st_nlink > 1:
                    several.add(status.st_ino)
                total += _of_file(tree.fd, name)
        except (FileNotFoundError, NotADirectoryError):
            continue


def _of_file(at: int, name: str) -> int:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    try:
        return ioctls.unshared_bytes(fd)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return 0
    finally:
        os.close(fd)
