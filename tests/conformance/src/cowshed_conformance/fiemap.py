"""Where the bytes of a file lie on its device: FS_IOC_FIEMAP (linux/fiemap.h, Documentation/filesystems/fiemap.rst)."""

from __future__ import annotations

import errno
import fcntl
import struct

from cowshed_conformance import marks

_FIEMAP = 0xC020660B
_SYNC = 1
_UNSURE = 0x2 | 0x4 | 0x8 | 0x100 | 0x200  # unknown, delayed, encoded, not aligned, inside other data
_HEAD, _EXTENT = struct.Struct("=QQIIII"), struct.Struct("=QQQQQIIII")


def first_extent(fd: int) -> int:
    """Where on its device the first bytes of a file lie; the case is skipped where nothing tells."""
    buffer = bytearray(_HEAD.pack(0, (1 << 64) - 1, _SYNC, 0, 1, 0) + bytes(_EXTENT.size))
    try:
        fcntl.ioctl(fd, _FIEMAP, buffer)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL):
            raise
        marks.skip("file-system", "nothing tells where a file lies on its device")
    found = _HEAD.unpack_from(buffer)[3]
    if not found:
        marks.skip("file-system", "the file has no extent of its own")
    physical: int
    _, physical, _, _, _, flags, *_ = _EXTENT.unpack_from(buffer, _HEAD.size)
    if flags & _UNSURE:
        marks.skip("file-system", f"the file does not lie on the device as it is (flags {flags:#x})")
    return physical
