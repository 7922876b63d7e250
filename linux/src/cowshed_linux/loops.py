"""Loop devices, that is files as block devices (loop(4), linux/loop.h)."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from _struct import pack, unpack_from

_GET_FREE, _CONFIGURE, _GET_STATUS, _DETACH = 0x4C82, 0x4C0A, 0x4C05, 0x4C01
_READ_ONLY, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16  # LO_FLAGS_*
_CONFIG_SIZE, _INFO_SIZE = 304, 232  # struct loop_config, struct loop_info64
_INFO = 8  # where the second begins in the first
_MAJOR = 7
_TRIES = 64


def attach(file: int, *, read_only: bool = False, direct: bool = False, start: int = 0, size: int = 0) -> int:
    """A loop device on an open file or block device, opened; its descriptor. The kernel frees the device with its last
    user (autoclear), so nothing is left of a process that dies before it has passed the device on.

    direct: past the page cache of the file, where its file system can. start, size: of a part of it, in bytes.
    OSError EBUSY if others take every free device.
    """
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            device = _open(fcntl.ioctl(control, _GET_FREE), flags)
            config = bytearray(_CONFIG_SIZE)
            config[0:8] = pack("@II", file, 0)
            config[_INFO + 24 : _INFO + 40] = pack("@QQ", start, size)
            wanted = _AUTOCLEAR | (_READ_ONLY if read_only else 0) | (_DIRECT_IO if direct else 0)
            config[_INFO + 52 : _INFO + 56] = pack("@I", wanted)
            try:
                fcntl.ioctl(device, _CONFIGURE, config)
                return device
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # else another process has taken it meanwhile
                    raise
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no loop device could be had: others take them")


def detach(device: int) -> None:
    """Free an open loop device (LOOP_CLR_FD); one that others have open is freed with the last of them. OSError ENXIO
    if it has no file."""
    fcntl.ioctl(device, _DETACH)


def _open(number: int, flags: int) -> int:
    path = f"/dev/loop{number}"
    try:
        return os.open(path, flags)
    except FileNotFoundError:  # a /dev that is not the kernel's own
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(_MAJOR, number))
        return os.open(path, flags)


def number(device: int) -> int:
    """N of an open /dev/loopN."""
    return os.minor(os.fstat(device).st_rdev)


def lies_on(number: int) -> int:
    """The device number of the file system that /dev/loopN's file lies on; OSError ENXIO if it has none."""
    device = _open(number, os.O_RDONLY | os.O_CLOEXEC)
    try:
        info = bytearray(_INFO_SIZE)
        fcntl.ioctl(device, _GET_STATUS, info)
        return int(unpack_from("@Q", info)[0])
    finally:
        os.close(device)
