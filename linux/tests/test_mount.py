"""Detached mounts."""

import os
import threading

import pytest

from cowshed_linux import mount

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems: run it as root")


def _tree():
    tree = mount.file_system("tmpfs", "test")
    os.mkdir("root", dir_fd=tree)
    os.mkdir("root/inner", dir_fd=tree)
    return tree


def _mounts():
    with open("/proc/self/mountinfo") as file:
        return file.read()


@pytest.mark.parametrize("beneath", [mount.beneath, mount._beneath_attached], ids=["kernel's choice", "before 6.15"])
def test_a_directory_of_a_detached_mount_becomes_a_mount_of_its_own(beneath):
    before, tree = _mounts(), _tree()
    try:
        inner = beneath(tree, "root")
    finally:
        os.close(tree)
    try:
        assert os.listdir(f"/proc/self/fd/{inner}") == ["inner"]
        assert os.listdir(f"/proc/self/fd/{inner}/..") != ["root"], "what lies above the directory can be reached"
        mount.set_attributes(inner, mount.ATTR_RDONLY)
        with pytest.raises(OSError, match="Read-only"):
            os.mkdir("new", dir_fd=inner)
    finally:
        os.close(inner)
    assert _mounts() == before
    assert threading.active_count() == 1


@pytest.mark.parametrize("beneath", [mount.beneath, mount._beneath_attached], ids=["kernel's choice", "before 6.15"])
def test_a_directory_that_is_missing_is_said_and_nothing_stays_open(beneath):
    tree = _tree()
    try:
        open_before = set(os.listdir("/proc/self/fd"))
        with pytest.raises(FileNotFoundError):
            beneath(tree, "none")
        assert set(os.listdir("/proc/self/fd")) == open_before
    finally:
        os.close(tree)
