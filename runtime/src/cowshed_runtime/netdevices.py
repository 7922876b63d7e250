"""Network devices of the host that become the container's (config-linux.md, Network devices)."""

from __future__ import annotations

import os

from cowshed_linux import process
from cowshed_linux.netlink import Netlink
from cowshed_runtime.errors import LaunchError


def move(devices: dict[str, str], pid: int) -> None:
    """Move devices (name here: name there) into the network namespace of process pid, with their global permanent
    addresses, and set them up. LaunchError for one that is not there, cannot be moved, or whose name is taken.

    What has been moved stays where it is if a later one fails: it comes back, or goes, with the namespace.
    """
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    here = Netlink()
    try:
        process.setns(there, process.CLONE_NEWNET)
        try:
            inside = Netlink()
        finally:
            process.setns(own, process.CLONE_NEWNET)
        try:
            for old, new in devices.items():
                try:
                    _move(here, inside, there, old, new)
                except OSError as error:
                    text = f"the network device {old} cannot become {new} of the container: {error.strerror}"
                    raise LaunchError("network devices", error.errno or 0, text) from None
        finally:
            inside.close()
    finally:
        here.close()
        os.close(there)
        os.close(own)


def _move(here: Netlink, inside: Netlink, namespace: int, old: str, new: str) -> None:
    index, up = next(((index, up) for index, (name, up) in here.devices().items() if name == old), (0, False))
    if not index:
        raise OSError(19, "there is no such device")
    taken = inside.devices()
    if new in [name for name, _ in taken.values()]:
        raise OSError(17, "the container has a device of that name")
    kept = [address for address in here.addresses(index) if address.kept]  # those of IPv6 go when it is set down
    here.set_up(index, up=False)  # else it cannot be renamed
    try:
        here.move(index, namespace, new)
    except OSError:
        here.set_up(index, up=up)
        raise
    (made,) = [number for number in inside.devices() if number not in taken]
    for address in kept:
        inside.add(address, made)
    inside.set_up(made, up=True)
