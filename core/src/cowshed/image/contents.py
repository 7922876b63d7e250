"""What an archive or a directory of images holds, whichever of the two it is: small documents, blobs, other files.

Names come from outside. They are keys of a table here, and are opened beneath one directory only (openat2(2)
RESOLVE_IN_ROOT); nothing of an archive is written under its own name. An archive that is a plain file is read where it
lies; one that comes packed or from a pipe is read once and staged, as what names its parts stands at its end.
"""

from __future__ import annotations

import os
import stat

from cowshed.errors import BadUsage, ImageError, Tampered
from cowshed.image.manifest import LIMIT, OCI_LAYER, Descriptor
from cowshed.image.reference import check_digest
from cowshed.layers.tarstream import BLOCK, FILE, LINK, SYMLINK, Feed, NoHeader, entries, is_header
from cowshed_linux.paths import open_in_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Protocol

    from cowshed.image.staging import Staging
    from cowshed.layers.tarstream import Entry

    class Contents(Protocol):
        def small(self, name: str) -> bytes | None:
            """A document of at most the manifests' limit, None if there is none of that name."""

        def blob(self, blob: Descriptor, offset: int = 0, *, name: str = "") -> Iterator[bytes]:
            """The bytes of blobs/ALGORITHM/DIGITS; in a directory, of another file if it is named."""

        def layer(self, name: str, diff_id: str) -> Descriptor:
            """A layer of a docker archive, whose file has no digest for a name; `blob` gives its bytes. diff_id: what
            it is said to be unpacked, and so the digest of one that is not packed, if that has not been found out."""


_CHUNK = 1 << 18
_HEADERS = 1 << 12
_MEMBERS = 100_000
_TOO_MANY = "the archive has more members than one of images can have"
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
        if blob.digest in self._staging.sizes:
            yield from self._staging.read(blob.digest, offset)
            return
        algorithm, _, digits = check_digest(blob.digest).partition(":")
        fd = self._open(name or f"blobs/{algorithm}/{digits}")
        if fd < 0:
            raise ImageError(f"blob {blob.digest[:19]} is missing in the layout")
        try:
            _hold_size(blob, os.fstat(fd).st_size)
            os.lseek(fd, offset, os.SEEK_SET)
            while piece := os.read(fd, _CHUNK):
                yield piece
        finally:
            os.close(fd)

    def layer(self, name: str, diff_id: str) -> Descriptor:
        fd = self._open(name)
        if fd < 0:
            raise ImageError(f"{name!r} is missing in the archive")
        with os.fdopen(fd, "rb", buffering=0) as file:
            return _staged(self._staging, self._staging.add(iter(lambda: file.read(_CHUNK), b"")))

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


class _Links:
    """The names of an archive's members that stand for others."""

    def __init__(self) -> None:
        self._links: dict[str, str] = {}

    def add(self, name: str, entry: Entry) -> None:
        target = os.fsdecode(entry.link)
        if entry.kind == LINK:
            self._links[name] = _normal(target)
        elif entry.kind == SYMLINK:
            self._links[name] = _normal(f"{os.path.dirname(name)}/{target}")

    def resolved(self, name: str) -> str:
        name = _normal(name)
        for _ in range(_LINKS):
            if name not in self._links:
                break
            name = self._links[name]
        return name


class Archive:
    """A tar archive, read once from its beginning to its end, as it may come from a pipe. Compressed or not."""

    def __init__(self, fd: int, staging: Staging, told: Callable[[int], None] = lambda done: None) -> None:
        """Reads it all; told(bytes) is called as it goes. ImageError, Tampered, NoSpace."""
        self._staging = staging
        self._small: dict[str, bytes] = {}
        self._staged: dict[str, str] = {}  # name -> digest
        self._links = _Links()
        self._read(fd, told)

    def _read(self, fd: int, told: Callable[[int], None]) -> None:
        from cowshed.image.packed import unpacked

        feed = Feed(unpacked(pieces(fd, told)))
        together = 0
        for name, entry in _named(feed):
            if entry.kind == FILE and not entry.holes:
                digest = _digest_of(name)
                if not digest and entry.size <= LIMIT and _is_document(name):
                    together += entry.size
                    self._small[name] = b"".join(bytes(view) for view in feed.views(entry.size))
                else:
                    self._staged[name] = self._staging.add(feed.views(entry.size), named=digest)
            else:
                feed.skip(entry.size)
                self._links.add(name, entry)
            if together > _SMALL_TOGETHER:
                raise ImageError(_TOO_MANY)

    def small(self, name: str) -> bytes | None:
        name = self._links.resolved(name)
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
        _hold_size(blob, size)
        return self._staging.read(blob.digest, offset)

    def layer(self, name: str, diff_id: str) -> Descriptor:
        resolved = self._links.resolved(name)
        if resolved in self._small:  # a layer that is called like a document
            return _staged(self._staging, self._staging.add([self._small[resolved]]))
        if resolved not in self._staged:
            raise ImageError(f"{name!r} is missing in the archive")
        return _staged(self._staging, self._staged[resolved])


class ArchiveFile:
    """A tar archive in a plain file, not packed: members are found by their headers, and read when they are wanted."""

    def __init__(self, fd: int, staging: Staging) -> None:
        """Looks at every header, from where the descriptor stands. ImageError."""
        self._fd, self._staging = fd, staging
        self._members: dict[str, tuple[int, int]] = {}  # where in the file, and how many bytes
        self._layers: dict[str, str] = {}  # of docker archives: digest -> name
        self._links = _Links()
        feed = _Headers(fd)
        for name, entry in _named(feed):
            if entry.kind == FILE and not entry.holes:
                self._members[name] = feed.position, entry.size
            else:
                self._links.add(name, entry)
            feed.skip(entry.size)

    def small(self, name: str) -> bytes | None:
        found = self._members.get(self._links.resolved(name))
        if found is None:
            return None
        if found[1] > LIMIT:
            raise ImageError(f"{name} has more than {LIMIT} bytes")
        return b"".join(self._read(*found))

    def blob(self, blob: Descriptor, offset: int = 0, *, name: str = "") -> Iterator[bytes]:
        if blob.digest in self._staging.sizes:
            return self._staging.read(blob.digest, offset)
        algorithm, _, digits = check_digest(blob.digest).partition(":")
        name = name or self._layers.get(blob.digest) or f"blobs/{algorithm}/{digits}"
        found = self._members.get(self._links.resolved(name))
        if found is None:
            raise ImageError(f"blob {blob.digest[:19]} is missing in the archive")
        at, size = found
        _hold_size(blob, size)
        return self._read(at + offset, size - offset)

    def layer(self, name: str, diff_id: str) -> Descriptor:
        found = self._members.get(self._links.resolved(name))
        if found is None:
            raise ImageError(f"{name!r} is missing in the archive")
        media_type = _layer_type(os.pread(self._fd, 4, found[0]) if found[1] >= 4 else b"")
        if media_type != OCI_LAYER or not diff_id:
            return _staged(self._staging, self._staging.add(self._read(*found)))
        self._layers[diff_id] = name
        return Descriptor(diff_id, found[1], media_type)

    def _read(self, at: int, size: int) -> Iterator[bytes]:
        """Fewer bytes if the file has been cut meanwhile: everything is held against its digest elsewhere."""
        while size and (piece := os.pread(self._fd, min(size, _CHUNK), at)):
            yield piece
            at, size = at + len(piece), size - len(piece)


class _Headers(Feed):
    """A feed of a file, in which what is skipped is not read."""

    def __init__(self, fd: int) -> None:
        self._fd, self._next, self._size = fd, os.lseek(fd, 0, os.SEEK_CUR), os.fstat(fd).st_size
        super().__init__(self._blocks())

    def _blocks(self) -> Iterator[bytes]:
        while block := os.pread(self._fd, _HEADERS, self._next):
            self._next += len(block)
            yield block

    @property
    def position(self) -> int:
        """Where in the file the next byte lies."""
        return self._next - (self._end - self._at)

    def skip(self, count: int) -> None:
        beyond = count - (self._end - self._at)
        if beyond <= 0:
            self._at += count
            return
        self._at = self._end
        self._next += beyond
        if self._next > self._size:
            raise ImageError("the archive is cut short")

    def drain(self) -> None:
        """What lies behind the end of an archive is nobody's."""


def archive(fd: int, staging: Staging, told: Callable[[int], None] = lambda done: None) -> Contents:
    """What a tar archive holds, packed or not, from a file or a pipe; told(bytes) is called while it is read, if it is
    read as a whole. ImageError, Tampered, NoSpace."""
    if stat.S_ISREG(os.fstat(fd).st_mode):
        first = os.pread(fd, BLOCK, os.lseek(fd, 0, os.SEEK_CUR))
        if is_header(first):
            return ArchiveFile(fd, staging)
    return Archive(fd, staging, told)


def _named(feed: Feed) -> Iterator[tuple[str, Entry]]:
    """The members of an archive of images, with their names as seen from its root. ImageError."""
    found = members(entries(feed), "`cowshed load` reads OCI layouts and docker archives")
    for count, entry in enumerate(found):
        if count > _MEMBERS:
            raise ImageError(_TOO_MANY)
        yield _normal(os.fsdecode(entry.name)), entry


def _hold_size(blob: Descriptor, size: int) -> None:
    if size != blob.size:
        raise Tampered(f"blob {blob.digest[:19]} has {size} bytes, its manifest says {blob.size}")


def _staged(staging: Staging, digest: str) -> Descriptor:
    return Descriptor(digest, staging.sizes[digest], _layer_type(next(staging.read(digest), b"")))


def _layer_type(first: bytes) -> str:
    """The media type of a layer that begins so."""
    if first.startswith(b"\x1f\x8b"):
        return f"{OCI_LAYER}+gzip"
    return f"{OCI_LAYER}+zstd" if first.startswith(b"\x28\xb5\x2f\xfd") else OCI_LAYER


def members(entries: Iterator[Entry], remedy: str) -> Iterator[Entry]:
    """ImageError that says what it is not, if the very first member is none."""
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
