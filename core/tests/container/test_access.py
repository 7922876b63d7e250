"""Reaching into other mount namespaces without becoming part of them."""

import os
import sys
import threading
from pathlib import Path

import pytest

from cowshed_linux import mount
from cowshed_linux.process import aside

seen = None


def hook(event, arguments):
    if (
        seen is not None
        and threading.current_thread().name == "aside"
        and event in ("import", "open", "exec", "compile")
    ):
        seen.append((event, arguments))


sys.addaudithook(hook)


@pytest.fixture
def other(tmp_path):
    """A mount namespace whose root is a directory of ours, held by a descriptor."""
    root = tmp_path / "root"
    (root / "below").mkdir(parents=True)
    (root / "below/mark").write_text("inside")
    namespaces = []

    def make():
        mount.mount(str(root), str(root), None, mount.BIND)
        os.chdir(root)
        mount.pivot_root(".", ".")
        mount.unmount(".", mount.MNT_DETACH)
        namespaces.append(os.open("/below", os.O_PATH))

    # /proc is not there after the pivot: the descriptor of the namespace is opened before.
    aside(-1, lambda: (namespaces.append(os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)), make()))
    yield namespaces[0]
    for fd in namespaces:
        os.close(fd)


def test_a_look_into_another_namespace_changes_nothing_here(other):
    before = os.readlink("/proc/self/ns/mnt")
    fd = aside(other, lambda: mount.clone("/"))
    try:
        assert os.listdir(f"/proc/self/fd/{fd}") == ["below"]
        assert Path(f"/proc/self/fd/{fd}/below/mark").read_text() == "inside"
    finally:
        os.close(fd)
    assert os.readlink("/proc/self/ns/mnt") == before
    assert os.path.isdir("/proc/self")


def test_cve_2019_14271_nothing_is_loaded_from_in_there(other):
    """docker cp loaded libraries for names of users after it had entered the container's root."""
    global seen
    seen = []
    try:
        os.close(aside(other, lambda: mount.clone("/", recursive=True)))
        before, *inside = seen
        assert before[1][0] == "/proc/thread-self/ns/mnt", "the way back, while it is still outside"
        assert inside == []
    finally:
        seen = None


def test_an_error_in_there_comes_out(other):
    with pytest.raises(FileNotFoundError):
        aside(other, lambda: mount.clone("/missing"))


def test_a_namespace_of_ones_own_is_seen_by_nobody_else(tmp_path):
    (tmp_path / "there").mkdir()

    def work():
        mount.mount("none", str(tmp_path / "there"), "tmpfs")
        return Path("/proc/thread-self/mountinfo").read_text()

    assert str(tmp_path) in aside(-1, work)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
