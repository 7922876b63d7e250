"""Reads the metadata of a thin pool: which thin devices there are, and where two of them differ.

The kernel's format (drivers/md/dm-thin-metadata.c, persistent-data/dm-btree.h): blocks of 4 KiB; the superblock names
the roots of two B-trees. Device details: thin id → mapped blocks. Mappings: thin id → root of a tree of its own,
virtual block → data block. Trees are never written in place: a commit writes new blocks, then the superblock. So what
the superblock on disk refers to stays whole until the next commit, and a reading is right if the superblock is the same
before and after it. No metadata snapshot has to be reserved, of which a pool has only one.

Two devices that come from one another share whole subtrees: comparing costs what differs, not what there is.
"""

from __future__ import annotations

import mmap
import os
from _struct import unpack_from

from cowshed.storage.errors import Damaged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    T = TypeVar("T")

BLOCK = 4096
_MAGIC = 27022010
_INTERNAL, _LEAF = 1, 2
_HEADER = 32
_TIMES = 100  # a pool that commits so often while it is read is not read


class Node:
    """A block of a B-tree."""

    __slots__ = ("keys", "leaf", "values")

    def __init__(self, keys: tuple[int, ...], values: tuple[int, ...], *, leaf: bool) -> None:
        self.keys, self.values, self.leaf = keys, values, leaf


def parse_node(block: bytes, number: int) -> Node:
    """Values longer than 8 bytes (device details) are told by their first 8. Raises Damaged."""
    _, flags, own, entries, most, size = unpack_from("<IIQIII", block)
    if own != number or flags not in (_INTERNAL, _LEAF) or entries > most or _HEADER + most * (8 + size) > BLOCK:
        raise Damaged(f"block {number} of the pool's metadata is no node of a tree")
    keys = unpack_from(f"<{entries}Q", block, _HEADER)
    at = _HEADER + 8 * most
    if size == 8:
        values = unpack_from(f"<{entries}Q", block, at)
    else:
        values = tuple(unpack_from("<Q", block, at + size * n)[0] for n in range(entries))
    return Node(keys, values, leaf=flags == _LEAF)


class Superblock:
    __slots__ = ("details", "mappings", "raw", "transaction")

    def __init__(self, raw: bytes) -> None:
        magic, version = unpack_from("<QI", raw, 32)
        if magic != _MAGIC or version not in (1, 2):
            raise Damaged("the metadata of the pool has no superblock")
        self.raw = raw
        self.transaction = int(unpack_from("<Q", raw, 48)[0])
        self.mappings, self.details = unpack_from("<QQ", raw, 320)


class Metadata:
    """An open metadata device (or a copy of one in a file)."""

    def __init__(self, path: str) -> None:
        try:
            # The kernel writes beside the page cache.
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != 22:  # EINVAL: a file on a file system that cannot
                raise
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._buffer = mmap.mmap(-1, BLOCK)  # aligned, as O_DIRECT wants it

    def __enter__(self) -> Metadata:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        self._buffer.close()

    def block(self, number: int) -> bytes:
        if os.preadv(self._fd, [self._buffer], number * BLOCK) != BLOCK:
            raise Damaged(f"the pool's metadata has no block {number}")
        return self._buffer[:]

    def consistent(self, read: Callable[[Superblock], T]) -> T:
        """What read() makes of one state of the pool. Raises Damaged."""
        for _ in range(_TIMES):
            before = self.block(0)
            try:
                found = read(Superblock(before))
            except Damaged:
                if self.block(0) == before:
                    raise
                continue
            if self.block(0) == before:
                return found
        raise Damaged("the pool's metadata changes faster than it can be read", remedy="try again")

    def devices(self) -> dict[int, int]:
        """Thin id → blocks mapped."""
        return self.consistent(lambda superblock: dict(self._entries(superblock.details)))

    def difference(self, old: int | None, new: int) -> list[tuple[int, int]]:
        """Ranges (first, count) of virtual blocks of `new` that `old` lacks or has elsewhere, and of those that only
        `old` has. old None: all of new. Raises Damaged if one is not there."""

        def read(superblock: Superblock) -> list[tuple[int, int]]:
            roots = self._roots(superblock)
            missing = next((thin for thin in (old, new) if thin is not None and thin not in roots), None)
            if missing is not None:
                raise Damaged(f"the pool has no thin device {missing}")
            if old is None:
                return _ranges(block for block, _ in self._entries(roots[new]))
            return _ranges(self._changed(roots[old], roots[new]))

        return self.consistent(read)

    def _roots(self, superblock: Superblock) -> dict[int, int]:
        return dict(self._entries(superblock.mappings))

    def _entries(self, root: int) -> Iterator[tuple[int, int]]:
        node = parse_node(self.block(root), root)
        for key, value in zip(node.keys, node.values, strict=True):
            if node.leaf:
                yield key, value
            else:
                yield from self._entries(value)

    def _changed(self, old: int, new: int) -> Iterator[int]:
        """Blocks at which two trees differ. Subtrees that both have are not read."""
        mine, theirs = self._leaves(new, self._blocks(old)), self._leaves(old, self._blocks(new))
        # A value is data block << 24 | time of its mapping; the time is no difference.
        here, there = {k: v >> 24 for k, v in mine}, {k: v >> 24 for k, v in theirs}
        yield from sorted(k for k in here.keys() | there.keys() if here.get(k) != there.get(k))

    def _blocks(self, root: int) -> set[int]:
        """The blocks of a tree above its leaves, and the leaves' numbers."""
        found = {root}
        node = parse_node(self.block(root), root)
        if not node.leaf:
            found.update(node.values)
            below = parse_node(self.block(node.values[0]), node.values[0]) if node.values else None
            if below is not None and not below.leaf:
                for child in node.values:
                    found |= self._blocks(child)
        return found

    def _leaves(self, root: int, shared: set[int]) -> Iterator[tuple[int, int]]:
        if root in shared:
            return
        node = parse_node(self.block(root), root)
        for key, value in zip(node.keys, node.values, strict=True):
            if node.leaf:
                yield key, value
            else:
                yield from self._leaves(value, shared)


def _ranges(blocks: Iterator[int]) -> list[tuple[int, int]]:
    """Numbers in ascending order, as (first, count)."""
    found: list[tuple[int, int]] = []
    for block in blocks:
        if found and sum(found[-1]) == block:
            found[-1] = found[-1][0], found[-1][1] + 1
        else:
            found.append((block, 1))
    return found
