"""Walking trees that strangers made: any depth, any names, no way out.

Recursion with a descriptor per level ends at a thousand levels, and a path ends at 4096 bytes; a container can make a
deeper tree in a second. So a walk holds one descriptor, which moves: down by a name, up by `..`, and where `..` leads
is checked against where the walk came from.
"""

from __future__ import annotations

import errno
import os

from cowshed_linux import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_STAY = paths.RESOLVE_NO_XDEV | paths.RESOLVE_NO_SYMLINKS | paths.RESOLVE_BENEATH


class Moved(OSError):
    """The directory was moved to another place during the walk."""


class Descent:
    """One open directory of a tree, and the way back to the top. It owns the descriptor that it is given.

    Symbolic links are never followed. A mount point is not entered: OSError EBUSY, whose text names it; unless `cross`
    says so.
    """

    def __init__(self, top: int, *, cross: bool = False) -> None:
        self.fd = top
        self._cross = cross
        self._above: list[tuple[int, int]] = []

    @property
    def depth(self) -> int:
        """Levels below the top."""
        return len(self._above)

    def down(self, name: str | bytes) -> None:
        """Move into a directory of the one that is open. OSError, as of a name that is none or a mount point."""
        status = os.fstat(self.fd)
        below = enter(self.fd, name, cross=self._cross)
        os.close(self.fd)
        self.fd = below
        self._above.append((status.st_dev, status.st_ino))

    def parent(self) -> int:
        """A descriptor of the directory above, which the caller closes or hands to `up`. Raises Moved."""
        parent = os.open("..", DIRECTORY, dir_fd=self.fd)
        status = os.fstat(parent)
        if (status.st_dev, status.st_ino) != self._above[-1]:
            os.close(parent)
            raise Moved(errno.ESTALE, "a directory was moved while its tree was walked")
        return parent

    def up(self, parent: int = -1) -> None:
        """Move to the directory above; parent: what `parent()` gave. Raises Moved."""
        if parent < 0:
            parent = self.parent()
        os.close(self.fd)
        self.fd = parent
        self._above.pop()

    def close(self) -> None:
        """Close the directory that is open, wherever the walk is."""
        os.close(self.fd)


def names(fd: int) -> list[str]:
    """The entries of an open directory; none if it has been removed."""
    try:
        return os.listdir(fd)
    except FileNotFoundError:
        return []


def enter(at: int, name: str | bytes, *, cross: bool = False) -> int:
    """Open the directory `name` in the directory that descriptor at refers to. OSError EBUSY for a mount point, unless
    it may be crossed."""
    try:
        return paths.openat2(at, name, DIRECTORY, resolve=_STAY & ~paths.RESOLVE_NO_XDEV if cross else _STAY)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise OSError(errno.EBUSY, f"{os.fsdecode(name)}: something is mounted there") from None


def shared_way(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """How many directories two ways have in common, from the top."""
    count = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        count += 1
    return count
