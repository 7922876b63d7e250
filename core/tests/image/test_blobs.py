"""Blobs on their way into the store: verified, resumed, shared between commands, cleaned up after."""

import hashlib
import os
import threading
import time

import pytest

from cowshed.errors import BadUsage, NoSpace, RegistryError, Tampered
from cowshed.image import incoming
from cowshed.image.blobs import BlobStore
from cowshed.image.manifest import Descriptor
from cowshed.image.staging import Staging
from cowshed_linux import process

DATA = os.urandom(1 << 20)


@pytest.fixture
def blobs(tmp_path):
    for name in ("sha256", "sha512", "partial"):
        os.makedirs(tmp_path / "blobs" / name)
    return BlobStore(str(tmp_path))


@pytest.fixture
def low(monkeypatch):
    """A thousand bytes are worth to be kept."""
    from cowshed.image import blobs

    monkeypatch.setattr(incoming, "WORTH", 1000)
    monkeypatch.setattr(blobs, "WORTH", 1000)


def named(data=DATA):
    return Descriptor("sha256:" + hashlib.sha256(data).hexdigest(), len(data), "")


def pieces(data, offset=0, size=10_000):
    return iter([data[at : at + size] for at in range(offset, len(data), size)])


def bring(blobs, blob, fetch):
    """What an incoming blob gives to its readers: bytes, or the error that comes out."""
    it = blobs.receive(blob, fetch)
    it.run()
    try:
        it.wait()
        return b"".join(it.chunks())
    finally:
        it.close()


def partials(blobs):
    return os.listdir(os.path.dirname(os.path.dirname(blobs.path("sha256:" + "0" * 64))) + "/partial")


@pytest.mark.parametrize(
    "name", ["sha256:../../../etc/passwd", "sha256:", f"sha256:{'0' * 63}", f"sha1:{'0' * 40}", "x"]
)
def test_a_name_becomes_a_path_as_hex_only(blobs, name):
    """CVE-2024-3727."""
    for ask in (blobs.path, blobs.size, blobs.remove):
        with pytest.raises(BadUsage):
            ask(name)


def test_brought_and_read(blobs):
    blob = named()
    assert not blobs.has(blob)
    assert bring(blobs, blob, lambda at: pieces(DATA, at)) == DATA
    assert blobs.has(blob)
    assert b"".join(blobs.read(blob.digest)) == DATA
    assert blobs.digests() == [blob.digest]
    assert partials(blobs) == []
    assert os.stat(blobs.path(blob.digest)).st_mode & 0o777 == 0o600


def test_read_while_it_comes(blobs):
    """A reader gets each piece as soon as it is there, and the end only when the digest is right."""
    blob, gate, seen = named(), threading.Semaphore(0), []

    def fetch(at):
        for piece in pieces(DATA, at, 1 << 18):
            assert gate.acquire(timeout=20)
            yield piece

    it = blobs.receive(blob, fetch)
    thread = threading.Thread(target=it.run)
    thread.start()
    reader = it.chunks()
    for n in range(4):
        gate.release()
        seen.append(next(reader))
        assert len(b"".join(seen)) == (n + 1) << 18
    assert list(reader) == []
    thread.join()
    it.close()
    assert b"".join(seen) == DATA


@pytest.mark.parametrize("wrong", [DATA[:-1], DATA + b"x", DATA[:-1] + b"\0", b""])
def test_other_bytes(blobs, wrong):
    with pytest.raises(Tampered, match=r"other .*bytes"):
        bring(blobs, named(), lambda at: pieces(wrong, at))
    assert partials(blobs) == []
    assert blobs.digests() == []


def test_a_broken_download_goes_on_later(blobs, low):
    blob, offsets = named(), []

    def broken(at):
        yield from list(pieces(DATA, at))[:50]
        raise RegistryError("broke")

    with pytest.raises(RegistryError, match="broke"):
        bring(blobs, blob, broken)
    assert partials(blobs) == [f"{process.boot_id()[:8]}-{blob.digest[7:]}"]

    def fetch(at):
        offsets.append(at)
        return pieces(DATA, at)

    assert bring(blobs, blob, fetch) == DATA
    assert offsets == [500_000]
    assert partials(blobs) == []


def test_what_is_kept_is_verified_with_the_rest(blobs, low):
    """Bytes of a first source that were wrong are found out at the end, and the next attempt begins anew."""
    blob = named()

    def broken(at):
        yield b"\0" * 500_000
        raise RegistryError("broke")

    with pytest.raises(RegistryError):
        bring(blobs, blob, broken)
    with pytest.raises(Tampered):
        bring(blobs, blob, lambda at: pieces(DATA, at))
    assert partials(blobs) == []
    assert bring(blobs, blob, lambda at: pieces(DATA, at)) == DATA


def test_too_little_to_be_kept(blobs):
    def broken(at):
        yield DATA[:500_000]
        raise RegistryError("broke")

    with pytest.raises(RegistryError):
        bring(blobs, named(), broken)
    assert partials(blobs) == []


def test_a_longer_partial_than_the_blob(blobs, low):
    blob = named()
    path = (
        f"{os.path.dirname(os.path.dirname(blobs.path(blob.digest)))}/partial/{process.boot_id()[:8]}-{blob.digest[7:]}"
    )
    with open(path, "wb") as file:
        file.write(DATA + b"more")
    assert bring(blobs, blob, lambda at: pieces(DATA, at)) == DATA


def test_cancelled(blobs):
    """Before it runs, and while its source says nothing: readers end at once."""
    blob = named()
    it = blobs.receive(blob, lambda at: pieces(DATA, at))
    it.cancel()
    it.run()
    with pytest.raises(RegistryError, match="cancelled"):
        it.wait()
    it.close()
    over = threading.Event()

    def silent(at):
        yield DATA[:10_000]
        assert over.wait(20)

    it = blobs.receive(blob, silent)
    thread = threading.Thread(target=it.run)
    thread.start()
    reader = it.chunks()
    next(reader)
    threading.Timer(0.1, it.cancel).start()
    started = time.monotonic()
    with pytest.raises(RegistryError, match="cancelled"):
        next(reader)
    assert time.monotonic() - started < 10
    over.set()
    thread.join()
    it.close()
    assert partials(blobs) == []


def test_two_at_once_download_it_once(blobs):
    """Each process has its own object; the lock on the partial file says who downloads."""
    blob, asked, gate = named(), [], threading.Event()

    def fetch(at):
        asked.append(at)
        assert gate.wait(20)
        return pieces(DATA, at)

    both = [blobs.receive(blob, fetch) for _ in range(2)]
    threads = [threading.Thread(target=it.run) for it in both]
    for thread in threads:
        thread.start()
    gate.set()
    for it, thread in zip(both, threads, strict=True):
        it.wait()
        assert b"".join(it.chunks()) == DATA
        thread.join()
        it.close()
    assert asked == [0]


def test_a_full_disk(blobs, monkeypatch):
    import errno

    def full(fd, data, at):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(incoming.os, "pwrite", full)
    with pytest.raises(NoSpace, match="no space for blob sha256:"):
        bring(blobs, named(), lambda at: pieces(DATA, at))
    monkeypatch.undo()
    assert partials(blobs) == []


# ---------------------------------------------------------------- cleaning


def leave(blobs, name, size=2000, age=0):
    path = f"{os.path.dirname(os.path.dirname(blobs.path('sha256:' + '0' * 64)))}/partial/{name}"
    with open(path, "wb") as file:
        file.write(bytes(size))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_what_broken_downloads_left(blobs, low):
    boot = process.boot_id()[:8]
    leave(blobs, f"{boot}-{'a' * 64}")
    leave(blobs, f"{boot}-{'b' * 64}", size=999)  # not worth it
    leave(blobs, f"{boot}-{'c' * 64}", age=8 * 86400)
    leave(blobs, f"00000000-{'d' * 64}")  # of another boot: nobody knows what of it reached the disk
    leave(blobs, "new.1.2")
    assert blobs.prune_partials() == 999 + 3 * 2000
    assert partials(blobs) == [f"{boot}-{'a' * 64}"]
    for n in range(3):
        leave(blobs, f"{boot}-{n}{'e' * 63}", age=n + 1)
    assert blobs.prune_partials(limit=4000) == 4000
    assert sorted(partials(blobs)) == sorted([f"{boot}-{'a' * 64}", f"{boot}-0{'e' * 63}"])
    assert blobs.prune_partials(limit=0) == 4000
    assert partials(blobs) == []


def test_what_is_written_to_stays(blobs):
    blob, gate, begun = named(), threading.Event(), threading.Event()

    def fetch(at):
        yield DATA[:5000]
        begun.set()
        assert gate.wait(20)
        yield DATA[5000:]

    it = blobs.receive(blob, fetch)
    thread = threading.Thread(target=it.run)
    thread.start()
    assert begun.wait(20)
    assert blobs.prune_partials(limit=0) == 0
    gate.set()
    thread.join()
    it.wait()
    it.close()
    assert blobs.has(blob)


def test_staging_directories_of_the_dead_go_and_of_the_living_stay(blobs):
    dead = f"{blobs.staging_path()}"
    os.mkdir(dead)
    with open(f"{dead}/new", "wb") as file:
        file.write(bytes(100))
    with Staging(blobs) as living:
        name = living.add([b"hello"])
        assert blobs.prune_partials(limit=0) == 100
        assert not os.path.exists(dead)
        assert b"".join(living.read(name)) == b"hello"
        assert living.publish(name)
        assert not living.publish("sha256:" + "0" * 64)
        assert b"".join(living.read(name, 2)) == b"llo"
    assert partials(blobs) == []
    assert blobs.has(named(b"hello"))


def test_staged_under_a_name_that_is_wrong(blobs):
    with Staging(blobs) as staging:
        with pytest.raises(Tampered, match="has the digest"):
            staging.add([b"hello"], named="sha256:" + "0" * 64)
        assert staging.add([b"hello"], named=named(b"hello").digest) == named(b"hello").digest


def test_publishing_over_a_file_of_a_wrong_size(blobs):
    """A blob that a power cut left cut is replaced."""
    blob = named(b"hello")
    with open(blobs.path(blob.digest), "wb") as file:
        file.write(b"he")
    assert not blobs.has(blob)
    with Staging(blobs) as staging:
        staging.add([b"hello"])
        assert staging.publish(blob.digest)
    assert b"".join(blobs.read(blob.digest)) == b"hello"


@pytest.mark.parametrize("damaged", [False, True])
def test_a_blob_that_another_command_has_completed_meanwhile(blobs, damaged):
    """Readers count on its digest, as if it had come here."""
    blob = named()
    it = blobs.receive(blob, lambda at: pieces(DATA, at))
    with open(blobs.path(blob.digest), "wb") as file:
        file.write(DATA[:-1] + b"?" if damaged else DATA)
    it.run()
    try:
        if damaged:
            with pytest.raises(Tampered, match="is damaged"):
                list(it.chunks())
        else:
            assert b"".join(it.chunks()) == DATA
            assert it.resumed == len(DATA)
    finally:
        it.close()


def test_the_disk_gets_to_work_while_more_comes(blobs, monkeypatch):
    begun = []
    monkeypatch.setattr(incoming, "_WRITEBACK", 300_000)
    monkeypatch.setattr(incoming.files, "begin_writeback", lambda fd, at, count: begun.append((at, count)))
    assert bring(blobs, named(), lambda at: pieces(DATA, at)) == DATA
    assert begun == [(0, 300_000), (300_000, 300_000), (600_000, 300_000)]
