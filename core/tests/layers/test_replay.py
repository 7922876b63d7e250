"""Changes made again from tree to tree, and the digest that tells whether two trees are the same."""

import errno
import importlib.util
import os
import socket
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from cowshed.layers import changes, digest
from cowshed.layers.mounting import detached
from cowshed.layers.replay import replay
from cowshed.storage import api
from cowshed.storage.kit.copying import copy_attributes
from cowshed.storage.kit.trees import copy_tree
from cowshed_linux import files

spec = importlib.util.spec_from_file_location("layers_trees", Path(__file__).parent / "trees.py")
trees = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trees)

DEFAULT_ACL = bytes.fromhex("0200000001000700ffffffff04000500ffffffff08000500070000001000050 0ffffffff20000500ffffffff".replace(" ", ""))  # fmt: skip # noqa: E501


def value(top, mask=digest.WHOLE, **more):
    with trees.opened(top) as (fd,):
        return digest.of_tree(fd, mask, **more)


def again(base, upper, target, mask=digest.WHOLE, **more):
    """Make what upper has changed of base in target; what it came to."""
    with trees.opened(base, upper, target) as (lower, source, there):
        return replay(changes.of_trees(lower, source), source, there, mask=mask, **more)


def laid_over(base, upper, work):
    """The digest of an overlay."""
    step = api.Overlay((base,), upper, work, options=(("redirect_dir", "nofollow"), ("metacopy", "off")))
    fd = detached(api.MountPlan((step,)))
    try:
        return digest.of_tree(fd)
    finally:
        os.close(fd)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=trees.OPERATIONS, after=trees.OPERATIONS)
def test_what_changed_is_made_again_in_a_copy_and_in_an_overlays_directory(before, after):
    with tempfile.TemporaryDirectory() as folder:
        base, upper, target, over, work = (f"{folder}/{name}" for name in ("base", "upper", "target", "over", "work"))
        os.mkdir(base)
        trees.perform(base, before)
        copy_tree(base, upper)
        copy_tree(base, target)
        trees.perform(upper, after)
        again(base, upper, target)
        assert trees.look(target) == trees.look(upper)
        # Of a file whose other names stay as they are, an archive needs these too; a copy has them from below.
        assert value(target).value == value(upper).value
        for name in (over, work):
            os.mkdir(name)
        with trees.opened(base, over) as (source, there):  # as a driver makes it
            copy_attributes(source, there, os.fstat(source))
        again(base, upper, over, whiteouts=True)
        assert laid_over(base, over, work).value == value(upper).value


def test_a_digest_of_what_changed_is_that_of_all(tmp_path):
    base, upper = tmp_path / "base", tmp_path / "upper"
    (base / "d").mkdir(parents=True)
    for name in ("a", "d/b", "d/c"):
        (base / name).write_text(name)
    os.link(base / "a", base / "d/same")
    copy_tree(str(base), str(upper))
    known = value(base).contents
    assert known[b"a"] == known[b"d/same"]
    (upper / "d/b").write_text("other")
    (upper / "new").write_text("new")
    assert value(upper, changed={b"d/b", b"new"}, known=known).value == value(upper).value
    assert value(upper, changed={b"new"}, known=known).value != value(upper).value, "d/b was not read again"
    assert value(upper, changed=set(), known={}).value == value(upper).value


CHANGES = {
    "content": lambda top: (top / "file").write_text("b"),
    "mode": lambda top: os.chmod(top / "file", 0o4755),
    "owner": lambda top: os.chown(top / "d", 1, -1),
    "group": lambda top: os.chown(top / "link", -1, 2, follow_symlinks=False),
    "time": lambda top: os.utime(top / "file", ns=(0, 1)),
    "time of the root": lambda top: os.utime(top, ns=(0, 1)),
    "attribute": lambda top: os.setxattr(top / "file", "user.more", b""),
    "attribute's value": lambda top: os.setxattr(top / "file", "user.x", b"2"),
    "attribute of a link": lambda top: os.setxattr(top / "link", "trusted.x", b"1", follow_symlinks=False),
    "target": lambda top: (os.unlink(top / "link"), os.symlink("elsewhere", top / "link")),
    "another name": lambda top: os.link(top / "file", top / "d/third"),
    "names of one file": lambda top: (os.unlink(top / "same"), (top / "same").write_text("a")),
    "device": lambda top: (os.unlink(top / "null"), os.mknod(top / "null", stat.S_IFCHR | 0o600, os.makedev(1, 5))),
    "kind": lambda top: (os.unlink(top / "pipe"), (top / "pipe").write_text("")),
    "missing": lambda top: os.unlink(top / "pipe"),
}


@pytest.fixture
def top(tmp_path):
    top = tmp_path / "top"
    (top / "d").mkdir(parents=True)
    (top / "file").write_text("a")
    os.link(top / "file", top / "same")
    os.setxattr(top / "file", "user.x", b"1")
    os.symlink("file", top / "link")
    os.mkfifo(top / "pipe")
    os.mknod(top / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    return top


@pytest.mark.parametrize("what", list(CHANGES))
def test_each_change_gives_another_digest(top, tmp_path, what):
    copy_tree(str(top), str(tmp_path / "copy"))
    assert value(top).value == value(tmp_path / "copy").value
    times = {path: os.lstat(path).st_mtime_ns for path in (top, top / "d", top / "link", top / "pipe", top / "null")}
    CHANGES[what](top)
    if not what.startswith("time"):  # so that it is not only the time that tells
        for path, moment in times.items():
            if os.path.lexists(path):
                os.utime(path, ns=(0, moment), follow_symlinks=False)
    assert value(top).value != value(tmp_path / "copy").value


def test_what_is_no_part_of_a_tree_changes_no_digest(top):
    before, moment = value(top).value, os.lstat(top).st_mtime_ns
    os.setxattr(top / "file", "trusted.overlay.x", b"1")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(top / "socket"))
    server.close()
    os.utime(top / "file", ns=(1, os.lstat(top / "file").st_mtime_ns))
    os.utime(top, ns=(0, moment))
    assert value(top).value == before


def test_what_is_masked_is_neither_made_nor_counted(top, tmp_path):
    mask = digest.Mask(1000, ("user.",), True)
    os.mknod(top / "none", stat.S_IFCHR, 0)
    os.utime(top / "file", ns=(0, 1999))
    (tmp_path / "empty").mkdir()
    (tmp_path / "target").mkdir()
    again(tmp_path / "empty", top, tmp_path / "target", mask)
    assert not (tmp_path / "target/none").exists()
    assert os.listxattr(tmp_path / "target/file") == []
    os.utime(tmp_path / "target/file", ns=(0, 1000))
    assert value(top, mask).value == value(tmp_path / "target", mask).value
    assert value(top).value != value(tmp_path / "target").value


def test_an_overlays_directory_cannot_have_a_device_0_0(top, tmp_path):
    os.mknod(top / "d/none", stat.S_IFCHR, 0)
    for name in ("empty", "target"):
        (tmp_path / name).mkdir()
    with pytest.raises(OSError, match="0:0") as error:
        again(tmp_path / "empty", top, tmp_path / "target", whiteouts=True)
    assert (error.value.errno, error.value.filename) == (errno.EPERM, "/d/none")


def test_what_a_directory_gives_to_all_made_in_it_is_taken_off_again(tmp_path):
    for name in ("base", "upper", "target"):
        (tmp_path / name / "d").mkdir(parents=True)
        os.setxattr(tmp_path / name / "d", "system.posix_acl_default", DEFAULT_ACL)
        os.chmod(tmp_path / name / "d", 0o2755)
        os.chown(tmp_path / name / "d", 0, 77)
    plain = tmp_path / "upper/d/plain"
    plain.write_text("x")
    (tmp_path / "upper/d/below").mkdir()
    for path in (plain, tmp_path / "upper/d/below"):
        for key in os.listxattr(path):
            if key.startswith("system.posix_acl"):
                os.removexattr(path, key)
        os.chown(path, 5, 6)
        os.chmod(path, 0o640)
    again(tmp_path / "base", tmp_path / "upper", tmp_path / "target")
    assert value(tmp_path / "target").value == value(tmp_path / "upper").value


def test_holes_stay_holes(tmp_path):
    for name in ("base", "upper", "target"):
        (tmp_path / name).mkdir()
    with open(tmp_path / "upper/holes", "wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"data")
    done = again(tmp_path / "base", tmp_path / "upper", tmp_path / "target")
    assert os.stat(tmp_path / "target/holes").st_blocks * 512 < 1 << 20
    assert value(tmp_path / "target").value == value(tmp_path / "upper").value
    assert (done.inodes, done.shared + done.copied) == (1, 64 << 20)


def test_a_disk_that_fails_names_the_path(tmp_path, monkeypatch):
    for name in ("base", "upper/d", "target"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "upper/d/file").write_text("x")

    def broken(source, target):
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(files, "reflink", broken)
    with pytest.raises(OSError, match="the disk is broken") as error:
        again(tmp_path / "base", tmp_path / "upper", tmp_path / "target")
    assert error.value.filename == "/d/file"
