"""Blobs: files named by their digest, whole or not there at all.

blobs/sha256/HEX      verified
blobs/partial/HEX     being downloaded, or left by a download that broke: the next one goes on from there
"""

from __future__ import annotations

import hashlib
import os
import threading

from cowshed.errors import NoSpace, Tampered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cowshed.image.manifest import Descriptor

_CHUNK = 1 << 18


class Blobs:
    def __init__(self, root: str) -> None:
        self._folder = f"{root}/blobs"

    def path(self, digest: str) -> str:
        algorithm, _, digits = digest.partition(":")
        return f"{self._folder}/{algorithm}/{digits}"

    def has(self, blob: Descriptor) -> bool:
        try:
            return os.stat(self.path(blob.digest)).st_size == blob.size
        except FileNotFoundError:
            return False

    def read(self, digest: str) -> Iterator[bytes]:
        with open(self.path(digest), "rb", buffering=0) as f:
            while chunk := f.read(_CHUNK):
                yield chunk

    def remove(self, digest: str) -> None:
        try:
            os.unlink(self.path(digest))
        except FileNotFoundError:
            return

    def receive(self, blob: Descriptor, fetch: Callable[[int], Iterable[bytes]]) -> Incoming:
        """Begin to store a blob; fetch(offset) gives its bytes from there on."""
        digits = blob.digest.partition(":")[2]
        return Incoming(blob, f"{self._folder}/partial/{digits}", self.path(blob.digest), fetch)


class Incoming:
    """A blob that arrives in a thread and may be read meanwhile."""

    def __init__(self, blob: Descriptor, partial: str, path: str, fetch: Callable[[int], Iterable[bytes]]) -> None:
        self.blob, self._partial, self._path, self._fetch = blob, partial, path, fetch
        self.received = 0
        self._fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._more = threading.Condition()
        self._done, self._error = False, None  # type: bool, BaseException | None
        self.cancelled = False

    def run(self) -> None:
        """Download, verify, publish. Errors come out of `chunks` and `finish`."""
        import fcntl

        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            algorithm, _, wanted = self.blob.digest.partition(":")
            digest = hashlib.new(algorithm)
            kept = self._kept(digest)
            for data in self._fetch(kept) if kept < self.blob.size else ():
                if self.cancelled:
                    raise InterruptedError("cancelled")
                digest.update(data)
                view = memoryview(data)
                while view:
                    view = view[os.write(self._fd, view) :]
                with self._more:
                    self.received += len(data)
                    self._more.notify_all()
                if self.received > self.blob.size:
                    break
            if self.received != self.blob.size or digest.hexdigest() != wanted:
                if self.received >= self.blob.size:
                    os.unlink(self._partial)
                what = f"{self.received} bytes" if self.received != self.blob.size else f"digest {digest.hexdigest()}"
                raise Tampered(f"blob {self.blob.digest[:19]} came with {what}, not {self.blob.size} bytes as named")
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            os.rename(self._partial, self._path)
        except OSError as error:
            if error.errno in (28, 122):
                os.unlink(self._partial)
                self._error = NoSpace(f"no space for blob {self.blob.digest[:19]}", remedy="cowshed rmi, or free space")
            else:
                self._error = error
        except BaseException as error:
            self._error = error
        finally:
            with self._more:
                self._done = True
                self._more.notify_all()

    def _kept(self, digest: object) -> int:
        """Take what an earlier download left into the digest; its length."""
        size = os.fstat(self._fd).st_size
        if size > self.blob.size:
            os.ftruncate(self._fd, 0)
            return 0
        while block := os.read(self._fd, _CHUNK):
            digest.update(block)  # type: ignore[attr-defined]
            with self._more:
                self.received += len(block)
        return self.received

    def chunks(self) -> Iterator[bytes]:
        """The bytes as they arrive."""
        at = 0
        while True:
            with self._more:
                while at >= self.received and not self._done:
                    self._more.wait()
                there, done = self.received, self._done
            while at < there:
                block = os.pread(self._fd, min(_CHUNK, there - at), at)
                at += len(block)
                yield block
            if done and at >= self.received:
                if self._error is not None:
                    raise self._error
                return

    def finish(self) -> None:
        with self._more:
            while not self._done:
                self._more.wait()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        os.close(self._fd)
