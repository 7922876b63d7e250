"""Where the bytes of files lie, and files that share them: FS_IOC_FIEMAP (Documentation/filesystems/fiemap.rst),
FIDEDUPERANGE (ioctl_fideduperange(2))."""

from __future__ import annotations

import fcntl
import os
from _struct import calcsize, pack, pack_into, unpack_from

_FIEMAP, _FIDEDUPERANGE = 0xC020660B, 0xC0189436
_MAP, _EXTENT, _AT_ONCE = "=QQIIII", "=QQQQQIIII", 64  # struct fiemap, fiemap_extent
_SYNC, _LAST = 0x1, 0x1
_NOWHERE = 0x2 | 0x4 | 0x200  # unknown, not yet allocated, among metadata
_RANGE, _INFO = "=QQHHI", "=qQQiI"  # struct file_dedupe_range, file_dedupe_range_info
_SAME = 0  # of info.status; 1: they differ; below: an errno


def extents(fd: int) -> tuple[tuple[int, int, int], ...] | None:
    """The pieces of a file, written out before: offset, place on the device, and bytes of each, neighbours as one. None
    if some have no place of their own. OSError EOPNOTSUPP where the file system does not tell."""
    found: list[tuple[int, int, int]] = []
    start, flags = 0, 0
    while not flags & _LAST:
        buffer = bytearray(calcsize(_MAP) + _AT_ONCE * calcsize(_EXTENT))
        pack_into(_MAP, buffer, 0, start, (1 << 64) - 1, _SYNC, 0, _AT_ONCE, 0)
        fcntl.ioctl(fd, _FIEMAP, buffer)
        count = unpack_from(_MAP, buffer)[3]
        if not count:
            break
        for n in range(count):
            offset, place, length, _, _, flags, *_ = unpack_from(
                _EXTENT, buffer, calcsize(_MAP) + n * calcsize(_EXTENT)
            )
            if flags & _NOWHERE:
                return None
            if found and (sum(found[-1][::2]), sum(found[-1][1:])) == (offset, place):
                found[-1] = (*found[-1][:2], found[-1][2] + length)
            else:
                found.append((offset, place, length))
            start = offset + length
    return tuple(found)


def share(source: int, target: int, at: int, count: int) -> int:
    """Let target share a range of source, at the same offset, if the bytes are the same, which the kernel sees to; how
    many it shares now from there on, 0 if they differ. OSError EOPNOTSUPP, EINVAL or ENOTTY where that cannot be, EXDEV
    between file systems, EPERM, EROFS."""
    info = pack(_INFO, target, at, 0, 0, 0)
    buffer = bytearray(pack(_RANGE, at, count, 1, 0, 0) + info)
    fcntl.ioctl(source, _FIDEDUPERANGE, buffer)
    _, _, shared, status, _ = unpack_from(_INFO, buffer, calcsize(_RANGE))
    if status < 0:
        raise OSError(-status, f"FIDEDUPERANGE: {os.strerror(-status)}")
    return int(shared) if status == _SAME else 0
