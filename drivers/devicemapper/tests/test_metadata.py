"""Metadata of a pool, as thin_restore(8) wrote them (data/metadata.gz); a guest compares with those of a live pool.

id 0         blocks 0-3 and 100
id 1         as 0, but 3 is its own, and 101
id 2         a snapshot of 1 that nobody has written to
id 1048577   blocks 0-599
id 1048578   as that, but 300 is its own, and 40000
"""

import gzip
from pathlib import Path

import pytest

from cowshed.storage.errors import Damaged
from cowshed_driver_devicemapper import metadata as reading
from cowshed_driver_devicemapper.metadata import BLOCK, Metadata, parse_node

FIRST, SECOND = 1048577, 1048578


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "metadata"
    path.write_bytes(gzip.decompress((Path(__file__).parent / "data" / "metadata.gz").read_bytes()))
    return path


def test_devices_and_their_mapped_blocks(image):
    with Metadata(str(image)) as metadata:
        assert metadata.devices() == {0: 5, 1: 6, 2: 6, FIRST: 600, SECOND: 601}
        assert metadata.consistent(lambda superblock: superblock.transaction) == 7


@pytest.mark.parametrize(
    ("old", "new", "ranges"),
    [
        (0, 1, [(3, 1), (101, 1)]),
        (1, 0, [(3, 1), (101, 1)]),
        (1, 2, []),
        (2, 2, []),
        (FIRST, SECOND, [(300, 1), (40000, 1)]),
        (SECOND, FIRST, [(300, 1), (40000, 1)]),
        (0, FIRST, [(0, 600)]),
        (None, 1, [(0, 4), (100, 2)]),
    ],
)
def test_where_devices_differ_as_thin_delta_tells_it(image, old, new, ranges):
    with Metadata(str(image)) as metadata:
        assert metadata.difference(old, new) == ranges


def test_a_device_that_is_not_there_is_damage(image):
    with Metadata(str(image)) as metadata, pytest.raises(Damaged, match="no thin device 77"):
        metadata.difference(0, 77)


@pytest.mark.parametrize("damage", [b"", b"\0" * BLOCK, b"\xff" * BLOCK])
def test_what_is_no_superblock_is_damage(tmp_path, damage):
    (tmp_path / "metadata").write_bytes(damage)
    with Metadata(str(tmp_path / "metadata")) as metadata, pytest.raises(Damaged):
        metadata.devices()


def test_every_block_may_be_damaged(image):
    """Typed errors, or the right answer where the block is of something else (space maps)."""
    good = image.read_bytes()
    for number in range(1, len(good) // BLOCK):
        for bad in (b"\0" * BLOCK, b"\xff" * BLOCK, good[:BLOCK]):
            image.write_bytes(good[: number * BLOCK] + bad + good[(number + 1) * BLOCK :])
            with Metadata(str(image)) as metadata:
                try:
                    found = metadata.devices(), metadata.difference(FIRST, SECOND)
                except Damaged:
                    continue
                assert found == ({0: 5, 1: 6, 2: 6, FIRST: 600, SECOND: 601}, [(300, 1), (40000, 1)])


def test_a_node_of_another_place_is_no_node(image):
    block = image.read_bytes()[BLOCK : 2 * BLOCK]
    with pytest.raises(Damaged):
        parse_node(block, 2)


def test_metadata_that_change_meanwhile_are_read_again(image):
    good = image.read_bytes()
    changed = bytearray(good)
    changed[48] = 8  # another transaction
    seen = []

    def read(superblock):
        seen.append(superblock.transaction)
        if len(seen) == 1:
            image.write_bytes(bytes(changed))  # a commit
        return superblock.transaction

    with Metadata(str(image)) as metadata:
        assert metadata.consistent(read) == 8
    assert seen == [7, 8]


def test_metadata_that_never_stand_still_are_told(image, monkeypatch):
    monkeypatch.setattr(reading, "_TIMES", 3)
    good = image.read_bytes()

    def read(superblock):
        changed = bytearray(good)
        changed[48] = superblock.transaction + 1
        image.write_bytes(bytes(changed))

    with Metadata(str(image)) as metadata, pytest.raises(Damaged, match="faster than it can be read"):
        metadata.consistent(read)
