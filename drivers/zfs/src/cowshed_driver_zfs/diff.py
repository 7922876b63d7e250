"""Which paths may differ between two snapshots, one of which came from the other.

The kernel tells which objects changed, by their numbers, which are the inode numbers, and without reading data: it
compares only the blocks that hold inodes. `zfs diff` asks it the same, and then asks for a path of each object and for
its ctime. That loses some (seen on OpenZFS 2.1):

    a file with several names       one of them is printed
    a file whose last name is gone  while an older one is left: no path is found, and nothing is printed at all
    a renamed directory             what is in it is not printed
    an object with the same ctime   is taken for unchanged, whatever is in it
    a path over 4096 bytes          ends the whole output

and one over 8192 bytes is written by the kernel to where its buffer has ended (zfs_obj_to_path_impl).
So the numbers are used here, and the names found by walking the upper tree: directories are read, files are not looked
at. Only of a directory that changed the lower one is read too.
"""

from __future__ import annotations

import errno
import os
import struct
from bisect import bisect_right

from cowshed.storage.api import Change, ChangeKind
from cowshed.storage.errors import ToolFailed
from cowshed.storage.kit.descent import DIRECTORY, Descent, Moved
from cowshed_linux import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_RECORD = struct.Struct("=QQQ")  # dmu_diff_record_t: kind, first object, last object
_NONE, _IN_USE, _FREE = 1, 2, 4  # diff_type_t
_LONGEST = 4000  # of a path that the kernel takes; one byte of PATH_MAX ends it, and a name comes after it
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # the last: a link where a directory was
_GONE = (FileNotFoundError, NotADirectoryError)
EVERYTHING = Change(b"", ChangeKind.CANDIDATE, subtree=True)


class Objects:
    """The numbers of the objects that the kernel names: those that changed, and their neighbours in the same block.

    Raises ToolFailed for what the kernel does not write.
    """

    def __init__(self, output: bytes) -> None:
        if len(output) % _RECORD.size:
            raise ToolFailed(f"ZFS told of changed objects in {len(output)} bytes, which is no number of records")
        ranges = []
        for kind, first, last in _RECORD.iter_unpack(output):
            if kind not in (_NONE, _IN_USE, _FREE) or last < first:
                raise ToolFailed(f"ZFS told of changed objects what was not understood: {kind} {first} {last}")
            if kind == _IN_USE:
                ranges.append((first, last))
        ranges.sort()
        self._first = [first for first, _ in ranges]
        self._last: list[int] = [-1, *(last for _, last in ranges)]  # that of a range is one place after its first

    def __contains__(self, number: int) -> bool:
        return number <= self._last[bisect_right(self._first, number)]


def candidates(changed: Objects, lower: int, upper: int) -> Iterator[Change]:
    """The paths that may differ between two trees, given as descriptors of their roots: none is missed.

    The upper one may be written to meanwhile; what is done to it then may be told or not.
    """
    tree = Descent(os.open(".", DIRECTORY, dir_fd=upper))
    try:
        top = os.fstat(tree.fd).st_ino
        if top in changed:
            yield Change(b"", ChangeKind.CANDIDATE)
        below: list[tuple[bytes, int]] = []
        yield from _directory(b"", top, tree.fd, lower, changed, below)
        stack = [(b"", below)]
        while stack:
            path, below = stack[-1]
            if not below:
                stack.pop()
                try:
                    if stack:
                        tree.up()
                except Moved:
                    yield EVERYTHING
                    return
                continue
            name, number = below.pop()
            try:
                tree.down(name)
            except _GONE:
                continue
            inner: list[tuple[bytes, int]] = []
            path += name + b"/"
            if len(path) > _LONGEST:
                yield EVERYTHING
                return
            yield from _directory(path, number, tree.fd, lower, changed, inner)
            stack.append((path, inner))
    finally:
        tree.close()


def _directory(
    path: bytes, number: int, fd: int, lower: int, changed: Objects, below: list[tuple[bytes, int]]
) -> Iterator[Change]:
    """The candidates among the entries of a directory that both trees have; into below, the directories to look into.

    path: "" or with a slash at its end.
    """
    before = _entries(lower, path) if number in changed else None
    with os.scandir(fd) as listing:
        for entry in listing:
            inode = entry.inode()
            if before is not None and before.pop(entry.name, None) != inode:
                # new, or another one than it was
                yield Change(path + os.fsencode(entry.name), ChangeKind.CANDIDATE, subtree=True)
                continue
            if inode in changed:
                yield Change(path + os.fsencode(entry.name), ChangeKind.CANDIDATE)
            if entry.is_dir(follow_symlinks=False):
                below.append((os.fsencode(entry.name), inode))
    for name in before or ():
        yield Change(path + os.fsencode(name), ChangeKind.CANDIDATE)


def _entries(root: int, path: bytes) -> dict[str, int]:
    """The inode number of each name in a directory below root; nothing if it is none."""
    try:
        fd = paths.open_in_root(root, path, DIRECTORY, resolve=paths.RESOLVE_NO_SYMLINKS)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        return {}
    try:
        with os.scandir(fd) as listing:
            return {entry.name: entry.inode() for entry in listing}
    finally:
        os.close(fd)
