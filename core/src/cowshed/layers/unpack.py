"""From a stream of compressed bytes to an applied layer: read and inflate in one thread, hash in another, write in this
one, if it is more than a little. All three release the interpreter lock for most of their time."""

from __future__ import annotations

import queue
import threading

from cowshed import codecs, digests
from cowshed.errors import ImageError, Tampered
from cowshed.layers.apply import apply

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

_PIECE = 1 << 20  # the most that one step of decompression gives: a bomb is met piece by piece
_AHEAD = 6
_ALONE = 4 << 20  # bytes of an archive that are not worth a thread
_GZIP, _ZSTD, _ZSTD_SKIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x2a\x4d\x18"


class _Stopped(Exception):
    """The consumer has given up."""


def unpack(
    chunks: Iterable[bytes],
    root: int,
    *,
    diff_id: str,
    limit: int = 1 << 40,
    verified: bool = False,
    trailing: bool = False,
    cancel: Callable[[], None] = lambda: None,
) -> int:
    """Decompress, verify against diff_id, apply to the tree at root; the size of the uncompressed archive.

    verified: chunks are not packed, and raise before their end if their own digest is not diff_id. trailing: as for
    `decompress`.

    chunks may raise: that error comes out of here. cancel() makes chunks, read in another thread, end soon: called when
    this fails, so that a stalled download does not hold it up. Raises Tampered if the diff id is another, ImageError,
    NoSpace.
    """
    algorithm, _, wanted = diff_id.partition(":")
    pipeline = _Pipeline(decompress(chunks, trailing=trailing), None if verified else digests.new(algorithm), limit)
    try:
        apply(pipeline.pieces(), root, limit=limit)
        pipeline.finish()
    except BaseException:
        cancel()
        raise
    finally:
        pipeline.stop()
    if pipeline.hash is not None and pipeline.hash.hexdigest() != wanted:
        raise Tampered(
            f"it unpacks to {algorithm}:{pipeline.hash.hexdigest()}, the image says {diff_id}",
            remedy="pull again; if it stays so, the image is broken",
        )
    return pipeline.size


class _Pipeline:
    """The pieces of an archive, hashed and counted. A small one is done with in the caller's thread."""

    def __init__(self, source: Iterator[bytes], digest: Any, limit: int) -> None:
        self.hash, self.size, self.limit = digest, 0, limit + (1 << 30)
        self._source = source
        self._apply: queue.Queue[bytes | None] = queue.Queue(_AHEAD)
        self._hash: queue.Queue[bytes | None] = queue.Queue(_AHEAD)
        self._error: BaseException | None = None
        self._stopped = False
        self._threads: list[threading.Thread] = []

    def pieces(self) -> Iterator[bytes]:
        for piece in self._source:
            self._count(piece)
            if self.hash is not None:
                self.hash.update(piece)
            yield piece
            if self.size >= _ALONE:
                yield from self._from_threads()
                return

    def _count(self, piece: bytes) -> None:
        self.size += len(piece)
        if self.size > self.limit:
            raise ImageError("it unpacks to more than is allowed")

    def _from_threads(self) -> Iterator[bytes]:
        self._threads.append(threading.Thread(target=self._produce))
        if self.hash is not None:
            self._threads.append(threading.Thread(target=self._digest))
        for thread in self._threads:
            thread.start()
        while True:
            piece = self._apply.get()
            if piece is None:
                if self._error is not None:
                    raise self._error
                return
            yield piece

    def _put(self, target: queue.Queue[bytes | None], piece: bytes | None) -> None:
        while True:
            if self._stopped:
                raise _Stopped
            try:
                target.put(piece, timeout=0.2)
                return
            except queue.Full:
                continue

    def _produce(self) -> None:
        try:
            for piece in self._source:
                self._count(piece)
                if self.hash is not None:
                    self._put(self._hash, piece)
                self._put(self._apply, piece)
        except _Stopped:
            return
        except BaseException as error:
            self._error = error
        try:
            if self.hash is not None:
                self._put(self._hash, None)
            self._put(self._apply, None)
        except _Stopped:
            return

    def _digest(self) -> None:
        while not self._stopped:
            try:
                piece = self._hash.get(timeout=0.2)
            except queue.Empty:
                continue
            if piece is None:
                return
            self.hash.update(piece)

    def finish(self) -> None:
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        self._stopped = True
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()


def decompress(chunks: Iterable[bytes], *, trailing: bool = False) -> Iterator[bytes]:
    """gzip (any number of members), zstd (any number of frames) or plain, told by the first bytes.

    trailing: what lies behind the last member of gzip and is none is left out, instead of an ImageError. Zeros, with
    which tapes are filled up, always are.
    """
    source = iter(chunks)
    first = b""
    while len(first) < 4:
        more = next(source, None)
        if more is None:
            break
        first += more
    if first[:2] == _GZIP:
        yield from _gzip(first, source, trailing)
    elif first[:4] == _ZSTD or first[1:4] == _ZSTD_SKIP:
        yield from _zstd(first, source)
    else:
        if first:
            yield first
        yield from source


def _gzip(first: bytes, source: Iterator[bytes], trailing: bool) -> Iterator[bytes]:
    zlib = codecs.deflate()
    decoder = zlib.decompressobj(31)
    data: bytes | None = first
    ended = False
    while data is not None:
        while data:
            if ended:  # between members
                if not data.strip(b"\0"):
                    break
                if data[:1] != _GZIP[:1]:
                    if not trailing:
                        raise ImageError(
                            "something lies behind its gzip data",
                            remedy='build the image again, or take it as it is: [images] trailing = "ignore"',
                        )
                    for _ in source:  # whoever gives it holds it against its digest at its end
                        continue
                    return
                decoder, ended = zlib.decompressobj(31), False
            try:
                piece = decoder.decompress(data, _PIECE)
            except zlib.error as error:
                raise ImageError(f"its gzip data is damaged: {error}") from None
            if piece:
                yield piece
            ended = decoder.eof
            data = decoder.unused_data if ended else decoder.unconsumed_tail
        data = next(source, None)
    if not ended:
        raise ImageError("its gzip data is cut short")


def _zstd(first: bytes, source: Iterator[bytes]) -> Iterator[bytes]:
    zstd = codecs.zstd()
    options = {zstd.DecompressionParameter.window_log_max: 27}  # 128 MiB, what the command takes too
    decoder = zstd.ZstdDecompressor(options=options)
    data: bytes | None = first
    fresh = True
    while data is not None:
        while True:
            if decoder.eof:
                if not data:
                    break
                decoder, fresh = zstd.ZstdDecompressor(options=options), True
            try:
                piece = decoder.decompress(data, _PIECE)
            except zstd.ZstdError as error:
                raise ImageError(f"its zstd data is damaged: {error}") from None
            fresh = fresh and not data
            if piece:
                yield piece
            data = decoder.unused_data if decoder.eof else b""
            if not decoder.eof and decoder.needs_input:
                break
        data = next(source, None)
    if not decoder.eof and not fresh:
        raise ImageError("its zstd data is cut short")
