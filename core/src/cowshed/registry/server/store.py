"""The content of a registry on disk: OCI image layouts over one pool of blobs.

    DIR/blobs/sha256/HEX                          every blob once
    DIR/repositories/TEAM+APP/                    the repository team/app: an OCI image layout
        oci-layout, index.json                    manifests and tags (org.opencontainers.image.ref.name)
        blobs/sha256/HEX                          hard links to the pool: what this repository has
    DIR/uploads/TEAM+APP/UUID                     what is being received (`uploads`)
    DIR/upstream                                  the registry that this one is a cache of, if it is one
    DIR/damaged/                                  blobs that had other bytes than they should have had (`scrub`)

A blob that has no other name than that in the pool belongs to nobody: the file system counts. What is visible is
whole: files are written under other names, synced, and renamed. A manifest is answered for only when its blobs, their
names and the index are on the disk. All state is in these files, so that a server may be killed, and that several, or
a garbage collection of another process, may work on one directory: the lock is flock(2) of a repository's directory.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections import OrderedDict, deque

from cowshed.errors import StoreError
from cowshed.registry.server import names
from cowshed.registry.server.refusals import Refusal
from cowshed_linux import files, locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

REF_NAME = "org.opencontainers.image.ref.name"
INDEX = "application/vnd.oci.image.index.v1+json"
_LAYOUT = b'{"imageLayoutVersion": "1.0.0"}\n'
_CACHED = 1024  # repositories whose index is kept in memory
_FRESH = 600.0  # seconds: a blob that was asked for is marked as such no more often
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Index:
    """What index.json of a repository says. Never changed once others see it: `copy` it."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.entries: dict[str, dict[str, Any]] = {}  # digest: descriptor, without the name that a tag gives it
        self.tags: dict[str, str] = {}  # also names of other tools that are no tags
        self._rest = {key: value for key, value in document.items() if key != "manifests"}
        for entry in document.get("manifests") or []:
            descriptor = dict(entry)
            annotations = dict(descriptor.pop("annotations", None) or {})
            tag = annotations.pop(REF_NAME, "")
            if annotations:
                descriptor["annotations"] = annotations
            self.entries[descriptor["digest"]] = descriptor
            if tag:
                self.tags[tag] = descriptor["digest"]

    def copy(self) -> Index:
        other = Index({})
        other.entries, other.tags, other._rest = dict(self.entries), dict(self.tags), self._rest
        return other

    def encoded(self) -> bytes:
        named: dict[str, list[str]] = {}
        for tag, digest in self.tags.items():
            named.setdefault(digest, []).append(tag)
        manifests = []
        for digest, descriptor in self.entries.items():
            for tag in named.get(digest, ()):
                annotations = {**descriptor.get("annotations", {}), REF_NAME: tag}
                manifests.append({**descriptor, "annotations": annotations})
            if digest not in named:
                manifests.append(descriptor)
        return json.dumps({"schemaVersion": 2, "mediaType": INDEX, **self._rest, "manifests": manifests}).encode()


class Store:
    """A directory of repositories. Safe for several threads and processes."""

    def __init__(self, root: str, *, quota: int = 0) -> None:
        """Makes the directory if it is not there. quota: bytes that all blobs may take, 0: any. StoreError, OSError."""
        self.root, self.quota = os.path.abspath(root), quota
        if os.path.isdir(root) and (there := set(os.listdir(root))) and not there & {"blobs", "repositories"}:
            raise StoreError(f"{root} has other things in it", remedy="name an empty or new directory for the registry")
        for folder in ("blobs/sha256", "repositories", "uploads"):
            os.makedirs(f"{self.root}/{folder}", mode=0o755, exist_ok=True)
        self._guard = threading.Lock()
        self._known: OrderedDict[str, Repository] = OrderedDict()
        self._used = self._measure() if quota else 0

    def repository(self, name: str) -> Repository:
        """The repository of a checked name, whether it exists or not."""
        with self._guard:
            found = self._known.get(name)
            if found is None:
                found = self._known[name] = Repository(self, name)
                while len(self._known) > _CACHED:
                    self._known.popitem(last=False)
            else:
                self._known.move_to_end(name)
            return found

    def names(self) -> list[str]:
        """Every repository, in the order of the alphabet."""
        folder = f"{self.root}/repositories"
        there = [one for one in os.listdir(folder) if os.path.exists(f"{folder}/{one}/index.json")]
        return sorted(one.replace("+", "/") for one in there)

    def pool_path(self, digest: str) -> str:
        """Where the blob of a checked digest is, or will be."""
        algorithm, _, digits = digest.partition(":")
        return f"{self.root}/blobs/{algorithm}/{digits}"

    def folders(self) -> list[str]:
        """Where blobs are, by algorithm: paths that end with its name."""
        every = [f"{self.root}/blobs/{algorithm}" for algorithm in names.ALGORITHMS]
        return [path for path in every if os.path.isdir(path)]

    def publish(self, path: str, digest: str) -> bool:
        """Make a synced file, whose digest this is, a blob of the pool; its old name is gone. False if it was one."""
        pool = self.pool_path(digest)
        os.chmod(path, 0o444)
        with self.pool_locked(shared=True):
            try:
                os.utime(pool)
            except FileNotFoundError:
                _make_folder(os.path.dirname(pool))
                os.rename(path, pool)  # two who come at once both do: the same bytes
                return True
        os.unlink(path)
        return False

    @property
    def cache_of(self) -> str:
        """The registry that this one was last served in front of, "" if it has to have everything itself."""
        try:
            with open(f"{self.root}/upstream", encoding="utf-8") as file:
                return file.read().strip()
        except FileNotFoundError:
            return ""

    def is_cache_of(self, registry: str) -> None:
        """Remember it for those who look at the directory later. OSError."""
        if registry == self.cache_of:
            return
        if registry:
            files.write_atomically(f"{self.root}/upstream", f"{registry}\n".encode(), mode=0o644)
        else:
            os.unlink(f"{self.root}/upstream")

    @contextlib.contextmanager
    def pool_locked(self, *, shared: bool) -> Iterator[None]:
        """Not shared: nothing comes into the pool or gets a name in a repository meanwhile."""
        fd = os.open(f"{self.root}/blobs", _DIRECTORY)
        try:
            locks.lock_file(fd, shared=shared)
            yield
        finally:
            os.close(fd)

    # ------------------------------------------------------------ quota

    def reserve(self, count: int) -> None:
        """Count bytes that are about to be written. Refusal if they are too many."""
        if not self.quota:
            return
        with self._guard:
            if self._used + count > self.quota:
                raise Refusal("DENIED", f"the registry may take {self.quota} bytes, and they are used up")
            self._used += count

    def release(self, count: int) -> None:
        """Bytes are gone, or were not written after all."""
        if self.quota:
            with self._guard:
                self._used = max(0, self._used - count)

    def _measure(self) -> int:
        total = 0
        for folder in (*self.folders(), f"{self.root}/uploads"):
            for base, _, found in os.walk(folder):
                for name in found:
                    with contextlib.suppress(FileNotFoundError):
                        total += os.stat(f"{base}/{name}").st_size
        return total


class Repository:
    """One repository. Safe for several threads."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self.folder = name.replace("/", "+")
        self.path = f"{store.root}/repositories/{self.folder}"
        self._lock = threading.RLock()
        self._held = False
        self._waiting: deque[_Change] = deque()
        self._read: tuple[tuple[int, int, int], Index] | None = None
        self.facts: dict[str, dict[str, Any] | None] = {}  # digest: what a referrers list says of it (`listings`)

    # ------------------------------------------------------------ blobs

    def blob_path(self, digest: str) -> str:
        algorithm, _, digits = digest.partition(":")
        return f"{self.path}/blobs/{algorithm}/{digits}"

    def open_blob(self, digest: str) -> tuple[int, int]:
        """(descriptor, bytes) of a blob of this repository. FileNotFoundError."""
        fd = os.open(self.blob_path(digest), os.O_RDONLY | os.O_CLOEXEC)
        return fd, os.fstat(fd).st_size

    def read_blob(self, digest: str, limit: int) -> bytes:
        """A small blob whole. FileNotFoundError; Refusal if it is larger than limit."""
        fd, size = self.open_blob(digest)
        try:
            if size > limit:
                raise Refusal("MANIFEST_UNKNOWN", f"{digest} is no manifest: it has {size} bytes")
            return os.read(fd, size)
        finally:
            os.close(fd)

    def touch(self, digest: str) -> int:
        """Bytes of a blob that somebody counts on from now on: it is not garbage for a while. FileNotFoundError."""
        path = self.blob_path(digest)
        status = os.stat(path)
        if time.time() - status.st_mtime > _FRESH:
            with self._locked():
                os.utime(path)
        return status.st_size

    def link(self, digest: str) -> bool:
        """Have a blob of the pool; False if the pool has it not."""
        self.make()
        target = self.blob_path(digest)
        with self._locked(), self.store.pool_locked(shared=True):
            _make_folder(os.path.dirname(target))
            try:
                os.link(self.store.pool_path(digest), target)
            except FileExistsError:
                pass
            except FileNotFoundError:
                return False
            os.utime(target)
        return True

    def unlink(self, digest: str) -> None:
        """Have it no longer. FileNotFoundError."""
        os.unlink(self.blob_path(digest))

    def digests(self) -> list[str]:
        """All blobs and manifests of this repository."""
        found = []
        for algorithm in names.ALGORITHMS:
            with contextlib.suppress(FileNotFoundError):
                found += [f"{algorithm}:{name}" for name in os.listdir(f"{self.path}/blobs/{algorithm}")]
        return found

    # ------------------------------------------------------------ the index

    def exists(self) -> bool:
        return os.path.exists(f"{self.path}/index.json")

    def make(self) -> None:
        """Make the layout, if there is none."""
        if self.exists():
            return
        os.makedirs(f"{self.path}/blobs/sha256", mode=0o755, exist_ok=True)
        with self._locked():
            if not self.exists():
                files.write_atomically(f"{self.path}/oci-layout", _LAYOUT, mode=0o644)
                files.write_atomically(f"{self.path}/index.json", Index({}).encoded(), mode=0o644)
                files.sync_directory(f"{self.store.root}/repositories")

    def index(self) -> Index:
        """What index.json says now. Refusal if there is no such repository."""
        try:
            status = os.stat(f"{self.path}/index.json")
        except FileNotFoundError:
            raise Refusal("NAME_UNKNOWN", f"there is no repository {self.name}") from None
        key = (status.st_ino, status.st_mtime_ns, status.st_size)
        read = self._read
        if read is not None and read[0] == key:
            return read[1]
        with open(f"{self.path}/index.json", "rb") as file:
            status = os.fstat(file.fileno())
            try:
                found = Index(json.load(file))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise StoreError(f"{self.path}/index.json cannot be understood: {error}") from None
        self._read = ((status.st_ino, status.st_mtime_ns, status.st_size), found)
        return found

    def change(self, function: Callable[[Index], None]) -> None:
        """Let a function change a copy of the index, under the lock; it raises before it changes something, or not at
        all. Returns when the index and the names of all blobs are on the disk. Those who wait for the lock meanwhile
        are done together by the next one: syncing takes longer than everything else. FileNotFoundError if there is no
        such repository."""
        mine = _Change(function)
        self._waiting.append(mine)
        try:
            with self._locked():
                if not mine.over:
                    self._change_all()
        except BaseException:
            with contextlib.suppress(ValueError):
                self._waiting.remove(mine)
            raise
        if mine.error is not None:
            raise mine.error

    def _change_all(self) -> None:
        index = self.index().copy()
        done = []
        while self._waiting:
            one = self._waiting.popleft()
            try:
                one.function(index)
            except Exception as error:
                one.error = error
            done.append(one)
        try:
            if any(one.error is None for one in done):
                self._write(index)
        except OSError as error:
            for one in done:
                one.error = one.error or error
        finally:
            for one in done:
                one.over = True

    def _write(self, index: Index) -> None:
        path = f"{self.path}/index.json"
        _write_synced(f"{path}.new", index.encoded(), 0o644)
        for algorithm in names.ALGORITHMS:  # after the file: where a journal brought all to the disk, this is free
            with contextlib.suppress(FileNotFoundError), os.scandir(f"{self.path}/blobs/{algorithm}") as found:
                if next(found, None) is not None:
                    files.sync_directory(f"{self.path}/blobs/{algorithm}")
        os.rename(f"{path}.new", path)
        files.sync_directory(self.path)
        status = os.stat(path)
        self._read = ((status.st_ino, status.st_mtime_ns, status.st_size), index)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            if self._held:  # by this thread: a second descriptor would wait for the first
                yield
                return
            fd = os.open(self.path, _DIRECTORY)
            try:
                locks.lock_file(fd)
                self._held = True
                yield
            finally:
                self._held = False
                os.close(fd)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Nobody else changes what this repository has. FileNotFoundError if it does not exist."""
        return self._locked()


class _Change:
    """One of the changes that wait for the lock of a repository."""

    def __init__(self, function: Callable[[Index], None]) -> None:
        self.function = function
        self.error: Exception | None = None
        self.over = False


def _write_synced(path: str, data: bytes, mode: int) -> None:
    """A file with this content, on the disk; its name is not, so far. OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fdatasync(fd)
    finally:
        os.close(fd)


def _make_folder(path: str) -> None:
    """The first blob of an algorithm makes its folder."""
    if not os.path.isdir(path):
        os.makedirs(path, mode=0o755, exist_ok=True)
        files.sync_directory(os.path.dirname(path))


def no_space(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
