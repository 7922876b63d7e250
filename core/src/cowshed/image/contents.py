"""What an archive or a directory of images holds, whichever of the two it is: small documents, blobs, other files.

Names come from outside. They are keys of a table here, and are opened beneath one directory only (openat2(2)
RESOLVE_IN_ROOT); nothing of an archive is written under its own name.
"""

from __future__ import annotations

import os
import stat

from cowshed.errors import BadUsage, ImageError, Tampered
from cowshed.image.manifest import LIMIT
from cowshed.image.reference import check_digest
from cowshed_linux.paths import open_in_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Protocol

    from cowshed.image.manifest import Descriptor
    from cowshed.image.staging import Staging
    from cowshed.layers.tarstream import Entry

    class Contents(Protocol):
        def small(self, name: str) -> bytes | None:
            """A document of at most the manifests' limit, None if there is none of that name."""

        def blob(self, blob: Descriptor, offset: int = 0, *, name: str = "") -> Iterator[bytes]:
            """The bytes of blobs/ALGORITHM/DIGITS; in a directory, of another file if it is named."""

        def stage(self, name: str) -> str:
            """Stage a file that is no blob by its name; its digest."""


_CHUNK = 1 << 18
_MEMBERS = 100_000
_SMALL_TOGETHER = 64 << 20
_LINKS = 8


class Directory:
    """A directory that holds an image layout or an unpacked docker archive."""

    def __init__(self, fd: int, staging: Staging) -> None:
        self._fd, self._staging = fd, staging

    def small(self, name: str) -> bytes | None:
        fd = self._open(name)
        if fd < 0:
            return None
        with os.fdopen(fd, "rb") as file:
            data = file.read(LIMIT + 1)
        if len(data) > LIMIT:
            raise ImageError(f"{name} has more than {LIMIT} bytes")
        return data

    def blob(self, blob: Descriptor, offset: int = 0, *, name: str = "") -> Iterator[bytes]:
        algorithm, _, digits = check_digest(blob.digest).partition(":")
        fd = self._open(name or f"blobs/{algorithm}/{digits}")
        if fd < 0:
            raise ImageError(f"blob {blob.digest[:19]} is missing in the layout")
        try:
            size = os.fstat(fd).st_size
            if size != blob.size:
                raise Tampered(f"blob {blob.digest[:19]} has {size} bytes, its manifest says {blob.size}")
            os.lseek(fd, offset, os.SEEK_SET)
            while piece := os.read(fd, _CHUNK):
                yield piece
        finally:
            os.close(fd)

    def stage(self, name: str) -> str:
        fd = self._open(name)
        if fd < 0:
            raise ImageError(f"{name!r} is missing in the archive")
        with os.fdopen(fd, "rb", buffering=0) as file:
            return self._staging.add(iter(lambda: file.read(_CHUNK), b""))

    def _open(self, name: str) -> int:
        """A plain file beneath the directory; -1 if it is not there."""
        try:
            fd = open_in_root(self._fd, name, os.O_RDONLY | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return -1
        except OSError as error:
            raise ImageError(f"{name!r} cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ImageError(f"{name!r} is no plain file")
        return fd


class Archive:
    """A tar archive, read once from its beginning to its end, as it may come from a pipe. Compressed or not."""

    def __init__(self, fd: int, staging: Staging, told: Callable[[int], None] = lambda done: None) -> None:
        """Reads it all; told(bytes) is called as it goes. ImageError, Tampered, NoSpace."""
        self._staging = staging
        self._small: dict[str, bytes] = {}
        self._staged: dict[str, str] = {}  # name -> digest
        self._links: dict[str, str] = {}
        self._read(fd, told)

    def _read(self, fd: int, told: Callable[[int], None]) -> None:
        from cowshed.image.packed import unpacked
        from cowshed.layers import tarstream

        feed = tarstream.Feed(unpacked(pieces(fd, told)))
        together = 0
        for count, entry in enumerate(
            members(tarstream.entries(feed), "`cowshed load` reads OCI layouts and docker archives")
        ):
            name = _normal(os.fsdecode(entry.name))
            if entry.kind == tarstream.FILE and not entry.holes:
                digest = _digest_of(name)
                if not digest and entry.size <= LIMIT and _is_document(name):
                    together += entry.size
                    self._small[name] = b"".join(bytes(view) for view in feed.views(entry.size))
                else:
                    self._staged[name] = self._staging.add(feed.views(entry.size), named=digest)
            else:
                feed.skip(entry.size)
                target = os.fsdecode(entry.link)
                if entry.kind == tarstream.LINK:
                    self._links[name] = _normal(target)
                elif entry.kind == tarstream.SYMLINK:
                    self._links[name] = _normal(f"{os.path.dirname(name)}/{target}")
            if count >= _MEMBERS or together > _SMALL_TOGETHER:
                raise ImageError("the archive has more members than one of images can have")

    def _resolved(self, name: str) -> str:
        name = _normal(name)
        for _ in range(_LINKS):
            if name not in self._links:
                break
            name = self._links[name]
        return name

    def small(self, name: str) -> bytes | None:
        name = self._resolved(name)
        if name in self._small:
            return self._small[name]
        digest = self._staged.get(name)
        if digest is None:
            return None
        if self._staging.sizes[digest] > LIMIT:
            raise ImageError(f"{name} has more than {LIMIT} bytes")
        return b"".join(self._staging.read(digest))

    def blob(self, blob: Descriptor, offset: int = 0, *, name: str = "") -> Iterator[bytes]:
        size = self._staging.sizes.get(blob.digest)
        if size is None:
            raise ImageError(f"blob {blob.digest[:19]} is missing in the archive")
        if size != blob.size:
            raise Tampered(f"blob {blob.digest[:19]} has {size} bytes, its manifest says {blob.size}")
        return self._staging.read(blob.digest, offset)

    def stage(self, name: str) -> str:
        resolved = self._resolved(name)
        if resolved in self._small:  # a layer that is called like a document
            return self._staging.add([self._small[resolved]])
        if resolved not in self._staged:
            raise ImageError(f"{name!r} is missing in the archive")
        return self._staged[resolved]


def members(entries: Iterator[Entry], remedy: str) -> Iterator[Entry]:
    """ImageError that says what it is not, if the very first member is none."""
    from cowshed.layers.tarstream import NoHeader

    try:
        first = next(entries, None)
    except NoHeader:
        raise ImageError("it is no tar archive", remedy=remedy) from None
    if first is not None:
        yield first
        yield from entries


def pieces(fd: int, told: Callable[[int], None] = lambda done: None) -> Iterator[bytes]:
    """What can be read from a descriptor; told(bytes) is called as it comes."""
    done = 0
    while piece := os.read(fd, _CHUNK):
        done += len(piece)
        told(done)
        yield piece


def _normal(name: str) -> str:
    """A name as seen from the archive's root, which `..` does not leave."""
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _digest_of(name: str) -> str:
    """The digest that a member of blobs/ is named by, "" for other members."""
    parts = name.split("/")
    if len(parts) != 3 or parts[0] != "blobs":
        return ""
    try:
        return check_digest(f"{parts[1]}:{parts[2]}")
    except BadUsage:
        return ""


def _is_document(name: str) -> bool:
    return "/" not in name and (name.endswith(".json") or name in ("oci-layout", "repositories"))
