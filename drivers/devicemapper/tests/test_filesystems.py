"""File systems of layers: commands, superblocks, plans."""

import os
import subprocess

import pytest

from cowshed.storage.errors import Damaged
from cowshed_driver_devicemapper import filesystems
from cowshed_linux import capabilities

UUID = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize("zeroed", [True, False])
@pytest.mark.parametrize(("kind", "size"), [("ext4", 16 << 20), ("xfs", 300 << 20)])
def test_what_mkfs_makes_is_known_again(tmp_path, kind, size, zeroed):
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(size)
    subprocess.run(filesystems.mkfs(kind, str(image), UUID, size, quota=True, zeroed=zeroed), check=True)
    with open(image, "rb") as file:
        found = filesystems.read_superblock(file.fileno())
    assert (found.kind, found.uuid) == (kind, UUID)
    assert found.dirty == (kind == "xfs"), "a journal of ext4 that nobody has used"
    assert filesystems.must_be(found, kind, UUID, "it") is found
    assert image.stat().st_blocks * 512 < (72 << 20 if kind == "xfs" else 8 << 20), (
        "mkfs has written what reads as zeroes anyway"
    )


def test_a_journal_that_was_not_replayed_is_seen():
    start = bytearray(4096)
    start[1024 + 56 : 1024 + 58] = b"\x53\xef"
    start[1024 + 96] = 0x44
    assert filesystems.parse_superblock(bytes(start)).dirty
    start[1024 + 96] = 0x40
    found = filesystems.parse_superblock(bytes(start))
    assert (found.dirty, found.failed) == (False, False)
    start[1024 + 58] = 0x3
    assert filesystems.parse_superblock(bytes(start)).failed


@pytest.mark.parametrize("start", [b"", bytes(4096), b"\xff" * 4096, b"XFS"])
def test_other_devices_have_none(start):
    assert filesystems.parse_superblock(start) is None


def test_another_file_system_than_the_one_that_was_made_is_refused():
    found = filesystems.Superblock("ext4", "f" * 32, dirty=False)
    for it in (found, None):
        with pytest.raises(Damaged, match="the device holds"):
            filesystems.must_be(it, "ext4", UUID, "the device")
    with pytest.raises(Damaged):
        filesystems.must_be(found, "xfs", "f" * 32, "the device")


def test_plans_of_one_device_never_differ_in_how_the_file_system_is_mounted():
    """The kernel refuses a second mount of a device that wants it otherwise (EBUSY)."""
    for kind in ("ext4", "xfs"):
        one, two = (filesystems.plan(kind, "/dev/x", frozen=False, read_only=ro, quota=True) for ro in (False, True))
        assert one.steps[0].options == two.steps[0].options
        assert (one.steps[0].read_only, two.steps[0].read_only) == (False, True)
        frozen = filesystems.plan(kind, "/dev/x", frozen=True, read_only=False, quota=True).steps[0]
        assert frozen.read_only
        assert ("ro", None) in frozen.options
        assert ("prjquota", None) in one.steps[0].options
        assert ("prjquota", None) not in frozen.options, "nothing can be counted where nothing can be written"
        assert one.subpath == "root", "lost+found must stay outside"
    assert ("nouuid", None) in one.steps[0].options, "snapshots of xfs share an identity"


@pytest.mark.skipif(os.geteuid() != 0, reason="file systems are mounted")
@pytest.mark.parametrize(("kind", "least"), [("ext4", 32 << 20), ("xfs", 300 << 20)])
def test_a_file_system_grows_while_it_is_mounted_and_stays_as_it_is_after(tmp_path, kind, least):
    """On an image that is larger than the file system."""
    if kind == "ext4" and not capabilities.permitted() & capabilities.bits(["CAP_SYS_RESOURCE"]):
        pytest.skip("this root may not let an ext4 grow: it lacks CAP_SYS_RESOURCE")
    image, at = tmp_path / "image", tmp_path / "at"
    with open(image, "wb") as file:
        file.truncate(least)
    subprocess.run(filesystems.mkfs(kind, str(image), UUID, least, quota=False, zeroed=True), check=True)
    grown = filesystems.device_size(2 * least)
    os.truncate(image, grown)
    at.mkdir()
    subprocess.run(["mount", "-o", "loop", image, at], check=True)
    fd = os.open(at, os.O_RDONLY)
    try:
        before = os.fstatvfs(fd)
        for _ in range(2):
            filesystems.grow(fd, kind, grown)
            after = os.fstatvfs(fd)
            assert after.f_bavail * after.f_frsize > 2 * least > before.f_blocks * before.f_frsize
    finally:
        os.close(fd)
        subprocess.run(["umount", at], check=True)
