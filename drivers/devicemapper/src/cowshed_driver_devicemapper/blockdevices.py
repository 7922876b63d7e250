"""Block devices: loop devices on files, nodes, discard (ioctl_list(2), mknod(2))."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from _struct import pack

from cowshed_linux import loops

_BLKDISCARD, _BLKGETSIZE64, _BLKFLSBUF = 0x1277, 0x80081272, 0x1261
_STEP = 1 << 30  # bytes discarded by one call


def attach_loop(path: str, *, read_only: bool = False) -> int:
    """A loop device on a file, opened; its descriptor (`cowshed_linux.loops.attach`)."""
    with opened(path, os.O_RDONLY if read_only else os.O_RDWR) as file:
        return loops.attach(file, read_only=read_only)


class opened:
    """`with opened(path) as fd:`"""

    def __init__(self, path: str, flags: int = os.O_RDONLY) -> None:
        self._path, self._flags = path, flags

    def __enter__(self) -> int:
        self._fd = os.open(self._path, self._flags | os.O_CLOEXEC)
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def described(fd: int) -> tuple[str, int]:
    """MAJOR:MINOR and bytes of an open block device."""
    return device_number(fd), size(fd)


def describe(path: str) -> tuple[str, int]:
    """The same of the device that a node stands for."""
    with opened(path) as fd:
        return described(fd)


def flush(path: str) -> None:
    """What was written to a device survives a power cut from now on."""
    with opened(path) as fd:
        os.fsync(fd)


def discard_all(path: str) -> None:
    """`discard` of a whole device."""
    with opened(path, os.O_RDWR) as fd:
        discard(fd, 0, size(fd))


def device_number(fd: int) -> str:
    """MAJOR:MINOR of an open block device."""
    number = os.fstat(fd).st_rdev
    return f"{os.major(number)}:{os.minor(number)}"


def number_of(path: str) -> str:
    """MAJOR:MINOR of a block device's node. OSError ENOTBLK for anything else."""
    status = os.stat(path)
    if not stat.S_ISBLK(status.st_mode):
        raise OSError(errno.ENOTBLK, f"{path}: {os.strerror(errno.ENOTBLK)}")
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def node_of(number: str) -> str:
    """The kernel's own node of the device MAJOR:MINOR (sysfs: /sys/dev/block)."""
    with open(f"/sys/dev/block/{number}/uevent", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("DEVNAME="):
                return f"/dev/{line.strip().partition('=')[2]}"
    raise OSError(errno.ENODEV, f"device {number} has no name")


def nodes(folder: str, prefix: str) -> dict[str, str]:
    """The names of nodes in a folder that begin so, and the numbers of their devices."""
    found: dict[str, str] = {}
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return found
    for name in names:
        if name.startswith(prefix):
            try:
                found[name] = number_of(f"{folder}/{name}")
            except FileNotFoundError:
                pass  # another process has taken it away
    return found


def make_node(path: str, number: str) -> None:
    """A node for a device; what was there is replaced."""
    major, _, minor = number.partition(":")
    wanted = os.makedev(int(major), int(minor))
    try:
        if os.lstat(path).st_rdev == wanted:
            return
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    temporary = f"{path}.{os.getpid()}.new"
    try:
        os.mknod(temporary, stat.S_IFBLK | 0o600, wanted)
    except FileExistsError:  # of a process that had our number and died
        os.unlink(temporary)
        os.mknod(temporary, stat.S_IFBLK | 0o600, wanted)
    os.rename(temporary, path)


def size(fd: int) -> int:
    """Bytes of an open block device."""
    answer = bytearray(8)
    fcntl.ioctl(fd, _BLKGETSIZE64, answer)
    return int.from_bytes(answer, "little")


def forget_cached(fd: int) -> None:
    """What is read next comes from the device: device-mapper writes beside the page cache."""
    fcntl.ioctl(fd, _BLKFLSBUF)


def discard(fd: int, start: int, length: int) -> None:
    """Give back the space of a range of an open block device; where it cannot, nothing happens."""
    while length > 0:
        part = min(length, _STEP)
        try:
            fcntl.ioctl(fd, _BLKDISCARD, pack("@QQ", start, part))
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                return
            raise
        start, length = start + part, length - part
