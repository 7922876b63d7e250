"""Room in the file system, data and metadata told apart: btrfs runs out of either."""

from __future__ import annotations

import os

from cowshed.storage.api import Health, Reason, Verdict
from cowshed_driver_btrfs import ioctls

_DATA, _METADATA = 1, 4
_LOW = 16  # metadata is short when less than one part in so many of it is free
_RESERVE = 512 << 20  # the kernel keeps up to so much of metadata to itself


def health(fd: int) -> Health:
    status = os.fstatvfs(fd)
    total = used = 0
    for flags, allocated, filled in ioctls.space(fd):
        if flags & _METADATA:
            total, used = total + allocated, used + filled
    data, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    reasons = []
    # New chunks of metadata come from where data has none yet, which is not told apart from room in chunks of data.
    if total - used < min(total // _LOW, _RESERVE):
        text = f"metadata is nearly full: {(total - used) >> 20} MiB of {total >> 20} MiB are free in its chunks"
        remedy = "btrfs balance start -dusage=20 makes room for more chunks of it; or remove layers"
        reasons.append(Reason("btrfs.metadata-low", text, remedy, Verdict.POOR))
    return Health(data, free, total, total - used, tuple(reasons))
