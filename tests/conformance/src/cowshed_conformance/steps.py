"""Small changes to a tree, to be put together: `file("a", b"1"), chmod("a", 0o600), remove("b")`.

A step is made once and may be run on any tree; its text is what a failing case prints.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket as sockets
import stat
from collections.abc import Callable

Path = str | bytes


class Step:
    def __init__(self, text: str, run: Callable[[str], None]) -> None:
        self.text, self.run = text, run

    def __call__(self, root: str) -> None:
        self.run(root)

    def __repr__(self) -> str:
        return self.text


def do(root: str, *steps: Step) -> None:
    for step in steps:
        step(root)


def at(root: str, path: Path) -> str:
    return f"{root}/{os.fsdecode(path)}"


def _write(path: str, data: bytes, flags: int, offset: int | None = None, mode: int = 0o644) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, mode)
    try:
        if offset is not None:
            os.lseek(fd, offset, os.SEEK_SET)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)


def file(path: Path, data: bytes = b"", mode: int = 0o644) -> Step:
    """Make a file, or give one new content through O_TRUNC."""

    def run(root: str) -> None:
        there = os.path.lexists(at(root, path))
        _write(at(root, path), data, os.O_CREAT | os.O_TRUNC)
        if not there:
            os.chmod(at(root, path), mode)

    return Step(f"file({path!r}, {len(data)} bytes)", run)


def append(path: Path, data: bytes) -> Step:
    return Step(f"append({path!r}, {data!r})", lambda root: _write(at(root, path), data, os.O_APPEND))


def write_at(path: Path, offset: int, data: bytes) -> Step:
    return Step(f"write_at({path!r}, {offset}, {data!r})", lambda root: _write(at(root, path), data, 0, offset))


def truncate(path: Path, size: int) -> Step:
    return Step(f"truncate({path!r}, {size})", lambda root: os.truncate(at(root, path), size))


def directory(path: Path, mode: int = 0o755) -> Step:
    def run(root: str) -> None:
        os.mkdir(at(root, path))
        os.chmod(at(root, path), mode)

    return Step(f"directory({path!r}, {mode:o})", run)


def directories(path: str) -> Step:
    return Step(f"directories({path!r})", lambda root: os.makedirs(at(root, path), exist_ok=True))


def remove(path: Path) -> Step:
    """One file, or one empty directory."""

    def run(root: str) -> None:
        if stat.S_ISDIR(os.lstat(at(root, path)).st_mode):
            os.rmdir(at(root, path))
        else:
            os.unlink(at(root, path))

    return Step(f"remove({path!r})", run)


def remove_all(path: Path) -> Step:
    return Step(f"remove_all({path!r})", lambda root: shutil.rmtree(at(root, path)))


def rename(old: Path, new: Path) -> Step:
    return Step(f"rename({old!r}, {new!r})", lambda root: os.rename(at(root, old), at(root, new)))


def move_directory(old: str, new: str) -> Step:
    """As mv(1) does it: rename, and copy where the file system says EXDEV."""
    return Step(f"move_directory({old!r}, {new!r})", lambda root: void(shutil.move(at(root, old), at(root, new))))


def symlink(target: str, path: Path) -> Step:
    return Step(f"symlink({target!r}, {path!r})", lambda root: os.symlink(target, at(root, path)))


def link(old: Path, new: Path) -> Step:
    return Step(f"link({old!r}, {new!r})", lambda root: os.link(at(root, old), at(root, new), follow_symlinks=False))


def chmod(path: Path, mode: int) -> Step:
    return Step(f"chmod({path!r}, {mode:o})", lambda root: os.chmod(at(root, path), mode))


def chown(path: Path, uid: int, gid: int) -> Step:
    return Step(f"chown({path!r}, {uid}, {gid})", lambda root: os.lchown(at(root, path), uid, gid))


def times(path: Path, mtime_ns: int) -> Step:
    return Step(
        f"times({path!r}, {mtime_ns})",
        lambda root: os.utime(at(root, path), ns=(mtime_ns, mtime_ns), follow_symlinks=False),
    )


def set_xattr(path: Path, name: str, value: bytes) -> Step:
    return Step(
        f"set_xattr({path!r}, {name!r}, {len(value)} bytes)",
        lambda root: os.setxattr(at(root, path), name, value, follow_symlinks=False),
    )


def remove_xattr(path: Path, name: str) -> Step:
    return Step(
        f"remove_xattr({path!r}, {name!r})",
        lambda root: os.removexattr(at(root, path), name, follow_symlinks=False),
    )


def fifo(path: Path) -> Step:
    return Step(f"fifo({path!r})", lambda root: os.mkfifo(at(root, path), 0o644))


def device(path: Path, major: int, minor: int, kind: int = stat.S_IFCHR) -> Step:
    return Step(
        f"device({path!r}, {major}:{minor})",
        lambda root: os.mknod(at(root, path), kind | 0o600, os.makedev(major, minor)),
    )


def subvolume(path: Path) -> Step:
    """A subvolume of btrfs, as a process in a container makes one (BTRFS_IOC_SUBVOL_CREATE)."""

    def run(root: str) -> None:
        above, _, name = at(root, path).rpartition("/")
        fd = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, 0x5000940E, bytearray(8) + os.fsencode(name).ljust(4088, b"\0"))
        finally:
            os.close(fd)

    return Step(f"subvolume({path!r})", run)


def socket(path: str) -> Step:
    def run(root: str) -> None:
        # The path of a socket is at most 107 bytes: name it from its directory.
        above = os.open(os.path.dirname(at(root, path)), os.O_PATH | os.O_CLOEXEC)
        try:
            with sockets.socket(sockets.AF_UNIX) as it:
                it.bind(f"/proc/self/fd/{above}/{os.path.basename(path)}")
        finally:
            os.close(above)

    return Step(f"socket({path!r})", run)


def read(root: str, path: Path) -> bytes:
    with open(at(root, path), "rb") as it:
        return it.read()


def void(_: object) -> None: ...
