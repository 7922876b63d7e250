"""How an archive was compressed, found by trying the compressors that are here, so that it can be done again.

What a compressor makes of the same bytes depends on the program, its version, its level, and for some on the pieces in
which it gets them. So nothing is concluded from a name: a way of packing is the right one if it gives every byte.
"""

from __future__ import annotations

import zlib

from cowshed import codecs
from cowshed.errors import ImageError
from cowshed.image.outgoing import PIECE
from cowshed.layers.unpack import decompress
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

_GZIP, _ZSTD = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"
_HEAD = 1 << 16  # bytes in which a gzip header must end
_EXTRA, _NAME, _COMMENT, _HEADER_SUM, _UNKNOWN_FLAGS = 4, 8, 16, 2, 0xE0  # RFC 1952, 2.3.1
_CHECKSUM, _SIZE_FLAGS = 0x04, 0xE0  # of a zstd frame's descriptor (RFC 8878, 3.1.1.1.1)
_RAW = -15  # deflate with nothing around it, and the largest window
# The likely ones first: a wrong one is found out after its first bytes, and costs up to a MiB of compression.
_DEFLATE = (
    ("isal", 1), ("zlib", 6), ("zlib", 9), ("zlib", 1), ("isal", 0), ("isal", 2), ("isal", 3),
    *(("zlib", level) for level in (2, 3, 4, 5, 7, 8)),
)  # fmt: skip
_ZSTD_LEVELS = (3, 1, 2, *range(4, 20))


@record(frozen=True)
class Packing:
    """One way to compress."""

    codec: str  # isal, zlib, zstd; "" for none
    level: int = 0
    version: str = ""  # of the library
    head: bytes = b""  # the gzip header, as it stands in the archive
    checksum: bool = False  # of zstd

    def __str__(self) -> str:
        return f"{self.codec} {self.version} at level {self.level}" if self.codec else "no compression"


def find(path: str) -> Packing | None:
    """The way in which the file at path was packed, None if no compressor that is here gives its bytes, or if it is
    damaged. FileNotFoundError."""
    with open(path, "rb") as file:
        first = file.read(_HEAD)
    try:
        return next((each for each in _candidates(first) if _gives(each, path)), None)
    except ImageError:
        return None


def packed(packing: Packing, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The bytes of an archive, compressed. ImageError if its library is not here."""
    if not packing.codec:
        yield from pieces
        return
    packer = _packer(packing)
    head = packing.head
    total, crc = 0, 0
    if head:
        yield head
    for piece in exact(pieces):
        if head:
            crc, total = zlib.crc32(piece, crc), total + len(piece)
        if data := packer.compress(piece):
            yield data
    if data := packer.flush():
        yield data
    if head:
        yield crc.to_bytes(4, "little") + (total & 0xFFFFFFFF).to_bytes(4, "little")


def exact(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of PIECE bytes, but for the last: as a Compressor passes them on."""
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) >= PIECE:
            yield bytes(held[:PIECE])
            del held[:PIECE]
    if held:
        yield bytes(held)


def _gives(packing: Packing, path: str) -> bool:
    if not packing.codec:
        return True  # nothing was done to its bytes
    with open(path, "rb") as wanted, open(path, "rb") as source:
        plain = decompress(iter(lambda: source.read(PIECE), b""))
        return all(wanted.read(len(data)) == data for data in packed(packing, plain)) and not wanted.read(1)


def _candidates(first: bytes) -> Iterator[Packing]:
    if first.startswith(_GZIP):
        head = _gzip_header(first)
        for codec, level in _DEFLATE if head else ():
            if codec != "isal" or codecs.isal() is not None:
                yield Packing(codec, level, version(codec), head)
    elif first.startswith(_ZSTD):
        if len(first) > 4 and not first[4] & _SIZE_FLAGS:  # a stream, whose size nobody knew before
            for level in _ZSTD_LEVELS:
                yield Packing("zstd", level, version("zstd"), checksum=bool(first[4] & _CHECKSUM))
    else:
        yield Packing("")


def _gzip_header(first: bytes) -> bytes:
    """The header of the first member (RFC 1952, 2.3); b"" if it is none that we know."""
    if len(first) < 10 or first[3] & _UNKNOWN_FLAGS:
        return b""
    flags, at = first[3], 10
    if flags & _EXTRA:
        at += 2 + int.from_bytes(first[at : at + 2], "little")
    for flag in (_NAME, _COMMENT):
        if flags & flag:
            end = first.find(0, at)
            if end < 0:
                return b""
            at = end + 1
    if flags & _HEADER_SUM:
        at += 2
    return first[:at] if at < len(first) else b""


def version(codec: str) -> str:
    """The version of a codec's library that is here, "" if there is none."""
    if codec == "zlib":
        return zlib.ZLIB_RUNTIME_VERSION
    if codec == "zstd":
        return str(codecs.zstd().zstd_version)
    if codec == "isal" and codecs.isal() is not None:
        import isal

        return str(isal.__version__)
    return ""


def _packer(packing: Packing) -> Any:
    if packing.codec == "zlib":
        return zlib.compressobj(packing.level, zlib.DEFLATED, _RAW)
    if packing.codec == "zstd":
        zstd = codecs.zstd()
        names = zstd.CompressionParameter
        return zstd.ZstdCompressor(
            options={names.compression_level: packing.level, names.checksum_flag: int(packing.checksum)}
        )
    isal = codecs.isal() if packing.codec == "isal" else None
    if isal is None:
        raise ImageError(
            f"it was compressed by {packing.codec}, which is not here", remedy="install that, or pull again"
        )
    return isal.compressobj(packing.level, isal.DEFLATED, _RAW)
