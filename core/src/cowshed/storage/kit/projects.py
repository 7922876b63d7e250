"""Quota by project, for drivers whose layers are directories of ext4 or xfs: each layer is a project of its own.

    ROOT/projects   an empty file; the project id that it carries is the first of those that belong to this store

A layer's id is that first one plus its number. Ids belong to the whole file system, on which other stores may lie, so a
store claims a block of 2**24 by making a file that carries the first of them. The file system itself then tells who
has claimed what (Q_GETNEXTQUOTA), a claim goes with its file, and two that were made at once are seen as two files of
one project. A store that was copied elsewhere has no claim there, and makes one.

An id is free again when no file carries it and it has no limit: the limit is lifted before the layer is deleted.
"""

from __future__ import annotations

import errno
import os

from cowshed.storage.api import ObjectKind, Quota, StoredObject
from cowshed.storage.errors import Unsupported
from cowshed.storage.kit import places
from cowshed_linux import files, projects

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowshed.storage.api import Host, Layer

FILE = "projects"
_SHIFT = 24  # a layer's number has as many bits
_BLOCKS = 254  # from 1: the ids of block 0 are those that people give by hand


def obstacle(fd: int) -> str:
    """Why the layers in the directory of descriptor fd cannot have quota, as a code; "" if they can.

    user-namespace, off, not-enforced, or inside: of another project, whose id they would lose.
    """
    if places.private_namespace():
        return "user-namespace"
    try:
        counted, enforced = projects.state(fd)
    except OSError:
        return "off"
    if not (counted and enforced):
        return "not-enforced"
    number, inherited = projects.project(fd)
    return "inside" if number and inherited else ""


def why_not(place: str) -> tuple[str, str, str] | None:
    """(code, text, remedy) of the obstacle to quota in a directory; None if there is none. For probes."""
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        code = obstacle(fd)
        can = code != "off" or projects.kernel_can(fd)
    finally:
        os.close(fd)
    name = places.file_system_name(place)
    if not code:
        return None
    if code == "user-namespace":
        return code, "project ids belong to the root outside user namespaces: no size limits", "run as root"
    if code == "inside":
        text = f"{place} belongs to a project already, whose limit its layers would escape: no size limits"
        return code, text, "put the store (--root) in a directory that belongs to no project"
    if name not in ("ext4", "xfs"):
        return code, f"{name} has no quota by project: no size limits", _ELSEWHERE
    if not can:
        return code, f"this kernel is built without quota for {name}: no size limits", "CONFIG_XFS_QUOTA, CONFIG_QUOTA"
    device, point = _mount(place)
    # An ext4 counts no projects until its superblock says so; where it does, tune2fs changes nothing.
    tune = f"tune2fs -O project,quota -Q prjquota {device}" if name == "ext4" else ""
    if point == "/":
        how = (
            f"from a rescue system {tune}, then boot with rootflags=prjquota"
            if tune
            else "boot with rootflags=prjquota"
        )
        how += "; or put the store (--root) on a file system of its own"
    else:
        how = "; ".join([f"umount {point}", *([tune] if tune else []), f"mount -o prjquota {device} {point}"])
    text = f"{name} is mounted without prjquota on {point}: no size limits"
    return code, text, how


_ELSEWHERE = "put the store (--root) on ext4 or xfs mounted with prjquota"


def _mount(place: str) -> tuple[str, str]:
    """(device, mount point) of a directory."""
    from cowshed_linux import mounts

    found = mounts.holding(place)
    return ("DEVICE", "PLACE") if found is None else (found.source, found.point)


class Projects:
    """The projects of one store; `fd` is a descriptor of its root, kept open by the caller."""

    def __init__(self, root: str, fd: int, host: Host) -> None:
        self._root, self._fd, self._host = root, fd, host
        self._first = 0

    def give(self, path: str, layer: Layer) -> None:
        """Make an empty directory the layer's project, and all that will be made in it."""
        first = self._claimed() or self._claim()
        if not first:
            return  # only a limit needs one, and says so
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            number = first + layer.number
            self._host.call("project.set", lambda: projects.set_project(fd, number, inherit=True))
        finally:
            os.close(fd)

    def limit(self, path: str, layer: Layer, quota: Quota) -> None:
        """Set the limits of the project that a layer's directory carries. Raises Unsupported if it carries none."""
        number = self._of(path)
        if not number:
            raise Unsupported(
                f"layer {layer.id} has no project id: it was made when this store had no quota, or none was left",
                layer=layer.id,
                remedy="make another container; cowshed driver why tells what size limits need",
            )
        size, inodes = quota.bytes or 0, quota.inodes or 0
        self._host.call("project.limit", lambda: projects.set_limits(self._fd, number, size, inodes))

    def used(self, path: str) -> tuple[int, int] | None:
        """(bytes, inodes) of a layer's directory with all in it; None if it is no project of this store."""
        number = self._of(path)
        return projects.used(self._fd, number) if number else None

    def lift(self, path: str) -> None:
        """Take the limit away from what is about to be deleted: the id is free with the last file that carries it."""
        number = self._of(path)
        if number and projects.limits(self._fd, number) != (0, 0):
            self._host.call("project.lift", lambda: projects.set_limits(self._fd, number, 0, 0))

    def number(self, path: str) -> int | None:
        """The number of the layer whose project a directory is; None if it is none of this store's."""
        found = self._of(path)
        return found - self._claimed() if found else None

    def lift_number(self, number: int) -> None:
        """Take the limit away of a layer that has no directory any more."""
        one = self._claimed() + number
        self._host.call("project.lift", lambda: projects.set_limits(self._fd, one, 0, 0))

    def adopt(self, path: str) -> None:
        """Give a directory the project of the one that it lies in."""
        number = self._of(os.path.dirname(path))
        if number:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._host.call("project.set", lambda: projects.set_project(fd, number, inherit=True))
            finally:
                os.close(fd)

    def lift_all(self) -> None:
        """For a store that is about to be destroyed."""
        for number in [number for number, _ in self._records()]:
            self._host.call("project.lift", lambda n=number: projects.set_limits(self._fd, n, 0, 0))

    def scan(self) -> Iterator[StoredObject]:
        """Every limit that was set: what is left of a layer if its directory was deleted and its limit not lifted."""
        for number, _ in self._records():
            yield StoredObject(ObjectKind.AUXILIARY, f"project/{number}", number=number - self._first)

    def _records(self) -> Iterator[tuple[int, tuple[int, int]]]:
        """(project id, limits) of each project of the store that has one."""
        first = self._claimed()
        number = first
        while first and (found := projects.next_project(self._fd, number)) is not None:
            if found[0] >= first + (1 << _SHIFT):
                return
            number = found[0] + 1
            if found[1] != (0, 0):
                yield found

    def _of(self, path: str) -> int:
        """The project id of a layer's directory; 0 if it is none of this store's."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return 0
        try:
            number, _ = projects.project(fd)
        finally:
            os.close(fd)
        first = self._claimed()
        return number if first and first < number < first + (1 << _SHIFT) else 0

    # ------------------------------------------------------------ the claim

    def _claimed(self) -> int:
        """The first of the store's ids; 0 if it has none yet."""
        if not self._first:
            try:
                fd = os.open(f"{self._root}/{FILE}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                return 0
            try:
                number, _ = projects.project(fd)
            finally:
                os.close(fd)
            self._first = number if number and not number & ((1 << _SHIFT) - 1) else 0
        return self._first

    def _claim(self) -> int:
        """Claim a block of ids for this store; 0 if all are taken."""
        import fcntl

        lock = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # against others of this store
            if not self._claimed():
                self._search(lock)
        finally:
            os.close(lock)
        return self._claimed()

    def _search(self, lock: int) -> None:
        start = os.urandom(1)[0]  # so that two stores seldom ask for the same one
        for n in range(_BLOCKS):
            first = (1 + (start + n) % _BLOCKS) << _SHIFT
            found = projects.next_project(self._fd, first)
            if (found is None or found[0] >= first + (1 << _SHIFT)) and self._try(first, lock):
                return

    def _try(self, first: int, lock: int) -> bool:
        """Carry the id by a file without a name, and give it one if nobody else does the same: whoever comes second
        sees two, so never do both keep it; and a process that is killed leaves nothing."""
        fd = os.open(self._root, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            self._host.call("project.claim", lambda: projects.set_project(fd, first, inherit=False))
            if projects.used(fd, first)[1] != 1:
                return False
            try:
                os.unlink(FILE, dir_fd=lock)  # of a store that was copied here without its ids
            except FileNotFoundError:
                pass
            os.link(f"/proc/self/fd/{fd}", FILE, dst_dir_fd=lock)
        except OSError as error:
            if error.errno not in (errno.EDQUOT, errno.ENOSPC):
                raise
            return False  # somebody has limited this id, and carries nothing with it
        finally:
            os.close(fd)
        files.sync_directory(self._root)
        return True
