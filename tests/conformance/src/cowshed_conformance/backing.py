"""What stores lie on: a directory, or a file system made for the purpose on a loop device or in memory.

All is mounted in a private mount namespace that this process enters once; whatever happens to the process, the kernel
unmounts it and frees the loop devices.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from cowshed.layers.host import EngineHost
from cowshed.storage.api import Verdict
from cowshed.storage.kit.trees import remove_tree
from cowshed_conformance import marks, standins
from cowshed_linux import mount, mounts, process

if TYPE_CHECKING:
    from cowshed_conformance.target import Target

MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-m", "0"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}
KINDS = ("dir", "ext4", "xfs", "btrfs", "zpool")  # in the order in which a driver's probe is asked; see `Backing`
PROJECTS = {"ext4": ("-O", "quota,project", "-E", "quotatype=prjquota"), "xfs": ()}  # to make it with quota
LEAST = {"ext4": 24 << 20, "xfs": 300 << 20, "btrfs": 128 << 20, "tmpfs": 64 << 20, "zpool": 160 << 20}
_entered = False


def enter_private_namespace() -> None:
    """Nothing that is mounted from now on is seen by the host or outlives this process."""
    global _entered
    if not _entered:
        process.unshare(process.CLONE_NEWNS)
        mount.mount(None, "/", None, mount.REC | mount.PRIVATE)
        _entered = True


def tool(*argv: str) -> str:
    """Run a program of the host; a missing one skips the case."""
    if shutil.which(argv[0]) is None:
        marks.skip("tool", f"{argv[0]} is not installed")
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class FileSystem:
    """A file system of its own: kind, mount point, and the image it lies in (none for tmpfs).

    Of kind ext4-quota or xfs-quota it has quota by project; `kind` is then ext4 or xfs all the same.
    """

    options: ClassVar[dict[str, str | int | bool | None]] = {}  # what a driver must be told of it

    def __init__(self, kind: str, folder: str, size: int) -> None:
        enter_private_namespace()
        self.kind, _, quota = kind.partition("-")
        self.folder, self.more = folder, ("prjquota",) if quota else ()  # more options of each mount
        self.path, self.image = f"{folder}/at", ""
        self.size = max(size, LEAST[self.kind])
        os.makedirs(self.path)
        if self.kind != "tmpfs":
            self.image = f"{folder}/image"
            with open(self.image, "wb") as file:
                file.truncate(self.size)
            self.make()
        try:
            self.mount()
        except RuntimeError:
            if not quota:
                raise
            marks.skip("kernel", f"this kernel does not mount {self.kind} with prjquota")

    def make(self) -> None:
        tool(*MAKE[self.kind], *(PROJECTS.get(self.kind, ()) if self.more else ()), self.image)

    def mount(self, *, read_only: bool = False) -> None:
        if self.kind == "tmpfs":
            mount.mount("tmpfs", self.path, "tmpfs", 0, f"size={self.size}")
        else:
            words = ("loop", *(("ro",) if read_only else ()), *self.more)
            tool("mount", "-t", self.kind, "-o", ",".join(words), self.image, self.path)

    def unmount(self) -> None:
        """At once, not lazily: EBUSY tells who left something open."""
        take_devices(self.path)
        until = time.monotonic() + (standins.used.linger if standins.used is not None else 0)
        while True:
            try:
                mount.unmount(self.path)
                return
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > until:
                    raise
            time.sleep(0.01)

    def swap(self, other: FileSystem) -> None:
        """Let each lie where the other was, as when two disks are exchanged. Nothing may have them open."""
        self.unmount()
        other.unmount()
        self.image, other.image = other.image, self.image
        self.mount()
        other.mount()

    def remount(self, *, read_only: bool) -> None:
        take_devices(self.path)
        tool("mount", "-o", "remount," + ("ro" if read_only else "rw"), self.path)

    def used(self) -> int:
        status = os.statvfs(self.path)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def free(self) -> int:
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    @contextlib.contextmanager
    def mounted_copy(self, image: str, path: str) -> Iterator[None]:
        """Mount a copy of what the file system lies in, an image or a device, beside it."""
        words = (
            *(("loop",) if os.path.isfile(image) else ("rw",)),
            *(("nouuid",) if self.kind == "xfs" else ()),
            *self.more,
        )
        try:
            tool("mount", "-t", self.kind, "-o", ",".join(words), image, path)
        except RuntimeError as error:
            if self.kind == "btrfs" and "File exists" in str(error):
                marks.skip("kernel", "this kernel mounts no copy of a btrfs file system beside it, as Linux 6.7 does")
            raise
        try:
            yield
        finally:
            take_devices(path)
            with contextlib.suppress(OSError):
                mount.unmount(path, mount.MNT_DETACH)

    def discard(self) -> None:
        take_devices(self.path)
        with contextlib.suppress(OSError):
            mount.unmount(self.path, mount.MNT_DETACH)


class ZfsPool(FileSystem):
    """A pool of ZFS on an image, its topmost dataset mounted. Pools are the host's: unlike mounts, one whose process is
    killed stays imported."""

    def __init__(self, folder: str, size: int) -> None:
        if not os.path.exists("/sys/module/zfs") and shutil.which("modprobe"):
            subprocess.run(["modprobe", "-q", "zfs"], stdin=subprocess.DEVNULL, check=False)
        if not os.path.exists("/sys/module/zfs"):  # /dev/zfs may be there before the module is
            marks.skip("kernel", "this kernel has no ZFS")
        self.pool = _pool_name()
        super().__init__("zpool", folder, size)

    def make(self) -> None:
        settings = ("-o", "cachefile=none", "-o", "ashift=12", "-o", "failmode=continue", "-O", "mountpoint=legacy")
        lists = ("-O", "acltype=posixacl", "-O", "xattr=sa")  # off by default; cases compare with a plain directory
        tool("zpool", "create", *settings, *lists, self.pool, self.image)

    def mount(self, *, read_only: bool = False) -> None:
        mount.mount(self.pool, self.path, "zfs", mount.RDONLY if read_only else 0)

    def remount(self, *, read_only: bool) -> None:
        """The whole pool, not its topmost dataset alone."""
        self.unmount()
        tool("zpool", "export", self.pool)
        state = ("-o", "readonly=on") if read_only else ()
        tool("zpool", "import", "-N", "-o", "cachefile=none", *state, "-d", self.image, self.pool)
        self.mount(read_only=read_only)

    def swap(self, other: FileSystem) -> None:
        assert isinstance(other, ZfsPool)
        self.pool, other.pool = other.pool, self.pool
        super().swap(other)

    def used(self) -> int:
        return self._now("used")

    def free(self) -> int:
        return self._now("available")

    def _now(self, what: str) -> int:
        tool("zpool", "sync", self.pool)
        return int(tool("zfs", "get", "-Hpo", "value", what, self.pool))

    @contextlib.contextmanager
    def mounted_copy(self, image: str, path: str) -> Iterator[None]:
        tool("zpool", "reguid", self.pool)  # the kernel has no two pools of one identity: the copy keeps the old one
        copy = _pool_name()
        tool("zpool", "import", "-f", "-N", "-o", "cachefile=none", "-d", image, self.pool, copy)
        try:
            mount.mount(copy, path, "zfs")
            yield
        finally:
            with contextlib.suppress(OSError):
                mount.unmount(path)
            tool("zpool", "destroy", copy)

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            mount.unmount(self.path)
        tool("zpool", "destroy", self.pool)  # fails if somebody has left a dataset mounted


def _pool_name() -> str:
    return f"cowshed-test-{os.urandom(6).hex()}"


@contextlib.contextmanager
def file_system(kind: str, folder: str, size: int = 0) -> Iterator[FileSystem]:
    made = ZfsPool(folder, size) if kind == "zpool" else FileSystem(kind, folder, size)
    try:
        yield made
    finally:
        made.discard()
        shutil.rmtree(folder, ignore_errors=True)


def take_devices(path: str) -> None:
    """Take away the devices that stand on files below path, as the end of the machine's run does: those that a driver
    sets up when a store is opened, and leaves to the next command."""
    for name in os.listdir("/sys/block"):
        try:
            with open(f"/sys/block/{name}/loop/backing_file", encoding="utf-8", errors="surrogateescape") as file:
                image = file.read().strip()
        except OSError:
            continue  # no loop device, or not in use
        if image.startswith(f"{path}/"):
            _take_holders(name)


def _take_holders(name: str) -> None:
    until = time.monotonic() + 10
    while holders := _holders(name):
        for holder in holders:
            _take_holders(holder)
            try:
                with open(f"/sys/block/{holder}/dm/name", encoding="utf-8") as file:
                    tool("dmsetup", "remove", file.read().strip())
            except OSError:
                continue  # the kernel takes it with its last user
            except RuntimeError:
                if time.monotonic() > until:  # else its last user is going
                    raise
        time.sleep(0.02)


def _holders(name: str) -> list[str]:
    try:
        return os.listdir(f"/sys/block/{name}/holders")
    except FileNotFoundError:
        return []


class Backing:
    """Gives each case a place of its own, and takes it away again."""

    def __init__(self, kind: str, path: str, scratch: str, target: Target) -> None:
        self.kind, self.path, self.scratch, self.target = kind, path, scratch, target
        self._count = 0

    def place(self, name: str = "") -> str:
        """The path of a directory that does not exist yet, on the file system under test."""
        self._count += 1
        return f"{self.path}/{self._count}{name}"

    def own_kind(self) -> str:
        """The kind of a file system of their own that cases make for themselves."""
        if self.kind != "dir":
            return self.kind
        return "tmpfs" if self._suits_memory else "ext4"

    @functools.cached_property
    def _suits_memory(self) -> bool:
        """Whether the driver can be used on a tmpfs: one with user attributes, and its own probe does not refuse it."""
        if not tmpfs_has_user_attributes():
            return False
        with file_system("tmpfs", self.folder("probed")) as made:
            report = self.target.plugin.probe(made.path, self.target.at(made.path), EngineHost())
        return report.verdict is not Verdict.UNUSABLE

    def loop_kind(self) -> str:
        return "ext4" if self.kind in ("dir", "tmpfs") else self.kind

    def folder(self, name: str) -> str:
        """The path of a folder for images, which does not exist yet; not on the file system under test."""
        self._count += 1
        return f"{self.scratch}/{name}{self._count}"

    @contextlib.contextmanager
    def own(self, size: int = 0, kind: str = "", folder: str = "") -> Iterator[FileSystem]:
        """A file system of its own, its image in a folder that does not exist yet."""
        with file_system(kind or self.own_kind(), folder or self.folder("own"), size) as made:
            self.target.places[made.path] = made.options
            try:
                yield made
            finally:
                del self.target.places[made.path]

    @contextlib.contextmanager
    def after_power_cut(self, system: FileSystem) -> Iterator[str]:
        """Where the file system is mounted as a power cut at this moment would leave it: from a copy of its image,
        which lacks what has not been written back. The file system itself stays as it is."""
        folder = self.folder("cut")
        os.makedirs(f"{folder}/at")
        image = f"{folder}/image"
        while True:  # until nothing was written meanwhile: a copy must be of one moment
            before = os.stat(system.image).st_mtime_ns
            tool("cp", "--sparse=always", "--reflink=never", system.image, image)
            if os.stat(system.image).st_mtime_ns == before:
                break
        try:
            with system.mounted_copy(image, f"{folder}/at"):
                yield f"{folder}/at"
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def clear(self) -> None:
        take_devices(self.path)
        for name in os.listdir(self.path):
            if name != "lost+found":
                remove_tree(f"{self.path}/{name}")


@functools.cache
def tmpfs_has_user_attributes() -> bool:
    """Linux 6.6 has them there."""
    fd = mount.file_system("tmpfs", "probe")
    try:
        os.setxattr(f"/proc/self/fd/{fd}", "user.probe", b"1")
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return False
    finally:
        os.close(fd)
    return True


def fs_type(path: str) -> str:
    """What the table of mounts calls the file system of path, with its options: for the report."""
    found = mounts.holding(path)
    return "unknown" if found is None else f"{found.fstype} ({found.options})"
