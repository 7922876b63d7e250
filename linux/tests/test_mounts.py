"""The table of mounts."""

import os

import pytest

from cowshed_linux import mount, mounts

LINE = r"36 35 98:0 /mnt1 /a\040b\134c rw,noatime master:1 - ext3 /dev/ro\011ot rw,errors=continue"


def test_a_line():
    found = mounts.Mount(LINE)
    assert (found.device, found.point, found.fstype) == ("98:0", "/a b\\c", "ext3")
    assert (found.source, found.options) == ("/dev/ro\tot", "rw,errors=continue")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_a_path_lies_on_the_nearest_and_last(tmp_path):
    below = tmp_path / "a b"
    below.mkdir()
    beside = tmp_path / "a b c"
    beside.mkdir()
    before = mounts.holding(str(below))
    for name in ("one", "two"):
        mount.mount(name, str(below), "tmpfs", 0, "size=1m")
    try:
        (below / "deep").mkdir()
        assert mounts.holding(str(below / "deep")).source == "two"
        assert mounts.holding(str(beside)).point == before.point
    finally:
        for _ in range(2):
            mount.unmount(str(below))
    assert mounts.holding("/").point == "/"
