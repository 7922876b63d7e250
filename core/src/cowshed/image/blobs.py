"""Blobs: files named by their digest, whole or not there at all.

    blobs/sha256/HEX            verified; published by rename
    blobs/partial/BOOT-HEX      being downloaded, or left by a download that broke: the next one goes on from there.
                                Longer than the blob if it comes in parts (`cowshed.image.segments`).
                                BOOT is of the boot that wrote it: after a power cut nobody knows which of its bytes
                                reached the disk
    blobs/partial/new.PID.N     being made here, under a name that is not known yet
    blobs/partial/stage.PID.N   a directory: blobs of an archive, before it is known which of them are needed
    blobs/recipes/sha256-HEX    of an archive that was dropped: how it is made again (`cowshed.image.archives`)

Nothing is synced file by file: whoever writes blobs down in the database calls `sync` once before.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from cowshed import log
from cowshed.image.incoming import WORTH, Incoming
from cowshed.image.outgoing import NewBlob
from cowshed.image.reference import DIGITS, check_digest
from cowshed.image.staging import delete_abandoned
from cowshed_linux import files, locks, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from threading import Semaphore

    from cowshed.image.incoming import Part
    from cowshed.image.manifest import Descriptor
    from cowshed.state.store import Store

CHUNK = 1 << 18
_OLDEST = 7 * 86400  # seconds that a broken download is kept for
_PARTIALS = 8 << 30  # bytes that broken downloads may have together


class BlobStore:
    """The blobs of one store. May be used from several threads."""

    def __init__(self, root: str) -> None:
        self._folder = f"{root}/blobs"
        self._sync_fd = -1

    def path(self, digest: str) -> str:
        """Where a blob is or will be. The digest is checked: a name from outside becomes part of a path only as hex."""
        algorithm, _, digits = check_digest(digest).partition(":")
        return f"{self._folder}/{algorithm}/{digits}"

    def has(self, blob: Descriptor) -> bool:
        """Whether the blob is there with its size."""
        return self.size(blob.digest) == blob.size

    def size(self, digest: str) -> int:
        """Bytes of a blob, -1 if it is not there."""
        try:
            return os.stat(self.path(digest)).st_size
        except FileNotFoundError:
            return -1

    def read(self, digest: str, offset: int = 0) -> Iterator[bytes]:
        """The bytes of a blob in pieces, from offset on. FileNotFoundError at the first."""
        with open(self.path(digest), "rb", buffering=0) as file:
            file.seek(offset)
            while piece := file.read(CHUNK):
                yield piece

    def receive(
        self, blob: Descriptor, fetch: Callable[[int], Iterable[bytes]], part: Part | None = None,
        spare: Semaphore | None = None,
    ) -> Incoming:  # fmt: skip
        """Begin to store a blob; fetch(offset) gives its bytes from there on, part and spare are `Incoming`'s. Nothing
        runs until `Incoming.run`."""
        return Incoming(blob, self._partial(blob.digest), self.path(blob.digest), fetch, part, spare)

    def _partial(self, digest: str) -> str:
        return f"{self._folder}/partial/{process.boot_id()[:8]}-{check_digest(digest).partition(':')[2]}"

    def retire(self, digest: str) -> bool:
        """Make a whole blob that a broken pull has brought a partial one again, for the next pull to go on from; False
        if it is too small for that, or gone."""
        if self.size(digest) < WORTH:
            return False
        try:
            os.rename(self.path(digest), self._partial(digest))
        except FileNotFoundError:
            return False
        return True

    def create(self) -> NewBlob:
        """Begin to make a blob whose digest comes out at the end."""
        return NewBlob(f"{self._folder}/partial", self.path)

    def staging_path(self) -> str:
        """A new name for a staging directory."""
        return f"{self._folder}/partial/stage.{os.getpid()}.{os.urandom(4).hex()}"

    def remove(self, digest: str) -> None:
        """Delete a blob, and what it could be made again by."""
        for path in (self.path(digest), self.recipe(digest)):
            try:
                os.unlink(path)
            except FileNotFoundError:
                continue

    def recipe(self, digest: str) -> str:
        """Where the recipe of a blob is, if it was dropped."""
        return f"{self._folder}/recipes/{check_digest(digest).replace(':', '-')}"

    def takes(self, digest: str) -> int:
        """Bytes of a blob and of its recipe, whichever are there."""
        return max(self.size(digest), 0) + _size(self.recipe(digest))

    def forget(self, digest: str) -> None:
        """Delete the recipe of a blob, which is there itself."""
        with suppress(FileNotFoundError):
            os.unlink(self.recipe(digest))

    def dropped(self) -> list[str]:
        """The blobs of which there are recipes. One that has come again is there as well."""
        try:
            names = os.listdir(f"{self._folder}/recipes")
        except FileNotFoundError:
            return []
        return [name.replace("-", ":", 1) for name in names]

    # ------------------------------------------------------------ the disk

    def open_for_sync(self) -> None:
        """Call before the first write: syncfs(2) tells of errors only since the descriptor was opened."""
        if self._sync_fd < 0:
            self._sync_fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def sync(self) -> None:
        """Bring every blob to the disk, by one call for all. OSError if one could not be written."""
        self.open_for_sync()
        files.syncfs(self._sync_fd)

    def device(self) -> int:
        """The file system: a driver's root on the same one is synced together with the blobs."""
        return os.stat(self._folder).st_dev

    def free(self) -> int:
        """Bytes that can still be written."""
        status = os.statvfs(self._folder)
        return status.f_bavail * status.f_frsize

    def close(self) -> None:
        if self._sync_fd >= 0:
            os.close(self._sync_fd)
            self._sync_fd = -1

    # ------------------------------------------------------------ cleaning

    def collect(self, store: Store, *, everything: bool = False, wait: float = 60.0) -> int:
        """Delete the blobs that no image lists and no running command counts on; the bytes freed. What a broken pull
        has brought is kept among the partial downloads instead. With `everything`
        all that are there are looked at, not only those that the database knows to be unlisted: if it is whole, and
        none of them may be of an image that it has lost. Busy."""
        from cowshed.state import leases

        if everything:
            from cowshed.state import lost

            if not lost.is_whole(store):
                log.warn("the database has lost images, so no archive is deleted: cowshed storage check tells more")
                everything = False

        freed = 0

        def remove(digest: str) -> None:
            nonlocal freed
            if store.query("select 1 from loose_blobs where digest = ? and not unlisted", digest) and self.retire(
                digest
            ):
                return
            freed += self.takes(digest)
            self.remove(digest)

        leases.delete_unused(
            store, remove, {*self.digests(), *self.dropped()} if everything else None, wait=wait
        )  # fmt: skip
        return freed

    def digests(self) -> list[str]:
        """All blobs that are there."""
        found = []
        for algorithm in DIGITS:
            try:
                names = os.listdir(f"{self._folder}/{algorithm}")
            except FileNotFoundError:
                continue
            found += [f"{algorithm}:{name}" for name in names]
        return found

    def prune_partials(self, *, oldest: float = _OLDEST, limit: int = _PARTIALS) -> int:
        """Delete what broken downloads left: too little to go on from, of another boot, older than `oldest` seconds,
        and the oldest of what is together more than `limit` bytes. What a living command writes to is locked and
        stays. Bytes freed."""
        from time import time

        folder = f"{self._folder}/partial"
        boot, now = process.boot_id()[:8], time()
        there: list[tuple[float, int, str]] = []
        kept = freed = 0
        for name in os.listdir(folder):
            try:
                status = os.stat(f"{folder}/{name}")
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(status.st_mode):
                freed += delete_abandoned(f"{folder}/{name}")
            else:
                there.append((status.st_mtime, status.st_size, name))
        there.sort(reverse=True)
        for changed, size, name in there:
            fresh = name.startswith(f"{boot}-") and size >= WORTH and now - changed < oldest
            if fresh and kept + size <= limit:
                kept += size
            elif _unlink_unless_locked(f"{folder}/{name}"):
                freed += size
        return freed


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _unlink_unless_locked(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        if not locks.lock_file(fd, wait=False):
            return False
        os.unlink(path)
        return True
    except FileNotFoundError:
        return False
    finally:
        os.close(fd)
