"""Archives from outside that are packed by what layers cannot be packed by: xz and bzip2, beside gzip and zstd."""

from __future__ import annotations

from cowshed.errors import ImageError
from cowshed.layers.unpack import decompress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

_BZIP2, _XZ = b"BZh", b"\xfd7zXZ\0"
_PIECE = 1 << 20
_MEMORY = 256 << 20  # bytes that xz may take: a preset of 9 wants 65 MiB


def unpacked(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The bytes of an archive, told by its first bytes, in pieces of at most a MiB. ImageError if it is damaged."""
    source = iter(chunks)
    first = b""
    while len(first) < len(_XZ):
        more = next(source, None)
        if more is None:
            break
        first += more
    if first.startswith(_BZIP2):
        import bz2

        yield from _decoded(bz2.BZ2Decompressor, (OSError, EOFError), "bzip2", _joined(first, source))
    elif first.startswith(_XZ):
        import lzma

        yield from _decoded(
            lambda: lzma.LZMADecompressor(memlimit=_MEMORY), (lzma.LZMAError,), "xz", _joined(first, source)
        )
    else:
        yield from decompress(_joined(first, source))


def _joined(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _decoded(make: Any, errors: tuple[type[Exception], ...], name: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Any number of streams, one behind the other."""
    decoder, begun = make(), False
    for data in chunks:
        while data or (begun and not decoder.eof and not decoder.needs_input):
            if decoder.eof:
                decoder, begun = make(), False
            try:
                piece = decoder.decompress(data, _PIECE)
            except errors as error:
                raise ImageError(f"its {name} data is damaged: {error}") from None
            begun = True
            if piece:
                yield piece
            data = decoder.unused_data if decoder.eof else b""
    if not decoder.eof:
        raise ImageError(f"its {name} data is cut short")
