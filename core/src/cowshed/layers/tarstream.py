"""Reading tar archives as a stream: ustar, pax and GNU headers, one entry at a time (POSIX.1-2017 pax; tar(5)).

A hand-written loop: with the standard library's tarfile a layer costs five times the CPU.
"""

from __future__ import annotations

from binascii import a2b_base64
from zlib import adler32

from cowshed.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

BLOCK = 512
_HEADER_LIMIT = 1 << 20
FILE, LINK, SYMLINK, CHAR, BLOCKDEV, DIRECTORY, FIFO = b"0123456"
_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK, _GNU_SPARSE, _OLD_FILE, _CONTIGUOUS = b"xgLKS\0" + b"7"
_ID_LIMIT = (1 << 32) - 1  # the last number means "no change" to chown(2)
_MAJORS, _MINORS = 1 << 12, 1 << 20
_TIME_LIMIT = 1 << 63  # of nanoseconds
_XATTR = b"SCHILY.xattr."
_QUOTED_XATTR = b"LIBARCHIVE.xattr."
_ZERO = bytes(BLOCK)


class NoHeader(ImageError):
    """What stands where a header should is none."""


class Entry:
    """One member. name and link have no leading `./` or `/`; the data follows in the feed.

    No record: a layer has tens of thousands of them, and this costs a quarter of one.
    """

    __slots__ = (
        "device",
        "gid",
        "holes",
        "kind",
        "link",
        "mode",
        "mtime",
        "name",
        "real_size",
        "size",
        "uid",
        "xattrs",
    )

    def __init__(
        self, name: bytes, kind: int, mode: int, uid: int, gid: int, size: int, mtime: int, link: bytes,
        device: tuple[int, int], xattrs: dict[str, bytes], holes: tuple[tuple[int, int], ...], real_size: int,
    ) -> None:  # fmt: skip
        self.name, self.kind, self.mode, self.uid, self.gid = name, kind, mode, uid, gid
        self.size, self.mtime = size, mtime  # bytes that are stored; ns
        self.link, self.device, self.xattrs = link, device, xattrs
        self.holes = holes  # of a sparse file: the (offset, length) of what is stored, else ()
        self.real_size = real_size


class Feed:
    """A sequential reader over chunks of bytes, without copying them where that can be."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._chunk, self._buffer, self._at, self._end = b"", memoryview(b""), 0, 0

    def _more(self) -> bool:
        for chunk in self._chunks:
            if chunk:
                self._chunk, self._buffer, self._at, self._end = chunk, memoryview(chunk), 0, len(chunk)
                return True
        return False

    def take(self, count: int) -> bytes:
        """Exactly count bytes; b"" at the end. ImageError if the stream ends within."""
        at = self._at
        stop = at + count
        if stop <= self._end:
            self._at = stop
            return self._chunk[at:stop]
        out = bytearray(self._buffer[self._at : self._end])
        self._at = self._end
        while len(out) < count:
            if not self._more():
                if not out:
                    return b""
                raise ImageError("the archive is cut short")
            step = min(count - len(out), self._end)
            out += self._buffer[:step]
            self._at = step
        return bytes(out)

    def views(self, count: int) -> Iterator[memoryview]:
        """The next count bytes in pieces, each valid until the next is asked for."""
        while count:
            if self._at == self._end and not self._more():
                raise ImageError("the archive is cut short")
            at = self._at
            step = min(count, self._end - at)
            self._at = at + step
            count -= step
            yield self._buffer[at : at + step]

    def whole(self, count: int) -> memoryview | None:
        """The next count bytes at once if they are there so, else None: what small files need."""
        at = self._at
        stop = at + count
        if stop > self._end:
            return None
        self._at = stop
        return self._buffer[at:stop]

    def skip(self, count: int) -> None:
        if self._at + count <= self._end:
            self._at += count
            return
        for _ in self.views(count):
            continue

    def drain(self) -> None:
        while self._more():
            continue


def entries(feed: Feed) -> Iterator[Entry]:
    """The members in order. The consumer reads or skips `size` bytes of data and nothing else; padding is handled
    here. ImageError for anything that is no sound archive."""
    pax: dict[bytes, bytes] = {}
    everywhere: dict[bytes, bytes] = {}
    long_name = long_link = None
    while True:
        head = feed.take(BLOCK)
        if not head:
            return
        if len(head) < BLOCK:
            raise ImageError("the archive is cut short")
        if head[156] == 0 and head == _ZERO:
            feed.drain()
            return
        if not _sum_fits(head):
            raise NoHeader("the archive has a header with a wrong checksum")
        kind, size = head[156], _number(head[124:136])
        if size < 0:
            raise ImageError("the archive has an entry of negative size")
        if kind in (_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK):
            if size > _HEADER_LIMIT:
                raise ImageError(f"the archive has an extended header of {size} bytes")
            body = feed.take(size) if size else b""
            if len(body) < size:
                raise ImageError("the archive is cut short")
            feed.skip(-size % BLOCK)
            if kind == _PAX:
                pax = _records(body)
            elif kind == _PAX_GLOBAL:
                everywhere.update(_records(body))
            elif kind == _GNU_NAME:
                long_name = _text(body)
            else:
                long_link = _text(body)
            continue
        entry = _entry(feed, head, kind, size, {**everywhere, **pax} if everywhere else pax, long_name, long_link)
        pax, long_name, long_link = {}, None, None
        stored = entry.size
        yield entry
        if stored % BLOCK:
            feed.skip(-stored % BLOCK)


def _entry(
    feed: Feed,
    head: bytes,
    kind: int,
    size: int,
    pax: dict[bytes, bytes],
    name: bytes | None,
    link: bytes | None,
) -> Entry:
    if name is None:
        end = head.find(0, 0, 100)
        name = head[:end] if end >= 0 else head[:100]
        if head[345] and head[257:263] == b"ustar\0":
            name = _text(head[345:500]) + b"/" + name
    if link is None:
        link = _text(head[157:257]) if head[157] else b""
    owner = _owners.get(head[100:124])
    mode, uid, gid = owner or _owner(head[100:124])
    mtime = _number(head[136:148]) * 1_000_000_000
    xattrs: dict[str, bytes] = {}
    holes: tuple[tuple[int, int], ...] = ()
    real = size
    if kind == _GNU_SPARSE:
        kind = FILE
        holes, real = _gnu_map(feed, head)
    try:
        for key, value in pax.items() if pax else ():
            if key == b"path":
                name = value
            elif key == b"linkpath":
                link = value
            elif key == b"size":
                size = real = int(value)
            elif key == b"uid":
                uid = int(value)
            elif key == b"gid":
                gid = int(value)
            elif key == b"mtime":
                mtime = _nanoseconds(value)
            elif key.startswith(_XATTR):
                xattrs[key[len(_XATTR) :].decode("utf-8", "surrogateescape")] = value
            elif key.startswith(_QUOTED_XATTR) and b"%3" in key:
                quoted = _unquoted(key[len(_QUOTED_XATTR) :])
                if b"=" in quoted:  # else it is there as others have it, or nobody would take it
                    padded = value + b"=" * (-len(value) % 4)
                    xattrs[quoted.decode("utf-8", "surrogateescape")] = a2b_base64(padded, strict_mode=True)
            elif key.startswith(b"GNU.sparse."):
                raise ImageError("the archive has a sparse file in pax form, which layers must not have")
    except ValueError:
        raise ImageError("the archive has an extended header that is not sound") from None
    if size < 0:
        raise ImageError("the archive has an entry of negative size")
    if pax and (b"\0" in name or b"\0" in link or any("\0" in key for key in xattrs)):
        raise ImageError("the archive has a name with a NUL in it")
    if not (0 <= uid < _ID_LIMIT and 0 <= gid < _ID_LIMIT and -_TIME_LIMIT < mtime < _TIME_LIMIT):
        raise ImageError(f"the archive has an entry of owner {uid}:{gid} or time {mtime}, which cannot be")
    if kind in (_OLD_FILE, _CONTIGUOUS):
        kind = DIRECTORY if name.endswith(b"/") else FILE
    if kind != FILE:
        feed.skip(size)
        feed.skip(-size % BLOCK)
        size = real = 0
    if kind not in b"0123456":
        raise ImageError(f"the archive has an entry of unknown type {bytes([kind])!r}")
    device = (_number(head[329:337]), _number(head[337:345])) if kind in (CHAR, BLOCKDEV) else (0, 0)
    if not (0 <= device[0] < _MAJORS and 0 <= device[1] < _MINORS):
        raise ImageError(f"the archive has the device {device[0]}:{device[1]}, which cannot be")
    return Entry(
        clean(name), kind, mode, uid, gid, size, mtime, clean(link) if link and kind != SYMLINK else link, device,
        xattrs, holes, real,
    )  # fmt: skip


def _unquoted(text: bytes) -> bytes:
    """Without the %XX of URLs. ValueError."""
    first, *rest = text.split(b"%")
    if any(len(each) < 2 for each in rest):
        raise ValueError("a % without two digits")
    return first + b"".join([bytes([int(each[:2], 16)]) + each[2:] for each in rest])


def clean(name: bytes) -> bytes:
    """A path beneath the root: `a//./b/` is a/b, and `..` never leads out of it."""
    if b"/." not in name and b"//" not in name and name[:1] not in (b"/", b".") and name[-1:] != b"/":
        return name
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if parts:
                parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


def _text(field: bytes) -> bytes:
    end = field.find(0)
    return field if end < 0 else field[:end]


def is_header(block: bytes) -> bool:
    """Whether an archive may begin so, which is not packed."""
    try:
        return len(block) == BLOCK and _sum_fits(block)
    except NoHeader:
        return False


def _sum_fits(head: bytes) -> bool:
    """Whether a header's checksum is right: the sum of its bytes, those of the checksum itself taken as spaces.

    The lower half of adler32 is that sum, modulo 65521, at a twentieth of the cost of Python's sum.
    """
    field = head[148:156]
    return ((adler32(head) & 0xFFFF) - 1 - sum(field) + 256 - _number(field)) % 65521 == 0


_owners: dict[bytes, tuple[int, int, int]] = {}  # what stands in a header, as most members of a layer share it


def _owner(field: bytes) -> tuple[int, int, int]:
    """(mode, uid, gid)."""
    if len(_owners) >= 1000:
        _owners.clear()
    found = _number(field[:8]) & 0o7777, _number(field[8:16]), _number(field[16:])
    _owners[field] = found
    return found


def _number(field: bytes) -> int:
    if field[-1] <= 0x20:
        try:
            return int(field[:-1], 8)  # as nearly all are: digits and an end
        except ValueError:
            pass
    if field[0] & 0x80:  # base 256
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        return value - (1 << (8 * len(field) - 1)) if field[0] & 0x40 else value
    try:
        return int(field.rstrip(b"\0 ").lstrip(b" ").partition(b"\0")[0] or b"0", 8)
    except ValueError:
        raise NoHeader("the archive has a header with a number that is none") from None


def _records(body: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + 20)
        try:
            length = int(body[at:space])
        except ValueError:
            length = 0
        record_ = body[space + 1 : at + length]
        key, equals, value = record_.partition(b"=")
        if space < 0 or length < 5 or at + length > len(body) or not equals or value[-1:] != b"\n":
            raise ImageError("the archive has an extended header that is not sound")
        found[key] = value[:-1]
        at += length
    return found


def _nanoseconds(value: bytes) -> int:
    whole, _, part = value.partition(b".")
    fraction = int((part + b"000000000")[:9])
    return int(whole) * 1_000_000_000 + (-fraction if value.startswith(b"-") else fraction)


def _gnu_map(feed: Feed, head: bytes) -> tuple[tuple[tuple[int, int], ...], int]:
    """The map of an old GNU sparse file: what pieces of it are stored."""
    pieces: list[tuple[int, int]] = []
    real = _number(head[483:495])
    block, at, count, more = head, 386, 4, head[482]
    while True:
        for n in range(count):
            field = block[at + 24 * n : at + 24 * n + 24]
            if field[0] == 0:
                break
            pieces.append((_number(field[:12]), _number(field[12:])))
        if not more:
            break
        block, at, count = feed.take(BLOCK), 0, 21
        if len(block) < BLOCK or len(pieces) > 100_000:
            raise ImageError("the archive has a sparse file with a map that is not sound")
        more = block[504]
    last = 0
    for offset, length in pieces:
        if offset < last or length < 0 or offset + length > real:
            raise ImageError("the archive has a sparse file with a map that is not sound")
        last = offset + length
    return tuple(pieces), real
