"""Blobs that are being received: files that grow, until their digest is known to be right.

An upload is a file, DIR/uploads/REPOSITORY/UUID, and its length is how far it has come: a client may go on with it
after its connection broke or the server was restarted. The state of its hash is kept in memory, and computed again
from the file when it is not there. Who writes holds flock(2) of the file.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections import OrderedDict

from cowshed.registry.server import names
from cowshed.registry.server.refusals import REMOVED, Refusal
from cowshed_linux import locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from cowshed.registry.server.message import Body
    from cowshed.registry.server.store import Repository, Store

_PIECE = 256 << 10
_HASHES = 4096  # uploads whose hash is kept
_PATIENCE = 10.0  # seconds that one who goes on waits for his own broken connection to be noticed


class Uploads:
    """All uploads of a store. Safe for several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._guard = threading.Lock()
        self._hashes: OrderedDict[str, tuple[int, str, Any]] = OrderedDict()  # uuid: bytes, algorithm, hash

    def begin(self, repository: Repository, algorithm: str = "sha256") -> Upload:
        """A new upload, open. Close it."""
        hash_ = names.hasher(algorithm)
        folder = f"{self._store.root}/uploads/{repository.folder}"
        os.makedirs(folder, mode=0o755, exist_ok=True)
        while True:
            name = str(uuid.uuid4())
            fd = os.open(f"{folder}/{name}", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            locks.lock_file(fd)
            if os.fstat(fd).st_nlink:
                break
            os.close(fd)  # a collection without a grace period has removed it before it was locked
        return Upload(self, repository, name, f"{folder}/{name}", fd, (0, algorithm, hash_))

    def resume(self, repository: Repository, name: str) -> Upload:
        """One that was begun, open. Refusal if there is none. Close it."""
        path = f"{self._store.root}/uploads/{repository.folder}/{name}"
        unknown = Refusal("BLOB_UPLOAD_UNKNOWN", "there is no such upload: it has ended, was cancelled or was given up")
        try:
            if str(uuid.UUID(name)) != name:
                raise unknown
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (ValueError, FileNotFoundError):
            raise unknown from None
        end = time.monotonic() + _PATIENCE
        while not locks.lock_file(fd, wait=False):
            if time.monotonic() > end:
                os.close(fd)
                raise Refusal(
                    "TOOMANYREQUESTS", "another request writes to this upload", headers=(("Retry-After", "5"),)
                )
            time.sleep(0.02)
        if os.fstat(fd).st_nlink == 0 or not os.path.exists(path):  # it was ended meanwhile
            os.close(fd)
            raise unknown
        with self._guard:
            kept = self._hashes.pop(name, None)
        return Upload(self, repository, name, path, fd, kept)

    def keep(self, name: str, state: tuple[int, str, Any]) -> None:
        with self._guard:
            self._hashes[name] = state
            while len(self._hashes) > _HASHES:
                self._hashes.popitem(last=False)


class Upload:
    """One upload, locked. Close it: without `finish` or `cancel` it stays, to be gone on with."""

    def __init__(
        self, uploads: Uploads, repository: Repository, name: str, path: str, fd: int, kept: tuple[int, str, Any] | None
    ) -> None:
        self._uploads, self._repository, self.name, self._path, self._fd = uploads, repository, name, path, fd
        self.size = os.fstat(fd).st_size
        self._state = kept if kept is not None and kept[0] == self.size else None
        self._over = self._synced = False

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def receive(self, body: Body) -> int:
        """Append all of a request's body; its bytes. What came before a connection broke stays."""
        buffer = memoryview(bytearray(min(_PIECE, body.left() or _PIECE)))
        began = self.size
        while count := body.read_into(buffer):
            self.append(buffer[:count])
        return self.size - began

    def append(self, piece: memoryview) -> None:
        """Some more bytes. Refusal if the registry may not take them; OSError."""
        if self._state is None:
            self._hash("sha256")
        assert self._state is not None
        _, algorithm, hash_ = self._state
        count = len(piece)
        self._repository.store.reserve(count)
        self._state = None  # should writing fail, the hash has more than the file
        self._synced = False
        try:
            hash_.update(piece)
            at = self.size
            while piece:
                written = os.pwrite(self._fd, piece, at)
                piece, at = piece[written:], at + written
        except OSError:
            os.ftruncate(self._fd, self.size)
            self._repository.store.release(count)
            raise
        self.size += count
        self._state = (self.size, algorithm, hash_)

    def duplicate(self) -> int:
        """A descriptor of its own for what has come, and comes."""
        return os.dup(self._fd)

    def sync(self) -> None:
        """Bring what came to the disk, so that `finish` takes no time for it."""
        if not self._synced:  # a second time would still flush the disk's cache
            os.fdatasync(self._fd)
            self._synced = True

    def finish(self, digest: str) -> None:
        """Make it a blob of its repository. Refusal if it has another digest: then it is gone."""
        algorithm = digest.partition(":")[0]
        if self._state is None or self._state[1] != algorithm:
            self._hash(algorithm)
        assert self._state is not None
        found = f"{algorithm}:{self._state[2].hexdigest()}"
        if found != digest:
            self.cancel()
            raise Refusal("DIGEST_INVALID", f"what was received is {found}, not {digest}")
        self.sync()
        store = self._repository.store
        if not store.publish(self._path, digest):
            store.release(self.size)
        self._over = True
        if not self._repository.link(digest):  # a collection came between: none does within its grace period
            raise Refusal("BLOB_UPLOAD_INVALID", "the blob was removed while it was received", status=REMOVED)

    def cancel(self) -> None:
        os.unlink(self._path)
        self._repository.store.release(self.size)
        self._over = True

    def give_up(self) -> None:
        """`cancel`, if it is not over."""
        if not self._over:
            self.cancel()

    def close(self) -> None:
        if not self._over and self._state is not None:
            self._uploads.keep(self.name, self._state)
        os.close(self._fd)

    def _hash(self, algorithm: str) -> None:
        hash_ = names.hasher(algorithm)
        at = 0
        while piece := os.pread(self._fd, 1 << 20, at):
            hash_.update(piece)
            at += len(piece)
        self._state = (self.size, algorithm, hash_)


def abandoned(store: Store, before: float) -> Iterator[tuple[str, int]]:
    """(path, bytes) of each upload that nobody has written to since then. It is locked until the next is asked for."""
    for folder in os.listdir(f"{store.root}/uploads"):
        base = f"{store.root}/uploads/{folder}"
        for name in os.listdir(base):
            try:
                fd = os.open(f"{base}/{name}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            try:
                status = os.fstat(fd)
                if status.st_mtime < before and locks.lock_file(fd, wait=False):
                    yield f"{base}/{name}", status.st_size
            finally:
                os.close(fd)
