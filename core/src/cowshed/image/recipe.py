"""A recipe: all of an archive that is not the content of files which its layer has, so that both together give the
archive back, byte for byte.

    cowshed recipe 1 LF
    one line of JSON: digest and size of the archive, diff id, how it was packed
    a zlib stream of records, in the order of the uncompressed archive:
        L length bytes              bytes of the archive as they are: headers, padding, what no file has
        F length path offset count  bytes of a file of the layer
    sha256 of all before

Numbers have eight bytes, the lowest first. A recipe names files by the path that the archive has; it fits the layer in
every driver that holds it. Nothing in it is believed: what comes out is held against the digests of the archive.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zlib

from cowshed import digests
from cowshed.errors import ImageError, Tampered
from cowshed.image import packing as packings
from cowshed.image.outgoing import PIECE
from cowshed.layers import tarstream
from cowshed.layers.tarstream import FILE, Feed
from cowshed.storage.record import record
from cowshed_linux import paths
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cowshed.image.packing import Packing
    from cowshed.layers.tarstream import Entry

_MAGIC = b"cowshed recipe 1\n"
_LITERAL, _FILE = b"L", b"F"
_HELD = 1 << 20  # bytes that stand in one record at most
_LINE = 1 << 17  # of the line of JSON
_SUM = 32
_FIND = os.O_PATH | os.O_NOFOLLOW
_PATH = 1 << 16  # more than any name in an archive can have on disk
_REMEDY = "cowshed storage repair --deep fetches it again"


@record(frozen=True)
class About:
    """What a recipe is of."""

    digest: str
    size: int
    diff_id: str
    packing: Packing


def _number(value: int) -> bytes:
    return value.to_bytes(8, "little")


# ---------------------------------------------------------------- making


def make(about: About, chunks: Iterable[bytes], root: int, write: Callable[[bytes], None]) -> None:
    """Write the recipe of an archive, uncompressed in chunks, whose layer is mounted at descriptor root.

    Each file is read and compared: what the layer does not have at the path of the archive, because the archive has
    another file of that name later, stands in the recipe itself. ImageError, Tampered (the archive has another
    diff id), OSError.
    """
    maker = _Maker(about, root, write)
    maker.run(chunks)


class _Feed(Feed):
    """Tells of every byte that is taken, but for what `data` gives."""

    def __init__(self, chunks: Iterable[bytes], told: Callable[[bytes | memoryview], None]) -> None:
        super().__init__(chunks)
        self._told = told

    def take(self, count: int) -> bytes:
        found = super().take(count)
        self._told(found)
        return found

    def skip(self, count: int) -> None:
        for view in self.views(count):
            self._told(view)

    def drain(self) -> None:
        self._told(self._buffer[self._at : self._end])
        while self._more():
            self._told(self._chunk)


class _Maker:
    def __init__(self, about: About, root: int, write: Callable[[bytes], None]) -> None:
        self._about, self._root, self._write = about, root, write
        self._sum = hashlib.sha256()
        self._pack = zlib.compressobj()
        self._literal = bytearray()

    def run(self, chunks: Iterable[bytes]) -> None:
        about = self._about
        how = about.packing
        line = {
            "digest": about.digest, "size": about.size, "diff_id": about.diff_id, "codec": how.codec,
            "level": how.level, "version": how.version, "head": how.head.hex(), "checksum": how.checksum,
        }  # fmt: skip
        self._put(_MAGIC + dumps(line).encode() + b"\n")
        algorithm, _, wanted = about.diff_id.partition(":")
        found = digests.new(algorithm)

        def hashed() -> Iterator[bytes]:
            for chunk in chunks:
                found.update(chunk)
                yield chunk

        pieces = hashed()
        feed = _Feed(pieces, self._keep)
        for entry in tarstream.entries(feed):
            if entry.kind == FILE and entry.size:
                self._file(entry, feed)
        for piece in pieces:  # what lies behind an end without blocks of zeros
            self._keep(piece)
        if found.hexdigest() != wanted:
            raise Tampered(f"archive {about.digest[:19]} does not unpack to {about.diff_id[:19]}", remedy=_REMEDY)
        self._flush()
        self._put(self._pack.flush())
        self._write(self._sum.digest())

    def _put(self, data: bytes) -> None:
        self._sum.update(data)
        self._write(data)

    def _record(self, *parts: bytes) -> None:
        for part in parts:
            if packed := self._pack.compress(part):
                self._put(packed)

    def _keep(self, data: bytes | memoryview) -> None:
        self._literal += data
        if len(self._literal) >= _HELD:
            self._flush()

    def _flush(self) -> None:
        if self._literal:
            self._record(_LITERAL, _number(len(self._literal)), bytes(self._literal))
            self._literal.clear()

    def _file(self, entry: Entry, feed: Feed) -> None:
        """The data of one file: of each stored piece as much as the layer has from its start on, the rest as it is."""
        fd = _open(self._root, entry.name)
        try:
            for offset, length in entry.holes or ((0, entry.size),):
                self._piece(entry.name, fd, offset, length, feed)
            if entry.holes:  # an archive may store more than its map has
                feed.skip(entry.size - sum(length for _, length in entry.holes))
        finally:
            if fd >= 0:
                os.close(fd)

    def _piece(self, name: bytes, fd: int, offset: int, length: int, feed: Feed) -> None:
        same = 0
        views = feed.views(length)
        rest: memoryview | None = None
        for view in views if fd >= 0 else ():
            # as bytes: a view is compared number by number, which takes longer than all else here
            if os.pread(fd, len(view), offset + same) != bytes(view):
                rest = view
                break
            same += len(view)
        if same:
            self._flush()
            self._record(_FILE, _number(len(name)), name, _number(offset), _number(same))
        if rest is not None:
            self._keep(rest)
        for view in views:
            self._keep(view)


def _open(root: int, path: bytes) -> int:
    """The regular file at a path of the layer, -1 if there is none."""
    try:
        found = paths.open_in_root(root, path, _FIND)
    except OSError:
        return -1
    try:  # not before it is known to be no device: to open one may do something
        if not stat.S_ISREG(os.fstat(found).st_mode):
            return -1
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(found)


# ---------------------------------------------------------------- reading


class Recipe:
    """A recipe that is there. FileNotFoundError; ImageError if it is none. May be read by several threads at once."""

    def __init__(self, path: str) -> None:
        self.path = path
        with open(path, "rb") as file:
            self.about = _about(file.readline(len(_MAGIC)), file.readline(_LINE))
            self._body = file.tell()

    def is_whole(self) -> bool:
        """Whether it has the sum that it was made with."""
        found, held = hashlib.sha256(), b""
        with open(self.path, "rb", buffering=0) as file:
            while piece := file.read(_HELD):
                held += piece
                found.update(held[:-_SUM])
                held = held[-_SUM:]
        return held == found.digest()

    def packed(self, root: int, offset: int = 0) -> Iterator[bytes]:
        """The archive from offset on, made again of the layer that is mounted at root. Its last piece comes only when
        its digest is right: else Tampered, so that nobody has a whole archive that is another."""
        about = self.about
        algorithm, _, wanted = about.digest.partition(":")
        found = digests.new(algorithm)
        plain = digests.new(about.diff_id.partition(":")[0])

        def hashed() -> Iterator[bytes]:
            for piece in self.tar(root):
                plain.update(piece)
                yield piece

        last, at = b"", 0
        for data in packings.packed(about.packing, hashed() if about.packing.codec else self.tar(root)):
            found.update(data)
            if last:
                yield last
            at += len(data)
            last = data[max(0, offset - at + len(data)) :] if at > offset else b""
        if found.hexdigest() != wanted:
            if plain.hexdigest() == about.diff_id.partition(":")[2]:
                here = packings.version(about.packing.codec)
                why = f"it was packed by {about.packing}, and this is {about.packing.codec} {here}"
            else:
                why = "its layer or its recipe has changed"
            raise Tampered(f"archive {about.digest[:19]} cannot be made again: {why}", remedy=_REMEDY)
        if last:
            yield last

    def tar(self, root: int) -> Iterator[bytes]:
        """The uncompressed archive, not compared with anything. ImageError if the recipe is damaged or the layer lacks
        a file."""
        feed = Feed(self._records())
        while kind := feed.take(1):
            length = int.from_bytes(_take(feed, 8), "little")
            if kind == _LITERAL and length <= 2 * _HELD:
                yield _take(feed, length)
            elif kind == _FILE and 0 < length < _PATH:
                path = _take(feed, length)
                offset, count = (int.from_bytes(_take(feed, 8), "little") for _ in range(2))
                yield from self._content(root, path, offset, count)
            else:
                raise self._damaged()

    def _records(self) -> Iterator[bytes]:
        decoder = zlib.decompressobj()
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self._body)
            while not decoder.eof:
                data = decoder.unconsumed_tail or file.read(PIECE)
                if not data:
                    raise self._damaged()
                try:
                    yield decoder.decompress(data, _HELD)
                except zlib.error:
                    raise self._damaged() from None

    def _content(self, root: int, path: bytes, offset: int, count: int) -> Iterator[bytes]:
        fd = _open(root, path)
        if fd < 0:
            raise self._lacks(path, "is no file of its layer")
        try:
            while count:
                try:
                    piece = os.pread(fd, min(count, _HELD), offset)
                except OSError as error:  # the device below
                    raise self._lacks(path, f"cannot be read: {error.strerror}") from None
                if not piece:
                    raise self._lacks(path, "is shorter")
                offset, count = offset + len(piece), count - len(piece)
                yield piece
        finally:
            os.close(fd)

    def _lacks(self, path: bytes, what: str) -> Tampered:
        return Tampered(
            f"archive {self.about.digest[:19]} cannot be made again: {os.fsdecode(path)!r} {what}", remedy=_REMEDY
        )

    def _damaged(self) -> ImageError:
        return ImageError(f"the recipe of archive {self.about.digest[:19]} is damaged", remedy=_REMEDY)


def _take(feed: Feed, count: int) -> bytes:
    found = feed.take(count)
    if len(found) < count:
        raise ImageError("a recipe is cut short", remedy=_REMEDY)
    return found


def _about(first: bytes, line: bytes) -> About:
    try:
        value = loads(line)
        if first != _MAGIC:
            raise ValueError("another first line")
        how = packings.Packing(
            str(value["codec"]), int(value["level"]), str(value["version"]), bytes.fromhex(value["head"]),
            bool(value["checksum"]),
        )  # fmt: skip
        about = About(str(value["digest"]), int(value["size"]), str(value["diff_id"]), how)
        digests.new(about.digest.partition(":")[0])
        digests.new(about.diff_id.partition(":")[0])
    except (ValueError, KeyError, TypeError):
        raise ImageError("a recipe is damaged: its first lines are none", remedy=_REMEDY) from None
    return about
