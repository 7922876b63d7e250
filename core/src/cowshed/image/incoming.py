"""A blob on its way into the store: written and hashed in one thread, read by others while it comes.

A large one is brought in parts by several connections, where one alone is slow: the first part shows that.
"""

from __future__ import annotations

import os
import threading
from time import monotonic

from cowshed import digests
from cowshed.errors import NoSpace, RegistryError, Tampered
from cowshed.image.segments import Segments
from cowshed_linux import files, locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from cowshed.image.manifest import Descriptor

    Part = Callable[[int, int], tuple[bool, Iterable[bytes]]]

_CHUNK = 1 << 18
WORTH = 1 << 20  # bytes of a broken download that are kept for the next one: less is fetched again in no time
LARGE = 32 << 20  # bytes from which on a blob comes in parts
CONNECTIONS = 4  # for one blob
_WRITEBACK = 8 << 20  # bytes that are given to the disk at once, while more come
_SLOW = 0.5  # seconds that a connection may be at work before others help it
_NO_SPACE = (28, 122)  # ENOSPC, EDQUOT


class Incoming:
    """One blob. `run` in a thread brings it; `chunks` and `wait` give its bytes and its end, or raise its error."""

    def __init__(
        self, blob: Descriptor, partial: str, path: str, fetch: Callable[[int], Iterable[bytes]],
        part: Part | None = None, spare: threading.Semaphore | None = None,
    ) -> None:  # fmt: skip
        """fetch gives the bytes from an offset on; part(at, until) those between, and whether that can be done at all.
        spare: further connections that may be opened for parts, besides the first."""
        self.blob = blob
        self._partial, self._path, self._fetch, self._part = partial, path, fetch, part
        self.spare = spare or threading.Semaphore(0)
        self._fd = -1
        self._came, self._done = 0, False  # bytes that have been hashed: what readers see
        self._kept = 0  # bytes that the next download can go on from
        self._error: BaseException | None = None
        self._more = threading.Condition()
        self._began = self._cancelled = False
        self.resumed = 0  # bytes that another download had brought

    def run(self, told: Callable[[int], None] = lambda _: None) -> None:
        """Download, verify, publish. told(bytes) is called as they come. What goes wrong comes out of the readers."""
        with self._more:
            if self._done:
                return  # cancelled before it began
            self._began = True
        try:
            if self._open():
                self._receive(told)
            else:
                self._look_at()
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
            if self._error is not None and self._kept < WORTH and self._fd >= 0:
                self._discard()
            with self._more:
                self._done = True
                self._more.notify_all()

    def _open(self) -> bool:
        """Take the partial file for this process alone; False if another has meanwhile completed the blob."""
        while True:
            self.check_cancelled()
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
                self.resumed = self.blob.size
                return False
            if not locked:
                with self._more:
                    self._more.wait(0.05)  # another process downloads it

    def _whole(self) -> bool:
        try:
            return os.stat(self._path).st_size == self.blob.size
        except FileNotFoundError:
            return False

    def _look_at(self) -> None:
        """Show a blob that another has completed to readers, who count on its digest."""
        algorithm, _, wanted = self.blob.digest.partition(":")
        digest = digests.new(algorithm)
        self.digest_until(digest, 0, self.blob.size)
        if digest.hexdigest() != wanted:
            raise Tampered(f"blob {self.blob.digest[:19]} is damaged", remedy="cowshed storage repair")

    def _receive(self, told: Callable[[int], None]) -> None:
        algorithm, _, wanted = self.blob.digest.partition(":")
        digest = digests.new(algorithm)
        segments = Segments(self._fd, self.blob.size)
        self.resumed = self._kept = segments.there()
        told(self.resumed)
        at = self.digest_until(digest, 0, segments.front())
        pieces: Iterable[bytes] | None = None
        try:
            worth = segments.scattered or self.blob.size - segments.there() >= LARGE
            if self._part is not None and worth and (taken := segments.take()):
                divisible, pieces = self._part(*taken[1:])
                if divisible:
                    at, pieces = _Parts(self, segments, self._part, told).run(taken, pieces, digest, at), None
        finally:
            self._kept = segments.there()
        if at < self.blob.size:
            at = self._in_order(digest, at, told, pieces if at == 0 else None)
        if at != self.blob.size or digest.hexdigest() != wanted:
            self._discard()
            what = f"{at} bytes or more" if at > self.blob.size else f"{at} bytes" if at < self.blob.size else "bytes"
            raise Tampered(
                f"blob {self.blob.digest[:19]} of {self.blob.size} bytes came with other {what} than it is named for",
                remedy="pull again; if it stays so, the image or the registry is broken",
            )
        if os.fstat(self._fd).st_size != self.blob.size:
            os.ftruncate(self._fd, self.blob.size)
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        os.rename(self._partial, self._path)

    def _in_order(self, digest: Any, at: int, told: Callable[[int], None], pieces: Iterable[bytes] | None) -> int:
        """By one connection, from `at` to the end; how far it came. pieces: the bytes, if they come already."""
        if os.fstat(self._fd).st_size > at:
            os.ftruncate(self._fd, at)
        begun = at
        for data in pieces if pieces is not None else self._fetch(at):
            self.check_cancelled()
            if at + len(data) > self.blob.size:
                return at + len(data)
            self.put(data, at)
            at += len(data)
            digest.update(data)
            self._kept = at
            self._arrived(at)
            told(at)
            if at - begun >= _WRITEBACK:  # else the disk has nothing to do until all is synced at the end
                files.begin_writeback(self._fd, begun, at - begun)
                begun = at
        return at

    def put(self, data: bytes, at: int) -> None:
        """Write to the partial file."""
        view = memoryview(data)
        while view:
            count = os.pwrite(self._fd, view, at)
            view, at = view[count:], at + count

    def digest_until(self, digest: Any, at: int, until: int) -> int:
        """Take what is in the file between into the digest, and show it to readers; where that ends."""
        while at < until:
            self.check_cancelled()
            block = os.pread(self._fd, min(_CHUNK, until - at), at)
            if not block:
                raise Tampered(f"blob {self.blob.digest[:19]} was cut while it came")
            digest.update(block)
            at += len(block)
            self._arrived(at)
        return at

    def _arrived(self, at: int) -> None:
        with self._more:
            self._came = at
            self._more.notify_all()

    def check_cancelled(self) -> None:
        if self._cancelled:
            raise RegistryError(f"the download of {self.blob.digest[:19]} was cancelled")

    def _discard(self) -> None:
        try:
            os.unlink(self._partial)
        except FileNotFoundError:
            return

    # ------------------------------------------------------------ readers

    @property
    def held_against(self) -> str:
        return self.blob.digest

    def chunks(self) -> Iterator[bytes]:
        """The bytes as they come. Whoever reads them to the end knows that the digest is right."""
        at = 0
        while True:
            with self._more:
                while at >= self._came and not self._done and not self._cancelled:
                    self._more.wait()
                there, done = self._came, self._done
            if not done:
                self.check_cancelled()  # `run` may hang in a read for as long as a minute
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


class _Parts:
    """The parts of one blob: fetched by threads, more of them where one is slow; hashed in order by their starter."""

    def __init__(self, incoming: Incoming, segments: Segments, part: Part, told: Callable[[int], None]) -> None:
        self._incoming, self._segments, self._part, self._told = incoming, segments, part, told
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._working = 0
        self._over = False

    def run(self, first: tuple[int, int, int], pieces: Iterable[bytes], digest: Any, at: int) -> int:
        """How far it came, from `at`: to the end, or less far if the source no longer sends parts. first: a part that
        is taken, and its bytes. Raises what went wrong first."""
        self._segments.begin()
        size = self._incoming.blob.size
        begun = monotonic()
        try:
            self._start(first, pieces)
            while at < size:
                with self._changed:
                    while self._segments.front() <= at and self._error is None and self._working:
                        self._changed.wait(_SLOW / 4)
                        if monotonic() - begun >= _SLOW:
                            self._help()
                if self._error is not None or self._segments.front() <= at:
                    break
                at = self._incoming.digest_until(digest, at, self._segments.front())
        finally:
            self._over = True
            for thread in self._threads:
                thread.join()
            for _ in self._threads[1:]:
                self._incoming.spare.release()
        if self._error is not None:
            raise self._error
        return at

    def _start(self, first: tuple[int, int, int] | None = None, pieces: Iterable[bytes] = ()) -> None:
        self._working += 1
        self._threads.append(threading.Thread(target=self._work, args=(first, pieces), name="part"))
        self._threads[-1].start()

    def _help(self) -> None:
        """Open another connection, if one may be and has something to do."""
        if (
            len(self._threads) < CONNECTIONS
            and self._segments.is_left()
            and self._incoming.spare.acquire(blocking=False)
        ):
            self._start()

    def _work(self, taken: tuple[int, int, int] | None, pieces: Iterable[bytes]) -> None:
        try:
            while taken is not None or (taken := self._segments.take()) is not None:
                n, at, end = taken
                divisible = True
                if not pieces:
                    divisible, pieces = self._part(at, end)
                if not divisible:
                    return
                self._write(pieces, n, at, end)
                taken, pieces = None, ()
        except BaseException as error:
            self._error = self._error or error
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    def _write(self, pieces: Iterable[bytes], n: int, at: int, end: int) -> None:
        for data in pieces:
            if at + len(data) > end:
                raise Tampered(f"more bytes came of blob {self._incoming.blob.digest[:19]} than were asked for")
            self._incoming.put(data, at)
            at += len(data)
            self._segments.came(n, len(data))
            self._told(self._segments.there())
            with self._changed:
                self._changed.notify_all()
            self._incoming.check_cancelled()
            if at < end and (self._over or self._error is not None):
                raise RegistryError(f"the download of {self._incoming.blob.digest[:19]} was cancelled")
        if at != end:
            raise RegistryError(f"a part of blob {self._incoming.blob.digest[:19]} came cut short")


def _same_file(fd: int, path: str) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
