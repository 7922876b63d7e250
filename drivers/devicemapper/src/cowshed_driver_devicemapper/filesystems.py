"""The file system on a layer's device: made once, in the base that all layers without parent are snapshots of.

The tree of a layer is the directory `root` of it, so that lost+found stays outside.
"""

from __future__ import annotations

import fcntl
import os
from _struct import pack, unpack_from

from cowshed.storage.api import FileSystem, MountPlan
from cowshed.storage.errors import Damaged
from cowshed_driver_devicemapper import blockdevices

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = "root"
PROJECT = 1  # of all that lies in it, for the kernel to count and limit
_EXT4_MAGIC, _EXT4_NEEDS_RECOVERY, _EXT4_ERRORS = 0xEF53, 0x4, 0x2  # fs/ext4/ext4.h
_XFS_MAGIC = b"XFSB"
_EXT4_RESIZE, _XFS_GEOMETRY, _XFS_GROW = 0x40086610, 0x80705864, 0x4010586E
_BLOCK = 4096  # of the ext4 that is made here
LEAST = {"ext4": 8 << 20, "xfs": 300 << 20}  # bytes of a layer: what mkfs takes


class Superblock:
    """Kind and identity (32 hex digits) of a file system, whether its journal has to be replayed, and whether it noted
    that it met an error."""

    __slots__ = ("dirty", "failed", "kind", "uuid")

    def __init__(self, kind: str, uuid: str, *, dirty: bool, failed: bool = False) -> None:
        self.kind, self.uuid, self.dirty, self.failed = kind, uuid, dirty, failed


def parse_superblock(start: bytes) -> Superblock | None:
    """What the first 4 KiB of a device say; None for a device without ext4 and xfs."""
    if start[:4] == _XFS_MAGIC:
        # The log tells whether it was unmounted; that is not looked at, so take it for dirty.
        return Superblock("xfs", start[32:48].hex(), dirty=True)
    if len(start) >= 2048 and unpack_from("<H", start, 1024 + 56)[0] == _EXT4_MAGIC:
        incompatible, state = unpack_from("<I", start, 1024 + 96)[0], unpack_from("<H", start, 1024 + 58)[0]
        dirty, failed = bool(incompatible & _EXT4_NEEDS_RECOVERY), bool(state & _EXT4_ERRORS)
        return Superblock("ext4", start[1128:1144].hex(), dirty=dirty, failed=failed)
    return None


def read_superblock(fd: int) -> Superblock | None:
    return parse_superblock(os.pread(fd, 4096, 0))


def superblock_on(device: str) -> Superblock | None:
    with blockdevices.opened(device) as fd:
        return read_superblock(fd)


def mkfs(kind: str, device: str, uuid: str, size: int, *, quota: bool, zeroed: bool) -> Sequence[str]:
    """The command that makes the base (mkfs.ext4(8), mkfs.xfs(8)). A thin device that has just been made reads as
    zeroes, and if its pool zeroes new blocks (zeroed), nothing needs to be written but what is used."""
    dashed = f"{uuid[:8]}-{uuid[8:12]}-{uuid[12:16]}-{uuid[16:20]}-{uuid[20:]}"
    if kind == "xfs":
        # The least that mkfs takes everywhere; it writes all of it, once in the base.
        return "mkfs.xfs", "-q", "-K", "-m", f"uuid={dashed}", "-l", "size=64m", device
    journal = max(1, min(64, size >> 26))  # MiB
    lazy = "assume_storage_prezeroed=1" if zeroed else "lazy_itable_init=0,lazy_journal_init=0"
    extended = f"nodiscard,{lazy}" + (",quotatype=prjquota" if quota else "")
    features = ("-O", "quota,project") if quota else ()
    return (
        "mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-U", dashed, "-J", f"size={max(journal, 4)}",
        *features, "-E", extended, device,
    )  # fmt: skip


def plan(
    kind: str, device: str, *, frozen: bool, read_only: bool, quota: bool,
    options: tuple[tuple[str, str | None], ...] = (), subpath: str = ROOT,
) -> MountPlan:  # fmt: skip
    """frozen: the device cannot be written, so the file system must not try. Else the file system is always mounted for
    writing, and only the mount is read-only: the kernel refuses to mount a device in both ways."""
    words: list[tuple[str, str | None]] = []
    if frozen:
        words.append(("ro", None))
    if kind == "xfs":
        words.append(("nouuid", None))  # snapshots have the identity of what they were taken from
    else:
        words.append(("errors", "remount-ro"))
    if not frozen:
        words.append(("discard", None))  # what containers delete goes back to the pool
        if kind == "ext4":
            words.append(("noinit_itable", None))  # of a part that was added later: new blocks are zeroes as they are
        if quota:
            words.append(("prjquota", None))
    step = FileSystem(kind, device, frozen or read_only, (*words, *options))
    return MountPlan((step,), subpath)


def device_size(content: int) -> int:
    """Bytes of a device on which a file system can hold so many bytes of files beside what it needs for itself: its
    journal, and a sixty-fourth for tables of inodes."""
    return content + (content >> 5) + (128 << 20)


def grow(fd: int, kind: str, size: int) -> None:
    """Let the mounted file system of fd fill so many bytes of its device; one that does already stays as it is.
    EXT4_IOC_RESIZE_FS, XFS_IOC_FSGEOMETRY_V1, XFS_IOC_FSGROWFSDATA (fs/ext4/ext4.h, fs/xfs/libxfs/xfs_fs.h)."""
    if kind == "ext4":
        fcntl.ioctl(fd, _EXT4_RESIZE, pack("@Q", size // _BLOCK))
        return
    geometry = fcntl.ioctl(fd, _XFS_GEOMETRY, bytes(112))
    block, inodes = unpack_from("@I", geometry)[0], unpack_from("@I", geometry, 28)[0]  # percent for inodes: is kept
    fcntl.ioctl(fd, _XFS_GROW, pack("@QI4x", size // block, inodes))


def end_retries(minor: int) -> None:
    """Let xfs give up where it would write its metadata again and again, for ever, into a pool that is full
    (Documentation/admin-guide/xfs.rst, error handling). Of a device that is not mounted nothing is known."""
    for reason in ("ENOSPC", "EIO"):
        try:
            with open(f"/sys/fs/xfs/dm-{minor}/error/metadata/{reason}/max_retries", "w", encoding="ascii") as file:
                file.write("0")
        except FileNotFoundError:
            return


def must_be(found: Superblock | None, kind: str, uuid: str, what: str) -> Superblock:
    """Raises Damaged if a device does not hold the file system that was made on it."""
    if found is None or found.kind != kind or found.uuid != uuid:
        there = f"{found.kind} {found.uuid}" if found else "no file system"
        raise Damaged(f"{what} holds {there}, not the {kind} {uuid} that was made on it")
    return found
