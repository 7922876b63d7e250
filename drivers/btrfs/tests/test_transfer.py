"""Layers as streams: sent by the kernel and received here, and what hostile streams come to."""

import io
import os
import random
import struct

import pytest

from cowshed.storage import api
from cowshed.storage.errors import Damaged, LayerId, Unsupported
from cowshed_conformance import randoms, tree
from cowshed_driver_btrfs import ioctls, subvolumes
from cowshed_driver_btrfs import sendstream as s
from cowshed_driver_btrfs.sendstream import BadStream
from cowshed_driver_btrfs.transfer import Receiver

FORMAT = "btrfs-send"
UUID = b"u" * 16


def checksum(data):
    """CRC-32C bit by bit: what the tables are held against."""
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


def command(number, words):
    body = b"".join(struct.pack("<HH", kind, len(value)) + value for kind, value in words.items())
    head = struct.pack("<IHI", len(body), number, 0)
    return head[:6] + struct.pack("<I", checksum(head + body)) + body


def stream(*steps):
    first = s.SUBVOL, {s.PATH: b"x", s.UUID: UUID, s.CTRANSID: n64(7)}
    return s.MAGIC + struct.pack("<I", 1) + b"".join(command(*step) for step in (first, *steps, (s.END, {})))


def n64(value):
    return struct.pack("<Q", value)


def receive(folder, data):
    receiver = Receiver(io.BytesIO(data))
    receiver.header()
    top = ioctls.directory(folder)
    try:
        receiver.into(top, lambda: None)
    finally:
        os.close(top)


def looked(store, layer):
    with store.mounted(layer) as mounted:
        return tree.read(mounted.path)


def sent(store, layer, base=None):
    out = io.BytesIO()
    store.driver.send(layer, base, FORMAT, out)
    return out.getvalue()


def taken(store, layer, base, data):
    new = api.Layer(layer.id, layer.number, api.Kind.COMMITTED, base)
    store.driver.receive(new, base, FORMAT, io.BytesIO(data), api.Durability.COMMIT)
    return new


@pytest.mark.parametrize("seed", range(3))
def test_random_layers_are_the_same_after_the_way(make, seed):
    chance = random.Random(seed)
    here, there = make("here"), make("there")
    parent = twin = None
    for _ in range(8):
        layer = here.new(parent)
        with here.mounted(layer) as mounted:
            randoms.change(mounted.path, chance, 30)
            with open(f"{mounted.path}/big", "ab") as big:  # more than one command, and a copy that is a clone
                big.write(chance.randbytes(200_000))
                big.flush()
                with open(f"{mounted.path}/big", "rb") as source, open(f"{mounted.path}/clone", "wb") as clone:
                    os.copy_file_range(source.fileno(), clone.fileno(), 131072)
        layer = here.commit(layer)
        twin = taken(there, layer, twin, sent(here, layer, parent))
        tree.same(looked(here, layer), looked(there, twin), f"seed {seed}, layer {layer.number}")
        assert subvolumes.read_only(there.path(twin))
        parent = layer


def test_a_stream_that_continues_another_layer_is_refused(make):
    here, there = make("here"), make("there")
    base = here.commit(here.new())
    top = here.commit(here.new(base))
    data = sent(here, top, base)
    other = there.commit(there.new())
    for below in (other, None):
        with pytest.raises(Unsupported, match="does not continue"):
            taken(there, top, below, data)
    with pytest.raises(Unsupported, match="does not continue"):
        taken(there, top, other, sent(here, base))
    assert [found.layer for found in there.driver.scan()] == [other.id]


def test_what_is_no_committed_layer_is_not_sent(make):
    store = make()
    active = store.new()
    for layer, base, fmt in ((active, None, FORMAT), (store.commit(active), active, FORMAT)):
        with pytest.raises(Unsupported):
            store.driver.send(layer, base, fmt, io.BytesIO())
    with pytest.raises(Unsupported, match="format tar"):
        store.driver.send(store.committed(active), None, "tar", io.BytesIO())


def test_an_output_that_fails_is_told(make):
    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(28, "no room there")

    store = make()
    layer = store.new()
    with store.mounted(layer) as mounted, open(f"{mounted.path}/a", "wb") as file:
        file.write(os.urandom(1 << 20))
    with pytest.raises(OSError, match="no room there"):
        store.driver.send(store.commit(layer), None, FORMAT, Full())


def test_bytes_that_changed_on_the_way_make_no_layer(make):
    store, chance = make(), random.Random(3)
    layer = store.new()
    with store.mounted(layer) as mounted, open(f"{mounted.path}/a", "wb") as file:
        file.write(b"content" * 100)
    data = sent(store, store.commit(layer))
    wrong = api.Layer(LayerId("b" * 32), 99, api.Kind.COMMITTED, None)
    for _ in range(12):
        place = chance.randrange(len(data) - 10)
        damaged = bytearray(data)
        damaged[place] ^= 1 << chance.randrange(8)
        for hostile in (bytes(damaged), data[:place]):
            with pytest.raises(Damaged):
                store.driver.receive(wrong, None, FORMAT, io.BytesIO(hostile), api.Durability.NONE)
    assert [found.layer for found in store.driver.scan()] == [layer.id]


@pytest.fixture
def outside(tmp_path):
    """A file that nothing may reach, and a directory to receive into."""
    (tmp_path / "secret").write_text("secret")
    os.chmod(tmp_path / "secret", 0o600)
    (tmp_path / "top").mkdir()
    yield str(tmp_path / "top")
    assert (tmp_path / "secret").read_text() == "secret"
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path)) == ["secret", "top"]


WRITE = {s.FILE_OFFSET: n64(0), s.DATA: b"evil"}
HOSTILE = {
    "up": [(s.MKFILE, {s.PATH: b"../evil"})],
    "dots": [(s.MKDIR, {s.PATH: b".."})],
    "absolute": [(s.MKFILE, {s.PATH: b"/tmp/evil"})],
    "empty": [(s.UNLINK, {s.PATH: b""})],
    "nul": [(s.MKFILE, {s.PATH: b"a\0b"})],
    "attribute of no name": [(s.SET_XATTR, {s.PATH: b"", s.XATTR_NAME: b"user.\0", s.XATTR_DATA: b""})],
    "through a link": [(s.SYMLINK, {s.PATH: b"l", s.PATH_LINK: b".."}), (s.MKFILE, {s.PATH: b"l/evil"})],
    "write to a link": [(s.SYMLINK, {s.PATH: b"l", s.PATH_LINK: b"../secret"}), (s.WRITE, {s.PATH: b"l", **WRITE})],
    "mode of a link": [
        (s.SYMLINK, {s.PATH: b"l", s.PATH_LINK: b"../secret"}), (s.CHMOD, {s.PATH: b"l", s.MODE: n64(0o777)})
    ],
    "shorten a link": [
        (s.SYMLINK, {s.PATH: b"l", s.PATH_LINK: b"../secret"}), (s.TRUNCATE, {s.PATH: b"l", s.SIZE: n64(0)})
    ],
    "hard link out": [(s.LINK, {s.PATH: b"evil", s.PATH_LINK: b"../secret"})],
    "rename out": [(s.MKFILE, {s.PATH: b"a"}), (s.RENAME, {s.PATH: b"a", s.PATH_TO: b"../evil"})],
    "write to a fifo": [
        (s.MKFIFO, {s.PATH: b"f", s.RDEV: n64(0), s.MODE: n64(0o10644)}), (s.WRITE, {s.PATH: b"f", **WRITE})
    ],
    "huge size": [(s.MKFILE, {s.PATH: b"a"}), (s.TRUNCATE, {s.PATH: b"a", s.SIZE: n64(2**64 - 1)})],
    "huge offset": [(s.MKFILE, {s.PATH: b"a"}), (s.WRITE, {s.PATH: b"a", s.FILE_OFFSET: n64(2**63), s.DATA: b"x"})],
    "huge owner": [(s.MKFILE, {s.PATH: b"a"}), (s.CHOWN, {s.PATH: b"a", s.UID: n64(2**40), s.GID: n64(0)})],
    "short number": [(s.MKFILE, {s.PATH: b"a"}), (s.TRUNCATE, {s.PATH: b"a", s.SIZE: b"1"})],
    "data of others": [
        (s.MKFILE, {s.PATH: b"a"}),
        (s.CLONE, {s.PATH: b"a", s.FILE_OFFSET: n64(0), s.CLONE_LEN: n64(1), s.CLONE_UUID: b"o" * 16,
                   s.CLONE_CTRANSID: n64(7), s.CLONE_PATH: b"a", s.CLONE_OFFSET: n64(0)}),
    ],
    "data beyond the end": [
        (s.MKFILE, {s.PATH: b"a"}), (s.MKFILE, {s.PATH: b"b"}),
        (s.CLONE, {s.PATH: b"a", s.FILE_OFFSET: n64(0), s.CLONE_LEN: n64(2**62), s.CLONE_UUID: UUID,
                   s.CLONE_CTRANSID: n64(7), s.CLONE_PATH: b"b", s.CLONE_OFFSET: n64(0)}),
    ],
    "without data": [(s.MKFILE, {s.PATH: b"a"}), (s.UPDATE_EXTENT, {s.PATH: b"a"})],
    "unknown": [(77, {s.PATH: b"a"})],
    "lacking": [(s.SYMLINK, {s.PATH: b"a"})],
}  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_stream_stays_inside(outside, name):
    with pytest.raises((BadStream, OSError)) as raised:
        receive(outside, stream(*HOSTILE[name]))
    assert "\n" not in str(raised.value)


def test_a_length_without_bounds_is_refused(outside):
    data = stream()[: len(s.MAGIC) + 4] + struct.pack("<IHI", 1 << 31, s.SUBVOL, 0)
    with pytest.raises(BadStream, match="has 2147483648 bytes"):
        receive(outside, data)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "cut off"),
        (b"x" * 100, "no btrfs stream"),
        (s.MAGIC + struct.pack("<I", 2), "version 2"),
        (s.MAGIC + struct.pack("<I", 1) + command(s.MKFILE, {s.PATH: b"a"}), "does not begin with a subvolume"),
        (s.MAGIC + struct.pack("<I", 1) + command(s.SUBVOL, {s.UUID: b"short"}), "attribute 1 has 5 bytes"),
    ],
)
def test_what_is_no_stream_is_told(outside, data, why):
    with pytest.raises(BadStream, match=why):
        receive(outside, data)
