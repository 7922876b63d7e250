"""Mounting with descriptors: fsopen(2), fsconfig(2), fsmount(2), open_tree(2), move_mount(2), mount_setattr(2), and
the older mount(2) and umount2(2).

A mount made here is *detached*: it belongs to no namespace and no path, and is gone when its descriptor is closed,
until `attach` puts it somewhere.
"""

from __future__ import annotations

import errno
import os

from cowshed_linux import libc
from cowshed_linux.libc import NULL, C, check, ffi, string, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

AT_FDCWD = -100
AT_EMPTY_PATH, AT_RECURSIVE, AT_SYMLINK_NOFOLLOW, AT_NO_AUTOMOUNT = 0x1000, 0x8000, 0x100, 0x800
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 0x4, 0x40
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC, _FSPICK_CLOEXEC, _FSPICK_EMPTY_PATH = 1, 1, 1, 8
_SET_FLAG, _SET_STRING, _SET_FD, _CMD_CREATE, _CMD_RECONFIGURE = 0, 1, 5, 6, 7

# mount_setattr(2) and fsmount(2) attributes
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8
ATTR_NOATIME, ATTR_STRICTATIME, ATTR_ATIME, ATTR_NODIRATIME = 0x10, 0x20, 0x70, 0x80
ATTR_IDMAP, ATTR_NOSYMFOLLOW = 0x100000, 0x200000

# mount(2) flags
RDONLY, NOSUID, NODEV, NOEXEC, SYNCHRONOUS, REMOUNT, MANDLOCK, DIRSYNC = 1, 2, 4, 8, 16, 32, 64, 128
NOSYMFOLLOW, NOATIME, NODIRATIME, BIND, MOVE, REC, SILENT = 256, 1024, 2048, 4096, 8192, 16384, 32768
UNBINDABLE, PRIVATE, SLAVE, SHARED, RELATIME, I_VERSION, STRICTATIME, LAZYTIME = (
    1 << 17,
    1 << 18,
    1 << 19,
    1 << 20,
    1 << 21,
    1 << 23,
    1 << 24,
    1 << 25,
)

MNT_FORCE, MNT_DETACH, UMOUNT_NOFOLLOW = 1, 2, 8


class Context:
    """A file system that is being configured step by step (fsopen(2), fsconfig(2)). What was mounted of it stays when
    the context is closed.

    An option with value None is a flag; an int is a descriptor. OSError has the kernel's own explanation, where it
    gives one, in its text.
    """

    def __init__(self, fstype: str, fd: int = -1) -> None:
        self._fstype = fstype
        self._fd = fd if fd >= 0 else syscall(f"fsopen {fstype}", libc.FSOPEN, string(fstype), _FSOPEN_CLOEXEC)

    @classmethod
    def of(cls, mount: int) -> Context:
        """That of a file system that is mounted already, to be reconfigured (fspick(2))."""
        return cls("fspick", syscall("fspick", libc.FSPICK, mount, string(""), _FSPICK_CLOEXEC | _FSPICK_EMPTY_PATH))

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def set(self, name: str, value: str | int | None = None) -> None:
        doing = name if value is None else f"{name}={value}"
        if value is None:
            self._call(doing, libc.FSCONFIG, _SET_FLAG, string(name), NULL, 0)
        elif type(value) is int:
            self._call(doing, libc.FSCONFIG, _SET_FD, string(name), NULL, value)
        else:
            self._call(doing, libc.FSCONFIG, _SET_STRING, string(name), string(str(value)), 0)

    def create(self) -> None:
        self._call("create", libc.FSCONFIG, _CMD_CREATE, NULL, NULL, 0)

    def reconfigure(self) -> None:
        """Apply the options that were set since to the file system that was created."""
        self._call("reconfigure", libc.FSCONFIG, _CMD_RECONFIGURE, NULL, NULL, 0)

    def mount(self, attributes: int = 0) -> int:
        """The descriptor of a detached mount."""
        return self._call("mount", libc.FSMOUNT, _FSMOUNT_CLOEXEC, attributes)

    def _call(self, doing: str, number: int, *arguments: Any) -> int:
        try:
            return syscall("", number, self._fd, *arguments)
        except OSError as error:
            said = kernel_messages(self._fd)
            text = f"mount {self._fstype}: {doing}: {os.strerror(error.errno or 0)}"
            raise OSError(error.errno, text + (f" (kernel: {said})" if said else "")) from None


def file_system(
    fstype: str, source: str | None, options: Iterable[tuple[str, str | int | None]] = (), attributes: int = 0
) -> int:
    """A detached mount of a new (or, for devices, perhaps already live) file system; its descriptor. See Context."""
    with Context(fstype) as context:
        if source is not None:
            context.set("source", source)
        for name, value in options:
            context.set(name, value)
        context.create()
        return context.mount(attributes)


def kernel_messages(context: int) -> str:
    """What the kernel has written into the message log of an fsopen(2) descriptor."""
    lines = []
    while True:
        try:
            lines.append(os.read(context, 4096).decode(errors="replace").strip())
        except OSError:
            return "; ".join(lines)


def open_tree(path: str | bytes, flags: int = 0, *, at: int = AT_FDCWD) -> int:
    return syscall(f"open_tree {os.fsdecode(path)}", libc.OPEN_TREE, at, string(path), flags | OPEN_TREE_CLOEXEC)


def clone(path: str | bytes, *, at: int = AT_FDCWD, recursive: bool = False) -> int:
    """A detached copy of the mount at path (of what `at` refers to, if path is empty), as a bind mount would be."""
    flags = OPEN_TREE_CLONE | (AT_RECURSIVE if recursive else 0) | (0 if path else AT_EMPTY_PATH)
    return open_tree(path, flags, at=at)


def beneath(tree: int, path: str) -> int:
    """A detached mount of a directory in the detached mount `tree`, which may not be used for anything else afterwards.

    Before Linux 6.15 only what is mounted in a namespace can be cloned: so it is, in one that lives for this call only.
    """
    try:
        return clone(path, at=tree)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return _beneath_attached(tree, path)


def _beneath_attached(tree: int, path: str) -> int:
    from cowshed_linux import process  # old kernels only

    def work() -> int:
        attach(tree, "/proc")
        return clone(path, at=tree)

    return process.aside(-1, work)


def attach(mount: int, path: str | bytes = "", *, at: int = AT_FDCWD) -> None:
    """Put a detached mount at path, or, with an empty path, at the place that the descriptor `at` refers to."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if path else MOVE_MOUNT_T_EMPTY_PATH)
    syscall(f"move_mount {os.fsdecode(path)}", libc.MOVE_MOUNT, mount, string(""), at, string(path), flags)


def set_attributes(
    mount: int, add: int = 0, *, clear: int = 0, propagation: int = 0, userns: int = 0, recursive: bool = False
) -> None:
    attr = ffi.new("mount_attr *")
    attr.attr_set, attr.attr_clr, attr.propagation, attr.userns_fd = add, clear, propagation, userns
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    syscall("mount_setattr", libc.MOUNT_SETATTR, mount, string(""), flags, attr, ffi.sizeof("mount_attr"))


def mount(
    source: str | bytes | None, target: str | bytes, fstype: str | None, flags: int = 0, data: str | bytes | None = None
) -> None:
    """mount(2)."""
    check(
        C.mount(
            NULL if source is None else string(source),
            string(target),
            NULL if fstype is None else string(fstype),
            flags,
            NULL if data is None else string(data),
        ),
        f"mount {os.fsdecode(target)}",
    )


def unmount(target: str | bytes, flags: int = 0) -> None:
    """umount2(2)."""
    check(C.umount2(string(target), flags), f"umount {os.fsdecode(target)}")


def pivot_root(new_root: str, put_old: str) -> None:
    check(C.pivot_root(string(new_root), string(put_old)), f"pivot_root {new_root}")
