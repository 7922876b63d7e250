"""Holding the files of a registry against each other, also while it is served: the bytes of each blob against its name,
each tag against its manifest, each manifest against the blobs that it stands on, and what broken uploads left.

`look` tells what does not fit, `mend` does what a finding says about it, `check` both. Bytes are read without a lock,
and from the disk instead of what the kernel remembers of it; what is mended is looked at again under the locks. A
damaged blob goes to DIR/damaged, out of all repositories at once: nobody gets it any more, and the next push, or the
registry that this one fetches from, brings it again.
"""

from __future__ import annotations

import contextlib
import os
import time

from cowshed.check.findings import NOTE, WARNING, Finding
from cowshed.errors import StoreError
from cowshed.registry.server import manifests, names, uploads
from cowshed.registry.server.garbage import GRACE
from cowshed.registry.server.refusals import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cowshed.registry.server.store import Index, Repository, Store

_PIECE = 1 << 20
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_MOVE = "move it to damaged/"
_LINK = "the registry has it: put it back"
_DELETE = "delete it"
_FORGET = "take it off the list"
_PUSH = "push the image again"
DONE = "done"


def look(store: Store, *, rate: int = 0, told: Callable[[str], object] = lambda text: None) -> Iterator[Finding]:
    """All that does not fit, as it is found. rate: bytes that are read in a second, 0: any; told(text) is called as it
    goes. Who mends each finding when it comes gets the later ones as things are then. OSError."""
    yield from _Reader(store, rate, told).run()
    for name in store.names():
        told(f"repository {name}")
        repository = store.repository(name)
        try:
            with repository.locked():
                found = [*_look_at(repository, repository.index(), cache=bool(store.cache_of)), *_left(repository)]
        except (FileNotFoundError, Refusal):
            continue  # removed meanwhile
        except StoreError as error:
            yield Finding("repository.unreadable", name, str(error), remedy="bring it back from a copy, or push again")
            continue
        yield from found
    for path, _ in list(uploads.abandoned(store, time.time() - GRACE)):
        place = path.removeprefix(f"{store.root}/")
        yield Finding("upload.left", place, f"{place} was given up by its client", WARNING, _DELETE)


def check(
    store: Store, *, repair: bool, rate: int = 0, told: Callable[[str], object] = lambda text: None
) -> Iterator[tuple[Finding, str]]:
    """`look`, and with repair `mend` of each: (finding, what became of it: "" if nothing can be done, DONE, or why it
    failed). OSError."""
    for finding in look(store, rate=rate, told=told):
        outcome = ""
        if repair and finding.repair:
            try:
                mend(store, finding)
                outcome = DONE
            except (OSError, StoreError, Refusal) as error:
                outcome = f"failed: {error}"
        yield finding, outcome


def mend(store: Store, finding: Finding) -> None:
    """Do what a finding's `repair` says, unless it is no longer as it was. OSError, StoreError, Refusal."""
    data = finding.data
    if finding.code == "blob.damaged":
        _move_aside(store, data["digest"], f"{store.root}/{data['place']}")
    elif finding.code == "upload.left":
        for path, _ in uploads.abandoned(store, time.time() - GRACE):
            if path == f"{store.root}/{finding.object}":
                os.unlink(path)
    elif finding.code == "file.left":
        with store.repository(data["repository"]).locked(), contextlib.suppress(FileNotFoundError):
            os.unlink(f"{store.root}/{finding.object}")
    elif finding.repair == _LINK:
        if not store.repository(data["repository"]).link(data["digest"]):
            raise StoreError(f"{data['digest']} was removed meanwhile")
    else:
        _forget(store.repository(data["repository"]), data["digest"])


# ------------------------------------------------------------ bytes


class _Reader:
    """Reads every blob once: those of the pool, and those of repositories that are no links to it."""

    def __init__(self, store: Store, rate: int, told: Callable[[str], object]) -> None:
        self._store, self._rate, self._told = store, rate, told
        self._count, self._began = 0, time.monotonic()
        self._unknown: set[str] = set()  # algorithms that cannot be computed here

    def run(self) -> Iterator[Finding]:
        for folder in self._store.folders():
            algorithm = os.path.basename(folder)
            every = sorted(os.listdir(folder))
            for at, name in enumerate(every):
                self._told(f"blob {at + 1} of {len(every)}: {name[:12]}")
                yield from self._hold(f"{folder}/{name}", f"{algorithm}:{name}")
        for name in self._store.names():
            repository = self._store.repository(name)
            for digest in sorted(repository.digests()):
                path = repository.blob_path(digest)
                if _inode(path) != _inode(self._store.pool_path(digest)):  # another tool wrote it
                    yield from self._hold(path, digest)

    def _hold(self, path: str, digest: str) -> Iterator[Finding]:
        place = path.removeprefix(f"{self._store.root}/")
        algorithm = digest.partition(":")[0]
        try:
            names.check_digest(digest)
        except Refusal:
            text = f"{place} is no blob: its name is no digest"
            yield Finding("blob.stray", place, text, WARNING, remedy="delete it, if no tool needs it")
            return
        if algorithm in self._unknown:
            return
        try:
            names.hasher(algorithm)
        except Refusal as error:
            self._unknown.add(algorithm)
            yield Finding("blob.unverified", f"blobs/{algorithm}", f"blobs/{algorithm}: {error}", NOTE)
            return
        try:
            fd = os.open(path, _READ)
        except FileNotFoundError:
            return  # collected meanwhile
        try:
            wrong = _fault(fd, digest, self._pace)
        finally:
            os.close(fd)
        if wrong:
            known = {"digest": digest, "place": place}
            yield Finding("blob.damaged", digest, f"{place} is damaged: {wrong}", repair=_MOVE, data=known)

    def _pace(self, count: int) -> None:
        self._count += count
        if self._rate:
            time.sleep(max(0.0, self._count / self._rate - (time.monotonic() - self._began)))


def _fault(fd: int, digest: str, pace: Callable[[int], object] = lambda count: None) -> str:
    """What is wrong with a blob's bytes on the disk, "" for nothing. OSError."""
    algorithm, _, digits = digest.partition(":")
    hash_, before = names.hasher(algorithm), os.fstat(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        while piece := os.read(fd, _PIECE):
            hash_.update(piece)
            pace(len(piece))
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # no client has asked for it
    after = os.fstat(fd)
    if hash_.hexdigest() == digits or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        return ""  # or another tool is still writing it
    return "its bytes are not those of its name"


def _inode(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _move_aside(store: Store, digest: str, path: str) -> None:
    """Take a file, if it is still damaged, out of the pool and all repositories. Whoever has received the same blob
    meanwhile, and found that it was here already, is told to send it again. OSError."""
    try:
        fd = os.open(path, _READ)
    except FileNotFoundError:
        return
    try:  # open until the end: nothing new gets its number meanwhile
        status = os.fstat(fd)
        if not _fault(fd, digest):
            return
        folder = f"{store.root}/damaged"
        os.makedirs(folder, mode=0o755, exist_ok=True)
        with store.pool_locked(shared=False):
            kept = f"{folder}/{digest.replace(':', '-')}"
            for one in (store.pool_path(digest), *(store.repository(name).blob_path(digest) for name in store.names())):
                if _inode(one) == (status.st_dev, status.st_ino):
                    os.rename(one, kept)  # from the second name on this does nothing, both being one file: rename(2)
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(one)
    finally:
        os.close(fd)


# ------------------------------------------------------------ repositories


def _look_at(repository: Repository, index: Index, *, cache: bool) -> Iterator[Finding]:
    """Its tags and manifests. Its lock is held. cache: what is not here comes when it is asked for."""
    tags: dict[str, list[str]] = {}
    for tag, digest in index.tags.items():
        tags.setdefault(digest, []).append(tag)
    queue = [(digest, str(entry.get("mediaType"))) for digest, entry in index.entries.items()]
    known, told = set(index.entries), set[str]()
    while queue:
        digest, kind = queue.pop()
        where = f"{repository.name}@{digest}"
        try:
            manifest = manifests.parse(repository.read_blob(names.check_digest(digest), manifests.LIMIT), kind)
        except FileNotFoundError:
            yield from _missing(repository, digest, tags.get(digest, []))
            continue
        except Refusal as error:
            yield Finding("manifest.invalid", where, f"{where}: {error}", WARNING, remedy=_PUSH)
            continue
        absent = 0
        for one in manifest.get("manifests") or []:
            if one["digest"] in known:
                continue
            known.add(one["digest"])
            if os.path.exists(repository.blob_path(one["digest"])):  # another tool's: only the index names it
                queue.append((one["digest"], str(one.get("mediaType"))))
            else:
                absent += 1
        if absent and not cache:
            yield Finding("manifest.partial", where, f"{where} lists {absent} manifests that are not here", NOTE)
        for one in [] if cache else manifests.needed(manifest):
            if one["digest"] not in told:
                told.add(one["digest"])
                yield from _blob(repository, where, one["digest"], one["size"])


def _missing(repository: Repository, digest: str, tags: list[str]) -> Iterator[Finding]:
    data = {"repository": repository.name, "digest": digest}
    repair = _LINK if os.path.exists(repository.store.pool_path(digest)) else _FORGET
    for tag in tags:
        where = f"{repository.name}:{tag}"
        yield Finding("tag.dangling", where, f"{where} is {digest}, which is not here", repair=repair, data=data)
    if not tags:
        where = f"{repository.name}@{digest}"
        yield Finding("manifest.missing", where, f"{where} is not here", repair=repair, data=data)


def _blob(repository: Repository, where: str, digest: str, size: int) -> Iterator[Finding]:
    data = {"repository": repository.name, "digest": digest}
    try:
        there = os.stat(repository.blob_path(names.check_digest(digest))).st_size
    except FileNotFoundError:
        pooled = os.path.exists(repository.store.pool_path(digest))
        text = f"{where} stands on the blob {digest}, which is not here"
        yield Finding("blob.missing", digest, text, repair=_LINK if pooled else "", remedy=_PUSH, data=data)
        return
    except Refusal as error:
        yield Finding("manifest.invalid", where, f"{where}: {error}", WARNING, remedy=_PUSH)
        return
    if there != size:
        text = f"{where} stands on the blob {digest} of {size} bytes, which has {there}"
        yield Finding("blob.size", digest, text, remedy=_PUSH)


def _left(repository: Repository) -> Iterator[Finding]:
    """Half-written files: whoever writes one holds the lock, which is held here."""
    for name in sorted(os.listdir(repository.path)):
        if name.endswith(".new"):
            place = f"repositories/{repository.folder}/{name}"
            data = {"repository": repository.name}
            yield Finding("file.left", place, f"{place} was left by a server that died", WARNING, _DELETE, data=data)


def _forget(repository: Repository, digest: str) -> None:
    def drop(index: Index) -> None:
        if not os.path.exists(repository.blob_path(digest)):  # nobody has pushed it meanwhile
            index.entries.pop(digest, None)
            index.tags = {tag: one for tag, one in index.tags.items() if one != digest}

    repository.change(drop)
