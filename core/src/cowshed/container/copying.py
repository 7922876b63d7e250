"""cp: files and directories between a container and this host, with docker's rules of what goes where.

Both ends are a root and a path beneath it, opened by the kernel within that root and nowhere else, whatever links the
container has made and whatever it changes meanwhile (CVE-2018-15664). Nothing of the container is executed or loaded
(CVE-2019-14271). In between runs an archive, which is also what `-` stands for.
"""

from __future__ import annotations

import os
import stat

from cowshed.errors import BadUsage, Conflict, NotFound
from cowshed.layers import archive, changes
from cowshed.layers.putting import put
from cowshed.storage.kit.descent import DIRECTORY
from cowshed_linux.paths import open_in_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_LINKS = 40
_CHUNK = 1 << 18


class End:
    """One end of a copy: `path` beneath the tree at descriptor `root`, called `name` in messages."""

    def __init__(self, root: int, path: bytes, name: str) -> None:
        self.root, self.path, self.name = root, path, name

    @property
    def must_be_directory(self) -> bool:
        return self.path.endswith((b"/", b"/.")) or self.path in (b"", b".")

    @property
    def contents_only(self) -> bool:
        """Whether what is in it is meant, and not the directory itself."""
        return os.path.basename(self.path) == b"." or not self.path.strip(b"/")

    def status(self, path: bytes, *, follow: bool) -> os.stat_result | None:
        """None if nothing is there."""
        try:
            fd = open_in_root(self.root, path or b"/", os.O_PATH | (0 if follow else os.O_NOFOLLOW))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise Conflict(f"{self.name} cannot be looked at: {error.strerror or error}") from None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def resolved(self, path: bytes) -> bytes:
        """What a symbolic link at the end of the path leads to, whether that is there or not."""
        for _ in range(_LINKS):
            try:
                fd = open_in_root(self.root, path or b"/", os.O_PATH | os.O_NOFOLLOW)
            except (FileNotFoundError, NotADirectoryError):
                return path
            try:
                if not stat.S_ISLNK(os.fstat(fd).st_mode):
                    return path
                target = os.readlink(b"", dir_fd=fd)
            finally:
                os.close(fd)
            path = os.path.join(os.path.dirname(path.rstrip(b"/")), target)
        raise Conflict(f"{self.name} is a circle of symbolic links")


def pack(
    source: End, target: str, top: bytes | None, *, follow: bool, owner: tuple[int, int] | None
) -> Iterator[bytes]:
    """The archive of what is at an end. top: its name there, None for its own, b"" for what is in it alone."""
    path = source.path
    name = base_name(path)
    if follow or source.must_be_directory:
        path = source.resolved(path.rstrip(b"/") or b"/")
    status = source.status(path, follow=source.must_be_directory)
    if status is None:
        raise NotFound(f"{source.name} does not exist", remedy=f"nothing was copied to {target}")
    is_directory = stat.S_ISDIR(status.st_mode)
    if source.must_be_directory and not is_directory:
        raise BadUsage(f"{source.name} is no directory")
    if top is None:
        top = b"" if source.contents_only else name
    if is_directory:
        fd = open_in_root(source.root, path or b"/", DIRECTORY & ~os.O_NOFOLLOW)
        try:
            found = changes.of_trees(None, fd, cross=True)
            begin = top + b"/" if top else b""
            yield from archive.stream(
                found, fd, rename=lambda p: begin + p if p else top, owner=owner, cross=True,
            )  # fmt: skip
        finally:
            os.close(fd)
        return
    if stat.S_ISSOCK(status.st_mode):
        raise BadUsage(f"{source.name} is a socket, which cannot be copied")
    above, _, last = path.rpartition(b"/")
    fd = open_in_root(source.root, above or b"/", DIRECTORY & ~os.O_NOFOLLOW)
    try:
        one = os.stat(last, dir_fd=fd, follow_symlinks=False)
        found = changes.Difference([changes.Changed(last, changes.MODIFIED, one)], [])
        yield from archive.stream(found, fd, rename=lambda _: top, owner=owner, parents=False)
    finally:
        os.close(fd)


def is_directory(source: End, *, follow: bool) -> bool:
    """NotFound if there is nothing."""
    status = source.status(source.path, follow=follow or source.must_be_directory)
    if status is None:
        raise NotFound(f"{source.name} does not exist")
    return stat.S_ISDIR(status.st_mode)


def place(source: End, target: End, *, directory: bool) -> tuple[bytes, bytes | None]:
    """Where a copy goes: the directory, and its name in there (None: its own, b"": only what is in it). directory: the
    source is one. BadUsage, NotFound."""
    path = target.resolved(target.path.rstrip(b"/") or b"/")
    there = target.status(path, follow=True)
    if there is not None and stat.S_ISDIR(there.st_mode):
        return path, b"" if source.contents_only and directory else None
    if there is not None:
        if directory:
            raise BadUsage(f"{source.name} is a directory and {target.name} is a file")
        if target.must_be_directory:
            raise BadUsage(f"{target.name} is no directory")
    elif target.must_be_directory and not directory:
        raise NotFound(f"the directory {target.name} does not exist", remedy="make it first")
    above, _, name = path.rpartition(b"/")
    parent = target.status(above, follow=True)
    if parent is None or not stat.S_ISDIR(parent.st_mode):
        raise NotFound(f"the directory that {target.name} is to be put into does not exist", remedy="make it first")
    return above, name


def copy(source: End, target: End, *, follow: bool, owner: tuple[int, int] | None, privileges: bool = True) -> int:
    """Copy; the bytes of the archive that went from one end to the other. privileges: see `cowshed.layers.putting`."""
    folder, top = place(source, target, directory=is_directory(source, follow=follow))
    counted = Counted(pack(source, target.name, top, follow=follow, owner=owner))
    put(counted, target.root, folder, privileges=privileges)
    return counted.bytes


def unpack(chunks: Iterable[bytes], target: End) -> None:
    """Put an archive, which may be packed by gzip or zstd, into a directory."""
    from cowshed.layers.unpack import decompress

    there = target.status(target.path, follow=True)
    if there is None:
        raise NotFound(f"the directory {target.name} does not exist", remedy="make it first")
    if not stat.S_ISDIR(there.st_mode):
        raise BadUsage(f"{target.name} is no directory, which an archive needs")
    put(decompress(chunks), target.root, target.path)


def base_name(path: bytes) -> bytes:
    return os.path.basename(os.path.normpath(path)).strip(b"/")


def pieces(fd: int) -> Iterator[bytes]:
    """What can be read from a descriptor."""
    while piece := os.read(fd, _CHUNK):
        yield piece


class Counted:
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self.bytes = chunks, 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.bytes += len(chunk)
            yield chunk
