"""Blobs from an archive, before anybody knows which of them an image needs: a directory of their own beside the partial
downloads, locked by its owner, gone with it."""

from __future__ import annotations

import os

from cowshed import digests
from cowshed.errors import NoSpace, Tampered
from cowshed_linux import locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from cowshed.image.blobs import BlobStore

_CHUNK = 1 << 18


class Staging:
    """`with Staging(blobs) as staging:` what is not published by then is deleted."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._folder = blobs.staging_path()
        self.sizes: dict[str, int] = {}  # digest -> bytes of what is staged

    def __enter__(self) -> Staging:
        os.mkdir(self._folder, 0o700)
        self._fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        locks.lock_file(self._fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        delete(self._folder)
        os.close(self._fd)

    def add(self, pieces: Iterable[bytes | memoryview], *, named: str = "") -> str:
        """Write a blob; its digest. Tampered unless it is `named`, if that is given. NoSpace."""
        algorithm = named.partition(":")[0] or "sha256"
        digest = digests.new(algorithm)
        size = 0
        fd = os.open("new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
        try:
            for piece in pieces:
                digest.update(piece)
                size += len(piece)
                view = memoryview(piece)
                while view:
                    view = view[os.write(fd, view) :]
        except OSError as error:
            if error.errno in (28, 122):
                raise NoSpace("no space for the archive's blobs", remedy="cowshed rmi, or free space") from None
            raise
        finally:
            os.close(fd)
        found = f"{algorithm}:{digest.hexdigest()}"
        if named and named != found:
            raise Tampered(
                f"the archive's blob {named[:19]} has the digest {found[:19]}", remedy="copy the archive again"
            )
        os.rename("new", found, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        self.sizes[found] = size
        return found

    def read(self, digest: str, offset: int = 0) -> Iterator[bytes]:
        """The bytes of a staged blob from offset on. KeyError if it is not staged."""
        self.sizes[digest]
        fd = os.open(digest, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            os.lseek(fd, offset, os.SEEK_SET)
            while piece := os.read(fd, _CHUNK):
                yield piece
        finally:
            os.close(fd)

    def publish(self, digest: str) -> bool:
        """Give a staged blob its place; it stays readable here. False if it is not staged."""
        if digest not in self.sizes:
            return False
        try:
            os.link(digest, self._blobs.path(digest), src_dir_fd=self._fd)
        except FileExistsError:
            os.replace(f"{self._folder}/{digest}", self._blobs.path(digest))  # of a wrong size: it was looked at before
            os.link(self._blobs.path(digest), digest, dst_dir_fd=self._fd)
        return True


def delete(folder: str) -> int:
    """Delete a staging directory, which is flat; the bytes freed."""
    freed = 0
    try:
        with os.scandir(folder) as listed:
            for entry in listed:
                freed += entry.stat(follow_symlinks=False).st_size
                os.unlink(entry.path)
        os.rmdir(folder)
    except FileNotFoundError:
        return freed  # another deleted it at the same time
    return freed


def delete_abandoned(folder: str) -> int:
    """Delete a staging directory unless its owner lives; the bytes freed."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return 0
    try:
        return delete(folder) if locks.lock_file(fd, wait=False) else 0
    finally:
        os.close(fd)
