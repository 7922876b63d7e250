"""Whether a layer's tree is what its archives say: a second reading of image-spec's layer.md, beside `layers.apply`.

The archives of a chain, from the lowest on, give what each path must be; what the driver mounts is walked and compared:
kind, mode, owner, size, time, target, extended attributes, and the digest of what is in a file. A driver that shares
what lies below is read for what the layer itself brought; one that copies it is read whole.
"""

from __future__ import annotations

import hashlib
import os
import stat

from cowshed.errors import ImageError
from cowshed.layers import tarstream, xattrs
from cowshed.layers.tarstream import BLOCKDEV, CHAR, DIRECTORY, FIFO, FILE, LINK, SYMLINK
from cowshed.storage.kit.descent import DIRECTORY as OPEN
from cowshed.storage.kit.descent import Descent, names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cowshed.layers.tarstream import Entry, Feed
    from cowshed.storage.api import Capabilities

_OPAQUE, _WHITEOUT = b".wh..wh..opq", b".wh."
_LINKS = 40  # that are followed on the way to one directory, as the kernel does (path_resolution(7))
_MOST = 5  # differences of one layer that are told
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KINDS = {
    stat.S_IFREG: FILE, stat.S_IFLNK: SYMLINK, stat.S_IFCHR: CHAR, stat.S_IFBLK: BLOCKDEV, stat.S_IFDIR: DIRECTORY,
    stat.S_IFIFO: FIFO,
}  # fmt: skip
_ACCESS_LIST = "system.posix_acl_"  # which the kernel keeps in another form


class Node:
    """What a path must be. digest: of a file's bytes. given: an archive has it, else it was only on the way."""

    __slots__ = ("device", "digest", "gid", "given", "kind", "link", "mode", "mtime", "size", "uid", "xattrs")

    def __init__(self, entry: Entry | None, digest: bytes = b"") -> None:
        self.given = entry is not None
        self.digest = digest
        self.kind, self.mode, self.uid, self.gid, self.mtime, self.size = DIRECTORY, 0o755, 0, 0, 0, 0
        self.link, self.device = b"", (0, 0)
        self.xattrs: dict[str, bytes] = {}
        if entry is not None:
            self.kind, self.mode, self.uid, self.gid = entry.kind, entry.mode, entry.uid, entry.gid
            self.mtime, self.size, self.link, self.device = entry.mtime, entry.real_size, entry.link, entry.device
            self.xattrs = entry.xattrs


class Expected:
    """The tree that the archives read so far make. `fresh`: the paths that the last of them has brought."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, Node] = {b"": Node(None)}
        self.fresh: set[bytes] = set()

    def copy(self) -> Expected:
        other = Expected()
        other.nodes = dict(self.nodes)
        return other

    def read(self, chunks: Iterable[bytes]) -> None:
        """Put the next layer's archive, uncompressed, on top. ImageError."""
        self.fresh = set()
        self._real: dict[bytes, bytes] = {}
        feed = tarstream.Feed(chunks)
        for entry in tarstream.entries(feed):
            self._entry(entry, feed)

    def _entry(self, entry: Entry, feed: Feed) -> None:
        above, _, base = entry.name.rpartition(b"/")
        if base.startswith(_WHITEOUT):
            feed.skip(entry.size)
            if base == _OPAQUE:
                self._hide(self._directory(above))
            else:
                self._white_out(_join(self._follow(above, make=False), base[len(_WHITEOUT) :]))
            return
        folder = self._directory(above)
        path = _join(folder, base) if base else b""
        if entry.kind == LINK:
            up, _, name = entry.link.rpartition(b"/")
            node = self.nodes.get(_join(self._directory(up), name))
            if node is None:
                raise ImageError(f"{os.fsdecode(entry.name)!r} is a hard link to nothing")
        else:
            node = Node(entry, _digest(entry, feed) if entry.kind == FILE else b"")
        old = self.nodes.get(path)
        if old is not None and old.kind == DIRECTORY and node.kind != DIRECTORY:
            self._drop(path)
        if old is not None and SYMLINK in (old.kind, node.kind):
            self._real.clear()
        self.nodes[path] = node
        self.fresh.add(path)

    def _directory(self, path: bytes) -> bytes:
        """The path that a directory has when the links on the way are followed, made if it is missing."""
        found = self._real.get(path)
        if found is None:
            found = self._real[path] = self._follow(path)
        return found

    def _follow(self, path: bytes, *, make: bool = True) -> bytes:
        left, here, links = path.split(b"/")[::-1], b"", 0
        while left:
            part = left.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                here = here.rpartition(b"/")[0]
                continue
            there = _join(here, part)
            node = self.nodes.get(there)
            if node is not None and node.kind == SYMLINK:
                links += 1
                if links > _LINKS:
                    raise ImageError(f"{os.fsdecode(path)!r} leads through too many links")
                left += node.link.split(b"/")[::-1]
                if node.link.startswith(b"/"):
                    here = b""
                continue
            if node is None and make:
                self.nodes[there] = Node(None)
                self.fresh.add(there)
            here = there
        return here

    def _below(self, path: bytes) -> list[bytes]:
        before = path + b"/" if path else b""
        return [other for other in self.nodes if other.startswith(before) and other != path and other]

    def _drop(self, path: bytes) -> None:
        for other in self._below(path):
            del self.nodes[other]
            self.fresh.discard(other)
        self._real.clear()

    def _hide(self, path: bytes) -> None:
        """Take away what lies below a directory and is not of this archive."""
        kept = self._kept()
        for other in self._below(path):
            if other not in kept:
                del self.nodes[other]
        self._real.clear()

    def _white_out(self, path: bytes) -> None:
        if path not in self.nodes:
            return
        if path in self._kept():
            if self.nodes[path].kind == DIRECTORY:
                self._hide(path)
            return
        self._drop(path)
        del self.nodes[path]

    def _kept(self) -> set[bytes]:
        """What this archive has brought, and the directories on the way to it."""
        kept = set(self.fresh)
        for path in self.fresh:
            while path := path.rpartition(b"/")[0]:
                kept.add(path)
        return kept


def _join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def _digest(entry: Entry, feed: Feed) -> bytes:
    """Of the bytes that a file has, holes and all."""
    found = hashlib.sha256()
    if not entry.holes:
        for view in feed.views(entry.size):
            found.update(view)
        _zeros(found.update, entry.real_size - entry.size)
        return found.digest()
    at = 0
    for offset, length in entry.holes:
        _zeros(found.update, offset - at)
        for view in feed.views(length):
            found.update(view)
        at = offset + length
    _zeros(found.update, entry.real_size - at)
    return found.digest()


def _zeros(update: Callable[[bytes], None], count: int) -> None:
    piece = bytes(min(count, 1 << 20)) if count > 0 else b""
    while count > 0:
        update(piece[:count])
        count -= len(piece)


def compare(expected: Expected, root: int, can: Capabilities, *, whole: bool, told: Callable[[], None]) -> list[str]:
    """How the tree at descriptor root differs, the first few paths; whole: read also the files of lower layers. told()
    is called for each entry."""
    return _Comparison(expected, can, whole, told).run(root)


class _Comparison:
    def __init__(self, expected: Expected, can: Capabilities, whole: bool, told: Callable[[], None]) -> None:
        self._expected, self._can, self._whole, self._told = expected, can, whole, told
        self._found: list[str] = []
        self._more = 0

    def run(self, root: int) -> list[str]:
        seen: set[bytes] = {b""}
        walk = Descent(os.open(".", OPEN, dir_fd=root))
        try:
            self._attributes(b"", self._expected.nodes[b""], os.fstat(walk.fd), walk.fd)
            stack = [names(walk.fd)]
            at: list[bytes] = []
            while stack:
                if not stack[-1]:
                    stack.pop()
                    if stack:
                        walk.up()
                        at.pop()
                    continue
                name = os.fsencode(stack[-1].pop())
                path = b"/".join((*at, name))
                seen.add(path)
                self._told()
                if self._entry(path, name, walk.fd):
                    walk.down(name)
                    at.append(name)
                    stack.append(names(walk.fd))
        finally:
            walk.close()
        for path in sorted(self._expected.nodes.keys() - seen):
            if not self._is_hidden(self._expected.nodes[path]):
                self._say(path, "is missing")
        return [*self._found, *([f"and {self._more} more"] if self._more else [])]

    def _is_hidden(self, node: Node) -> bool:
        """Of a driver for which the character device 0:0 means that a name is deleted."""
        return node.kind == CHAR and node.device == (0, 0) and not self._can.char_0_0_visible

    def _say(self, path: bytes, what: str) -> None:
        if len(self._found) < _MOST:
            self._found.append(f"/{os.fsdecode(path)} {what}")
        else:
            self._more += 1

    def _entry(self, path: bytes, name: bytes, at: int) -> bool:
        """Compare one entry; whether it is a directory to go into."""
        node, status = self._expected.nodes.get(path), os.stat(name, dir_fd=at, follow_symlinks=False)
        if node is None:
            self._say(path, "is in no archive")
            return False
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind != node.kind:
            self._say(path, "is of another kind")
            return False
        if kind == DIRECTORY:
            fd = os.open(name, OPEN | os.O_NOFOLLOW, dir_fd=at)
            try:
                self._attributes(path, node, status, fd)
            finally:
                os.close(fd)
            return True
        if kind == SYMLINK and os.readlink(name, dir_fd=at) != node.link:
            self._say(path, "leads elsewhere")
            return False
        if kind in (CHAR, BLOCKDEV) and (os.major(status.st_rdev), os.minor(status.st_rdev)) != node.device:
            self._say(path, "is another device")
            return False
        if kind == FILE and status.st_size != node.size:
            self._say(path, f"has {status.st_size} bytes, not {node.size}")
            return False
        if self._attributes(path, node, status, f"/proc/self/fd/{at}/{os.fsdecode(name)}") and kind == FILE:
            self._bytes(path, node, name, at)
        return False

    def _bytes(self, path: bytes, node: Node, name: bytes, at: int) -> None:
        if not (self._whole or path in self._expected.fresh):
            return
        found = hashlib.sha256()
        fd = os.open(name, _READ, dir_fd=at)
        try:
            while piece := os.read(fd, 1 << 18):
                found.update(piece)
        except OSError as error:
            self._say(path, f"cannot be read ({error.strerror})")
            return
        finally:
            os.close(fd)
        if found.digest() != node.digest:
            self._say(path, "has other bytes")

    def _attributes(self, path: bytes, node: Node, status: os.stat_result, target: int | str) -> bool:
        if not node.given:
            return True
        if node.kind != SYMLINK and status.st_mode & 0o7777 != node.mode & 0o7777:
            self._say(path, f"has mode {status.st_mode & 0o7777:o}, not {node.mode & 0o7777:o}")
        elif (status.st_uid, status.st_gid) != (node.uid, node.gid):
            self._say(path, f"belongs to {status.st_uid}:{status.st_gid}, not {node.uid}:{node.gid}")
        elif self._has_time(path, node) and status.st_mtime_ns != node.mtime - node.mtime % self._can.time_granularity:
            self._say(path, "has another time")
        elif wrong := self._xattr(node, target):
            self._say(path, f"has another {wrong}")
        else:
            return True
        return False

    def _has_time(self, path: bytes, node: Node) -> bool:
        """The time of a directory of a lower layer changes with what is put into it."""
        return node.kind != DIRECTORY or path in self._expected.fresh

    def _xattr(self, node: Node, target: int | str) -> str:
        left_out = (*xattrs.REFUSED, _ACCESS_LIST, *(() if node.kind in (FILE, DIRECTORY) else ("user.",)))
        for name, value in node.xattrs.items():
            if name.startswith(left_out) or name in self._can.lost_xattrs:
                continue
            try:
                if os.getxattr(target, name, follow_symlinks=isinstance(target, int)) == value:
                    continue
            except OSError as error:
                if error.errno == 95:  # EOPNOTSUPP: where it could not be set either
                    continue
            return name
        return ""
