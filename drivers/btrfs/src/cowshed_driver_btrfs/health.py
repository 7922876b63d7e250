"""Room in the file system, data and metadata told apart: btrfs runs out of either."""

from __future__ import annotations

import os

from cowshed.storage.api import Health, Reason, Verdict
from cowshed_driver_btrfs import ioctls

_METADATA = 4
_TWICE, _THRICE, _FOUR_TIMES = 1 << 4 | 1 << 5 | 1 << 6, 1 << 9, 1 << 10  # RAID1, DUP and RAID10; RAID1C3; RAID1C4
_RESERVE = 1 << 49  # not a kind of chunk: what of the metadata the kernel keeps to itself
_LOW = 16  # metadata is short when less than one part in so many of it is free
_ENOUGH = 512 << 20  # bytes; where more is free it is not short
_FULL = 4 << 20  # where less is free most changes are refused, and statfs(2) tells of no room at all (btrfs_statfs)


def health(fd: int) -> Health:
    """Of metadata: what is free in its chunks but for the kernel's reserve, and what chunks could be made for it of
    space that has none yet."""
    status = os.fstatvfs(fd)
    total = used = copies = 0
    for flags, allocated, filled in ioctls.space(fd):
        if flags & _RESERVE:
            used += allocated
        elif flags & _METADATA:
            total, used = total + allocated, used + filled
            copies = 4 if flags & _FOUR_TIMES else 3 if flags & _THRICE else 2 if flags & _TWICE else 1
    total += ioctls.unallocated(fd) // (copies or 1)
    data, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    left = max(total - used, 0)
    reasons = []
    if left < max(min(total // _LOW, _ENOUGH), _FULL):
        text = f"metadata is nearly full: {left >> 20} MiB of {total >> 20} MiB are free, and no space is left for more"
        remedy = "btrfs balance start -dusage=20 makes room for more chunks of it; or remove layers, or add a device"
        reasons.append(Reason("btrfs.metadata-low", text, remedy, Verdict.UNUSABLE if left < _FULL else Verdict.POOR))
    return Health(data, free, total, left, tuple(reasons))
