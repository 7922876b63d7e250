"""From compressed bytes to a verified tree: members, frames, damage, bombs, diff ids, errors of the source."""

import gzip
import hashlib
import os
import threading
import time

import pytest
from backports import zstd
from cowshed_testing.images import LayerTar

from cowshed.errors import ImageError, RegistryError, Tampered
from cowshed.layers.unpack import decompress, unpack

DATA = os.urandom(300_000) + b"x" * 300_000


def cut(data, size=7000):
    return [data[i : i + size] for i in range(0, len(data), size)]


def plain(data):
    return b"".join(decompress(cut(data)))


def skippable(body):
    return b"\x50\x2a\x4d\x18" + len(body).to_bytes(4, "little") + body


@pytest.mark.parametrize(
    "packed",
    [
        DATA,
        gzip.compress(DATA),
        gzip.compress(DATA[:1000]) + gzip.compress(b"") + gzip.compress(DATA[1000:]),
        gzip.compress(DATA) + bytes(700),
        zstd.compress(DATA),
        zstd.compress(DATA[:1000]) + skippable(b"about") + zstd.compress(DATA[1000:]),
        skippable(b"first") + zstd.compress(DATA) + skippable(b"last"),
    ],
    ids=["plain", "gzip", "gzip members", "gzip padded", "zstd", "zstd frames", "zstd skippable"],
)
@pytest.mark.parametrize("size", [1, 7000, 1 << 20])
def test_every_form(packed, size):
    pieces = [bytes([b]) for b in packed[:3000]] + [packed[3000:]] if size == 1 else cut(packed, size)
    assert b"".join(decompress(pieces)) == DATA


@pytest.mark.parametrize(
    ("packed", "match"),
    [
        (gzip.compress(DATA)[:-1], "cut short"),
        (gzip.compress(DATA)[:100], "cut short"),
        (gzip.compress(DATA)[:-8] + bytes(8), "damaged"),
        (gzip.compress(DATA)[:5000] + b"zzzz" + gzip.compress(DATA)[5004:], "damaged|cut short"),
        (gzip.compress(DATA) + b"garbage", "behind its gzip data"),
        (gzip.compress(DATA) + b"\x1f\x8bgarbage", "damaged|cut short"),
        (zstd.compress(DATA)[:-1], "cut short"),
        (zstd.compress(DATA) + zstd.compress(DATA)[:50], "cut short"),
        (zstd.compress(DATA) + b"garbage", "damaged"),
        (zstd.compress(DATA)[:3000] + b"zzzz" + zstd.compress(DATA)[3004:] + b"\xff", "damaged|cut short"),
    ],
)
def test_damage_is_never_silent(packed, match):
    with pytest.raises(ImageError, match=match):
        plain(packed)


@pytest.mark.parametrize("behind", [b"garbage", b"\0" * 700 + b"garbage", b"g" * 100_000])
@pytest.mark.parametrize("size", [1000, 7000, 1 << 20])
def test_what_lies_behind_gzip_is_left_out_if_that_is_wanted(behind, size):
    packed = gzip.compress(DATA[:1000]) + gzip.compress(DATA[1000:])
    given = iter(cut(packed + behind, size))
    assert b"".join(decompress(given, trailing=True)) == DATA
    assert next(given, None) is None  # it is read to its end, where its digest is known
    for damaged in (packed[:-1], packed[:-8] + bytes(8), packed + b"\x1f\x8bgarbage"):
        with pytest.raises(ImageError, match=r"damaged|cut short"):
            b"".join(decompress(cut(damaged), trailing=True))


def test_a_zstd_window_that_would_take_all_memory():
    """A frame header may claim a window of 3 TB; 128 MiB is what the command line tool takes."""
    header = b"\x28\xb5\x2f\xfd" + bytes([0x00, 0xF8]) + b"\x01\x00\x00"
    with pytest.raises(ImageError, match="damaged"):
        plain(header)


def test_a_bomb_is_met_piece_by_piece(tmp_path):
    """CVE-2017-14992 and its kin: 2 GB of zeros in 2 MB are refused at the limit, with little memory."""
    member = gzip.compress(bytes(64 << 20), 9)
    (tmp_path / "root").mkdir()
    fd = os.open(tmp_path / "root", os.O_RDONLY | os.O_DIRECTORY)
    started = time.process_time()
    largest = 0

    def chunks():
        for _ in range(64):
            yield member

    for piece in decompress([member]):
        largest = max(largest, len(piece))
    assert largest <= 1 << 20
    head = LayerTar().file("bomb", b"").bytes()[:512]
    size = bytearray(head)
    size[124:136] = b"%011o\0" % (4 << 30)
    size[148:156] = b"%06o\0 " % (sum(size) - sum(size[148:156]) + 256)
    try:
        with pytest.raises(ImageError, match="more than is allowed"):
            unpack([gzip.compress(bytes(size)), *chunks()], fd, diff_id="sha256:" + "0" * 64, limit=1 << 30)
    finally:
        os.close(fd)
    assert not (tmp_path / "root/bomb").exists()
    assert time.process_time() - started < 20


@pytest.fixture
def target(tmp_path):
    (tmp_path / "root").mkdir()
    fd = os.open(tmp_path / "root", os.O_RDONLY | os.O_DIRECTORY)
    threads = threading.active_count()
    yield fd
    os.close(fd)
    assert threading.active_count() == threads, "a thread is left"


def test_the_diff_id_is_that_of_all_bytes(target, tmp_path):
    tar = LayerTar().file("f", DATA).bytes() + bytes(5000)
    diff = "sha256:" + hashlib.sha256(tar).hexdigest()
    assert unpack(cut(gzip.compress(tar)), target, diff_id=diff) == len(tar)
    assert (tmp_path / "root/f").read_bytes() == DATA
    assert unpack(cut(tar), target, diff_id="sha512:" + hashlib.sha512(tar).hexdigest()) == len(tar)
    with pytest.raises(Tampered, match="unpacks to sha256:"):
        unpack(cut(gzip.compress(tar + b"\0")), target, diff_id=diff)
    with pytest.raises(Tampered, match="unpacks to"):
        unpack(cut(gzip.compress(LayerTar().file("f", DATA[:-1] + b"y").bytes())), target, diff_id=diff)


def test_an_error_of_the_source_comes_out(target):
    def broken():
        yield gzip.compress(LayerTar().file("f", DATA).bytes())[:1000]
        raise RegistryError("the download broke")

    with pytest.raises(RegistryError, match="broke"):
        unpack(broken(), target, diff_id="sha256:" + "0" * 64)


def test_a_failure_does_not_wait_for_a_source_that_stalls(target):
    """The archive is refused at its first block; the thread that waits for more is told to give up."""
    gone = threading.Event()

    def stalled():
        yield b"\x01" * 600
        assert gone.wait(30)
        raise RegistryError("cancelled")

    with pytest.raises(ImageError, match="number that is none"):
        unpack(stalled(), target, diff_id="sha256:" + "0" * 64, cancel=gone.set)
    assert gone.is_set()
