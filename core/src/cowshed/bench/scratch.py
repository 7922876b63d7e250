"""File systems for one run: fresh, of one size, on loop devices, mounted where nobody else sees them.

An image loses its name as soon as its loop device has it, the device goes with its last user (autoclear), and all is
mounted in a private mount namespace. So of a process that is killed nothing is left, but for pools of ZFS, which are
the host's: those are written down before they are made (journal.py).
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import struct
import subprocess
import sys
import time

from cowshed.bench import devices
from cowshed.bench.meter import sync
from cowshed.errors import BadUsage, CowshedError
from cowshed_linux import loops, mount, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowshed.bench.journal import Journal

KINDS = ("ext4", "xfs", "btrfs", "zpool")
# The same with quota: by project, and simple quotas (Linux 6.7)
WITH_QUOTA = {"ext4": "ext4-quota", "xfs": "xfs-quota", "btrfs": "btrfs-quota"}
LEAST = {"ext4": 24 << 20, "xfs": 300 << 20, "btrfs": 128 << 20, "zpool": 160 << 20}
# ext4: inode tables are written now and not by a thread of the kernel while others are measured
_MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"),
    "ext4-quota": (
        "mkfs.ext4", "-q", "-F", "-m", "0", "-O", "quota,project", "-E",
        "quotatype=prjquota,lazy_itable_init=0,lazy_journal_init=0,nodiscard",
    ),
    "xfs": ("mkfs.xfs", "-q", "-f", "-K"),
    "xfs-quota": ("mkfs.xfs", "-q", "-f", "-K"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "-K"),
    "btrfs-quota": ("mkfs.btrfs", "-q", "-f", "-K"),
}  # fmt: skip
_SECTOR = 512  # what /sys/block/*/stat counts in
_QUOTA_CTL, _ENABLE_SIMPLE = 0xC0109428, 4  # linux/btrfs.h: BTRFS_IOC_QUOTA_CTL, BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA
_ENDS = 1 << 20  # bytes at both ends of a slice in which file systems have their marks, btrfs's second one too
_SLICES = 24  # of a device: as many file systems may be there at once
_SLICE = 512 << 20  # the least
_PATIENCE = 2.0  # seconds for a device that is being given back
_GET_SEQUENCE = 0x80081280  # linux/fs.h: BLKGETDISKSEQ, since Linux 5.15


class Unavailable(CowshedError):
    """A file system that cannot be had on this host."""

    code = "unavailable"


def enter_private_namespace() -> None:
    """Nothing that this process mounts from now on is seen by the host or outlives it."""
    process.unshare(process.CLONE_NEWNS)
    mount.mount(None, "/", None, mount.REC | mount.PRIVATE)


class Scratch:
    """Where file systems are made: images in a folder of the run, or equal slices of a block device."""

    def __init__(self, journal: Journal, size: int, device: Device | None = None) -> None:
        self.journal, self.folder, self.device = journal, journal.folder, device
        self.size = device.stride if device else size
        self._count = 0
        self._free = list(range(device.slices)) if device else []

    def make(self, kind: str) -> FileSystem:
        """A new, mounted file system. Unavailable if the kernel or the tools lack it."""
        self._count += 1
        path = f"{self.folder}/{self._count}"
        if kind == "zpool":
            _want_zfs()
        elif kind not in _MAKE:
            raise Unavailable(f"{kind} is no kind of file system", remedy=f"one of {', '.join((*_MAKE, 'zpool'))}")
        elif shutil.which(_MAKE[kind][0]) is None:
            raise Unavailable(f"{_MAKE[kind][0]} is not installed", remedy=f"install {_MAKE[kind][0]}")
        if kind == "zpool" and self.device:
            raise Unavailable("pools of ZFS are made on images only: it would divide a device into partitions")
        if self.device and not self._free:
            raise Unavailable(
                f"{self.device.path} is too small for so many subjects", remedy="name fewer with --subject"
            )
        least = LEAST[kind.removesuffix("-quota")]
        size = min(self.size, self.device.stride) if self.device else max(self.size, least)
        slice_ = self._free.pop(0) if self.device else -1
        os.mkdir(path)
        device = self._attach(path, size, slice_, named=kind == "zpool")
        if device >= 0:
            self.journal.add("loops", loops.number(device))
        made = FileSystem(self, kind, path, device, size, slice_)
        try:
            made.format()
            made.mount()
            if kind == "btrfs-quota":
                _enable_simple_quotas(made.path)
        except BaseException:
            made.discard()
            raise
        return made

    def place(self) -> Place:
        """A directory in the run's folder, in the place of a file system."""
        self._count += 1
        path = f"{self.folder}/{self._count}"
        os.mkdir(path)
        return Place(path)

    def _attach(self, path: str, size: int, slice_: int, *, named: bool) -> int:
        """A loop device; named: none, -1, and the image keeps its name for a pool, which opens it again by that."""
        if self.device:
            return loops.attach(self.device.fd, direct=True, start=slice_ * self.device.stride, size=size)
        image = f"{path}.image"
        file = os.open(image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(file, size)
            return -1 if named else loops.attach(file, direct=True)
        finally:
            os.close(file)
            if not named:
                os.unlink(image)

    def give_back(self, slice_: int) -> None:
        if slice_ >= 0:
            self._free.append(slice_)


class FileSystem:
    """One of them. `path` is where it is mounted, for this process and its children."""

    def __init__(self, scratch: Scratch, kind: str, path: str, device: int, size: int, slice_: int) -> None:
        self.kind, self.path, self.size = kind, path, size
        self.scratch, self._device, self._slice = scratch, device, slice_
        self.node = f"/dev/loop{loops.number(device)}" if device >= 0 else f"{path}.image"
        self.pool = f"cowshed-bench-{os.urandom(6).hex()}" if kind == "zpool" else ""
        self._mounted = False

    def format(self) -> None:
        if not self.pool:
            tool(*_MAKE[self.kind], self.node)
            return
        settings = ("-o", "cachefile=none", "-o", "ashift=12", "-O", "mountpoint=legacy")
        self.scratch.journal.add("pools", self.pool)
        tool("zpool", "create", *settings, self.pool, self.node)

    def mount(self) -> None:
        """Unavailable if this kernel does not mount it."""
        kind = self.kind.removesuffix("-quota")
        options = [("prjquota", None)] if self.kind in ("ext4-quota", "xfs-quota") else []
        fstype, source = ("zfs", self.pool) if self.pool else (kind, self.node)
        try:
            fd = mount.file_system(fstype, source, options)
        except OSError as error:
            raise Unavailable(f"this kernel does not mount {self.kind}: {error.strerror}") from None
        try:
            mount.attach(fd, self.path)
        finally:
            os.close(fd)
        self._mounted = True

    def unmount(self) -> None:
        """OSError EBUSY if somebody has something of it open."""
        if self._mounted:
            devices.take_below(self.path)
            mount.unmount(self.path)
            self._mounted = False

    def forget_caches(self) -> None:
        """What is read next comes from the device: unmounted and mounted again, no cache of the host is dropped."""
        self.unmount()
        if self.pool:
            tool("zpool", "export", self.pool)
            tool("zpool", "import", "-N", "-o", "cachefile=none", "-d", self.node, self.pool)
        self.mount()

    def used(self) -> int:
        """Bytes."""
        if self.pool:
            tool("zpool", "sync", self.pool)
            return int(tool("zfs", "get", "-Hpo", "value", "used", self.pool))
        sync(self.path)
        status = os.statvfs(self.path)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def transferred(self) -> tuple[int, int] | None:
        """Bytes read from and written to the device so far (Documentation/block/stat.rst); None for a pool."""
        if self.pool:
            return None
        with open(f"/sys/block/{os.path.basename(self.node)}/stat", encoding="ascii") as file:
            words = file.read().split()
        return int(words[2]) * _SECTOR, int(words[6]) * _SECTOR

    def discard(self) -> None:
        """Take it away. RuntimeError, OSError if somebody uses it still."""
        self.unmount()
        if self.pool:
            if _has_pool(self.pool):
                tool("zpool", "destroy", self.pool)
            self.scratch.journal.drop("pools", self.pool)
        if self._slice >= 0:
            _wipe(self._device, self.size)
        if self._device >= 0:
            number = loops.number(self._device)
            os.close(self._device)
            self.scratch.journal.drop("loops", number)
        else:
            os.unlink(self.node)
        self.scratch.give_back(self._slice)
        os.rmdir(self.path)


class Place:
    """A directory of the user's own, in the place of a file system: shared by all subjects, nothing is made anew."""

    kind, pool, size = "path", "", 0

    def __init__(self, path: str) -> None:
        self.path = path

    def forget_caches(self) -> None:
        """All caches of the host (proc(5), drop_caches): there is no other way for a file system that others use."""
        sync(self.path)
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
            file.write("3")

    def used(self) -> int:
        sync(self.path)
        status = os.statvfs(self.path)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def transferred(self) -> tuple[int, int] | None:
        """Nobody knows whose bytes they are."""
        return None

    def discard(self) -> None:
        os.rmdir(self.path)


def tool(*argv: str) -> str:
    """What a program of the host prints. Unavailable if it is missing or fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise Unavailable(f"{argv[0]} is not installed", remedy=f"install {argv[0]}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Unavailable(f"{' '.join(argv)} ended with status {done.returncode}: {said[-1] if said else 'no message'}")
    return done.stdout


def _enable_simple_quotas(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _QUOTA_CTL, struct.pack("@QQ", _ENABLE_SIMPLE, 0))
    except OSError as error:
        raise Unavailable(f"this kernel has no simple quotas of btrfs: {error.strerror}") from None
    finally:
        os.close(fd)


def _want_zfs() -> None:
    if not os.path.exists("/sys/module/zfs") and shutil.which("modprobe"):
        subprocess.run(["modprobe", "-q", "zfs"], stdin=subprocess.DEVNULL, check=False)
    if not os.path.exists("/sys/module/zfs"):  # /dev/zfs may be there before the module is
        raise Unavailable("this kernel has no ZFS")
    if shutil.which("zpool") is None:
        raise Unavailable("zpool is not installed", remedy="install zfsutils-linux")


def _has_pool(name: str) -> bool:
    done = subprocess.run(["zpool", "list", "-H", "-o", "name", name], capture_output=True, stdin=subprocess.DEVNULL)
    return done.returncode == 0


def destroy_pool(name: str) -> None:
    """A pool that a killed run left. Unavailable if it is in use."""
    if shutil.which("zpool") is not None and _has_pool(name):
        tool("zpool", "destroy", "-f", name)


class Device:
    """A block device for one run, divided into equal slices. Nobody else can have it until `close`, and until the loop
    devices on it are gone: it is open with O_EXCL (open(2)), and only by this descriptor is it used."""

    def __init__(self, path: str) -> None:
        """Unavailable if it is none, or in use; BadUsage if it is too small."""
        if not os.path.exists(path) or not stat.S_ISBLK(os.stat(path).st_mode):
            raise Unavailable(f"{path} is no block device", remedy="for a directory there is --path")
        self.fd, self.path = _exclusive(path), path
        self._size = os.lseek(self.fd, 0, os.SEEK_END)
        self.slices = min(_SLICES, self._size // _SLICE)
        if self.slices < 3:
            os.close(self.fd)
            raise BadUsage(
                f"{path} has {self._size >> 20} MiB; {3 * _SLICE >> 20} MiB are the least", remedy="give a larger one"
            )
        self.stride = self._size // self.slices >> 20 << 20

    def close(self) -> None:
        os.close(self.fd)

    def want_blank(self) -> None:
        """Unavailable if it holds something, where any of its slices would have marks of a file system."""
        for at, size in self._marks():
            if os.pread(self.fd, size, at).strip(b"\0"):
                raise Unavailable(
                    f"{self.path} holds something, {at >> 20} MiB from its start or less than 1 MiB after that",
                    remedy=f"if nobody wants it any more: blkdiscard --zeroout {self.path}",
                )

    def wipe(self) -> None:
        """Zeros where `want_blank` looks."""
        for at, size in self._marks():
            os.pwrite(self.fd, bytes(size), at)
        os.fsync(self.fd)

    def identity(self) -> int:
        """A number that no other disk has until the next boot; 0 if this kernel counts none."""
        return _sequence(self.fd)

    def _marks(self) -> Iterator[tuple[int, int]]:
        for n in range(self.slices):
            yield from _marks(n * self.stride, self.stride)
        yield from _marks(0, self._size)


def _exclusive(path: str) -> int:
    """A descriptor that excludes other users of a block device: mounts, swap, RAID, and whoever asks for this too."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > until:
                raise Unavailable(
                    f"{path} cannot be had: {error.strerror}", remedy="give a block device that is unused"
                ) from None
        time.sleep(0.05)  # the kernel may be about to take the last loop device of a run that has ended


def _sequence(fd: int) -> int:
    try:
        return int.from_bytes(fcntl.ioctl(fd, _GET_SEQUENCE, bytes(8)), sys.byteorder)
    except OSError:
        return 0


def identity_of(path: str) -> int:
    """`Device.identity` of what has this name now; -1 if there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        return _sequence(fd)
    finally:
        os.close(fd)


def _marks(start: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, bytes) of what file systems of that size can be known by; btrfs has its second mark at 64 MiB."""
    for at in (0, 64 << 20, size - _ENDS):
        if 0 <= at < size:
            yield start + at, min(_ENDS, size - at)


def claim(path: str) -> Device:
    """A block device that is unused and holds nothing, held from now on. Unavailable, BadUsage."""
    device = Device(path)
    try:
        device.want_blank()
    except BaseException:
        device.close()
        raise
    return device


def _wipe(device: int, size: int) -> None:
    for at, count in _marks(0, size):
        os.pwrite(device, bytes(count), at)
    os.fsync(device)
