"""A blob that is made here: bytes in, compressed on the way if asked, its digest at the end."""

from __future__ import annotations

import hashlib
import itertools
import os
import queue
import threading

from cowshed.errors import NoSpace
from cowshed_linux import locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

_numbers = itertools.count()
PIECE = 1 << 18  # bytes that a codec gets at once: the bytes of some depend on it
_AHEAD = 8


class NewBlob:
    """`with blobs.create() as new: new.write(…); digest = new.publish()`. Without `publish` nothing stays."""

    def __init__(self, folder: str, path_of: Callable[[str], str]) -> None:
        self._partial = f"{folder}/new.{os.getpid()}.{next(_numbers)}"
        self._path_of = path_of
        self._hash = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> NewBlob:
        self._fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        locks.lock_file(self._fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        try:
            os.unlink(self._partial)
        except FileNotFoundError:
            return  # published

    def write(self, data: bytes | memoryview) -> None:
        """Append. NoSpace."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            if error.errno in (28, 122):
                raise NoSpace("no space for a new blob", remedy="cowshed rmi, or free space") from None
            raise
        self._hash.update(data)
        self.size += len(data)

    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    @property
    def path(self) -> str:
        """Where it is while it is made."""
        return self._partial

    def sync(self) -> None:
        """Bring what is written to the disk. OSError."""
        os.fsync(self._fd)

    def publish(self) -> str:
        """Give the blob its name; the digest. One that is there already stays."""
        digest = self.digest()
        os.rename(self._partial, self._path_of(digest))
        return digest


class Compressor:
    """A file to write an archive to: hashed as it is, compressed into a new blob by a second thread.

    `close` ends it; `diff_id` and `size` are then of the uncompressed bytes. Errors of the thread come out of `write`
    and `close`.
    """

    def __init__(self, target: NewBlob, compression: str) -> None:
        """compression: gzip, zstd or "" for none."""
        self._target = target
        self._packer = _packer(compression)
        self._hash = hashlib.sha256()
        self.size = 0
        self._held = bytearray()
        self._queue: queue.Queue[bytes | None] = queue.Queue(_AHEAD)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="compress")
        self._thread.start()
        self._closed = False

    @property
    def diff_id(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def write(self, data: bytes | bytearray | memoryview) -> int:
        self._held += data
        while len(self._held) >= PIECE:
            self._pass_on()
        return len(data)

    def _pass_on(self) -> None:
        if self._error is not None:
            raise self._error
        piece = bytes(self._held[:PIECE])
        del self._held[:PIECE]
        self._queue.put(piece)
        self._hash.update(piece)
        self.size += len(piece)

    def flush(self) -> None:
        """For what takes this for a file; bytes are passed on in large pieces only."""

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            if self._held:
                self._pass_on()
        finally:
            self._queue.put(None)
            self._thread.join()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """End the thread without minding what it did."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join()

    def _work(self) -> None:
        while (piece := self._queue.get()) is not None:
            if self._error is not None:
                continue  # drain, so that the writer is not held up before it sees the error
            try:
                packed = self._packer.compress(piece)
                if packed:
                    self._target.write(packed)
            except BaseException as error:
                self._error = error
        if self._error is None:
            try:
                self._target.write(self._packer.flush())
            except BaseException as error:
                self._error = error


class Plain:
    """What stands for a codec where nothing is compressed."""

    def compress(self, data: bytes) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def _packer(compression: str) -> Any:
    """gzip at isal's level 1: 13 times as fast as zlib's 6 for an eighth more bytes."""
    if not compression:
        return Plain()
    from cowshed import codecs

    if compression == "zstd":
        return codecs.zstd().ZstdCompressor(level=3)
    deflate = codecs.deflate()
    return deflate.compressobj(1, deflate.DEFLATED, 31)
