"""Subvolumes by path, on libbtrfsutil: made, snapshot, sealed, removed with all that lies in them.

What goes wrong is an OSError whose text names the call and the path.
"""

from __future__ import annotations

import errno
import os

import btrfsutil

from cowshed.storage.kit.trees import remove_tree
from cowshed_driver_btrfs import ioctls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any


def _call(function: Callable[..., Any], *words: object, **options: object) -> Any:
    """What libbtrfsutil raises is an OSError, but never one of its kinds (FileNotFoundError, …), which this is."""
    try:
        return function(*words, **options)
    except btrfsutil.BtrfsUtilError as error:
        raise OSError(error.errno, f"{error.strerror}: {os.strerror(error.errno)}", error.filename) from None


def _inherit(groups: Iterable[int]) -> dict[str, object]:
    """What tells the kernel of which quota groups a new subvolume is a member."""
    inherit = None
    for group in groups:
        inherit = inherit or btrfsutil.QgroupInherit()
        inherit.add_group(group)
    return {} if inherit is None else {"qgroup_inherit": inherit}


def create(path: str, groups: Iterable[int] = ()) -> None:
    _call(btrfsutil.create_subvolume, path, **_inherit(groups))


def snapshot(source: str, path: str, groups: Iterable[int] = (), *, read_only: bool = False) -> None:
    """Atomic, of what had been written when it was called; on return the transaction with it is committed. Subvolumes
    in the source are empty directories in the snapshot."""
    _call(btrfsutil.create_snapshot, source, path, read_only=read_only, **_inherit(groups))


def is_subvolume(path: str) -> bool:
    return bool(_call(btrfsutil.is_subvolume, path))


def identity(path: str) -> int:
    """The id of the tree, which the kernel never gives again."""
    return int(_call(btrfsutil.subvolume_id, path))


def made_in(path: str) -> int:
    """The transaction that made it, as snapshot or new: what was written later is its own."""
    return int(_call(btrfsutil.subvolume_info, path).otransid)


def identities(path: str) -> tuple[bytes, bytes]:
    """Its UUID, and that of the subvolume that it was received of (zeroes if of none)."""
    info = _call(btrfsutil.subvolume_info, path)
    return bytes(info.uuid), bytes(info.received_uuid)


def read_only(path: str) -> bool:
    return bool(_call(btrfsutil.get_subvolume_read_only, path))


def set_read_only(path: str, *, value: bool) -> None:
    """Commits the transaction."""
    _call(btrfsutil.set_subvolume_read_only, path, value)


def nested(path: str) -> list[tuple[str, int]]:
    """(path from there, id) of the subvolumes in a subvolume, the deepest first."""
    found: list[tuple[str, int]] = []
    fd = ioctls.directory(path)
    try:
        inside = ioctls.subvolumes_in(fd)
    finally:
        os.close(fd)
    for name, id_ in inside:
        below = os.fsdecode(name)
        found += [(f"{below}/{deeper}", other) for deeper, other in nested(f"{path}/{below}")]
        found.append((below, id_))
    return found


def remove(path: str, *, until: float | None = None) -> bool:
    """Remove a subvolume, or whatever else lies at path, with the subvolumes in it; absent is success. False if the
    time ran out, which it can only for a plain user: the file system must be mounted with user_subvol_rm_allowed for
    them, else they remove entry by entry."""
    try:
        if not is_subvolume(path):
            return remove_tree(path, until=until)
        inside = nested(path)
        if inside:  # names in a read-only subvolume cannot be taken away
            for below, _ in reversed(inside):
                _writable(f"{path}/{below}")
            _writable(path)
        for below, _ in inside:
            _destroy(f"{path}/{below}", until)
        return _destroy(path, until)
    except FileNotFoundError:
        return True


def _writable(path: str) -> None:
    if read_only(path):
        set_read_only(path, value=False)


def _destroy(path: str, until: float | None) -> bool:
    try:
        _call(btrfsutil.delete_subvolume, path)
    except PermissionError:
        if _may_destroy():
            raise  # being sent
        _writable(path)
        return remove_tree(path, until=until)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return True
        raise
    return True


def _may_destroy() -> bool:
    """Whether this process is root outside all user namespaces, as far as the kernel's own check of it goes."""
    from cowshed_linux import capabilities

    fd = os.open("/proc/self/uid_map", os.O_RDONLY | os.O_CLOEXEC)
    try:
        initial = os.read(fd, 128).split() == [b"0", b"0", b"4294967295"]
    finally:
        os.close(fd)
    return initial and bool(capabilities.permitted() >> capabilities.NUMBERS["CAP_SYS_ADMIN"] & 1)


def being_cleaned(place: str | int) -> set[int]:
    """The ids of deleted subvolumes of the whole file system whose space is not back yet. PermissionError for plain
    users."""
    return {int(id_) for id_ in _call(btrfsutil.deleted_subvolumes, place)}
