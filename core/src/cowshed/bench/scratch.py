"""File systems for one run: fresh, of one size, on loop devices, mounted where nobody else sees them.

An image loses its name as soon as its loop device has it, the device goes with its last user (autoclear), and all is
mounted in a private mount namespace. So of a process that is killed nothing is left, but for pools of ZFS, which are
the host's: those are written down before they are made (journal.py).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import struct
import subprocess

from cowshed.bench import devices
from cowshed.bench.meter import sync
from cowshed.errors import CowshedError
from cowshed_linux import loops, mount, process

TYPE_CHECKING = False
if TYPE_CHECKING:
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


class Unavailable(CowshedError):
    """A file system that cannot be had on this host."""

    code = "unavailable"


def enter_private_namespace() -> None:
    """Nothing that this process mounts from now on is seen by the host or outlives it."""
    process.unshare(process.CLONE_NEWNS)
    mount.mount(None, "/", None, mount.REC | mount.PRIVATE)


class Scratch:
    """Where file systems are made: images in a folder of the run, or equal slices of a block device."""

    def __init__(self, journal: Journal, size: int, device: str = "", slices: int = 0) -> None:
        self.journal, self.folder, self.size, self.device = journal, journal.folder, size, device
        self._count = 0
        self._free: list[int] = []
        if device:
            self.size = _slice(device, slices)
            self._free = list(range(slices))

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
            raise Unavailable(f"{self.device} is too small for so many subjects", remedy="name fewer with --subject")
        size = max(self.size, 0 if self.device else LEAST[kind.removesuffix("-quota")])
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
            file = os.open(self.device, os.O_RDWR | os.O_CLOEXEC)
            try:
                return loops.attach(file, direct=True, start=slice_ * size, size=size)
            finally:
                os.close(file)
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


def claim(path: str) -> None:
    """Refuse a block device that is in use, or that holds something. Unavailable."""
    if not os.path.exists(path) or not stat.S_ISBLK(os.stat(path).st_mode):
        raise Unavailable(f"{path} is no block device", remedy="for a directory there is --path")
    try:
        fd = os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(
            f"{path} cannot be had: {error.strerror}", remedy="give a block device that is unused"
        ) from None
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        for at in (0, max(0, size - _ENDS)):
            if os.pread(fd, _ENDS, at).strip(b"\0"):
                raise Unavailable(
                    f"{path} holds something", remedy=f"if nobody wants it any more: wipefs --all {path}, "
                    f"and overwrite its first and last MiB"
                )  # fmt: skip
    finally:
        os.close(fd)


def wipe(path: str, slices: int) -> None:
    """Zeros where file systems have their marks in each slice of a block device, as `claim` has found them."""
    size = _slice(path, slices)
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for n in range(slices):
            _zero(fd, n * size, size)
        _zero(fd, 0, os.lseek(fd, 0, os.SEEK_END))
        os.fsync(fd)
    finally:
        os.close(fd)


def _slice(device: str, slices: int) -> int:
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(fd, 0, os.SEEK_END) // slices >> 20 << 20
    finally:
        os.close(fd)


def _wipe(device: int, size: int) -> None:
    _zero(device, 0, size)
    os.fsync(device)


def _zero(fd: int, start: int, size: int) -> None:
    for at in (0, 64 << 20, size - _ENDS):  # btrfs has its second mark at 64 MiB
        if 0 <= at < size:
            os.pwrite(fd, bytes(min(_ENDS, size - at)), start + at)
