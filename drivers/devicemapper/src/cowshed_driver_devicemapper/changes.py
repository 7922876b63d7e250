"""Changes between a layer and one below it, from the blocks in which their thin devices differ.

A pool knows in which blocks two devices differ, without looking at what lies in them. If there are none, nothing
changed. Else ext4 tells in which inodes (see ext4.py), and their names are looked for in the trees: of the newer one
only names and inode numbers are read, of the older only the directories that differ. What is told are candidates.
"""

from __future__ import annotations

import errno
import os

from cowshed.storage.api import Change, ChangeKind
from cowshed.storage.kit.descent import DIRECTORY, Descent
from cowshed_linux import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_OPEN = DIRECTORY & ~os.O_NOFOLLOW  # what is given may be a link of /proc
EVERYTHING = Change(b"", ChangeKind.CANDIDATE, subtree=True)


def named(lower: str, upper: str, inodes: dict[int, int]) -> list[Change]:
    """Candidates below the roots of two mounted trees, of which the inodes told differ (→ how many names they have)."""
    here = os.open(lower, _OPEN)
    try:
        there = Descent(os.open(upper, _OPEN))
        try:
            return list(_Walk(here, there, inodes).run())
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # a tree deeper than paths can say
                raise
            return [EVERYTHING]
        finally:
            there.close()
    finally:
        os.close(here)


class _Folder:
    """A directory of the newer tree, on the way down."""

    __slots__ = ("below", "covered", "inode", "path")

    def __init__(self, path: bytes, inode: int, *, covered: bool) -> None:
        self.path, self.inode = path, inode
        self.covered = covered  # as all below a candidate that is not where it was
        self.below: list[_Folder] = []


class _Walk:
    """As long as names are missing of inodes that differ.

    A directory that does not differ has the same names for the same inodes in both trees. So where no directory above
    has given a name to another inode, a path means the same inode in both."""

    def __init__(self, lower: int, upper: Descent, inodes: dict[int, int]) -> None:
        self._lower, self._upper, self._inodes = lower, upper, inodes
        self._missing = dict(inodes)

    def run(self) -> Iterator[Change]:
        top = os.fstat(self._upper.fd).st_ino
        if os.fstat(self._lower).st_ino != top:
            yield EVERYTHING
            return
        if top in self._inodes:
            yield Change(b"", ChangeKind.CANDIDATE)
        stack = [_Folder(b"", top, covered=False)]
        yield from self._names(stack[-1])
        while self._missing:
            if stack[-1].below:
                folder = stack[-1].below.pop()
                self._upper.down(folder.path.rpartition(b"/")[2])
                stack.append(folder)
                yield from self._names(folder)
                continue
            stack.pop()
            if not stack:
                return
            self._upper.up()

    def _names(self, folder: _Folder) -> Iterator[Change]:
        before: dict[bytes, int] | None = None
        if folder.inode in self._inodes:
            self._met(folder.inode)
            if not folder.covered:
                before = self._before(folder)
                if before is None:
                    folder.covered = True
                    yield Change(folder.path, ChangeKind.CANDIDATE, subtree=True)
        with os.scandir(self._upper.fd) as entries:
            for entry in entries:
                name, inode = os.fsencode(entry.name), entry.inode()
                path = folder.path + b"/" + name if folder.path else name
                covered = folder.covered
                if before is not None and before.pop(name, 0) != inode:
                    covered = True
                    yield Change(path, ChangeKind.CANDIDATE, subtree=True)
                elif inode in self._inodes and not covered:
                    # What is no directory may have been one: inode numbers are used again.
                    yield Change(path, ChangeKind.CANDIDATE, subtree=not entry.is_dir(follow_symlinks=False))
                if entry.is_dir(follow_symlinks=False):
                    folder.below.append(_Folder(path, inode, covered=covered))
                elif inode in self._missing:
                    self._met(inode)
        for name in before or ():
            yield Change(folder.path + b"/" + name if folder.path else name, ChangeKind.DELETED)

    def _before(self, folder: _Folder) -> dict[bytes, int] | None:
        """Names and inodes of a directory in the older tree; None if the inode was no directory then."""
        try:
            fd = paths.open_in_root(self._lower, folder.path, DIRECTORY, resolve=paths.RESOLVE_NO_SYMLINKS)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            return None
        try:
            with os.scandir(fd) as entries:
                return {os.fsencode(entry.name): entry.inode() for entry in entries}
        finally:
            os.close(fd)

    def _met(self, inode: int) -> None:
        self._missing[inode] -= 1
        if not self._missing[inode]:
            del self._missing[inode]
