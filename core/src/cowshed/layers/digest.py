"""The digest of a tree: two trees have the same one if a container could not tell them apart.

It covers, of every name, kind, mode, owner, time of modification, extended attributes, and content, target or device;
and which names are of one file. It does not cover what belongs to a place and not to a tree: inode numbers, sizes on
disk, other times, attributes of `xattrs.REFUSED`. Sockets are looked at as if they were not there, as everywhere else.
"""

from __future__ import annotations

import hashlib
import os
import stat

from cowshed.layers import xattrs
from cowshed.storage.kit.descent import DIRECTORY, Descent
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PIECE = 1 << 20


@record(frozen=True)
class Mask:
    """What two stores cannot both hold, and so does not count."""

    granularity: int = 1  # ns: times are cut to a multiple of it
    attributes: tuple[str, ...] = ()  # beginnings of names
    null_devices: bool = False  # character devices 0:0


@record(frozen=True)
class Digest:
    value: str  # sha256, hex
    contents: Mapping[bytes, bytes]  # of each path that is a file, the digest of what is in it


WHOLE = Mask()


def of_tree(
    root: int,
    mask: Mask = WHOLE,
    *,
    changed: Collection[bytes] | None = None,
    known: Mapping[bytes, bytes] | None = None,
) -> Digest:
    """The digest of the tree at descriptor root. OSError.

    changed, known: of a layer whose parent was looked at just now, the paths that it changed, and what the digest of
    the parent has as `contents`: files at other paths are not read again.
    """
    walk = _Walk(mask, changed, known or {})
    top = Descent(os.open(".", DIRECTORY, dir_fd=root))
    try:
        walk.run(top)
    finally:
        top.close()
    return Digest(walk.sum.hexdigest(), walk.contents)


class _Walk:
    def __init__(self, mask: Mask, changed: Collection[bytes] | None, known: Mapping[bytes, bytes]) -> None:
        self.sum = hashlib.sha256()
        self.contents: dict[bytes, bytes] = {}
        self._mask, self._known = mask, known
        self._changed = changed if changed is None or isinstance(changed, (set, frozenset)) else set(changed)
        self._first: dict[tuple[int, int], bytes] = {}  # of files with several names: the one that came first

    def run(self, tree: Descent) -> None:
        self._node(b"", os.fstat(tree.fd), xattrs.read(tree.fd), b"")
        stack = [(b"", self._names(tree.fd))]
        while stack:
            above, names = stack[-1]
            if not names:
                stack.pop()
                if stack:
                    tree.up()
                continue
            name = names.pop()
            path = above + b"/" + name if above else name
            status = os.stat(name, dir_fd=tree.fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                tree.down(name)
                self._node(path, status, xattrs.read(tree.fd), b"")
                stack.append((path, self._names(tree.fd)))
            else:
                self._entry(path, name, status, tree.fd)

    def _names(self, fd: int) -> list[bytes]:
        return sorted(map(os.fsencode, os.listdir(fd)), reverse=True)

    def _entry(self, path: bytes, name: bytes, status: os.stat_result, at: int) -> None:
        mode = status.st_mode
        if stat.S_ISSOCK(mode) or (self._mask.null_devices and stat.S_ISCHR(mode) and status.st_rdev == 0):
            return
        if status.st_nlink > 1:
            first = self._first.setdefault((status.st_dev, status.st_ino), path)
            if first is not path:
                if first in self.contents:
                    self.contents[path] = self.contents[first]
                self._line(b"=", path, first)
                return
        if stat.S_ISREG(mode):
            fd = os.open(name, _READ, dir_fd=at)
            try:
                found = self.contents[path] = self._content(path, fd)
                self._node(path, status, xattrs.read(fd), found)
            finally:
                os.close(fd)
            return
        attributes = xattrs.read(f"/proc/self/fd/{at}/{os.fsdecode(name)}", follow=False)
        what = os.readlink(name, dir_fd=at) if stat.S_ISLNK(mode) else b""
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            what = b"%d:%d" % (os.major(status.st_rdev), os.minor(status.st_rdev))
        self._node(path, status, attributes, what)

    def _content(self, path: bytes, fd: int) -> bytes:
        if self._changed is not None and path not in self._changed and path in self._known:
            return self._known[path]
        found = hashlib.sha256()
        while piece := os.read(fd, _PIECE):
            found.update(piece)
        return found.digest()

    def _node(self, path: bytes, status: os.stat_result, attributes: dict[str, bytes], what: bytes) -> None:
        mtime = status.st_mtime_ns // self._mask.granularity
        size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        self._line(b"%o %d %d %d %d" % (status.st_mode, status.st_uid, status.st_gid, mtime, size), path, what)
        for key, value in attributes.items():
            if not key.startswith(self._mask.attributes):
                self._line(b"x", os.fsencode(key), value)

    def _line(self, *parts: bytes) -> None:
        self.sum.update(b"".join([b"%d:%s" % (len(part), part) for part in parts]) + b"\n")
