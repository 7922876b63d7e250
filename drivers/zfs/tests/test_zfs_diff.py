"""Which paths may have changed: from the kernel's records, and from two trees that share their inodes, as clones do."""

import os
import struct

import pytest

from cowshed.storage.errors import ToolFailed
from cowshed_driver_zfs import diff


def records(*rows):
    return b"".join(struct.pack("=QQQ", *row) for row in rows)


def everything(*numbers):
    return diff.Objects(records(*[(2, number, number) for number in numbers]))


def test_objects_in_use_are_candidates_and_free_ones_are_not():
    found = diff.Objects(records((2, 64, 95), (4, 96, 127), (1, 5, 5), (2, 2, 3), (2, 200, 200)))
    assert [n for n in range(300) if n in found] == [2, 3, *range(64, 96), 200]
    assert 1 not in diff.Objects(b"")


@pytest.mark.parametrize("output", [b"x", records((2, 1, 2))[:-1], records((3, 1, 2)), records((2, 5, 4)), b"\0" * 24])
def test_what_the_kernel_does_not_write_is_an_error_in_one_line(output):
    with pytest.raises(ToolFailed) as raised:
        diff.Objects(output)
    assert "\n" not in str(raised.value)


@pytest.fixture
def trees(tmp_path):
    """lower and upper: files in upper are hard links of those in lower, so their numbers agree."""
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    lower.mkdir()
    upper.mkdir()
    fds = [os.open(path, os.O_PATH | os.O_DIRECTORY) for path in (lower, upper)]
    yield lower, upper, fds
    for fd in fds:
        os.close(fd)


def candidates(fds, *changed):
    found = list(diff.candidates(everything(*[os.lstat(path).st_ino for path in changed]), *fds))
    assert len({change.path for change in found}) == len(found), "a path is named twice"
    return {change.path: change.subtree for change in found}


def test_nothing_changed(trees):
    lower, upper, fds = trees
    (lower / "a").write_text("a")
    os.link(lower / "a", upper / "a")
    assert candidates(fds) == {}


def test_a_changed_directory_is_compared_with_what_it_was(trees):
    lower, upper, fds = trees
    for name in ("same", "gone", "other"):
        (lower / name).write_text(name)
    os.link(lower / "same", upper / "same")
    (upper / "other").write_text("another file")
    (upper / "new").write_text("new")
    assert candidates(fds, upper) == {b"": False, b"gone": False, b"other": True, b"new": True}


def test_every_name_of_a_changed_file_is_named(trees):
    _, upper, fds = trees
    (upper / "deep" / "er").mkdir(parents=True)
    (upper / "a").write_text("a")
    os.link(upper / "a", upper / "deep" / "b")
    os.link(upper / "a", upper / "deep" / "er" / "c\udcff\n")
    (upper / "deep" / "stranger").write_text("x")
    assert candidates(fds, upper / "a") == {b"a": False, b"deep/b": False, b"deep/er/c\xff\n": False}


def test_a_directory_in_a_place_where_none_was(trees):
    lower, upper, fds = trees
    (lower / "d").write_text("a file")
    (upper / "d").mkdir()
    (upper / "d" / "a").write_text("a")
    assert candidates(fds, upper / "d") == {b"d": False, b"d/a": True}


def test_links_are_not_followed(trees, tmp_path):
    lower, upper, fds = trees
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "x").write_text("x")
    (lower / "d").symlink_to(tmp_path / "secret")
    (upper / "d").mkdir()
    (upper / "link").symlink_to(tmp_path / "secret")
    assert candidates(fds, upper / "d", tmp_path / "secret" / "x") == {b"d": False}


def test_paths_longer_than_the_kernel_takes_are_compared_all(trees):
    _, upper, fds = trees
    fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(20):
        os.mkdir("x" * 250, dir_fd=fd)
        below = os.open("x" * 250, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    assert candidates(fds) == {b"": True}
