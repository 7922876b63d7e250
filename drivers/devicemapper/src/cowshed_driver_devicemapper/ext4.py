"""Reads the metadata of ext4 on two devices of which one was made from the other: which inodes differ between them.

The kernel's format (Documentation/filesystems/ext4, fs/ext4/ext4.h): whatever happens to a file through the file
system changes its inode, if only the time in it. But a clock can be set back. So nothing is taken for granted: each
block that differs must be accounted for, by a place that belongs to no file, by being free in the newer one, or by
being part of an inode that is known to differ. If one block cannot be, the answer is that nobody knows.

Only file systems at rest are read: unmounted, or frozen, with nothing to replay in the journal.
"""

from __future__ import annotations

import os
from _struct import unpack_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Ranges = list[tuple[int, int]]  # first block, and the one after the last; in ascending order, not overlapping

BLOCK = 4096
_INODE = 256  # bytes
_MAGIC = 0xEF53
# The features with which the layout is as it is read here: filetype, extents, 64bit, flex_bg, csum_seed; not: a journal
# to replay, or what puts data elsewhere (inline_data, ea_inode, meta_bg, bigalloc).
_INCOMPATIBLE = 0x2 | 0x40 | 0x80 | 0x200 | 0x2000
_READ_ONLY = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x400 | 0x2000 | 0x10000
_SPARSE_BACKUPS = 0x1
_ODD_COMPATIBLE = 0x200  # sparse_super2: backups elsewhere
_BITMAP_UNUSED = 0x2  # EXT4_BG_BLOCK_UNINIT
_EXTENTS, _EXTENT_MAGIC = 0x80000, 0xF30A
_XATTR_MAGIC = 0xEA020000
_ROOT_INODE = 2
_PIECE = 16  # blocks that are read at once


class Unclear(Exception):
    """What differs cannot be told from the blocks. The text says why."""


class FileSystem:
    """A file system on an open device, in the layout that this module knows. Raises Unclear, OSError."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        raw = _read(fd, 1024, 1024)
        (self.inodes, low) = unpack_from("<II", raw, 0)
        (self.first, size, self.per_group, self.inodes_per_group) = (
            unpack_from("<I", raw, at)[0] for at in (0x14, 0x18, 0x20, 0x28)
        )
        magic, first_inode, inode = (unpack_from("<H", raw, at)[0] for at in (0x38, 0x54, 0x58))
        compatible, incompatible, read_only = unpack_from("<III", raw, 0x5C)
        if magic != _MAGIC or 1024 << size != BLOCK or inode != _INODE or self.first:
            raise Unclear("not an ext4 of blocks of 4 KiB and inodes of 256 bytes")
        if incompatible & ~_INCOMPATIBLE or read_only & ~_READ_ONLY or compatible & _ODD_COMPATIBLE:
            raise Unclear(f"features {compatible:x} {incompatible:x} {read_only:x}: not at rest, or not known")
        if not read_only & _SPARSE_BACKUPS:
            raise Unclear("backups in every group")
        self.blocks = low | unpack_from("<I", raw, 0x150)[0] << 32
        self._descriptor = unpack_from("<H", raw, 0xFE)[0] if incompatible & 0x80 else 32
        self._reserved = unpack_from("<H", raw, 0xCE)[0]
        numbers = [unpack_from("<I", raw, at)[0] for at in (0x240, 0x244, 0x26C, 0x280)]  # quota files, orphans
        self.own = {*range(1, first_inode), *numbers} - {0, _ROOT_INODE}
        self.identity = raw[104:120]
        self.groups = -(-self.blocks // self.per_group)
        self._descriptors = _read(fd, BLOCK, self.groups * self._descriptor)
        self.table_blocks = self.inodes_per_group * _INODE // BLOCK

    def is_like(self, other: FileSystem) -> bool:
        """Whether both have everything in the same places."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("identity", "blocks", "per_group", "inodes_per_group", "own", "_descriptor", "_reserved")
        ) and all(self.places(group) == other.places(group) for group in range(self.groups))

    def places(self, group: int) -> tuple[int, int, int]:
        """Where a group has its bitmap of blocks, that of inodes, and its table of inodes."""
        at = group * self._descriptor
        low = unpack_from("<III", self._descriptors, at)
        high = unpack_from("<III", self._descriptors, at + 0x20) if self._descriptor >= 64 else (0, 0, 0)
        return low[0] | high[0] << 32, low[1] | high[1] << 32, low[2] | high[2] << 32

    def nobodys(self) -> Iterator[tuple[int, int]]:
        """Blocks that belong to no inode: superblocks, descriptors, bitmaps; not the tables of inodes."""
        copied = 1 + -(-self.groups * self._descriptor // BLOCK) + self._reserved
        for group in range(self.groups):
            if _has_backup(group):
                yield group * self.per_group, group * self.per_group + copied
            for bitmap in self.places(group)[:2]:
                yield bitmap, bitmap + 1

    def tables(self) -> list[tuple[int, int]]:
        """(first block, group) of each table of inodes, in ascending order."""
        return sorted((self.places(group)[2], group) for group in range(self.groups))

    def inode(self, number: int) -> bytes:
        group, index = divmod(number - 1, self.inodes_per_group)
        return _read(self.fd, self.places(group)[2] * BLOCK + index * _INODE, _INODE)

    def blocks_of(self, inode: bytes) -> Iterator[tuple[int, int]]:
        """All blocks of an inode: of its data, of the tree that names them, and of its attributes."""
        attributes = attributes_of(inode)
        if attributes:
            yield attributes, attributes + 1
        if unpack_from("<I", inode, 0x20)[0] & _EXTENTS:
            yield from self._extents(inode[0x28:0x64])

    def _extents(self, node: bytes, level: int | None = None) -> Iterator[tuple[int, int]]:
        magic, count, _, depth = unpack_from("<HHHH", node)
        if magic != _EXTENT_MAGIC or 12 + 12 * count > len(node) or level not in (None, depth):
            raise Unclear("a tree of extents is not one")
        for at in range(12, 12 + 12 * count, 12):
            if depth:
                low, high = unpack_from("<IH", node, at + 4)
                below = low | high << 32
                yield below, below + 1
                yield from self._extents(_read(self.fd, below * BLOCK, BLOCK), depth - 1)
            else:
                length, high, low = unpack_from("<HHI", node, at + 4)
                first = low | high << 32
                yield first, first + (length if length <= 0x8000 else length - 0x8000)  # more: not written yet

    def in_use(self, ranges: Ranges) -> Iterator[int]:
        """Those of these blocks, which are none of `nobodys` and `tables`, that are not free."""
        known, bitmap, unused = -1, b"", False
        for first, after in ranges:
            for block in range(first, after):
                group, bit = divmod(block, self.per_group)
                if group != known:
                    known = group
                    flags = unpack_from("<H", self._descriptors, group * self._descriptor + 0x12)[0]
                    unused = bool(flags & _BITMAP_UNUSED)
                    bitmap = _read(self.fd, self.places(group)[0] * BLOCK, BLOCK)
                if not unused and bitmap[bit >> 3] >> (bit & 7) & 1:
                    yield block


def differing(old: FileSystem, new: FileSystem, changed: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Inodes that are not the same in both, as far as they are files in the newer one → how many names each has. All
    else is the same in both, but for times of access.

    changed: ranges of bytes (start, length) outside of which the two devices are equal. Raises Unclear, OSError.
    """
    if not old.is_like(new):
        raise Unclear("the file systems are not laid out alike")
    rest = _united((at // BLOCK, -(-(at + length) // BLOCK)) for at, length in changed)
    rest = [(first, min(after, new.blocks)) for first, after in rest if first < new.blocks]
    found: dict[int, bytes] = {}  # as they are in the newer
    shared: set[int] = set()  # blocks of attributes that differing inodes had in the older: others may have them still
    tables = new.tables()
    for (table, group), first, after in _within(rest, tables, new.table_blocks):
        number = group * new.inodes_per_group + 1 + (first - table) * (BLOCK // _INODE)
        for at, before, now in _differing_inodes(old.fd, new.fd, first, after):
            found[number + at] = now
            shared.add(attributes_of(before))
    known = [(table, table + new.table_blocks) for table, _ in tables]
    known += new.nobodys()
    for number in new.own:
        if number <= new.inodes:
            known += new.blocks_of(new.inode(number))
    for inode in found.values():
        if _names(inode):
            known += new.blocks_of(inode)
    for block in new.in_use(_without(rest, _united(known))):
        before, now = (_read(device.fd, block * BLOCK, BLOCK) for device in (old, new))
        if before != now and not (block in shared and _same_attributes(before, now)):
            raise Unclear(f"block {block} differs, and no inode that does has it")
    return {number: _names(inode) for number, inode in found.items() if number not in new.own and _names(inode)}


def attributes_of(inode: bytes) -> int:
    """The block that has the attributes for which the inode has no room; 0 for none. Several inodes may share one."""
    return int(unpack_from("<I", inode, 0x68)[0] | unpack_from("<H", inode, 0x76)[0] << 32)


def _names(inode: bytes) -> int:
    """How many names an inode has: 0 of one that is free or only open still, 1 of a directory."""
    mode, links = unpack_from("<H", inode, 0)[0], unpack_from("<H", inode, 0x1A)[0]
    return 0 if not mode or not links else 1 if mode >> 12 == 4 else int(links)


def _differing_inodes(old: int, new: int, first: int, after: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Of a part of a table: which inode from its beginning, as it was and as it is."""
    for piece in range(first, after, _PIECE):
        size = (min(piece + _PIECE, after) - piece) * BLOCK
        before, now = _read(old, piece * BLOCK, size), _read(new, piece * BLOCK, size)
        if before == now:
            continue
        for at in range(0, size, _INODE):
            one, other = before[at : at + _INODE], now[at : at + _INODE]
            if one != other and _without_access(one) != _without_access(other):
                yield ((piece - first) * BLOCK + at) // _INODE, one, other


def _without_access(inode: bytes) -> bytes:
    """Without the time of access, and without the checksum, which is of it too."""
    return inode[:0x08] + inode[0x0C:0x7C] + inode[0x7E:0x82] + inode[0x84:0x8C] + inode[0x90:]


def _same_attributes(one: bytes, other: bytes) -> bool:
    """Whether two blocks of attributes differ only in how many inodes share them."""
    if unpack_from("<I", one)[0] != _XATTR_MAGIC:
        return False
    return all(one[a:b] == other[a:b] for a, b in ((0, 4), (8, 16), (20, BLOCK)))  # not: h_refcount, h_checksum


def _has_backup(group: int) -> bool:
    """Of the superblock and the descriptors, with sparse_super: in 0, 1, and the powers of 3, 5 and 7."""
    if group <= 1:
        return True
    for base in (3, 5, 7):
        power = base
        while power < group:
            power *= base
        if power == group:
            return True
    return False


def _read(fd: int, at: int, size: int) -> bytes:
    data = os.pread(fd, size, at)
    if len(data) != size:
        raise Unclear("the file system is longer than its device")
    return data


def _united(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """In ascending order, and those that meet made one."""
    found: Ranges = []
    for first, after in sorted(ranges):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(after, found[-1][1])
        else:
            found.append((first, after))
    return found


def _within(ranges: Ranges, tables: list[tuple[int, int]], length: int) -> Iterator[tuple[tuple[int, int], int, int]]:
    """What of these lies in which table (`FileSystem.tables`), each of so many blocks."""
    n = 0
    for table in tables:
        first, after = table[0], table[0] + length
        while n < len(ranges) and ranges[n][1] <= first:
            n += 1
        at = n
        while at < len(ranges) and ranges[at][0] < after:
            yield table, max(ranges[at][0], first), min(ranges[at][1], after)
            at += 1


def _without(ranges: Ranges, taken: Ranges) -> Ranges:
    found: Ranges = []
    at = 0
    for first, after in ranges:
        while at < len(taken) and taken[at][1] <= first:
            at += 1
        n = at
        while n < len(taken) and taken[n][0] < after:
            if taken[n][0] > first:
                found.append((first, taken[n][0]))
            first = max(first, taken[n][1])
            n += 1
        if first < after:
            found.append((first, after))
    return found
