"""Disks with faults, by device-mapper: one that loses what was not flushed, and one that cannot read some places.

The first holds an ext4 file system, its ground, in which lies the image of the file system of a case: so any kind of
it can lie there. A mapped device is the host's: unlike a mount, one whose process is killed stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import struct
import subprocess
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cowshed_conformance import marks
from cowshed_conformance.backing import LEAST, Backing, FileSystem, tool
from cowshed_linux import mount

SECTOR = 512
LOG = struct.Struct("<QQQI")  # the log's super block: magic, version, entries, sector size
ENTRY = struct.Struct("<QQQQ")  # of the log: first sector, sectors, flags, bytes of the name of a mark
MAGIC = 0x6A736677736872
DISCARD, MARK = 4, 8  # flags


class Piece(NamedTuple):
    """Part of a mapped device, in sectors."""

    start: int
    length: int
    target: str  # with its parameters


def require(*targets: str) -> None:
    """Skip the case if the kernel's device-mapper lacks one of these targets."""
    if shutil.which("dmsetup") is None:
        marks.skip("tool", "dmsetup is not installed")
    if shutil.which("modprobe") is not None:
        for module in ("dm-mod", *(f"dm-{target}" for target in targets)):
            subprocess.run(["modprobe", "-q", module], stdin=subprocess.DEVNULL, check=False)
    said = subprocess.run(["dmsetup", "targets"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    known = {line.split()[0] for line in said.stdout.splitlines() if line.strip()} if said.returncode == 0 else set()
    for target in targets:
        if target not in known:
            marks.skip("kernel", f"device-mapper has no target {target}")


@contextlib.contextmanager
def loop(image: str) -> Iterator[str]:
    """A loop device on an image."""
    device = tool("losetup", "--find", "--show", image).strip()
    try:
        yield device
    finally:
        tool("losetup", "--detach", device)


@contextlib.contextmanager
def mapped(*pieces: Piece) -> Iterator[str]:
    """The name of a mapped device."""
    name = f"cowshed-test-{os.urandom(6).hex()}"
    tool("dmsetup", "create", name, "--table", table(pieces))
    try:
        yield name
    finally:
        tool("dmsetup", "remove", "--retry", name)


def table(pieces: Iterable[Piece]) -> str:
    return "\n".join(f"{start} {count} {target}" for start, count, target in pieces)


def _sparse(path: str, size: int) -> str:
    with open(path, "wb") as file:
        file.truncate(size)
    return path


# ---------------------------------------------------------------- a power cut


class Entry(NamedTuple):
    """Of a log: what was written (or discarded) where, or the name of a mark. All in bytes."""

    at: int
    size: int
    flags: int
    data: int  # where it is in the log
    mark: str


class LoggedDisk:
    """A disk whose writes are logged in the order in which they became durable (dm-log-writes): what was written and
    not flushed is not in the log yet. So each beginning of the log is what a power cut then leaves at worst."""

    def __init__(self, folder: str, size: int) -> None:
        self.image, self.log = _sparse(f"{folder}/image", size), _sparse(f"{folder}/log", 4 * size)
        self.name = ""

    @contextlib.contextmanager
    def mapped(self) -> Iterator[str]:
        """The mapped device's path."""
        with loop(self.image) as below, loop(self.log) as log:
            with mapped(Piece(0, os.path.getsize(self.image) // SECTOR, f"log-writes {below} {log}")) as self.name:
                yield f"/dev/mapper/{self.name}"

    def mark(self, name: str) -> None:
        """Note this moment."""
        tool("dmsetup", "message", self.name, "0", "mark", name)

    def entries(self) -> list[Entry]:
        """All that was logged until now."""
        # Not by freezing the file system, which would write back all that it has.
        tool("dmsetup", "suspend", "--nolockfs", self.name)  # waits until the log is written
        tool("dmsetup", "resume", self.name)
        found = []
        with open(self.log, "rb", buffering=0) as file:
            magic, version, count, sector = LOG.unpack(file.read(LOG.size))
            assert (magic, version, sector) == (MAGIC, 1, SECTOR), f"no log: {magic:x} {version} {sector}"
            at = sector
            for _ in range(count):
                first, sectors, flags, length = ENTRY.unpack(os.pread(file.fileno(), ENTRY.size, at))
                mark = os.pread(file.fileno(), length, at + ENTRY.size).decode() if flags & MARK else ""
                at += sector
                found.append(Entry(first * SECTOR, sectors * SECTOR, flags, at, mark))
                if not flags & DISCARD:
                    at += sectors * sector
        return found

    def replay(self, entries: Iterable[Entry], image: str) -> None:
        """An image of the disk as these entries made it."""
        _sparse(image, os.path.getsize(self.image))
        with open(self.log, "rb", buffering=0) as log, open(image, "r+b", buffering=0) as disk:
            for entry in entries:
                if entry.flags & DISCARD:
                    tool("fallocate", "--punch-hole", "-o", str(entry.at), "-l", str(entry.size), image)
                elif entry.size:
                    os.pwrite(disk.fileno(), os.pread(log.fileno(), entry.size, entry.data), entry.at)


# ---------------------------------------------------------------- places that cannot be read


def places_of(content: bytes, image: str) -> list[int]:
    """The sectors of an image in which those of a content lie. Two contents share none by chance if they are random."""
    wanted = {content[at : at + SECTOR] for at in range(0, len(content) - SECTOR + 1, SECTOR)}
    found = []
    with open(image, "rb", buffering=0) as file:
        size, at = os.path.getsize(image), 0
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) // SECTOR * SECTOR
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break  # nothing but a hole is left
                raise
            data = os.pread(file.fileno(), 1 << 20, at)
            found += [(at + n) // SECTOR for n in range(0, len(data), SECTOR) if data[n : n + SECTOR] in wanted]
            at += len(data)
    return found


@contextlib.contextmanager
def unreadable(image: str, sectors: Iterable[int]) -> Iterator[str]:
    """A device on an image, of which some sectors give EIO."""
    count = os.path.getsize(image) // SECTOR
    runs: list[list[int]] = []  # first sector, and the one after the last
    for sector in sorted(sectors):
        if runs and runs[-1][1] == sector:
            runs[-1][1] += 1
        else:
            runs.append([sector, sector + 1])
    with loop(image) as below:
        pieces, at = [], 0
        for first, after in [*runs, [count, count]]:
            if first > at:
                pieces.append(Piece(at, first - at, f"linear {below} {at}"))
            if after > first:
                pieces.append(Piece(first, after - first, "error"))
            at = after
        with mapped(*pieces) as name:
            yield f"/dev/mapper/{name}"


# ---------------------------------------------------------------- for cases


@contextlib.contextmanager
def logged(backing: Backing, size: int, kind: str) -> Iterator[tuple[FileSystem, LoggedDisk]]:
    """A file system on a disk that is logged."""
    if kind == "zpool":
        marks.skip(
            "file-system", "ZFS opens a pool's image in the host's mount namespace, where the ground is not mounted"
        )
    require("log-writes")
    folder = backing.folder("logged")
    os.makedirs(folder)
    try:
        disk = LoggedDisk(folder, 2 * max(size, LEAST[kind.partition("-")[0]]))
        with disk.mapped() as device:
            _make_ground(device)
            with _ground(device, f"{folder}/ground") as path, backing.own(size, kind, f"{path}/fs") as system:
                yield system, disk
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def replayed(backing: Backing, disk: LoggedDisk, entries: Iterable[Entry], system: FileSystem) -> Iterator[str]:
    """Where the file system is mounted as these entries of the log left it."""
    folder = backing.folder("replayed")
    os.makedirs(f"{folder}/at")
    try:
        disk.replay(entries, f"{folder}/disk")
        with _ground(f"{folder}/disk", f"{folder}/ground") as path:
            with system.mounted_copy(f"{path}/fs/image", f"{folder}/at"):
                yield f"{folder}/at"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def unreadable_copy(backing: Backing, system: FileSystem, content: bytes) -> Iterator[str]:
    """Where a copy of the file system is mounted that lies on a disk which cannot read a content. No loop device lies
    between, as it would give zeros for what it cannot read."""
    if system.kind == "zpool":
        marks.skip("file-system", "a pool of ZFS that was made on an image is not imported from a device")
    require("linear", "error")
    folder = backing.folder("unreadable")
    os.makedirs(f"{folder}/at")
    try:
        tool("cp", "--sparse=always", "--reflink=never", system.image, f"{folder}/image")
        places = places_of(content, f"{folder}/image")
        assert len(places) >= len(content) // SECTOR, f"only {len(places)} sectors of the content are on the disk"
        with unreadable(f"{folder}/image", places) as device, system.mounted_copy(device, f"{folder}/at"):
            yield f"{folder}/at"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_ground(device: str) -> None:
    tool("mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", device)


@contextlib.contextmanager
def _ground(device: str, path: str) -> Iterator[str]:
    """Mount it, a device or an image, at a new folder."""
    os.makedirs(path)
    tool("mount", "-t", "ext4", *(() if device.startswith("/dev/") else ("-o", "loop")), device, path)
    try:
        yield path
    finally:
        mount.unmount(path)
