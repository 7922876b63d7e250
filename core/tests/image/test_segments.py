"""A large blob in parts: several connections, broken ones, killed processes, sources that cannot do it."""

import hashlib
import os
import random
import threading
import time

import pytest

from cowshed.errors import RegistryError, Tampered
from cowshed.image import blobs as blobs_of
from cowshed.image import incoming, segments
from cowshed.image.blobs import BlobStore
from cowshed.image.manifest import Descriptor
from cowshed.image.segments import Segments

DATA = os.urandom(1 << 20)
PART = 100_000


@pytest.fixture
def blobs(tmp_path):
    for name in ("sha256", "sha512", "partial"):
        os.makedirs(tmp_path / "blobs" / name)
    return BlobStore(str(tmp_path))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Everything is large, every connection slow, and every byte worth to be kept."""
    monkeypatch.setattr(segments, "SIZE", PART)
    monkeypatch.setattr(incoming, "LARGE", 1)
    monkeypatch.setattr(incoming, "_SLOW", 0.01)
    for module in (incoming, blobs_of):
        monkeypatch.setattr(module, "WORTH", 1)


def named(data=DATA):
    return Descriptor("sha256:" + hashlib.sha256(data).hexdigest(), len(data), "")


class Source:
    """What fetches write down; `fail` is asked before each piece."""

    def __init__(self, data=DATA, *, fail=lambda at: None, divisible=lambda at: True, pause=0.0):
        self.data, self.fail, self.divisible, self.pause = data, fail, divisible, pause
        self.asked, self.sent, self.threads = [], [], set()
        self.whole = []
        self._guard = threading.Lock()

    def part(self, at, until):
        with self._guard:
            self.asked.append((at, until))
            self.threads.add(threading.get_ident())
        if not self.divisible(at):
            return False, self._pieces(0, len(self.data)) if at == 0 else iter(())
        return True, self._pieces(at, until)

    def fetch(self, at):
        self.whole.append(at)
        return self._pieces(at, len(self.data))

    def _pieces(self, at, until):
        while at < until:
            self.fail(at)
            time.sleep(self.pause)
            piece = self.data[at : min(at + 10_000, until)]
            with self._guard:
                self.sent.append((at, at + len(piece)))
            at += len(piece)
            yield piece

    def received(self):
        return sum(end - start for start, end in self.sent)


def bring(blobs, source, blob=None):
    it = blobs.receive(blob or named(), source.fetch, source.part, threading.Semaphore(3))
    told = []
    it.run(told.append)
    try:
        it.wait()
        return b"".join(it.chunks()), told, it
    finally:
        it.close()


def partials(blobs):
    return os.listdir(os.path.dirname(os.path.dirname(blobs.path("sha256:" + "0" * 64))) + "/partial")


def test_several_connections_bring_it(blobs):
    source = Source(pause=0.002)
    data, told, _ = bring(blobs, source)
    assert data == DATA
    assert b"".join(blobs.read(named().digest)) == DATA
    assert sorted(source.asked) == [(n, min(n + PART, len(DATA))) for n in range(0, len(DATA), PART)]
    assert source.received() == len(DATA)
    assert len(source.threads) > 2
    assert max(told) == len(DATA)
    assert partials(blobs) == []


def test_no_more_connections_than_are_free(blobs):
    source = Source(pause=0.002)
    it = blobs.receive(named(), source.fetch, source.part, threading.Semaphore(0))
    it.run()
    it.wait()
    it.close()
    assert len(source.threads - {threading.get_ident()}) == 1


def test_connections_are_given_back(blobs):
    spare = threading.Semaphore(3)
    source = Source(pause=0.002)
    it = blobs.receive(named(), source.fetch, source.part, spare)
    it.run()
    it.close()
    assert all(spare.acquire(blocking=False) for _ in range(3))
    assert not spare.acquire(blocking=False)


@pytest.mark.parametrize("seed", range(5))
def test_what_has_come_is_never_fetched_again(blobs, seed):
    """It breaks again and again, each time somewhere else, with parts in every state."""
    chance = random.Random(seed)
    together = 0
    for _ in range(200):

        def fail(at):
            if chance.random() < 0.05:
                raise RegistryError("broke")

        source = Source(fail=fail, pause=0.0005)
        try:
            data, _, it = bring(blobs, source)
        except RegistryError:
            together += source.received()
            continue
        together += source.received()
        break
    assert data == DATA
    assert it.resumed > 0
    assert together == len(DATA)
    assert partials(blobs) == []


def test_a_killed_process_leaves_what_it_has_counted(blobs, tmp_path):
    """What stands behind the blob's bytes tells what is there, whenever the process ended."""
    path = tmp_path / "blobs/partial" / os.path.basename(blobs._partial(named().digest))
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    state = Segments(fd, len(DATA))
    state.begin()
    for n in (0, 1, 4):
        taken, start, end = next(t for t in iter(state.take, None) if t[0] == n)
        os.pwrite(fd, DATA[start : end - 7], start)
        state.came(taken, end - 7 - start)
    os.close(fd)
    source = Source()
    data, told, it = bring(blobs, source)
    assert data == DATA
    assert it.resumed == told[0] == 3 * (PART - 7)
    assert (PART - 7, PART) in source.asked
    assert (5 * PART - 7, 5 * PART) in source.asked
    assert source.received() == len(DATA) - it.resumed


def test_what_was_left_by_one_connection_goes_on_in_parts(blobs, tmp_path):
    path = tmp_path / "blobs/partial" / os.path.basename(blobs._partial(named().digest))
    path.write_bytes(DATA[:123_456])
    source = Source()
    assert bring(blobs, source)[0] == DATA
    assert min(source.asked) == (123_456, 223_456)
    assert source.received() == len(DATA) - 123_456


@pytest.mark.parametrize("junk", [b"x", b"cowparts", b"cowparts" + b"\xff" * 16, os.urandom(200)])
def test_junk_behind_the_bytes(blobs, tmp_path, junk):
    path = tmp_path / "blobs/partial" / os.path.basename(blobs._partial(named().digest))
    path.write_bytes(b"\0" * len(DATA) + junk)
    source = Source()
    assert bring(blobs, source)[0] == DATA
    assert source.received() == len(DATA)


def test_counts_that_are_too_high_are_found_out(blobs, tmp_path):
    """Whatever stands there, the digest decides; the next attempt begins anew."""
    path = tmp_path / "blobs/partial" / os.path.basename(blobs._partial(named().digest))
    with open(path, "wb+") as file:
        state = Segments(file.fileno(), len(DATA))
        state.begin()
        state.came(0, 1 << 31)
    with pytest.raises(Tampered):
        bring(blobs, Source())
    assert partials(blobs) == []
    assert bring(blobs, Source())[0] == DATA


@pytest.mark.parametrize("kept", [0, 123_456])
def test_a_source_that_sends_no_parts(blobs, tmp_path, kept):
    path = tmp_path / "blobs/partial" / os.path.basename(blobs._partial(named().digest))
    if kept:
        path.write_bytes(DATA[:kept])
    source = Source(divisible=lambda at: False)
    assert bring(blobs, source)[0] == DATA
    assert len(source.asked) == 1
    assert source.whole == ([kept] if kept else [])


def test_a_source_that_no_longer_sends_parts(blobs):
    """As when a mirror that could goes away: it comes in order then."""
    source = Source(divisible=lambda at: at < 3 * PART)
    assert bring(blobs, source)[0] == DATA
    assert source.whole


@pytest.mark.parametrize("wrong", [DATA[:-1] + b"\0", DATA[:500_000] + b"\0" + DATA[500_001:]])
def test_other_bytes(blobs, wrong):
    with pytest.raises(Tampered, match="other bytes"):
        bring(blobs, Source(wrong), named())
    assert partials(blobs) == []
    assert blobs.digests() == []


@pytest.mark.parametrize("more", [1, 50_000])
def test_more_bytes_than_were_asked_for(blobs, more):
    source = Source()
    source.part = lambda at, until: (True, iter([DATA[at : until + more]]))
    with pytest.raises(Tampered, match="more bytes"):
        bring(blobs, source)


def test_a_part_that_is_cut_short(blobs):
    source = Source()
    source.part = lambda at, until: (True, iter([DATA[at : until - 1]]))
    with pytest.raises(RegistryError, match="cut short"):
        bring(blobs, source)


def test_cancelled(blobs):
    source = Source(pause=0.01)
    it = blobs.receive(named(), source.fetch, source.part, threading.Semaphore(3))
    thread = threading.Thread(target=it.run)
    thread.start()
    reader = it.chunks()
    next(reader)
    it.cancel()
    thread.join(20)
    assert not thread.is_alive()
    with pytest.raises(RegistryError, match="cancelled"):
        list(reader)
    it.close()
