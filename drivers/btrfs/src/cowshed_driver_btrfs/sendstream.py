"""What `btrfs send` says that one snapshot changed of another: the stream taken apart, and its commands replayed on
names only.

The stream turns the parent into the subvolume step by step (fs/btrfs/send.h; btrfs-progs, "Btrfs send stream format").
A path in it is true at its step only: what is new, in the way, or moved twice goes by a temporary name
oINODE-GENERATION-N for a while, and inode numbers are used again. So the steps are followed in a tree of those names
that the stream mentions, each of which knows the path that it had in the parent; at the end it has its path in the
subvolume too.
"""

from __future__ import annotations

from struct import error as struct_error
from struct import unpack_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Command = tuple[int, dict[int, bytes]]

MAGIC = b"btrfs-stream\0"
_HEAD = len(MAGIC) + 4
SUBVOL, SNAPSHOT, MKFILE, MKDIR, MKNOD, MKFIFO, MKSOCK, SYMLINK, RENAME, LINK, UNLINK, RMDIR = range(1, 13)
SET_XATTR, REMOVE_XATTR, WRITE, CLONE, TRUNCATE, CHMOD, CHOWN, UTIMES, END, UPDATE_EXTENT = range(13, 23)
UUID, CTRANSID, _, SIZE, MODE, UID, GID, RDEV, _, MTIME, ATIME, _, XATTR_NAME, XATTR_DATA = range(1, 15)
PATH, PATH_TO, PATH_LINK, FILE_OFFSET, DATA, CLONE_UUID, CLONE_CTRANSID, CLONE_PATH, CLONE_OFFSET, CLONE_LEN = range(
    15, 25
)
_MAKING = (MKFILE, MKDIR, MKNOD, MKFIFO, MKSOCK, SYMLINK)
_TOUCHING = (SET_XATTR, REMOVE_XATTR, WRITE, CLONE, TRUNCATE, CHMOD, CHOWN, UTIMES, UPDATE_EXTENT)


class BadStream(Exception):
    """The bytes are no stream of version 1, or contradict themselves."""


def commands(stream: bytes | memoryview) -> Iterator[Command]:
    """(command, attributes by number) of each step up to the end; checksums are not looked at, as the kernel has just
    made the stream. Raises BadStream."""
    if bytes(stream[: len(MAGIC)]) != MAGIC:
        raise BadStream("no btrfs stream")
    size = len(stream)
    try:
        version: int = unpack_from("<I", stream, len(MAGIC))[0]
        if version != 1:
            raise BadStream(f"version {version}")
        at = _HEAD
        while True:
            length, command, _ = unpack_from("<IHI", stream, at)
            at += 10
            if length > size - at:
                raise BadStream(f"command {command} is cut off")
            yield command, attributes(stream, at, at + length)
            if command == END:
                return
            at += length
    except struct_error:
        raise BadStream("it is cut off") from None


def attributes(stream: bytes | memoryview, at: int, end: int) -> dict[int, bytes]:
    """By number. Raises BadStream, struct.error."""
    found = {}
    while at < end:
        kind, length = unpack_from("<HH", stream, at)
        at += 4
        if length > end - at:
            raise BadStream(f"attribute {kind} is cut off")
        found[kind] = bytes(stream[at : at + length])
        at += length
    return found


class _Node:
    """A name at some step. `origin` is its path in the parent, None for what was made since."""

    __slots__ = ("above", "changed", "moved", "name", "names", "origin")

    def __init__(self, name: bytes, above: _Node | None, origin: bytes | None) -> None:
        self.name, self.above, self.origin = name, above, origin
        self.names: dict[bytes, _Node | None] = {}  # of those mentioned; None: there is nothing of this name
        self.changed = self.moved = False

    def path(self) -> bytes | None:
        """From the top; None if it, or what it is in, is gone."""
        parts = []
        node = self
        while node.above is not None:
            parts.append(node.name)
            node = node.above
        return b"/".join(reversed(parts)) if node.origin == b"" else None


class Replay:
    """Which paths the steps of a stream concern: `old` in the parent, `new` in the subvolume, each with whether all
    below it is concerned too. More than changed, never less; of a file with several names, some."""

    def __init__(self) -> None:
        self._top = _Node(b"", None, b"")
        self._seen: list[_Node] = []
        self.old: dict[bytes, bool] = {}

    def run(self, stream: bytes | memoryview) -> Replay:
        """Raises BadStream."""
        for command, words in commands(stream):
            self._step(command, words)
        return self

    @property
    def new(self) -> dict[bytes, bool]:
        found: dict[bytes, bool] = {}
        for node in self._seen:
            path = node.path()
            if path is not None:
                found[path] = node.moved or found.get(path, False)
        return found

    def _step(self, command: int, words: dict[int, bytes]) -> None:
        if command in (SUBVOL, SNAPSHOT, END):
            return
        try:
            path = words[PATH]
            if command in _TOUCHING:
                self._change(self._find(path))
            elif command in _MAKING:
                node = self._put(_Node(b"", None, None), path)
                self._change(node)
                node.moved = True  # what it stands for now may have been a directory in the parent
            elif command == RENAME:
                node = self._find(path)
                self._take_away(node)
                node.moved = True
                self._change(self._put(node, words[PATH_TO]))
            elif command == LINK:
                node = self._find(words[PATH_LINK])
                self._change(node)
                self._change(self._put(_Node(b"", None, None), path))
            elif command in (UNLINK, RMDIR):
                node = self._find(path)
                self._change(node)
                self._take_away(node)
            else:
                raise BadStream(f"command {command} is unknown")
        except KeyError as missing:
            raise BadStream(f"command {command} lacks attribute {missing}") from None

    def _change(self, node: _Node) -> None:
        if not node.changed:
            node.changed = True
            self._seen.append(node)
        if node.origin is not None:
            self.old[node.origin] = node.moved or self.old.get(node.origin, False)

    def _find(self, path: bytes) -> _Node:
        node = self._top
        for name in path.split(b"/") if path else ():
            if name in node.names:
                below = node.names[name]
                if below is None:
                    raise BadStream(f"{path!r} was taken away before")
            elif node.origin is None or not name:
                raise BadStream(f"{path!r} was never made")
            else:
                below = _Node(name, node, node.origin + b"/" + name if node.origin else name)
                node.names[name] = below
            node = below
        return node

    def _put(self, node: _Node, path: bytes) -> _Node:
        above, _, name = path.rpartition(b"/")
        folder = self._find(above)
        if not name or folder.names.get(name) is not None:
            raise BadStream(f"{path!r} is there already")
        up: _Node | None = folder
        while up is not None:
            if up is node:
                raise BadStream(f"{path!r} lies in itself")
            up = up.above
        folder.names[name] = node
        node.name, node.above = name, folder
        return node

    def _take_away(self, node: _Node) -> None:
        if node.above is None:
            raise BadStream("the top cannot go")
        node.above.names[node.name] = None
        node.above = None
