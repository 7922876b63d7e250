"""The stream of `btrfs send --no-data`, taken apart and replayed: recorded bytes (Linux 6.18) and hostile ones."""

import random
import struct
from pathlib import Path

import pytest

from cowshed_driver_btrfs.sendstream import (
    CHMOD,
    END,
    LINK,
    MAGIC,
    MKDIR,
    MKFILE,
    PATH,
    PATH_LINK,
    PATH_TO,
    RENAME,
    RMDIR,
    SNAPSHOT,
    UNLINK,
    UPDATE_EXTENT,
    UTIMES,
    BadStream,
    Replay,
    commands,
)

# d and e swapped with e/sub emptied and removed, swap1 and swap2 swapped, gone replaced by a directory, one of two
# names written and a third made, an attribute of mode changed, and a link, a fifo and a device made.
RECORDED = (Path(__file__).parent / "recorded/swapped.stream").read_bytes()


def stream(*steps, end=True):
    """Bytes of a stream: each step a command and its attributes."""
    out = MAGIC + struct.pack("<I", 1)
    for command, words in (*steps, *([(END, {})] if end else [])):
        body = b"".join(struct.pack("<HH", kind, len(value)) + value for kind, value in words.items())
        out += struct.pack("<IHI", len(body), command, 0) + body
    return out


def replay(*steps):
    done = Replay().run(stream(*steps))
    return done.old, done.new


def test_a_recorded_stream_is_taken_apart():
    found = list(commands(RECORDED))
    assert len(found) == 49
    assert found[0] == (SNAPSHOT, found[0][1])
    assert found[0][1][PATH] == b"b.ro"
    assert found[1] == (RENAME, {PATH: b"root/e", PATH_TO: b"o262-7-0"})
    assert found[-1] == (END, {})


def test_a_recorded_stream_concerns_what_was_done():
    done = Replay().run(RECORDED)
    assert done.old == {
        b"root/e": True, b"root/d": True, b"root/d/sub": True, b"root/d/sub/deep": False, b"root/swap2": True,
        b"root/swap1": False, b"root/gone": False, b"root/linked": False, b"root/mode": False, b"root": False,
    }  # fmt: skip
    assert done.new == {
        b"root/d": True, b"root/e": True, b"root/swap1": True, b"root/swap2": False, b"root/linked": False,
        b"root/third": False, b"root/mode": False, b"root/gone": True, b"root/gone/new": True, b"root/link": True,
        b"root/fifo": True, b"root/null": True, b"root": False,
    }  # fmt: skip


def test_a_stream_that_is_cut_off_anywhere_is_told():
    for size in range(len(RECORDED) - 1):
        with pytest.raises(BadStream):
            Replay().run(RECORDED[:size])


def test_damaged_bytes_are_told_or_harmless():
    chance = random.Random(7)
    told = 0
    for _ in range(3000):
        bytes_ = bytearray(RECORDED)
        for _ in range(chance.choice((1, 1, 3, 20))):
            bytes_[chance.randrange(len(bytes_))] = chance.randrange(256)
        try:
            done = Replay().run(bytes(bytes_))
            assert all(isinstance(path, bytes) for path in {*done.old, *done.new})
        except BadStream:
            told += 1
    assert told > 1000


@pytest.mark.parametrize(
    ("bytes_", "why"),
    [
        (b"", "no btrfs stream"),
        (b"x" * 100, "no btrfs stream"),
        (MAGIC, "cut off"),
        (MAGIC + struct.pack("<I", 3) + b"x" * 50, "version 3"),
        (stream((99, {PATH: b"a"})), "command 99 is unknown"),
        (stream((CHMOD, {})), "lacks attribute 15"),
        (stream((RENAME, {PATH: b"a"})), "lacks attribute 16"),
        (stream((CHMOD, {PATH: b"a//b"})), "was never made"),
        (stream((MKFILE, {PATH: b"a"}), (CHMOD, {PATH: b"a/b"})), "was never made"),
        (stream((UNLINK, {PATH: b"a"}), (CHMOD, {PATH: b"a"})), "was taken away before"),
        (stream((CHMOD, {PATH: b"a"}), (MKFILE, {PATH: b"a"})), "is there already"),
        (stream((MKFILE, {PATH: b""})), "is there already"),
        (stream((UNLINK, {PATH: b""})), "the top cannot go"),
        (stream((RENAME, {PATH: b"a", PATH_TO: b"a/b"})), "was taken away before"),
        (stream((CHMOD, {PATH: b"a"}), end=False), "cut off"),
    ],
)
def test_what_contradicts_itself_is_refused(bytes_, why):
    with pytest.raises(BadStream, match=why):
        Replay().run(bytes_)


def test_a_length_that_goes_beyond_its_command_is_refused():
    bytes_ = MAGIC + struct.pack("<I", 1) + struct.pack("<IHI", 6, CHMOD, 0) + struct.pack("<HH", PATH, 9) + b"ab"
    with pytest.raises(BadStream, match="attribute 15 is cut off"):
        list(commands(bytes_ + stream()[len(MAGIC) + 4 :]))


def test_what_is_made_goes_by_a_temporary_name_first():
    old, new = replay(
        (MKFILE, {PATH: b"o7-1-0"}), (RENAME, {PATH: b"o7-1-0", PATH_TO: b"d/new"}), (UTIMES, {PATH: b"d"})
    )
    assert old == {b"d": False}
    assert new == {b"d/new": True, b"d": False}


def test_what_lies_in_a_directory_that_moves_goes_with_it():
    old, new = replay(
        (UPDATE_EXTENT, {PATH: b"a/file"}), (RENAME, {PATH: b"a", PATH_TO: b"b"}), (CHMOD, {PATH: b"b/other"}),
    )  # fmt: skip
    assert old == {b"a/file": False, b"a": True, b"a/other": False}
    assert new == {b"b/file": False, b"b": True, b"b/other": False}


def test_an_orphan_is_known_by_the_path_that_it_had():
    old, new = replay(
        (RENAME, {PATH: b"d", PATH_TO: b"o300-5-0"}), (UNLINK, {PATH: b"o300-5-0/in"}), (MKDIR, {PATH: b"o400-9-0"}),
        (RENAME, {PATH: b"o400-9-0", PATH_TO: b"d"}), (RMDIR, {PATH: b"o300-5-0"}),
    )  # fmt: skip
    assert old == {b"d": True, b"d/in": False}
    assert new == {b"d": True}


def test_an_inode_number_that_is_used_again_is_another_file():
    old, new = replay(
        (UNLINK, {PATH: b"a"}), (MKFILE, {PATH: b"o257-9-0"}), (RENAME, {PATH: b"o257-9-0", PATH_TO: b"a"}),
        (LINK, {PATH: b"b", PATH_LINK: b"a"}),
    )  # fmt: skip
    assert old == {b"a": False}
    assert new == {b"a": True, b"b": False}
