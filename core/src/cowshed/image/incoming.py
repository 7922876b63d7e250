"""A blob on its way into the store: written and hashed in one thread, read by others while it comes."""

from __future__ import annotations

import hashlib
import os
import threading

from cowshed.errors import NoSpace, RegistryError, Tampered
from cowshed_linux import locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from cowshed.image.manifest import Descriptor

_CHUNK = 1 << 18
WORTH = 8 << 20  # bytes of a broken download that are kept for the next one: less is fetched again in no time
_NO_SPACE = (28, 122)  # ENOSPC, EDQUOT


class Incoming:
    """One blob. `run` in a thread brings it; `chunks` and `wait` give its bytes and its end, or raise its error."""

    def __init__(self, blob: Descriptor, partial: str, path: str, fetch: Callable[[int], Iterable[bytes]]) -> None:
        self.blob = blob
        self._partial, self._path, self._fetch = partial, path, fetch
        self._fd = -1
        self._came, self._done = 0, False
        self._error: BaseException | None = None
        self._more = threading.Condition()
        self._began = self._cancelled = False
        self.resumed = 0  # bytes that an earlier download had left

    def run(self, told: Callable[[int], None] = lambda _: None) -> None:
        """Download, verify, publish. told(bytes) is called as they come. What goes wrong comes out of the readers."""
        with self._more:
            if self._done:
                return  # cancelled before it began
            self._began = True
        try:
            if self._open():
                self._receive(told)
        except OSError as error:
            if error.errno in _NO_SPACE:
                self._discard()
                self._error = NoSpace(f"no space for blob {self.blob.digest[:19]} of {self.blob.size} bytes",
                                      remedy="cowshed rmi, or free space")  # fmt: skip
            else:
                self._error = error
        except BaseException as error:
            self._error = error
        finally:
            if self._error is not None and self._came < WORTH and self._fd >= 0:
                self._discard()
            with self._more:
                self._done = True
                self._more.notify_all()

    def _open(self) -> bool:
        """Take the partial file for this process alone; False if another has meanwhile completed the blob."""
        while True:
            self._check_cancelled()
            fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            locked = locks.lock_file(fd, wait=False)
            if locked and _same_file(fd, self._partial):
                if not self._whole():
                    self._fd = fd
                    return True
                os.unlink(self._partial)
            os.close(fd)
            if self._whole():
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                self._arrived(self.blob.size)
                return False
            if not locked:
                with self._more:
                    self._more.wait(0.05)  # another process downloads it

    def _whole(self) -> bool:
        try:
            return os.stat(self._path).st_size == self.blob.size
        except FileNotFoundError:
            return False

    def _receive(self, told: Callable[[int], None]) -> None:
        algorithm, _, wanted = self.blob.digest.partition(":")
        digest = hashlib.new(algorithm, usedforsecurity=False)
        at = self.resumed = self._kept(digest)
        told(at)
        for data in self._fetch(at) if at < self.blob.size else ():
            self._check_cancelled()
            at += len(data)
            if at > self.blob.size:
                break
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            digest.update(data)
            self._arrived(at)
            told(at)
        if at != self.blob.size or digest.hexdigest() != wanted:
            self._discard()
            what = f"{at} bytes or more" if at > self.blob.size else f"{at} bytes" if at < self.blob.size else "bytes"
            raise Tampered(
                f"blob {self.blob.digest[:19]} of {self.blob.size} bytes came with other {what} than it is named for",
                remedy="pull again; if it stays so, the image or the registry is broken",
            )
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        os.rename(self._partial, self._path)

    def _kept(self, digest: Any) -> int:
        """Take what an earlier download left into the digest; its length."""
        if os.fstat(self._fd).st_size > self.blob.size:
            os.ftruncate(self._fd, 0)
        at = 0
        while block := os.read(self._fd, _CHUNK):
            self._check_cancelled()
            digest.update(block)
            at += len(block)
            self._arrived(at)
        return at

    def _arrived(self, at: int) -> None:
        with self._more:
            self._came = at
            self._more.notify_all()

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise RegistryError(f"the download of {self.blob.digest[:19]} was cancelled")

    def _discard(self) -> None:
        try:
            os.unlink(self._partial)
        except FileNotFoundError:
            return

    # ------------------------------------------------------------ readers

    def chunks(self) -> Iterator[bytes]:
        """The bytes as they come. Whoever reads them to the end knows that the digest is right."""
        at = 0
        while True:
            with self._more:
                while at >= self._came and not self._done and not self._cancelled:
                    self._more.wait()
                there, done = self._came, self._done
            if not done:
                self._check_cancelled()  # `run` may hang in a read for as long as a minute
            while at < there:
                block = os.pread(self._fd, min(_CHUNK, there - at), at)
                if not block:
                    raise Tampered(f"blob {self.blob.digest[:19]} was cut while it was read")
                at += len(block)
                yield block
            if done and at >= self._came:
                if self._error is not None:
                    raise self._error
                return

    def wait(self) -> None:
        """Until the blob is whole and published."""
        with self._more:
            while not self._done:
                self._more.wait()
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """Let `run` end soon and every reader with it. From any thread."""
        with self._more:
            self._cancelled = True
            if not self._began and not self._done:
                self._done = True
                self._error = RegistryError(f"the download of {self.blob.digest[:19]} was cancelled")
            self._more.notify_all()

    def close(self) -> None:
        """After `run` has ended, or never began."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _same_file(fd: int, path: str) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
