"""Removing what nobody refers to, while the registry is used: mark and sweep in each repository, then in the pool.

What is younger than the grace period stays, because a push brings blobs before the manifest that refers to them;
asking for a blob, mounting it or uploading it again makes it young. The marks of a repository are made and used under
its lock.
"""

from __future__ import annotations

import contextlib
import os
import time

from cowshed.errors import StoreError
from cowshed.registry.server import manifests, names, uploads
from cowshed.registry.server.refusals import Refusal
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.registry.server.store import Index, Repository, Store

GRACE = 86400.0  # seconds
_BATCH = 200  # blobs of the pool that are looked at under one lock


@record(frozen=True)
class Collected:
    """What was removed, or would be."""

    manifests: int  # without a tag
    links: int  # blobs of repositories that no manifest of theirs refers to
    uploads: int  # that nobody goes on with
    blobs: int  # of the pool
    freed: int  # bytes
    unreadable: tuple[str, ...]  # what is wrong with repositories that were left as they are


def collect(store: Store, *, grace: float = GRACE, untagged: bool = False, dry_run: bool = False) -> Collected:
    """Remove what is older than `grace` seconds and not referred to. untagged: also manifests that have no tag, are in
    no index that stays, and have no subject that stays. OSError."""
    before = time.time() - grace
    dropped = links = 0
    unreadable = []
    counted: dict[tuple[int, int], int] = {}  # by inode: names in repositories that a dry run only thinks away
    for name in store.names():
        repository = store.repository(name)
        try:
            with repository.locked():
                one = _Repository(repository, before, dry_run=dry_run)
                dropped += one.drop_untagged() if untagged else 0
                links += one.sweep()
        except FileNotFoundError:
            continue
        except StoreError as error:  # what it refers to is not known: it keeps all that it has, and others go on
            unreadable.append(str(error))
            continue
        for inode in one.unlinked:
            counted[inode] = counted.get(inode, 0) + 1
    given_up, freed = _sweep_uploads(store, before, dry_run=dry_run)
    blobs, more = _sweep_pool(store, before, counted if dry_run else {}, dry_run=dry_run)
    if not dry_run:
        store.release(freed + more)
    return Collected(dropped, links, given_up, blobs, freed + more, tuple(unreadable))


class _Repository:
    """Marks and sweeps one repository, whose lock is held."""

    def __init__(self, repository: Repository, before: float, *, dry_run: bool) -> None:
        self._repository, self._before, self._dry_run = repository, before, dry_run
        self._index: Index = repository.index()
        self._read: dict[str, dict[str, Any] | None] = {}
        self._dropped: set[str] = set()
        self.unlinked: list[tuple[int, int]] = []

    def drop_untagged(self) -> int:
        kept = self._closure(set(self._index.tags.values()))
        while True:  # what refers to what stays, stays; and what that lists
            more = {
                digest
                for digest in self._index.entries
                if digest not in kept
                and (manifest := self._manifest(digest)) is not None
                and (manifest.get("subject") or {}).get("digest") in kept
            }
            if not more:
                break
            kept = self._closure(kept | more)
        self._dropped = {one for one in self._index.entries if one not in kept and self._old(one)}
        if self._dropped and not self._dry_run:
            self._repository.change(self._drop)
            self._index = self._repository.index()
        return len(self._dropped)

    def _drop(self, index: Index) -> None:
        for digest in self._dropped:
            index.entries.pop(digest, None)

    def sweep(self) -> int:
        """Unlink what is not marked; how many."""
        marked = self._closure(set(self._index.entries) - self._dropped)
        for digest in list(marked):
            manifest = self._manifest(digest)
            if manifest is not None:
                marked.update(manifests.references(manifest)[0])
        count = 0
        for digest in self._repository.digests():
            if digest in marked or not self._old(digest):
                continue
            status = os.stat(self._repository.blob_path(digest))
            self.unlinked.append((status.st_dev, status.st_ino))
            count += 1
            if not self._dry_run:
                self._repository.unlink(digest)
        if not self._dry_run:
            self._sweep_temporaries()
        return count

    def _closure(self, digests: set[str]) -> set[str]:
        """These manifests and all that they list."""
        found: set[str] = set()
        queue = list(digests)
        while queue:
            digest = queue.pop()
            if digest in found:
                continue
            found.add(digest)
            manifest = self._manifest(digest)
            if manifest is not None:
                queue += manifests.references(manifest)[1]
        return found

    def _manifest(self, digest: str) -> dict[str, Any] | None:
        if digest not in self._read:
            self._read[digest] = None
            try:
                data = self._repository.read_blob(names.check_digest(digest), manifests.LIMIT)
                kind = str(self._index.entries.get(digest, {}).get("mediaType", ""))
                self._read[digest] = manifests.parse(data, kind)
            except (Refusal, FileNotFoundError):
                pass  # it is not here, or no manifest: it refers to nothing
        return self._read[digest]

    def _old(self, digest: str) -> bool:
        try:
            return os.stat(self._repository.blob_path(names.check_digest(digest))).st_mtime < self._before
        except (FileNotFoundError, Refusal):
            return True

    def _sweep_temporaries(self) -> None:
        """Half-written files: whoever writes one holds the lock that we hold."""
        for name in os.listdir(self._repository.path):
            if name.endswith(".new"):
                os.unlink(f"{self._repository.path}/{name}")


def _sweep_uploads(store: Store, before: float, *, dry_run: bool) -> tuple[int, int]:
    """(uploads, bytes) that nobody has written to for so long."""
    count = freed = 0
    for path, size in uploads.abandoned(store, before):
        count, freed = count + 1, freed + size
        if not dry_run:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
    return count, freed


def _sweep_pool(store: Store, before: float, thought: dict[tuple[int, int], int], *, dry_run: bool) -> tuple[int, int]:
    """(blobs, bytes) that no repository has. thought: names that a dry run thinks away, by inode."""
    count = freed = 0
    for folder in store.folders():
        every = os.listdir(folder)
        for at in range(0, len(every), _BATCH):
            with store.pool_locked(shared=False):
                for name in every[at : at + _BATCH]:
                    try:
                        status = os.stat(f"{folder}/{name}")
                    except FileNotFoundError:
                        continue
                    others = status.st_nlink - thought.get((status.st_dev, status.st_ino), 0)
                    if others > 1 or status.st_mtime >= before:
                        continue
                    count, freed = count + 1, freed + status.st_size
                    if not dry_run:
                        os.unlink(f"{folder}/{name}")
    return count, freed
