"""The archive of a layer: read by others, the same bytes for the same tree, never of a file that changed meanwhile."""

import importlib.util
import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest

from cowshed.errors import Busy, ImageError
from cowshed.layers import archive, changes
from cowshed.layers.apply import apply
from cowshed.layers.tarstream import Feed, entries
from cowshed.storage.kit.trees import copy_tree

spec = importlib.util.spec_from_file_location("layers_trees", Path(__file__).parent / "trees.py")
trees = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trees)


def everything(top):
    with trees.opened(top) as (fd,):
        return changes.of_trees(None, fd)


def read(data):
    feed, found = Feed([data]), []
    for entry in entries(feed):
        feed.skip(entry.size)
        found.append(entry)
    return found


@pytest.mark.parametrize("mtime", [0, 1, -1, -1_500_000_000, 10**9 * 8**11, 1_700_000_000_000_000_000, 123_456_789])
def test_times(mtime):
    data = archive.header(b"f", b"0", 0o644, (0, 0), 0, mtime) + bytes(1024)
    assert read(data)[0].mtime == mtime
    with tarfile.open(fileobj=io.BytesIO(data)) as other:
        assert other.getmembers()[0].mtime == pytest.approx(mtime / 1e9)


@pytest.mark.parametrize("name", ["user.a=b", "user.=", "user.a=b%3D c", "user.ä=\udcff"])
@pytest.mark.parametrize("value", [b"", b"v", b"va", b"val", b"\0\n=\xff" * 300])
def test_attributes_whose_names_a_record_cannot_have_are_written_as_libarchive_does(name, value):
    data = archive.header(b"f", b"0", 0o644, (0, 0), 0, attributes={name: value, "user.x": b"%3D"}) + bytes(1024)
    assert read(data)[0].xattrs == {name: value, "user.x": b"%3D"}
    with tarfile.open(fileobj=io.BytesIO(data)) as other:
        (key,) = (key for key in other.getmembers()[0].pax_headers if key.startswith("LIBARCHIVE.xattr."))
    assert unquote_to_bytes(key.removeprefix("LIBARCHIVE.xattr.")) == os.fsencode(name)


@pytest.mark.parametrize(
    "record", [b"LIBARCHIVE.xattr.user.a%3=eA", b"LIBARCHIVE.xattr.user.a%3Dx%=eA", b"LIBARCHIVE.xattr.user.a%3D=e!"]
)
def test_a_quoted_attribute_that_is_not_sound_is_refused(record):
    data = archive._block(b"x", b"x", 0o644, 0, 0, len(record) + 4, 0, b"", (0, 0))
    body = b"%d " % (len(record) + 4) + record + b"\n"
    with pytest.raises(ImageError, match="not sound"):
        read(data + body + bytes(-len(body) % 512) + archive.header(b"f", b"0", 0o644, (0, 0), 0) + bytes(1024))


def test_an_attribute_that_others_would_not_take_is_not_taken():
    record = b"LIBARCHIVE.xattr.security.%63apability=eA"
    data = archive._block(b"x", b"x", 0o644, 0, 0, len(record) + 4, 0, b"", (0, 0))
    body = b"%d " % (len(record) + 4) + record + b"\n"
    data += body + bytes(-len(body) % 512) + archive.header(b"f", b"0", 0o644, (0, 0), 0) + bytes(1024)
    assert read(data)[0].xattrs == {}


@pytest.mark.parametrize("number", [0, 0o7777777, 0o10000000, 2**32 - 2])
def test_owners(number):
    data = archive.header(b"f", b"0", 0o644, (number, number), 0) + bytes(1024)
    assert (read(data)[0].uid, read(data)[0].gid) == (number, number)
    with tarfile.open(fileobj=io.BytesIO(data)) as other:
        assert (other.getmembers()[0].uid, other.getmembers()[0].gid) == (number, number)


@pytest.mark.parametrize("size", [8**11 - 1, 8**11, 1 << 40])
def test_sizes(size):
    head = archive.header(b"f", b"0", 0o644, (0, 0), size)
    assert next(iter(entries(Feed([head])))).size == size
    with tarfile.open(fileobj=io.BytesIO(head)) as other:
        assert other.next().size == size


@pytest.mark.parametrize("length", [1, 99, 100, 101, 155, 255, 256, 4000])
def test_lengths_of_names_and_links(length):
    name = b"/".join([b"n" * 50] * (length // 51 + 1))[:length].rstrip(b"/")
    data = archive.header(name, b"2", 0o777, (0, 0), 0, link=b"l" * length) + bytes(1024)
    assert (read(data)[0].name, read(data)[0].link) == (name, b"l" * length)
    with tarfile.open(fileobj=io.BytesIO(data)) as other:
        assert (other.getmembers()[0].name, other.getmembers()[0].linkname) == (name.decode(), "l" * length)


@pytest.mark.parametrize("length", range(85, 105))
def test_the_length_of_a_record_counts_its_own_digits(length):
    data = archive.header(b"f", b"0", 0o644, (0, 0), 0, attributes={"user.x": b"v" * length}) + bytes(1024)
    assert read(data)[0].xattrs == {"user.x": b"v" * length}
    with tarfile.open(fileobj=io.BytesIO(data)) as other:
        assert other.getmembers()[0].pax_headers["SCHILY.xattr.user.x"] == "v" * length


def test_gnu_tar_unpacks_the_same(tmp_path):
    top = tmp_path / "top"
    (top / "folder" / ("n" * 200)).mkdir(parents=True)
    (top / "file").write_bytes(b"x" * 1000)
    (top / "setuid").write_bytes(b"")
    os.chmod(top / "setuid", 0o4755)
    os.chown(top / "folder", 3_000_000, 12)
    os.link(top / "file", top / "twin")
    (top / "link").symlink_to("t" * 150)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(top / "fifo")
    os.utime(top / "file", ns=(0, -1_500_000_000))
    with open(top / "holes", "wb") as f:
        f.truncate(1 << 20)
    (tmp_path / "out").mkdir()
    data = trees.packed(everything(str(top)), str(top))
    subprocess.run(["tar", "-xf", "-", "-C", str(tmp_path / "out")], input=data, check=True)
    assert trees.look(str(tmp_path / "out")) == trees.look(str(top))
    assert trees.groups(str(tmp_path / "out")) == [["file", "twin"]]


def test_the_same_tree_gives_the_same_bytes_wherever_it_lies(tmp_path):
    top = tmp_path / "top"
    for name in ("b", "a", "c/z", "c/y"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
    copy_tree(str(top), str(tmp_path / "other"))
    one = trees.packed(everything(str(top)), str(top))
    assert one == trees.packed(everything(str(tmp_path / "other")), str(tmp_path / "other"))
    assert [e.name for e in read(one)] == [b"", b"a", b"b", b"c", b"c/y", b"c/z"]


def test_times_are_cut_to_the_latest_that_is_allowed(tmp_path):
    (tmp_path / "old").write_text("")
    os.utime(tmp_path / "old", ns=(5, 5))
    (tmp_path / "new").write_text("")
    data = trees.packed(everything(str(tmp_path)), str(tmp_path), clamp=10**18)
    assert {e.name: e.mtime for e in read(data)} == {b"": 10**18, b"new": 10**18, b"old": 5}


def test_a_file_that_grows_is_taken_as_it_was_and_one_that_shrinks_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"x" * 3000)
    found = everything(str(tmp_path))
    real = os.fstat

    def changed_after(length):
        def fstat(fd):
            status = real(fd)
            if stat.S_ISREG(status.st_mode):
                os.truncate(tmp_path / "file", length)
            return status

        return fstat

    monkeypatch.setattr(os, "fstat", changed_after(5000))
    assert [e.size for e in read(trees.packed(found, str(tmp_path)))] == [0, 3000]
    (tmp_path / "file").write_bytes(b"x" * 3000)
    monkeypatch.setattr(os, "fstat", changed_after(100))
    with pytest.raises(Busy, match="'file' was changed"):
        trees.packed(found, str(tmp_path))


def test_what_vanishes_was_never_there_unless_something_below_would_show(tmp_path):
    base, top = tmp_path / "base", tmp_path / "top"
    for folder in (base, top):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
    (top / "new").mkdir()
    (top / "new/leaf").write_text("")
    found = trees.naive(str(base), str(top))
    (top / "new/leaf").unlink()
    (top / "new").rmdir()
    assert [e.name for e in read(trees.packed(found, str(top)))] == [b"", b"file"]
    (top / "file").unlink()
    with pytest.raises(Busy):
        trees.packed(found, str(top))


def test_no_descriptor_is_left(tmp_path):
    (tmp_path / "a/b/c").mkdir(parents=True)
    before = os.listdir("/proc/self/fd")
    found = everything(str(tmp_path))
    with trees.opened(tmp_path) as (fd,):
        pieces = archive.stream(found, fd)
        next(pieces)
        pieces.close()
    assert os.listdir("/proc/self/fd") == before


def test_holes_come_back_as_holes(tmp_path):
    (tmp_path / "top").mkdir()
    (tmp_path / "out").mkdir()
    with open(tmp_path / "top/sparse", "wb") as f:
        f.write(b"begin")
        f.seek(48 << 20)
        f.write(b"middle")
        f.truncate(64 << 20)
    with open(tmp_path / "top/nothing", "wb") as f:
        f.truncate(8 << 20)
    found = everything(str(tmp_path / "top"))
    with trees.opened(tmp_path / "top", tmp_path / "out") as (source, target):
        apply(archive.stream(found, source), target)
    for name in ("sparse", "nothing"):
        one, other = ((tmp_path / folder / name) for folder in ("top", "out"))
        assert one.read_bytes() == other.read_bytes()
        assert os.stat(other).st_blocks * 512 < 2 << 20
