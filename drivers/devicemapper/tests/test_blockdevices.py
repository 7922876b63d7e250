"""Loop devices and nodes, on the machine's own kernel."""

import os
import stat
import time

import pytest

from cowshed_driver_devicemapper import blockdevices

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/loop-control"), reason="needs root and loop devices"
)


def image(folder, size=1 << 20):
    path = f"{folder}/image"
    with open(path, "wb") as file:
        file.write(b"x" * size)
    return path


def test_a_loop_device_is_gone_with_its_last_user(tmp_path):
    path = image(tmp_path)
    fd = blockdevices.attach_loop(path)
    number = blockdevices.device_number(fd)
    node = blockdevices.node_of(number)
    assert blockdevices.number_of(node) == number
    assert blockdevices.size(fd) == 1 << 20
    backing = f"/sys/dev/block/{number}/loop/backing_file"
    with open(backing) as file:
        assert file.read().strip() == path
    os.close(fd)
    until = time.monotonic() + 5
    while os.path.exists(backing) and time.monotonic() < until:
        with open(backing) as file:
            if file.read().strip() != path:
                break
        time.sleep(0.01)
    else:
        assert not os.path.exists(backing)


def test_a_read_only_loop_device_cannot_be_written(tmp_path):
    fd = blockdevices.attach_loop(image(tmp_path), read_only=True)
    try:
        with open(f"/sys/dev/block/{blockdevices.device_number(fd)}/ro") as file:
            assert file.read() == "1\n"
    finally:
        os.close(fd)


def test_discarding_gives_the_space_of_the_file_back(tmp_path):
    path = image(tmp_path, 4 << 20)
    os.sync()
    fd = blockdevices.attach_loop(path)
    try:
        blockdevices.discard(fd, 0, 4 << 20)
        os.fsync(fd)
        assert os.pread(fd, 4096, 1 << 20) == bytes(4096)
    finally:
        os.close(fd)
    assert os.stat(path).st_blocks * 512 < 1 << 20


def test_a_node_is_made_replaced_and_kept(tmp_path):
    path = f"{tmp_path}/folder/node"
    blockdevices.make_node(path, "7:250")
    assert stat.S_ISBLK(os.stat(path).st_mode)
    assert blockdevices.number_of(path) == "7:250"
    was = os.stat(path).st_ino
    blockdevices.make_node(path, "7:250")
    assert os.stat(path).st_ino == was
    blockdevices.make_node(path, "7:251")
    assert blockdevices.number_of(path) == "7:251"
    assert os.listdir(f"{tmp_path}/folder") == ["node"]


def test_what_is_no_block_device_is_told(tmp_path):
    with pytest.raises(OSError, match="Block device required"):
        blockdevices.number_of(image(tmp_path))
