"""Changes between a layer and one below it, from the kernel's own comparison of the two trees.

Snapshots share the parts of their trees that are alike, so `send` finds what differs without looking at the rest. What
it names are candidates: it tells of rewritten data whether or not the bytes differ (so `changes_exact` is false), and
of a file with several names it mentions one. The other names come from INO_PATHS, of both trees.
"""

from __future__ import annotations

import errno
import os
import stat

from cowshed.storage.api import Change, ChangeKind
from cowshed.storage.errors import ToolFailed
from cowshed_driver_btrfs import ioctls, subvolumes
from cowshed_driver_btrfs.sendstream import BadStream, Replay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

EVERYTHING = Change(b"", ChangeKind.CANDIDATE, subtree=True)


def changes(lower: str, upper: str, content: str) -> Iterator[Change]:
    """Candidates among the paths below the directory `content` of two read-only subvolumes, upper made from lower.

    Raises OSError, ToolFailed.
    """
    old: dict[bytes, bool] = {}
    new: dict[bytes, bool] = {}
    here = ioctls.directory(lower)
    try:
        there = ioctls.directory(upper)
        try:
            old, new = _concerned(there, subvolumes.identity(lower))
            whole = _complete(here, old) and _complete(there, new)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # a tree deeper than paths can say
                raise
            whole = False
        finally:
            os.close(there)
    finally:
        os.close(here)
    if not whole:
        yield EVERYTHING
        return
    top = os.fsencode(content)
    for path in {*old, *new}:
        subtree = old.get(path, False) or new.get(path, False)
        if path == top:
            yield Change(b"", ChangeKind.CANDIDATE, subtree)
        elif path.startswith(top + b"/"):
            yield Change(path[len(top) + 1 :], ChangeKind.CANDIDATE, subtree)


def _concerned(upper: int, lower: int) -> tuple[dict[bytes, bool], dict[bytes, bool]]:
    """Paths in the lower and in the upper tree, by a stream that is held in memory: some hundred bytes for a change."""
    stream = os.memfd_create("btrfs-send", os.MFD_CLOEXEC)
    try:
        ioctls.send(upper, lower, stream, data=False)
        size = os.lseek(stream, 0, os.SEEK_END)
        from mmap import ACCESS_READ, mmap

        with mmap(stream, size, access=ACCESS_READ) as mapped, memoryview(mapped) as view:
            try:
                replay = Replay().run(view)
            except BadStream as error:
                raise ToolFailed(
                    f"what this kernel says of the changes is not understood: {error}",
                    remedy="report it to Cowshed's authors, with the kernel's version",
                ) from None
        return replay.old, replay.new
    finally:
        os.close(stream)


def _complete(tree: int, paths: dict[bytes, bool]) -> bool:
    """Add the other names of files that have several; False if the kernel cannot tell them all."""
    done: set[int] = set()
    for path in list(paths):
        try:
            status = os.stat(path or b".", dir_fd=tree, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            continue  # a temporary name, or a path through something that is no directory here
        if status.st_nlink < 2 or stat.S_ISDIR(status.st_mode) or status.st_ino in done:
            continue
        done.add(status.st_ino)
        names = ioctls.inode_paths(tree, status.st_ino)
        if names is None:
            return False
        for name in names:
            paths.setdefault(name, False)
    return True
