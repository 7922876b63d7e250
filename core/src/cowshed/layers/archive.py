"""Writing a layer's archive (image-spec layer.md, Representing Changes): the same tree gives the same bytes anywhere.

Plain ustar headers, with a pax header where they do not do: long names, large numbers, parts of a second, extended
attributes. No names of users, no time but that of modification. A directory comes before what is in it, whiteouts
before their siblings, each directory by name; every directory on the way to a change is there with its attributes.
"""

from __future__ import annotations

import os
import stat
from binascii import b2a_base64

from cowshed.errors import Busy
from cowshed.layers import xattrs
from cowshed.layers.changes import ADDED, DELETED, MODIFIED, Changed, Difference, everything, order
from cowshed.storage.kit.descent import DIRECTORY, Descent, shared_way

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_BATCH = 1 << 18
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OCTAL_7, _OCTAL_11 = 0o7777777, 0o77777777777
_SECOND = 1_000_000_000
_PAX_NAME = b"PaxHeaders/x"
_KINDS = {
    stat.S_IFREG: b"0", stat.S_IFLNK: b"2", stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}  # fmt: skip
_LINK = b"1"


def stream(
    difference: Difference,
    root: int,
    *,
    private: str = "",
    clamp: int | None = None,
    rename: Callable[[bytes], bytes] | None = None,
    owner: tuple[int, int] | None = None,
    cross: bool = False,
    parents: bool = True,
) -> Iterator[bytes]:
    """The archive of a difference, in large pieces; root is the tree that has the contents.

    private: a driver's own prefix of extended attributes, left out. clamp: the latest time, in ns (SOURCE_DATE_EPOCH).
    What a copy needs that is no layer: rename gives a path its name in the archive, owner all entries their owner,
    cross enters mount points, parents=False leaves the directories on the way out. Raises Busy if a file changes while
    it is read.
    """
    return _Writer(root, private, clamp, rename, owner, cross).run(entries(difference, parents=parents))


def whole(root: int, *, clamp: int | None = None) -> Iterator[bytes]:
    """The archive of all that is in a tree, of which no list is made before."""
    return _Writer(root, "", clamp, None, None, False).run(everything(root))


def entries(difference: Difference, *, parents: bool) -> list[Changed]:
    """What the archive of a difference holds, in its order; with parents also each directory on the way to a change, of
    which nothing is known yet (status None)."""
    wanted = {changed.path: changed for changed in (*difference.linked, *difference.changes)}
    for path in list(wanted) if parents else ():
        while path:
            path = path.rpartition(b"/")[0]
            if path in wanted:
                break
            wanted[path] = Changed(path, MODIFIED, None)  # looked at when it is written
    return sorted(wanted.values(), key=_key)


def _key(changed: Changed) -> list[tuple[bool, bytes]]:
    parts = [(True, part) for part in order(changed.path)]
    if changed.kind is DELETED:
        parts[-1] = (False, parts[-1][1])
    return parts


class _Writer:
    def __init__(
        self, root: int, private: str, clamp: int | None, rename: Callable[[bytes], bytes] | None,
        owner: tuple[int, int] | None, cross: bool,
    ) -> None:  # fmt: skip
        self._root, self._private, self._clamp = root, private, clamp
        self._rename, self._owner, self._cross = rename, owner, cross
        self._first: dict[tuple[int, int], bytes] = {}  # of files with several names: the one that was written
        self._parts: list[bytes] = []  # where the cursor is
        self._held: list[bytes] = []
        self._size = 0

    def run(self, wanted: Iterable[Changed]) -> Iterator[bytes]:
        self._cursor = Descent(os.open(".", DIRECTORY, dir_fd=self._root), cross=self._cross)
        try:
            for changed in wanted:
                try:
                    yield from self._entry(changed)
                except (FileNotFoundError, NotADirectoryError):
                    if changed.kind is not ADDED:
                        raise _moved(changed.path) from None
                    continue  # it came and went while the tree was read
                if self._size >= _BATCH:
                    yield self._batch()
            self._put(bytes(1024))
            yield self._batch()
        finally:
            self._cursor.close()

    def _put(self, data: bytes) -> None:
        self._held.append(data)
        self._size += len(data)

    def _batch(self) -> bytes:
        data = b"".join(self._held)
        self._held.clear()
        self._size = 0
        return data

    def _go(self, parts: list[bytes]) -> None:
        """Move the cursor to a directory."""
        shared = shared_way(self._parts, parts)
        while len(self._parts) > shared:
            self._cursor.up()
            self._parts.pop()
        for part in parts[shared:]:
            self._cursor.down(part)
            self._parts.append(part)

    def _entry(self, changed: Changed) -> Iterator[bytes]:
        path, parts = changed.path, order(changed.path)
        if changed.kind is DELETED:
            above, _, name = path.rpartition(b"/")
            whiteout = b".wh." + name
            self._put(header(above + b"/" + whiteout if above else whiteout, b"0", 0o600, (0, 0), 0))
            return
        if changed.status is None or stat.S_ISDIR(changed.status.st_mode):
            self._go(parts)
            status, attributes = os.fstat(self._cursor.fd), xattrs.read(self._cursor.fd, private=self._private)
            self._header(path, b"5", status, attributes)
            return
        self._go(parts[:-1])
        status, name, at = changed.status, parts[-1], self._cursor.fd
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            return
        if status.st_nlink > 1:
            key = status.st_dev, status.st_ino
            first = self._first.setdefault(key, path)
            if first is not path:
                self._header(path, _LINK, status, {}, link=self._named(first))
                return
        if kind == b"0":
            yield from self._file(path, name, at)
        elif kind == b"2":
            attributes = xattrs.read(_place(at, name), private=self._private, follow=False)
            self._header(path, kind, status, attributes, link=os.readlink(name, dir_fd=at))
        else:
            attributes = xattrs.read(_place(at, name), private=self._private, follow=False)
            self._header(path, kind, status, attributes)

    def _file(self, path: bytes, name: bytes, at: int) -> Iterator[bytes]:
        fd = os.open(name, _READ, dir_fd=at)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise _moved(path)
            size = left = status.st_size
            self._header(path, b"0", status, xattrs.read(fd, private=self._private), size=size)
            while left > 0:
                try:
                    piece = os.read(fd, min(left, _BATCH))
                except OSError as error:  # the device below: a person must know which file it was
                    raise OSError(error.errno, error.strerror, os.fsdecode(path)) from None
                if not piece:
                    raise _moved(path)
                left -= len(piece)
                self._put(piece)
                if self._size >= _BATCH:
                    yield self._batch()
            if size % 512:
                self._put(bytes(-size % 512))
        finally:
            os.close(fd)

    def _named(self, path: bytes) -> bytes:
        return self._rename(path) if self._rename is not None else path

    def _header(
        self, path: bytes, kind: bytes, status: os.stat_result, attributes: dict[str, bytes], *, link: bytes = b"",
        size: int = 0,
    ) -> None:  # fmt: skip
        name = self._named(path)
        if kind == b"5":
            name = name + b"/" if name else b"./"
        mtime = status.st_mtime_ns
        if self._clamp is not None:
            mtime = min(mtime, self._clamp)
        device = (os.major(status.st_rdev), os.minor(status.st_rdev)) if kind in b"34" else (0, 0)
        owner = self._owner or (status.st_uid, status.st_gid)
        self._put(header(name, kind, status.st_mode & 0o7777, owner, size, mtime, link, device, attributes))


def header(
    name: bytes, kind: bytes, mode: int, owner: tuple[int, int], size: int, mtime: int = 0, link: bytes = b"",
    device: tuple[int, int] = (0, 0), attributes: dict[str, bytes] | None = None,
) -> bytes:  # fmt: skip
    """The header of one entry, after a pax header if it needs one. mtime in ns."""
    uid, gid = owner
    seconds, part = divmod(mtime, _SECOND)
    extra: list[tuple[bytes, bytes]] = []
    if len(name) > 100:
        extra.append((b"path", name))
        name = name[:100]
    if len(link) > 100:
        extra.append((b"linkpath", link))
        link = link[:100]
    if uid > _OCTAL_7:
        extra.append((b"uid", b"%d" % uid))
        uid = 0
    if gid > _OCTAL_7:
        extra.append((b"gid", b"%d" % gid))
        gid = 0
    if size > _OCTAL_11:
        extra.append((b"size", b"%d" % size))
        size = 0
    if part or not 0 <= seconds <= _OCTAL_11:
        extra.append((b"mtime", _decimal(mtime)))
        seconds = min(max(seconds, 0), _OCTAL_11)
    if attributes:
        extra += [_attribute(os.fsencode(name), value) for name, value in attributes.items()]
    block = _block(name, kind, mode, uid, gid, size, seconds, link, device)
    if not extra:
        return block
    body = b"".join([_pax(key, value) for key, value in sorted(extra)])
    before = _block(_PAX_NAME, b"x", 0o644, 0, 0, len(body), 0, b"", (0, 0))
    return b"".join((before, body, bytes(-len(body) % 512), block))


def _block(
    name: bytes, kind: bytes, mode: int, uid: int, gid: int, size: int, seconds: int, link: bytes,
    device: tuple[int, int],
) -> bytes:  # fmt: skip
    head = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0" % (name.ljust(100, b"\0"), mode, uid, gid, size, seconds)
    tail = b"%s%sustar\00000%s%07o\0%07o\0%s" % (
        kind, link.ljust(100, b"\0"), bytes(64), device[0], device[1], bytes(167),
    )  # fmt: skip
    return b"%s%06o\0 %s" % (head, sum(head) + sum(tail) + 256, tail)


def _pax(key: bytes, value: bytes) -> bytes:
    """One record: its own length, in digits that count too, then key and value."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _attribute(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """The record of an extended attribute. A record's key ends at its first `=`: a name that has one is written as
    libarchive does, which others leave out."""
    if b"=" not in name:
        return b"SCHILY.xattr." + name, value
    quoted = b"".join(b"%c" % c if 32 < c < 127 and c not in b"%=" else b"%%%02X" % c for c in name)
    return b"LIBARCHIVE.xattr." + quoted, b2a_base64(value, newline=False).rstrip(b"=")


def _decimal(ns: int) -> bytes:
    whole, part = divmod(abs(ns), _SECOND)
    text = f"{whole}.{part:09d}".rstrip("0").rstrip(".")
    return f"{'-' if ns < 0 else ''}{text}".encode()


def _place(at: int, name: bytes) -> str:
    return f"/proc/self/fd/{at}/{os.fsdecode(name)}"


def _moved(path: bytes) -> Busy:
    return Busy(
        f"{os.fsdecode(path)!r} was changed while it was read", remedy="try again, with the container paused or stopped"
    )
