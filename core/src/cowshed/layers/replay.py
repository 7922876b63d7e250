"""Making the changes of one layer again in another: straight from tree to tree, with no archive between them.

So holes stay holes, and where both trees lie on one file system that can share what is in files (FICLONE), a file
costs no space and no reading. Into an overlay's own directory of changes, if its driver lets the engine write there,
as files of an overlay's mount can share with nothing.
"""

from __future__ import annotations

import errno
import os
import stat

from cowshed.layers import xattrs
from cowshed.layers.archive import entries
from cowshed.layers.changes import DELETED, order
from cowshed.storage import api
from cowshed.storage.kit.copying import Contents
from cowshed.storage.kit.descent import DIRECTORY, Descent, shared_way
from cowshed.storage.kit.trees import remove_entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import TracebackType

    from cowshed.layers.changes import Changed, Difference
    from cowshed.layers.digest import Mask

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Done:
    """What a replay came to."""

    __slots__ = ("copied", "inodes", "shared")

    def __init__(self) -> None:
        self.inodes = 0
        self.shared = self.copied = 0  # bytes of files, that share with the source or do not


def replay(
    difference: Difference, source: int, target: int, *, private: str = "", mask: Mask, whiteouts: bool = False
) -> Done:
    """Make the changes, read from the tree at descriptor source, in the tree at target, which equals what they were
    made to. Nothing is synced. OSError: which path it was is in its filename.

    private: a driver's prefix of attributes in the source. mask: what is left out. whiteouts: the target is no whole
    tree, but an overlay's directory of changes, in which a deleted name is a device 0:0.
    """
    old_mask = os.umask(0)
    work = _Replay(source, target, private, mask, whiteouts)
    try:
        for changed in entries(difference, parents=True):
            work.doing = changed.path
            work.entry(changed)
        work.finish()
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), "/" + os.fsdecode(work.doing)) from error
    finally:
        work.close()
        os.umask(old_mask)
    return work.done


class Writing:
    """`with Writing(driver, active, mounted) as (root, whiteouts):` where the changes of an active layer are made: its
    driver's own directory of them, if the engine may write to it as it lies, else the mount."""

    def __init__(self, driver: api.Driver, active: api.Layer, mounted: AbstractContextManager[int]) -> None:
        self._driver, self._active, self._mounted = driver, active, mounted

    def __enter__(self) -> tuple[int, bool]:
        self._fd = -1
        if api.has_diff_tree(self._driver):
            tree = self._driver.diff_tree(self._active)
            if tree.whiteout is api.Whiteout.CHAR:
                self._fd = os.open(tree.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                return self._fd, True
        return self._mounted.__enter__(), False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd < 0:
            self._mounted.__exit__(kind, error, trace)
        else:
            os.close(self._fd)


class _Replay:
    def __init__(self, source: int, target: int, private: str, mask: Mask, whiteouts: bool) -> None:
        self.done, self.doing = Done(), b""
        self._private, self._mask, self._whiteouts = private, mask, whiteouts
        self._here = Descent(os.open(".", DIRECTORY, dir_fd=source))
        try:
            self._there = Descent(os.open(".", DIRECTORY, dir_fd=target))
        except BaseException:
            self._here.close()
            raise
        self._target = target
        self._parts: list[bytes] = []  # where both are
        self._first: dict[tuple[int, int], list[bytes]] = {}  # of files with several names: the one that was made
        # Directories get their attributes when nothing is made in them any more: as a mode may forbid it, and as that
        # changes their times.
        self._late: list[tuple[list[bytes], os.stat_result, dict[str, bytes]]] = []
        self._contents = Contents()

    def close(self) -> None:
        self._here.close()
        self._there.close()

    def entry(self, changed: Changed) -> None:
        parts = order(changed.path)
        if changed.kind is DELETED:
            self._go(parts[:-1])
            self._delete(parts[-1])
            return
        if changed.status is None or stat.S_ISDIR(changed.status.st_mode):
            self._directory(parts)
            return
        self._go(parts[:-1])
        status, name = changed.status, parts[-1]
        null = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
        if null and self._mask.null_devices:
            return
        if null and self._whiteouts:
            raise OSError(errno.EPERM, "an overlay has no device 0:0")
        self.done.inodes += 1
        self._clear(name, directory=False)
        if status.st_nlink > 1:
            first = self._first.setdefault((status.st_dev, status.st_ino), parts)
            if first is not parts:
                self._link(first, name)
                return
        if stat.S_ISREG(status.st_mode):
            self._file(name)
        else:
            self._special(name, status)

    def _go(self, parts: list[bytes]) -> None:
        """Move both to a directory, which is there: it came before what is in it."""
        shared = shared_way(self._parts, parts)
        while len(self._parts) > shared:
            self._here.up()
            self._there.up()
            self._parts.pop()
        for part in parts[shared:]:
            self._here.down(part)
            try:
                self._there.down(part)
            except BaseException:
                self._here.up()
                raise
            self._parts.append(part)

    def _delete(self, name: bytes) -> None:
        if self._whiteouts:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=self._there.fd)
        else:
            remove_entry(self._there.fd, name)

    def _clear(self, name: bytes, *, directory: bool) -> bool:
        """Make room for an entry; whether a directory is there that may stay."""
        try:
            mode = os.stat(name, dir_fd=self._there.fd, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return False
        if directory and stat.S_ISDIR(mode):
            return True
        remove_entry(self._there.fd, name)
        return False

    def _directory(self, parts: list[bytes]) -> None:
        if parts:
            self._go(parts[:-1])
            if not self._clear(parts[-1], directory=True):
                os.mkdir(parts[-1], 0o700, dir_fd=self._there.fd)
                self.done.inodes += 1
        self._go(parts)
        self._late.append((parts, os.fstat(self._here.fd), self._attributes(self._here.fd)))

    def _link(self, first: list[bytes], name: bytes) -> None:
        way = Descent(os.open(".", DIRECTORY, dir_fd=self._target))
        try:
            for part in first[:-1]:
                way.down(part)
            os.link(first[-1], name, src_dir_fd=way.fd, dst_dir_fd=self._there.fd, follow_symlinks=False)
        finally:
            way.close()

    def _file(self, name: bytes) -> None:
        source = os.open(name, _READ, dir_fd=self._here.fd)
        try:
            status = os.fstat(source)
            target = os.open(name, _CREATE, 0o600, dir_fd=self._there.fd)
            try:
                if self._contents.copy(source, target, status.st_size):
                    self.done.shared += status.st_size
                else:
                    self.done.copied += status.st_size
                self._finish(target, status, self._attributes(source))
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _special(self, name: bytes, status: os.stat_result) -> None:
        here, there = self._here.fd, self._there.fd
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=here), name, dir_fd=there)
        else:
            os.mknod(name, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev, dir_fd=there)
        os.chown(name, status.st_uid, status.st_gid, dir_fd=there, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=there)  # made just now as what it is: no link to follow
        place = f"/proc/self/fd/{there}/{os.fsdecode(name)}"
        for key, value in self._attributes(f"/proc/self/fd/{here}/{os.fsdecode(name)}", follow=False).items():
            os.setxattr(place, key, value, follow_symlinks=False)
        os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=there, follow_symlinks=False)

    def _attributes(self, target: int | str, *, follow: bool = True) -> dict[str, bytes]:
        found = xattrs.read(target, private=self._private, follow=follow)
        if not self._mask.attributes:
            return found
        return {key: value for key, value in found.items() if not key.startswith(self._mask.attributes)}

    def finish(self) -> None:
        """Attributes of directories, deepest first."""
        for parts, status, attributes in reversed(self._late):
            self.doing = b"/".join(parts)
            self._go(parts)
            self._finish(self._there.fd, status, attributes)

    def _finish(self, fd: int, status: os.stat_result, attributes: dict[str, bytes]) -> None:
        """Owner, then mode (chown clears set-id bits), then attributes (chown clears capabilities), then times."""
        os.fchown(fd, status.st_uid, status.st_gid)
        os.fchmod(fd, stat.S_IMODE(status.st_mode))
        for name in xattrs.listed(fd):  # what a directory had, or what the one above gives to all that is made in it
            if name not in attributes and not name.startswith(xattrs.REFUSED):
                os.removexattr(fd, name)
        for key, value in attributes.items():
            os.setxattr(fd, key, value)
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
