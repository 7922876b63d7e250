"""What one tree changed of another: the walk of both, and the quicker walk of what a driver kept of the changes.

Every path that is reported was compared, so what a driver only touched (a file copied up and left as it was) is none.
A deleted directory is one change; what became of a directory that is something else now needs no word either.
Sockets cannot be kept in an archive: they are looked at as if they were not there.
"""

from __future__ import annotations

import errno
import os
import stat

from cowshed.layers import xattrs
from cowshed.storage.api import ChangeKind, Whiteout
from cowshed.storage.kit.descent import DIRECTORY, Descent
from cowshed.storage.kit.descent import names as listing
from cowshed.storage.record import record
from cowshed_linux import files, paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cowshed.storage.api import Change

ADDED, MODIFIED, DELETED = ChangeKind.ADDED, ChangeKind.MODIFIED, ChangeKind.DELETED
_PIECE = 1 << 18
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_AUFS, _AUFS_OWN, _AUFS_OPAQUE = b".wh.", b".wh..wh.", b".wh..wh..opq"
# file systems that are windows into the kernel: proc, sysfs, cgroup 1 and 2, devpts, mqueue
_KERNELS = (0x9FA0, 0x62656572, 0x27E0EB, 0x63677270, 0x1CD1, 0x19800202)
_GONE = (FileNotFoundError, NotADirectoryError)


@record(slots=True)
class Changed:
    """One path below the root (b"" is the root itself) and what became of it."""

    path: bytes
    kind: ChangeKind
    status: os.stat_result | None  # as it is now; None if it is deleted
    touched: bool = False  # a directory of which only the time changed, as entries in it do


@record(slots=True)
class Difference:
    changes: list[Changed]  # in the order of `order`
    linked: list[Changed]  # unchanged names of files that have changed names too: an archive needs them as well


def without(difference: Difference, places: Iterable[bytes]) -> Difference:
    """Leave out what was made only for something to be mounted there: empty files and directories that were added at
    these places, the directories that were added for them, and the time of the directory that they were put in."""
    kept = {changed.path: changed for changed in difference.changes}
    full: dict[bytes, int] = {}
    for path in kept:
        if path:
            above = path.rpartition(b"/")[0]
            full[above] = full.get(above, 0) + 1
    for place in sorted(places, key=order, reverse=True):
        path, gone = place, False
        while not full.get(path):
            there = kept.get(path)
            if there is None or not (_made_for_a_mount(there) or (gone and there.touched)):
                break
            del kept[path]
            gone = True
            if not path:
                break
            path = path.rpartition(b"/")[0]
            full[path] -= 1
    return Difference(list(kept.values()), difference.linked)


def _made_for_a_mount(changed: Changed) -> bool:
    if not changed.path or changed.kind is not ADDED or changed.status is None:
        return False
    return stat.S_ISDIR(changed.status.st_mode) or changed.status.st_size == 0


class NotPlain(Exception):
    """The directory of changes leads elsewhere (redirect, metacopy): only the mounted tree tells what changed."""


def order(path: bytes) -> list[bytes]:
    """A directory, then all below it, each level by name."""
    return path.split(b"/") if path else []


def of_trees(lower: int | None, upper: int, *, cross: bool = False) -> Difference:
    """Compare two trees, given as descriptors of their roots. lower None: everything was added. cross: also what is
    mounted in the upper one belongs to it."""
    walk = _Walk(None, "", cross=cross)
    walk.tree(b"", lower, upper, pure=True)
    return walk.result()


def everything(root: int) -> Iterator[Changed]:
    """Each path of a tree as one that was added, in the order of `order`, one at a time: it may be of any size."""
    cursor = Descent(_opened(root))
    try:
        yield Changed(b"", ADDED, os.fstat(cursor.fd))
        stack = [(b"", sorted(map(os.fsencode, listing(cursor.fd)), reverse=True))]
        while stack:
            path, names = stack[-1]
            if not names:
                stack.pop()
                if stack:
                    cursor.up()
                continue
            name = names.pop()
            below = path + b"/" + name if path else name
            try:
                status = os.stat(name, dir_fd=cursor.fd, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    cursor.down(name)
                    stack.append((below, sorted(map(os.fsencode, listing(cursor.fd)), reverse=True)))
            except _GONE:
                continue
            except OSError as error:
                if error.errno in (errno.EBUSY, errno.ELOOP):
                    continue  # something is mounted there, or it was replaced just now
                raise
            if not stat.S_ISSOCK(status.st_mode):
                yield Changed(below, ADDED, status)
    finally:
        cursor.close()


def of_diff_tree(lower: int | None, directory: int, style: Whiteout, prefix: str) -> Difference:
    """Look through a driver's directory of changes (`cowshed.storage.api.DiffTree`) above the tree lower.

    Raises NotPlain if the directory alone does not tell.
    """
    walk = _Walk(style, prefix)
    walk.tree(b"", lower, directory, pure=lower is None)
    return walk.result()


def of_candidates(lower: int | None, upper: int, candidates: Iterable[Change]) -> Difference:
    """Compare only what a driver's `changes()` names, which may be too much and is never too little."""
    wanted: dict[bytes, bool] = {}
    for change in candidates:
        wanted[change.path] = change.subtree or wanted.get(change.path, False)
    walk = _Walk(None, "")
    covered: list[bytes] = []
    try:
        for path in sorted(wanted, key=order):
            if any(not c or path == c or path.startswith(c + b"/") for c in covered[-1:]):
                continue
            if walk.candidate(path, lower, upper, subtree=wanted[path]):
                covered.append(path)
        if walk.has_unknown_names():
            walk.find_names(lower, upper)
    finally:
        walk.close()
    return walk.result()


class _Level:
    """A directory on the way down."""

    __slots__ = ("below", "names", "path", "pure", "xwhiteouts")

    def __init__(self, path: bytes, names: list[bytes], *, below: bool, pure: bool, xwhiteouts: bool) -> None:
        self.path, self.names = path, names
        self.below = below  # whether the lower tree has the directory too
        self.pure = pure  # nothing of the lower one shines through
        self.xwhiteouts = xwhiteouts


class _Walk:
    def __init__(self, style: Whiteout | None, prefix: str, *, cross: bool = False) -> None:
        self._aufs = style is Whiteout.AUFS
        self._overlay = style in (Whiteout.CHAR, Whiteout.XATTR)
        self._opaque, self._redirect = f"{prefix}opaque", f"{prefix}redirect"
        self._metacopy, self._whiteout = f"{prefix}metacopy", f"{prefix}whiteout"
        self._cross, self._private = cross, prefix
        self._found: dict[bytes, Changed] = {}
        self._unchanged: dict[tuple[int, int], list[Changed]] = {}  # files with several names
        self._folders: tuple[bytes, int, int] | None = None  # of the last candidate: path, lower, upper; -1: not there

    def close(self) -> None:
        if self._folders is not None:
            for fd in self._folders[1:]:
                if fd >= 0:
                    os.close(fd)
            self._folders = None

    def _attributes(self, target: int | str, *, follow: bool = True) -> dict[str, bytes]:
        return xattrs.read(target, private=self._private, follow=follow)

    def result(self) -> Difference:
        changes = sorted(self._found.values(), key=lambda c: order(c.path))
        linked = [c for key in self._linked() for c in self._unchanged.get(key, ()) if c.path not in self._found]
        return Difference(changes, sorted(linked, key=lambda c: order(c.path)))

    # ------------------------------------------------------------ whole trees

    def tree(self, path: bytes, lower: int | None, upper: int, *, pure: bool) -> None:
        """Compare the directory upper, and all below it, with lower; the descriptors stay the caller's."""
        there = Descent(_opened(upper), cross=self._cross)
        here: Descent | None = None
        try:
            status = os.fstat(there.fd)
            if lower is None:
                self._add(path, ADDED, status)
            else:
                here = Descent(_opened(lower))
                old = os.fstat(here.fd)
                self._directory(path, old, here.fd, status, there.fd)
            self._walk(self._level(path, here, there, below=here is not None, pure=pure), here, there)
        finally:
            there.close()
            if here is not None:
                here.close()

    def _walk(self, top: _Level, here: Descent | None, there: Descent) -> None:
        stack = [top]
        while True:
            level = stack[-1]
            if level.names:
                name = level.names.pop()
                try:
                    down = self._entry(level, name, here, there)
                except _GONE:
                    continue  # by a container that runs: as if it had gone before
                if down is not None:
                    stack.append(down)
                continue
            stack.pop()
            if not stack:
                return
            there.up()
            if level.below and here is not None:
                here.up()

    def _level(self, path: bytes, here: Descent | None, there: Descent, *, below: bool, pure: bool) -> _Level:
        """Begin with a directory that both descents are in: what is hidden in it is deleted."""
        names = [os.fsencode(name) for name in listing(there.fd)]
        xwhiteouts = False
        if self._overlay:
            attributes = xattrs.listed(there.fd)
            if self._redirect in attributes:
                raise NotPlain(path)
            if self._opaque in attributes:
                value = os.getxattr(there.fd, self._opaque)
                pure, xwhiteouts = pure or value == b"y", value == b"x"
        elif self._aufs:
            pure = pure or _AUFS_OPAQUE in names
            names = [name for name in names if not name.startswith(_AUFS_OWN)]
        if below and pure and here is not None:
            kept = set(names)
            for name in map(os.fsencode, os.listdir(here.fd)):
                if name not in kept:
                    self._deleted(path, name, here)
        names.sort(reverse=True)
        return _Level(path, names, below=below, pure=pure, xwhiteouts=xwhiteouts)

    def _entry(self, level: _Level, name: bytes, here: Descent | None, there: Descent) -> _Level | None:
        """One name; the level below if it is a directory, which both descents have entered then."""
        lower = here if level.below else None
        if self._aufs and name.startswith(_AUFS):
            if lower is not None:
                self._deleted(level.path, name[len(_AUFS) :], lower)
            return None
        status = os.stat(name, dir_fd=there.fd, follow_symlinks=False)
        mode = status.st_mode
        if stat.S_ISSOCK(mode) or (self._overlay and self._is_whiteout(level, name, status, there.fd)):
            if lower is not None:
                self._deleted(level.path, name, lower)
            return None
        path = level.path + b"/" + name if level.path else name
        old = _status(lower.fd, name) if lower is not None else None
        if not stat.S_ISDIR(mode):
            self._file(path, name, old, lower, status, there.fd)
            return None
        below = old is not None and stat.S_ISDIR(old.st_mode)
        try:
            there.down(name)
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.ELOOP):
                return None  # something is mounted there, or it was replaced just now
            raise
        if self._cross and files.file_system_magic(there.fd) in _KERNELS:
            there.up()
            self._add(path, ADDED, status)
            return None
        if below and lower is not None:
            lower.down(name)
        if old is None:
            self._add(path, ADDED, status)
        elif not below or lower is None:
            self._add(path, MODIFIED, status)
        else:
            self._directory(path, old, lower.fd, status, there.fd)
        return self._level(path, lower, there, below=below, pure=level.pure)

    def _is_whiteout(self, level: _Level, name: bytes, status: os.stat_result, at: int) -> bool:
        if stat.S_ISCHR(status.st_mode):
            return status.st_rdev == 0
        if not stat.S_ISREG(status.st_mode):
            return False
        if status.st_size == 0:
            return level.xwhiteouts and self._whiteout in xattrs.listed(_place(at, name), follow=False)
        if self._metacopy in xattrs.listed(_place(at, name), follow=False):
            raise NotPlain(level.path + b"/" + name)  # the data is somewhere below
        return False

    # ------------------------------------------------------------ candidates

    def candidate(self, path: bytes, lower: int | None, upper: int, *, subtree: bool) -> bool:
        """Compare one path, with all below it if it is an added or replaced directory or subtree says so; whether what
        is below it was looked at too."""
        if not path:
            if not subtree and lower is not None:
                self._root(lower, upper)
                return False
            self.tree(b"", lower, upper, pure=True)
            return True
        above, _, name = path.rpartition(b"/")
        here, there = self._around(above, lower, upper)
        status_now = _status(there, name) if there >= 0 else None
        old = _status(here, name) if here >= 0 else None
        if status_now is None:
            if old is not None:
                self._deleted_below(path, lower, upper)
            return True
        if here < 0:
            self._parents_are_there(above, lower, upper)
        if not stat.S_ISDIR(status_now.st_mode):
            reader = _At(here) if here >= 0 else None
            self._file(path, name, old, reader, status_now, there)
            return True
        new = os.open(name, DIRECTORY, dir_fd=there)
        try:
            if old is None or not stat.S_ISDIR(old.st_mode):
                self.tree(path, None, new, pure=True)
                if old is not None:
                    self._add(path, MODIFIED, status_now)
                return True
            before = os.open(name, DIRECTORY, dir_fd=here)
            try:
                if subtree:
                    self.tree(path, before, new, pure=True)
                    return True
                self._directory(path, old, before, status_now, new)
                return False
            finally:
                os.close(before)
        finally:
            os.close(new)

    def _around(self, above: bytes, lower: int | None, upper: int) -> tuple[int, int]:
        """The directory that a candidate is in, in both trees, kept open for the next: those of a directory come one
        after the other."""
        if self._folders is None or self._folders[0] != above:
            self.close()
            there = _folder(upper, above)
            self._folders = above, -1, there
            if lower is not None:
                self._folders = above, _folder(lower, above), there
        return self._folders[1:]

    def _root(self, lower: int, upper: int) -> None:
        before, now = _opened(lower), _opened(upper)
        try:
            self._directory(b"", os.fstat(before), before, os.fstat(now), now)
        finally:
            os.close(before)
            os.close(now)

    def _parents_are_there(self, above: bytes, lower: int | None, upper: int) -> None:
        """A path in an added directory: the directory was added too, whether the driver has named it or not."""
        while above and above not in self._found:
            folder, _, name = above.rpartition(b"/")
            here = _folder(lower, folder) if lower is not None else -1
            there = _folder(upper, folder)
            try:
                old = _status(here, name) if here >= 0 else None
                status = _status(there, name)
                if status is None or (old is not None and stat.S_ISDIR(old.st_mode)):
                    return
                self._add(above, ADDED if old is None else MODIFIED, status)
            finally:
                for fd in (here, there):
                    if fd >= 0:
                        os.close(fd)
            above = folder

    def _deleted_below(self, path: bytes, lower: int | None, upper: int) -> None:
        """Report a path that is gone as what is gone with it: the highest directory above it that went."""
        parts = path.split(b"/")
        for n in range(1, len(parts) + 1):
            top = b"/".join(parts[:n])
            above, _, name = top.rpartition(b"/")
            there = _folder(upper, above)
            if there < 0:
                return  # what lies above is something else now, and is a candidate itself
            try:
                if _status(there, name) is not None:
                    continue
            finally:
                os.close(there)
            here = _folder(lower, above) if lower is not None else -1
            if here >= 0:
                try:
                    self._deleted(above, name, _At(here))
                finally:
                    os.close(here)
            return

    def has_unknown_names(self) -> bool:
        """Whether a changed file has names that have not been met."""
        known: dict[tuple[int, int], int] = {}
        for each in (*self._found.values(), *[c for names in self._unchanged.values() for c in names]):
            status = each.status
            if status is not None and status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                known[status.st_dev, status.st_ino] = known.get((status.st_dev, status.st_ino), status.st_nlink) - 1
        return any(known[key] for key in self._linked() if key in known)

    def find_names(self, lower: int | None, upper: int) -> None:
        """Look through the whole tree for the other names of files that changed, and compare these."""
        touched = self._linked()
        everything = _Walk(None, "")
        everything.tree(b"", None, upper, pure=True)
        for path, each in everything._found.items():
            status = each.status
            if status is None or (status.st_dev, status.st_ino) not in touched or path in self._found:
                continue
            if not any(path == met.path for met in self._unchanged.get((status.st_dev, status.st_ino), ())):
                self.candidate(path, lower, upper, subtree=False)

    def _linked(self) -> set[tuple[int, int]]:
        """The files with several names of which one at least has changed."""
        return {
            (c.status.st_dev, c.status.st_ino)
            for c in self._found.values()
            if c.status is not None and c.status.st_nlink > 1 and not stat.S_ISDIR(c.status.st_mode)
        }

    # ------------------------------------------------------------ one path

    def _directory(self, path: bytes, old: os.stat_result, here: int, status: os.stat_result, there: int) -> None:
        if not _alike(old, status) or self._attributes(here) != self._attributes(there):
            self._add(path, MODIFIED, status)
        elif old.st_mtime_ns != status.st_mtime_ns:
            self._found[path] = Changed(path, MODIFIED, status, touched=True)

    def _file(
        self, path: bytes, name: bytes, old: os.stat_result | None, lower: Descent | _At | None, status: os.stat_result,
        there: int,
    ) -> None:  # fmt: skip
        if old is None or lower is None:
            self._add(path, ADDED, status)
        elif not self._same(old, lower.fd, status, there, name):
            self._add(path, MODIFIED, status)
        elif status.st_nlink > 1:
            self._unchanged.setdefault((status.st_dev, status.st_ino), []).append(Changed(path, MODIFIED, status))

    def _same(self, old: os.stat_result, here: int, new: os.stat_result, there: int, name: bytes) -> bool:
        """Whether a name that is no directory is the same in both: all that an archive would say of it."""
        if not _alike(old, new) or old.st_mtime_ns != new.st_mtime_ns:
            return False
        kind = new.st_mode
        if stat.S_ISLNK(kind):
            if os.readlink(name, dir_fd=here) != os.readlink(name, dir_fd=there):
                return False
        elif stat.S_ISREG(kind):
            if old.st_size != new.st_size:
                return False
            before = os.open(name, _READ, dir_fd=here)
            try:
                now = os.open(name, _READ, dir_fd=there)
                try:
                    return self._attributes(before) == self._attributes(now) and _same_bytes(before, now)
                finally:
                    os.close(now)
            finally:
                os.close(before)
        elif (stat.S_ISCHR(kind) or stat.S_ISBLK(kind)) and old.st_rdev != new.st_rdev:
            return False
        return self._attributes(_place(here, name), follow=False) == self._attributes(_place(there, name), follow=False)

    def _deleted(self, above: bytes, name: bytes, here: Descent | _At) -> None:
        old = _status(here.fd, name)
        if old is not None:
            path = above + b"/" + name if above else name
            self._found[path] = Changed(path, DELETED, None)

    def _add(self, path: bytes, kind: ChangeKind, status: os.stat_result) -> None:
        self._found[path] = Changed(path, kind, status)


class _At:
    """A directory's descriptor, where a walk has a Descent."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd


def _opened(root: int) -> int:
    """A descriptor to read a directory by; what a mount gives is one of O_PATH."""
    return os.open(".", DIRECTORY, dir_fd=root)


def _status(at: int, name: bytes) -> os.stat_result | None:
    """lstat(2); None for nothing, and for a socket."""
    try:
        status = os.stat(name, dir_fd=at, follow_symlinks=False)
    except _GONE:
        return None
    return None if stat.S_ISSOCK(status.st_mode) else status


def _folder(root: int, path: bytes) -> int:
    """A directory below root, reached by no link; -1 if there is none."""
    try:
        return paths.open_in_root(root, path, DIRECTORY, resolve=paths.RESOLVE_NO_SYMLINKS)
    except _GONE:
        return -1
    except OSError as error:
        if error.errno != errno.ELOOP:  # a link where the directory was
            raise
        return -1


def _place(at: int, name: bytes) -> str:
    """A path for calls that take no directory descriptor; its last part is not followed by them."""
    return f"/proc/self/fd/{at}/{os.fsdecode(name)}"


def _alike(old: os.stat_result, new: os.stat_result) -> bool:
    return old.st_mode == new.st_mode and old.st_uid == new.st_uid and old.st_gid == new.st_gid


def _same_bytes(one: int, other: int) -> bool:
    while True:
        a, b = os.read(one, _PIECE), os.read(other, _PIECE)
        if a != b:
            return False
        if not a:
            return True
