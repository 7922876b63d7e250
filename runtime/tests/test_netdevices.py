"""Network devices of the host that become the container's (config-linux.md, Network devices)."""

import fcntl
import os
import subprocess
from struct import pack

import pytest

from cowshed_runtime import spec


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def pair(box):
    """A device with addresses, and the other end of it."""
    name = f"c{os.getpid() % 100000}"
    try:
        ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs ip(8) and veth devices: {error}")
    try:
        ip("addr", "add", "198.51.100.7/24", "dev", f"{name}a")
        ip("addr", "add", "169.254.3.4/16", "scope", "link", "dev", f"{name}a")
        ip("link", "set", f"{name}a", "mtu", "1400", "up")
        ip("link", "set", f"{name}b", "up")
        yield f"{name}a"
    finally:
        subprocess.run(["ip", "link", "del", f"{name}b"], capture_output=True, check=False)


def seen(box, started) -> str:
    """What is in the container's network namespace, by the host's own tool."""
    return subprocess.run(["nsenter", f"--net=/proc/{started.pid}/ns/net", "ip", "addr"], check=True,
                          capture_output=True, text=True).stdout  # fmt: skip


def test_a_device_is_moved_renamed_and_up_with_its_addresses(box, pair):
    box.linux["netDevices"] = {pair: {"name": "inner0"}}
    started = box.start("/bin/sh", "-c", "cat /sys/class/net/inner0/mtu; sleep 60")
    assert started.line() == "1400"
    text = seen(box, started)
    assert "inner0@" in text
    assert "198.51.100.7/24" in text
    assert "169.254.3.4" not in text, "only addresses of global scope are kept"
    flags = text.partition("inner0@")[2].partition("<")[2].partition(">")[0].split(",")
    assert "UP" in flags
    assert pair not in ip("link"), "the host has it still"
    box.group.kill()


def test_a_device_keeps_its_name_and_is_in_a_user_namespace(box, pair):
    box.in_user_namespace()
    box.linux["netDevices"] = {pair: {}}
    started = box.start("/bin/sleep", "60")
    assert f"{pair}@" in seen(box, started)
    box.group.kill()


def test_the_kernel_makes_a_name_unique(box, pair):
    box.linux["netDevices"] = {pair: {"name": "net%d"}}
    assert "net0" in box.sh("ls /sys/class/net").out.split()


def test_a_name_that_is_taken(box, pair):
    box.linux["netDevices"] = {pair: {"name": "lo"}}
    assert "has a device of that name" in str(box.refused())
    with open("/dev/null") as null:  # the host's device is as it was
        import socket

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            answer = fcntl.ioctl(probe, 0x8913, pack("16sh22x", pair.encode(), 0))
        assert answer[16] & 1, null


def test_a_device_that_is_not_there(box):
    box.linux["netDevices"] = {"nonesuch0": {}}
    assert "there is no such device" in str(box.refused())


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ({"eth0": {"name": "a" * 16}}, "is no name of a device"),
        ({"eth0": {"name": "a/b"}}, "is no name of a device"),
        ({"..": {}}, "is no name of a device"),
        ({"eth0": []}, "must be an object"),
        ({"eth0": {"name": "x"}, "eth1": {"name": "x"}}, "two devices would be x"),
    ],
)
def test_names_of_devices(box, devices, said):
    box.process["args"] = ["true"]
    box.linux["netDevices"] = devices
    assert said in "; ".join(map(str, spec.validate(box.config)))


def test_devices_need_a_network_namespace(box):
    box.process["args"] = ["true"]
    box.linux["netDevices"] = {"eth0": {}}
    box.linux["namespaces"] = [entry for entry in box.linux["namespaces"] if entry["type"] != "network"]
    assert "needs a network namespace" in "; ".join(map(str, spec.validate(box.config)))
