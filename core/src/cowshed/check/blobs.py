"""The blobs: those that images list are there and whole, and no others are."""

from __future__ import annotations

import os
import stat

from cowshed import digests
from cowshed.check import database
from cowshed.check.findings import WARNING, Finding
from cowshed.errors import BadUsage, ImageError
from cowshed.image.archives import Archives
from cowshed.image.blobs import BlobStore
from cowshed.image.reference import check_digest
from cowshed.state import leases, lost
from cowshed_linux import locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cowshed.check.memory import Memory
    from cowshed.state.store import Store

_FETCH = "fetch it again from the registry"
_LEFT = "delete it"


def look(store: Store) -> Iterator[Finding]:
    """Presence and sizes."""
    blobs = Archives(store)
    wanted = database.blobs_of(store)
    for digest, (image, size) in wanted.items():
        there = blobs.size(digest)
        text = f"image {image[7:19]}: blob {digest[:19]}"
        if there < 0:
            try:
                why = blobs.fault(digest)
            except FileNotFoundError:
                yield Finding("blob.missing", digest, f"{text} is missing", repair=_FETCH)
                continue
            if why:
                yield Finding("blob.recipe", digest, f"{text} cannot be made again: {why}", repair=_FETCH)
        elif there != size:
            yield Finding("blob.size", digest, f"{text} has {there} bytes, not {size}", repair=_FETCH)
    counted = leases.leased(store)
    of_lost = lost.blobs(store)
    sure = lost.is_whole(store)
    waiting = {row[0] for row in store.query("select digest from loose_blobs")}
    for digest in sorted({*blobs.digests(), *blobs.dropped()}):
        try:
            check_digest(digest)
        except BadUsage:
            place = f"blobs/{digest.replace(':', '/', 1)}"
            yield Finding("blob.stray", place, f"{place} is no blob: its name is no digest", WARNING, _LEFT)
            continue
        if digest not in wanted and digest not in counted and digest not in of_lost:
            why = ", and a removal was to delete it" if digest in waiting else ""
            yield Finding(
                "blob.unlisted", digest, f"blob {digest[:19]} belongs to no image{why}", WARNING, _LEFT if sure else "",
                remedy="" if sure else "the database has lost images, of which it may be: pull or load them again",
            )  # fmt: skip
    yield from _partial(store)


def _partial(store: Store) -> Iterator[Finding]:
    """What commands that died were making. A download that broke is kept on purpose: the next one goes on from it."""
    folder = f"{store.root}/blobs/partial"
    for name in sorted(os.listdir(folder)):
        if not name.startswith(("new.", "stage.")):
            continue
        if _is_free(f"{folder}/{name}"):
            text = f"blobs/partial/{name} was left by a command that died"
            yield Finding("blob.left", f"blobs/partial/{name}", text, WARNING, _LEFT)


def _is_free(path: str) -> bool:
    """Whether nobody works on what lies there: its owner has it locked."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        return locks.lock_file(fd, shared=True, wait=False)
    finally:
        os.close(fd)


def verify(store: Store, memory: Memory, told: Callable[[str], object]) -> Iterator[Finding]:
    """Every blob against its digest."""
    blobs = Archives(store)
    found = sorted({*blobs.digests(), *blobs.dropped()})
    for n, digest in enumerate(found):
        try:
            check_digest(digest)
            status = os.stat(blobs.path(digest) if blobs.size(digest) >= 0 else blobs.recipe(digest))
        except (BadUsage, FileNotFoundError):
            continue  # no blob, which `look` tells, or removed meanwhile
        mark = f"{status.st_ino}.{status.st_size}.{status.st_mtime_ns}"
        if not stat.S_ISREG(status.st_mode) or memory.has("blob", digest, mark):
            continue
        if blobs.size(digest) < 0 and blobs.fault(digest):
            continue  # which `look` tells
        told(f"blob {n + 1} of {len(found)}: {digest[7:19]}")
        whole = is_whole(blobs, digest)
        if whole:
            memory.add("blob", digest, mark)
        elif whole is not None:
            what = "is damaged" if blobs.size(digest) >= 0 else "cannot be made again as it was"
            yield Finding("blob.damaged", digest, f"blob {digest[:19]} {what}", repair=_FETCH)


def is_whole(blobs: BlobStore, digest: str) -> bool | None:
    """Whether a blob's bytes have its digest; None if it is not there. One that was dropped is made again."""
    algorithm, _, wanted = digest.partition(":")
    found = digests.new(algorithm)
    try:
        for piece in blobs.read(digest):
            found.update(piece)
    except FileNotFoundError:
        return None
    except ImageError:  # it was dropped
        return False
    return bool(found.hexdigest() == wanted)


def remove_left(store: Store, finding: Finding) -> None:
    """Delete what belongs to nobody. OSError, Busy."""
    from cowshed.image.staging import delete_abandoned

    blobs, path = BlobStore(store.root), f"{store.root}/{finding.object}"
    if finding.code == "blob.unlisted":
        leases.delete_unused(store, blobs.remove, [finding.object])
    elif finding.code == "blob.stray":
        if os.path.isdir(path) and not os.path.islink(path):
            from cowshed.storage.kit.trees import remove_tree

            remove_tree(path)
        else:
            os.unlink(path)
    elif os.path.isdir(path):
        delete_abandoned(path)
    elif _is_free(path):
        os.unlink(path)
