"""The ioctls of btrfs that libbtrfsutil does not wrap (linux/btrfs.h, linux/btrfs_tree.h; btrfs-ioctl(2)).

fcntl.ioctl refuses immutable buffers of more than 1,024 bytes, so all arguments are bytearrays. Every function that
fails raises OSError.
"""

from __future__ import annotations

import errno
import fcntl
import os
from _struct import pack, pack_into, unpack_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT_TREE, QUOTA_TREE = 1, 8
FIRST_FREE = 256  # object ids below it, and the negative ones at the other end, are the file system's own
LAST_FREE = 2**64 - 256
ORPHANS = 2**64 - 5  # BTRFS_ORPHAN_OBJECTID: what is deleted and not yet cleaned
MOST = 2**64 - 1
INODE_ITEM, ORPHAN_ITEM, EXTENT_DATA, ROOT_ITEM = 1, 48, 108, 132
QGROUP_STATUS, QGROUP_INFO, QGROUP_LIMIT, QGROUP_RELATION = 240, 242, 244, 246


def _request(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | 0x94 << 8 | number


_TREE_SEARCH_V2 = _request(3, 17, 112)
_SPACE_INFO = _request(3, 20, 16)
_DEV_INFO, _FS_INFO = _request(3, 30, 4096), _request(2, 31, 1024)
_SYNC = _request(0, 8, 0)
_INO_PATHS = _request(3, 35, 56)
_SET_RECEIVED, _SEND = _request(3, 37, 200), _request(1, 38, 72)
_QUOTA_CTL = _request(3, 40, 16)
_QGROUP_ASSIGN, _QGROUP_CREATE, _QGROUP_LIMIT = _request(1, 41, 24), _request(1, 42, 16), _request(2, 43, 48)
_GET_SUBVOL_ROOTREF, _INO_LOOKUP_USER = _request(3, 61, 4096), _request(3, 62, 4096)
_FIEMAP = 0xC020660B
QUOTA_ENABLE, QUOTA_DISABLE, QUOTA_ENABLE_SIMPLE = 1, 2, 4

_BUFFER = 1 << 16


class Item:
    """One item of a tree, as TREE_SEARCH gives it. `data` is its body."""

    __slots__ = ("data", "id", "kind", "offset")

    def __init__(self, id_: int, kind: int, offset: int, data: bytes) -> None:
        self.id, self.kind, self.offset, self.data = id_, kind, offset, data

    def words(self) -> tuple[int, ...]:
        """The body as little-endian numbers of 64 bits."""
        count = len(self.data) // 8
        return tuple(unpack_from(f"<{count}Q", self.data))


def search(
    fd: int,
    tree: int,
    first: tuple[int, int, int],
    last: tuple[int, int, int],
    *,
    since: int = 0,
) -> Iterator[Item]:
    """Items with keys (object id, kind, offset) from first to last, in the order of the keys.

    tree 0 is the subvolume that fd lies in. since: only from leaves that were written in that transaction or later,
    which is a superset of what changed since. The kernel compares keys as one number, so that kinds between the bounds
    turn up as well: callers look at `kind`. Needs CAP_SYS_ADMIN outside user namespaces.
    """
    buffer = bytearray(112 + _BUFFER)
    at: tuple[int, int, int] = first
    while True:
        pack_into(
            "<QQQQQQQIIIIQQQQQ", buffer, 0, tree, at[0], last[0], at[2], last[2], since, MOST, at[1], last[1],
            1 << 30, 0, 0, 0, 0, 0, _BUFFER,
        )  # fmt: skip
        fcntl.ioctl(fd, _TREE_SEARCH_V2, buffer)
        count: int = unpack_from("<I", buffer, 64)[0]
        if not count:
            return
        place = 112
        id_ = kind = offset = 0
        for _ in range(count):
            _, id_, offset, kind, length = unpack_from("<QQQII", buffer, place)
            place += 32
            yield Item(id_, kind, offset, bytes(buffer[place : place + length]))
            place += length
        if offset < MOST:
            at = id_, kind, offset + 1
        elif kind < 255:
            at = id_, kind + 1, 0
        elif id_ < MOST:
            at = id_ + 1, 0, 0
        else:
            return
        if at > last:
            return


def sync(fd: int) -> None:
    """Write everything back, and wake the cleaner, which takes deleted subvolumes apart. Nothing on a file system that
    is read-only.

    START_SYNC would commit without writing back strangers' data; but it leaves the commit to a thread of the kernel,
    which misses the call now and then and comes by half a minute later (seen on Linux 6.18), the caller not killable
    meanwhile.
    """
    try:
        fcntl.ioctl(fd, _SYNC)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise


def space(fd: int) -> list[tuple[int, int, int]]:
    """(flags, bytes in chunks, bytes used) of each kind of block group: flags 1 data, 2 system, 4 metadata, and the
    profile above."""
    head = bytearray(16)
    fcntl.ioctl(fd, _SPACE_INFO, head)
    count: int = unpack_from("<QQ", head)[1]
    buffer = bytearray(16 + 24 * count)
    pack_into("<Q", buffer, 0, count)
    fcntl.ioctl(fd, _SPACE_INFO, buffer)
    found: int = unpack_from("<QQ", buffer)[1]
    return [unpack_from("<QQQ", buffer, 16 + 24 * n) for n in range(min(found, count))]


def unallocated(fd: int) -> int:
    """Bytes on all devices that no chunk has yet, without the first megabyte, which none is made of."""
    head = bytearray(1024)
    fcntl.ioctl(fd, _FS_INFO, head)
    last: int = unpack_from("<Q", head)[0]
    total = 0
    for number in range(1, last + 1):
        device = bytearray(4096)
        pack_into("<Q", device, 0, number)
        try:
            fcntl.ioctl(fd, _DEV_INFO, device)
        except OSError as error:
            if error.errno != errno.ENODEV:  # it was taken out
                raise
            continue
        used, size = unpack_from("<QQ", device, 24)
        total += max(size - used - (1 << 20), 0)
    return total


def quota_ctl(fd: int, command: int) -> None:
    fcntl.ioctl(fd, _QUOTA_CTL, bytearray(pack("<QQ", command, 0)))


def make_group(fd: int, group: int) -> None:
    """EEXIST if it is there."""
    fcntl.ioctl(fd, _QGROUP_CREATE, bytearray(pack("<QQ", 1, group)))


def remove_group(fd: int, group: int) -> None:
    """EBUSY while it has members or counts anything, ENOENT if it is not there."""
    fcntl.ioctl(fd, _QGROUP_CREATE, bytearray(pack("<QQ", 0, group)))


def limit_group(fd: int, group: int, *, referenced: int | None = None, exclusive: int | None = None) -> None:
    """Set the limits in bytes; None lifts one."""
    flags, values = 0, []
    for bit, value in ((1, referenced), (2, exclusive)):
        flags |= bit
        values.append(MOST if value is None else value)  # the kernel takes a limit away by this value
    fcntl.ioctl(fd, _QGROUP_LIMIT, bytearray(pack("<QQQQQQ", group, flags, *values, 0, 0)))


def assign_group(fd: int, member: int, group: int, *, assign: bool) -> None:
    """EEXIST if it is a member already, ENOENT if one of the two is missing."""
    fcntl.ioctl(fd, _QGROUP_ASSIGN, bytearray(pack("<QQQ", assign, member, group)))


def send(subvolume: int, parent: int, out: int, *, data: bool) -> None:
    """Write to descriptor out the stream of what subvolume (a descriptor) changed of the subvolume with id parent, or
    of all of it if that is 0: version 1; without data of files by BTRFS_SEND_FLAG_NO_FILE_DATA. Both must be
    read-only."""
    argument = bytearray(pack("<qQQQQ32x", out, 0, 0, parent, not data))
    fcntl.ioctl(subvolume, _SEND, argument)


def set_received(subvolume: int, uuid: bytes, transaction: int) -> None:
    """Write down which subvolume, elsewhere, this one was received of; it must be writable."""
    fcntl.ioctl(subvolume, _SET_RECEIVED, bytearray(pack("<16sQ176x", uuid, transaction)))


def inode_paths(subvolume: int, inode: int) -> list[bytes] | None:
    """Every name of an inode, as paths from the top of the subvolume; None if they are more than the kernel tells."""
    from cowshed_linux.libc import ffi

    size = 4096  # the kernel fills no more
    answer = ffi.new("char[]", size)
    address = int(ffi.cast("long", answer))
    argument = bytearray(pack("<QQ32xQ", inode, size, address))
    fcntl.ioctl(subvolume, _INO_PATHS, argument)
    raw = bytes(ffi.buffer(answer, size))
    _, missing, count, missed = unpack_from("<IIII", raw)
    if missing or missed:
        return None
    paths = []
    for n in range(count):
        start = 16 + unpack_from("<Q", raw, 16 + 8 * n)[0]
        paths.append(raw[start : raw.index(b"\0", start)])
    return paths


def subvolumes_in(subvolume: int) -> list[tuple[bytes, int]]:
    """(path from the top, id) of the subvolumes directly in a subvolume, of which fd is the top. Also for plain users,
    as far as they may enter the directories on the way."""
    found: list[tuple[bytes, int]] = []
    least, more = 0, True
    while more:
        references = bytearray(4096)
        pack_into("<Q", references, 0, least)
        try:
            fcntl.ioctl(subvolume, _GET_SUBVOL_ROOTREF, references)
            more = False
        except OSError as error:
            if error.errno != errno.EOVERFLOW:  # it has filled the buffer, and there are more
                raise
        for n in range(references[4088]):
            tree, folder = unpack_from("<QQ", references, 8 + 16 * n)
            names = bytearray(4096)
            pack_into("<QQ", names, 0, folder, tree)
            try:
                fcntl.ioctl(subvolume, _INO_LOOKUP_USER, names)
            except FileNotFoundError:
                continue  # removed meanwhile
            name, path = names[16:272].partition(b"\0")[0], names[272:].partition(b"\0")[0]
            found.append((bytes(path + name), tree))
            least = tree + 1
    return found


def unshared_bytes(fd: int) -> int:
    """Bytes on disk of a file that no other file or snapshot shares (FIEMAP)."""
    total, start = 0, 0
    while True:
        buffer = bytearray(32 + 56 * 64)
        pack_into("<QQIII", buffer, 0, start, MOST, 0, 0, 64)
        fcntl.ioctl(fd, _FIEMAP, buffer)
        count: int = unpack_from("<I", buffer, 20)[0]
        if not count:
            return total
        flags = 0
        for n in range(count):
            logical, _, length, _, _, flags = unpack_from("<QQQQQI", buffer, 32 + 56 * n)
            start = logical + length
            if not flags & 0x2000:  # FIEMAP_EXTENT_SHARED
                total += length
        if flags & 1:  # FIEMAP_EXTENT_LAST
            return total


def directory(path: str) -> int:
    """A descriptor to give these calls."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
