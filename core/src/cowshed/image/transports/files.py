"""Files that an image is written as: members of a tar archive, or files of a directory. Nothing of a broken one stays.

The same files give the same archive: no owner, no time, no order but that in which they are put.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from contextlib import suppress

from cowshed.errors import BadUsage, Conflict, NoSpace, NotFound
from cowshed.layers.archive import header
from cowshed_linux import locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Protocol

    class Files(Protocol):
        side_by_side: bool  # whether several may be put at once, in threads

        def put(self, name: str, size: int, pieces: Iterable[bytes | memoryview]) -> None:
            """A file of exactly size bytes. Raises what pieces raises, and NoSpace."""

        def has(self, name: str, size: int) -> bool:
            """Whether there is one of that name and size."""

        def read(self, name: str, limit: int) -> bytes | None:
            """At most limit bytes of a file that was there before, None if none was."""

        def finish(self) -> None:
            """All is there."""


_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte. NoSpace, OSError."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpace("no space for the archive", remedy="write it to another file system") from None
        raise


class TarFiles:
    """A tar archive, written from its beginning to its end to a descriptor that need not be a file."""

    side_by_side = False

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._names: set[str] = set()

    def has(self, name: str, size: int) -> bool:
        return name in self._names

    def put(self, name: str, size: int, pieces: Iterable[bytes | memoryview]) -> None:
        for n, character in enumerate(name):
            if character == "/" and name[: n + 1] not in self._names:
                self._names.add(name[: n + 1])
                write_all(self._fd, header(name[: n + 1].encode(), b"5", 0o755, (0, 0), 0))
        self._names.add(name)
        write_all(self._fd, header(name.encode(), b"0", 0o644, (0, 0), size))
        for piece in pieces:
            write_all(self._fd, piece)
        if size % 512:
            write_all(self._fd, bytes(-size % 512))

    def read(self, name: str, limit: int) -> bytes | None:
        return None

    def finish(self) -> None:
        write_all(self._fd, bytes(1024))


class DirectoryFiles:
    """A directory, new or with more in it; each file comes into its place whole. `with` takes away again what was put
    if it ends by an error."""

    side_by_side = True

    def __init__(self, path: str) -> None:
        self._path = path
        self._made: list[str] = []  # files and directories, what is in one behind it
        self._guard = threading.Lock()

    def __enter__(self) -> DirectoryFiles:
        self._directory("")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            return
        for path in reversed(self._made):
            try:
                os.rmdir(path) if os.path.isdir(path) else os.unlink(path)
            except OSError:
                continue  # another put something beside it meanwhile

    def _directory(self, name: str) -> None:
        path = f"{self._path}/{name}" if name else self._path
        try:
            with self._guard:  # another thread may find it, and make what is in it, at once
                os.mkdir(path)
                self._made.append(path)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(path).st_mode):
                raise Conflict(f"{path} is there and is no directory") from None
            return
        except FileNotFoundError:
            raise NotFound(f"the directory of {path} does not exist", remedy="make it first") from None

    def has(self, name: str, size: int) -> bool:
        try:
            return os.stat(f"{self._path}/{name}").st_size == size
        except FileNotFoundError:
            return False

    def read(self, name: str, limit: int) -> bytes | None:
        """At most limit bytes of a file that is there, None if it is not."""
        try:
            with open(f"{self._path}/{name}", "rb") as file:
                return file.read(limit)
        except FileNotFoundError:
            return None

    def put(self, name: str, size: int, pieces: Iterable[bytes | memoryview]) -> None:
        for n, character in enumerate(name):
            if character == "/":
                self._directory(name[:n])
        path = f"{self._path}/{name}"
        with _New(path) as new:
            for piece in pieces:
                write_all(new.fd, piece)
            if not os.path.lexists(path):
                self._made.append(path)
            new.publish()

    def finish(self) -> None:
        self._made.clear()


class _New:
    """`with _New(path) as new:` a file that has its name from `publish` on, in the place of what was there. A killed
    process leaves nothing that the next one to write there would not take away, where the file system has files without
    a name (open(2), O_TMPFILE)."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._partial = ""  # what it is called until then

    def __enter__(self) -> _New:
        self.fd = _nameless(os.path.dirname(self._path), 0o644)
        if self.fd < 0:
            partial = f"{self._path}.partial.{os.getpid()}"
            self.fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            self._partial = partial
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)
        if self._partial:
            os.unlink(self._partial)

    def publish(self) -> None:
        if self._partial:
            os.rename(self._partial, self._path)
            self._partial = ""
            return
        try:
            _link(self.fd, self._path)
        except FileExistsError:
            self._replace()

    def _replace(self) -> None:
        """By a name that is the same for every process, and used by one at a time: what is there is of a dead one."""
        partial = f"{self._path}.partial"
        folder = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            locks.lock_file(folder)
            with suppress(FileNotFoundError):
                os.unlink(partial)
            _link(self.fd, partial)
            os.rename(partial, self._path)
        finally:
            os.close(folder)


def _nameless(folder: str, mode: int) -> int:
    """A new file without a name; -1 where the file system has none."""
    try:
        return os.open(folder, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
        return -1


def _link(fd: int, path: str) -> None:
    """Give a file without a name one. FileExistsError."""
    # a descriptor of a directory has os.link follow the first name (linkat(2), AT_SYMLINK_FOLLOW)
    os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd)


class OutputFile:
    """`with OutputFile(path) as fd:` a file that has its name when it is whole; "-" is standard output, and what is
    there and no plain file (a pipe, a device) is written as it is. A killed process leaves nothing, where the file
    system has files without a name (open(2), O_TMPFILE): but the new file beside the old one, if it was just about to
    take that one's place."""

    def __init__(self, path: str) -> None:
        self._path, self._partial = path, ""  # the second: what it is called until it is whole
        self._nameless = False

    def __enter__(self) -> int:
        if self._path in ("", "-"):
            if os.isatty(1):
                raise BadUsage("an archive is not written to a terminal", remedy="use -o FILE, or redirect it")
            self._fd = os.dup(1)
            return self._fd
        try:
            plain = stat.S_ISREG(os.stat(self._path).st_mode)
        except FileNotFoundError:
            plain = True
        folder, name = os.path.split(self._path)
        try:
            if plain:
                partial = os.path.join(folder, f".{name[:200]}.{os.getpid()}")
                self._fd = self._open(folder or ".", partial)
                self._partial = partial
            else:
                self._fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"the directory of {self._path} does not exist", remedy="make it first") from None
        except IsADirectoryError:
            raise BadUsage(f"{self._path} is a directory", remedy="name a file") from None
        return self._fd

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._partial and kind is None:
                if self._nameless:
                    self._name()
                if not self._nameless:
                    os.rename(self._partial, self._path)
                self._partial = ""
        finally:
            if self._partial and not self._nameless:
                os.unlink(self._partial)
            os.close(self._fd)

    def _name(self) -> None:
        """Give the file that has no name its own, or, where another has that, the one that is renamed over it."""
        try:
            _link(self._fd, self._path)
        except FileExistsError:
            _link(self._fd, self._partial)
            self._nameless = False

    def _open(self, folder: str, partial: str) -> int:
        fd = _nameless(folder, 0o600)
        if fd < 0:
            return os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._nameless = True
        return fd
