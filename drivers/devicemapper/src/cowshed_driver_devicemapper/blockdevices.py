"""Block devices: loop devices on files, nodes, discard (loop(4), ioctl_list(2), mknod(2))."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from _struct import pack

_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_READ_ONLY, _AUTOCLEAR = 1, 4  # LO_FLAGS_*
_CONFIG_SIZE = 304  # struct loop_config
_LOOP_MAJOR = 7
_BLKDISCARD, _BLKGETSIZE64, _BLKFLSBUF = 0x1277, 0x80081272, 0x1261
_TRIES = 64
_STEP = 1 << 30  # bytes discarded by one call


def attach_loop(path: str, *, read_only: bool = False) -> int:
    """A loop device on a file, opened; its descriptor. The kernel frees the device with its last user (autoclear), so
    nothing is left of a process that dies before it has passed the device on."""
    flags = os.O_RDONLY if read_only else os.O_RDWR
    file = os.open(path, flags | os.O_CLOEXEC)
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            for _ in range(_TRIES):
                number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
                device = _open_loop(number, flags)
                config = bytearray(_CONFIG_SIZE)
                config[0:8] = pack("@II", file, 0)
                config[60:64] = pack("@I", _AUTOCLEAR | (_READ_ONLY if read_only else 0))  # info.lo_flags
                try:
                    fcntl.ioctl(device, _LOOP_CONFIGURE, config)
                    return device
                except OSError as error:
                    os.close(device)
                    if error.errno != errno.EBUSY:  # else another process has taken it meanwhile
                        raise
        finally:
            os.close(control)
    finally:
        os.close(file)
    raise OSError(errno.EBUSY, "no loop device could be had: others take them")


def _open_loop(number: int, flags: int) -> int:
    path = f"/dev/loop{number}"
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError:  # a /dev that is not the kernel's own
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(_LOOP_MAJOR, number))
        return os.open(path, flags | os.O_CLOEXEC)


class opened:
    """`with opened(path) as fd:`"""

    def __init__(self, path: str, flags: int = os.O_RDONLY) -> None:
        self._path, self._flags = path, flags

    def __enter__(self) -> int:
        self._fd = os.open(self._path, self._flags | os.O_CLOEXEC)
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


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
