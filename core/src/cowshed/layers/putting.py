"""Putting an archive into a tree that is no layer of its own: what `cp` does at its destination.

Like applying a layer, but that a name with `.wh.` is a name, a directory is never replaced by what is none, or the
other way round, and the directory that everything is put into stays as it is.
"""

from __future__ import annotations

import os
import stat

from cowshed.errors import BadUsage, Conflict, ImageError, NoSpace
from cowshed.layers.apply import Applier
from cowshed.layers.tarstream import BLOCKDEV, CHAR, DIRECTORY, FILE, LINK, Entry, Feed, entries

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_READ_ONLY = "it is read-only, or it lies on a file system in memory that is there only while the container runs"


def put(chunks: Iterable[bytes], root: int, folder: bytes, *, privileges: bool = True) -> None:
    """Unpack an archive into a directory of the tree at descriptor root, reached as a process whose root that is would
    reach it.

    Without privileges, devices, set-user-id and set-group-id bits of files, and capabilities are left out: what a
    container made must not become the caller's own. Raises Conflict (what is there is of another kind, or cannot be
    written), BadUsage (no sound archive), NoSpace.
    """
    putter = _Putter(root, folder.strip(b"/"), privileges)
    old_mask = os.umask(0)
    try:
        feed = Feed(chunks)
        for entry in entries(feed):
            putter.entry(entry, feed)
        putter.finish()
    except ImageError as error:
        raise BadUsage(str(error)) from None
    except OSError as error:
        if error.errno in (28, 122):  # ENOSPC, EDQUOT
            raise NoSpace(f"no space for {putter.doing}: {error.strerror}", remedy="free space") from None
        remedy = _READ_ONLY if error.errno == 30 else ""
        raise Conflict(f"{putter.doing} cannot be written: {error.strerror or error}", remedy=remedy) from None
    finally:
        os.umask(old_mask)
        putter.close()


class _Putter(Applier):
    def __init__(self, root: int, folder: bytes, privileges: bool) -> None:
        super().__init__(root, 1 << 62)
        self._privileges = privileges
        self._before = folder + b"/" if folder else b""

    @property
    def doing(self) -> str:
        return repr("/" + os.fsdecode(self.name))

    def entry(self, entry: Entry, feed: Feed) -> None:
        if not entry.name:
            if entry.kind != DIRECTORY:
                raise ImageError("the archive replaces its own root")
            feed.skip(entry.size)
            return
        link = self._before + entry.link if entry.kind == LINK else entry.link
        mode, attributes = entry.mode, entry.xattrs
        if not self._privileges:
            if entry.kind in (CHAR, BLOCKDEV):
                feed.skip(entry.size)
                return
            if entry.kind == FILE:
                mode &= 0o1777
                attributes = {key: value for key, value in attributes.items() if key != "security.capability"}
        there = Entry(
            self._before + entry.name, entry.kind, mode, entry.uid, entry.gid, entry.size, entry.mtime, link,
            entry.device, attributes, entry.holes, entry.real_size,
        )  # fmt: skip
        super().entry(there, feed)

    def is_whiteout(self, base: bytes) -> bool:
        return False

    def clear(self, parent: int, base: bytes, path: bytes) -> None:
        there = os.stat(base, dir_fd=parent, follow_symlinks=False).st_mode
        if stat.S_ISDIR(there):
            raise Conflict(f"{self.doing} is a directory, and what is copied there is none")
        super().clear(parent, base, path)

    def make_directory(self, entry: Entry, parent: int, base: bytes) -> None:
        try:
            there = os.stat(base, dir_fd=parent, follow_symlinks=False).st_mode
        except FileNotFoundError:
            there = stat.S_IFDIR
        if not stat.S_ISDIR(there):
            raise Conflict(f"{self.doing} is no directory, and one is copied there")
        super().make_directory(entry, parent, base)
