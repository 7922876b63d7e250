"""The root file system of a container: its mounts, devices, masks, and the change of root.

Runs in the container's own mount namespace. The image may be hostile: every target is resolved beneath the root's
descriptor by the kernel (openat2(2) RESOLVE_IN_ROOT) and mounted onto that very descriptor (move_mount(2)), so a
symbolic link in the image leads inside, never to the host (CVE-2019-19921, CVE-2021-30465, CVE-2026-41579).
"""

from __future__ import annotations

import fcntl
import os
import stat
from _struct import pack

from cowshed_linux import mount
from cowshed_linux.paths import open_in_root
from cowshed_runtime import cgroup
from cowshed_runtime.errors import LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ATTRIBUTES = {
    "ro": (mount.ATTR_RDONLY, 0), "rw": (0, mount.ATTR_RDONLY),
    "nosuid": (mount.ATTR_NOSUID, 0), "suid": (0, mount.ATTR_NOSUID),
    "nodev": (mount.ATTR_NODEV, 0), "dev": (0, mount.ATTR_NODEV),
    "noexec": (mount.ATTR_NOEXEC, 0), "exec": (0, mount.ATTR_NOEXEC),
    "noatime": (mount.ATTR_NOATIME, mount.ATTR_ATIME), "relatime": (0, mount.ATTR_ATIME),
    "strictatime": (mount.ATTR_STRICTATIME, mount.ATTR_ATIME),
    "nodiratime": (mount.ATTR_NODIRATIME, 0), "diratime": (0, mount.ATTR_NODIRATIME),
    "nosymfollow": (mount.ATTR_NOSYMFOLLOW, 0), "symfollow": (0, mount.ATTR_NOSYMFOLLOW),
}  # fmt: skip
_PROPAGATION = {
    "private": mount.PRIVATE, "slave": mount.SLAVE, "shared": mount.SHARED, "unbindable": mount.UNBINDABLE,
}  # fmt: skip
_SILENT = ("defaults", "async", "bind", "rbind", "loud", "silent", "nomand")
_STANDARD_DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
_LINKS = (
    ("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)  # fmt: skip
_DIRECTORY = os.O_PATH | os.O_DIRECTORY


class Options:
    """The mount options of one OCI mount, sorted by what is done with them. Pure."""

    def __init__(self, options: list[str]) -> None:
        self.add = self.clear = self.add_below = self.clear_below = 0
        self.propagation = 0
        self.propagation_below = False
        self.bind = "bind" in options or "rbind" in options
        self.recursive = "rbind" in options
        self.data: list[tuple[str, str | int | None]] = []
        for option in options:
            if option in _ATTRIBUTES:
                add, clear = _ATTRIBUTES[option]
                self.add, self.clear = self.add & ~clear | add, self.clear & ~add | clear
            elif option[:1] == "r" and option[1:] in _ATTRIBUTES:
                add, clear = _ATTRIBUTES[option[1:]]
                self.add_below, self.clear_below = self.add_below | add, self.clear_below | clear
            elif option in _PROPAGATION or (option[:1] == "r" and option[1:] in _PROPAGATION):
                self.propagation = _PROPAGATION.get(option) or _PROPAGATION[option[1:]]
                self.propagation_below = option not in _PROPAGATION
            elif option not in _SILENT:
                key, equals, value = option.partition("=")
                self.data.append((key, value if equals else None))


def enter(root: int, config: dict[str, Any], terminal: list[int]) -> None:
    """Assemble the root at descriptor root and make it `/`. With process.terminal, the master of a new pseudo-terminal
    of the container's own devpts is appended to terminal, then its slave."""
    linux = config.get("linux") or {}
    mount.mount(None, "/", None, mount.REC | mount.PRIVATE)
    # What is bound is opened first: the root is about to hide whatever lies below the directory that it is put on,
    # which may be any, as it is for the moment until pivot_root only.
    entries = config.get("mounts") or ()
    trees = [_source(entry) for entry in entries]
    mount.attach(root, "/tmp" if os.path.isdir("/tmp") else "/proc")
    os.fchdir(root)
    for entry, (bound, directory) in zip(entries, trees, strict=True):
        try:
            _mount(root, entry, bound, directory)
        except OSError as error:
            text = (
                f"mount {entry.get('source') or entry.get('type')} at {entry['destination']}: {error.strerror or error}"
            )
            raise LaunchError("mount", error.errno or 0, text) from None
    _devices(root, linux.get("devices") or ())
    if (config.get("process") or {}).get("terminal"):
        _console(root, terminal)
    mount.pivot_root(".", ".")
    mount.unmount(".", mount.MNT_DETACH)
    os.chdir("/")
    for path in linux.get("readonlyPaths") or ():
        _read_only(root, path)
    _mask(root, linux.get("maskedPaths") or ())
    if (config.get("root") or {}).get("readonly"):
        mount.set_attributes(root, mount.ATTR_RDONLY)


def place(root: int, path: str, *, directory: bool) -> int:
    """A descriptor of path inside the root, made (as a directory or an empty file) if it is missing."""
    try:
        return open_in_root(root, path, os.O_PATH)
    except FileNotFoundError:
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        fd = open_in_root(root, "/", _DIRECTORY)
        for depth, part in enumerate(parts, 1):
            last = depth == len(parts)
            so_far = "/".join(parts[:depth])
            try:
                below = open_in_root(root, so_far, os.O_PATH)
            except FileNotFoundError:
                if last and not directory:
                    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=fd))
                else:
                    os.mkdir(part, 0o755, dir_fd=fd)
                below = open_in_root(root, so_far, os.O_PATH)
            os.close(fd)
            fd = below
        return fd


def _source(entry: dict[str, Any]) -> tuple[int, bool]:
    """A detached copy of what a bind mount shows, and whether it is a directory; -1 for other mounts."""
    options = Options(entry.get("options") or [])
    if not options.bind and entry.get("type") != "bind":
        return -1, True
    try:
        tree = mount.clone(entry["source"], recursive=options.recursive)
        return tree, stat.S_ISDIR(os.fstat(tree).st_mode)
    except OSError as error:
        text = f"mount {entry['source']} at {entry['destination']}: {error.strerror or error}"
        raise LaunchError("mount", error.errno or 0, text) from None


def _mount(root: int, entry: dict[str, Any], bound: int, directory: bool) -> None:
    options = Options(entry.get("options") or [])
    kind, destination = entry.get("type") or "", entry["destination"]
    if bound >= 0:
        tree = bound
    elif kind == "cgroup":
        _cgroup(root, destination, options)
        return
    else:
        source = entry.get("source") or kind
        tree = mount.file_system(kind, source, options.data, options.add)
    try:
        if bound >= 0 and (options.add or options.clear):
            mount.set_attributes(tree, options.add, clear=options.clear)
        if options.add_below or options.clear_below:
            mount.set_attributes(tree, options.add_below, clear=options.clear_below, recursive=True)
        target = place(root, destination, directory=directory)
        try:
            mount.attach(tree, at=target)
        finally:
            os.close(target)
        if options.propagation:
            mount.set_attributes(tree, propagation=options.propagation, recursive=options.propagation_below)
    finally:
        os.close(tree)


def _attach(root: int, destination: str, tree: int) -> None:
    try:
        target = place(root, destination, directory=True)
        try:
            mount.attach(tree, at=target)
        finally:
            os.close(target)
    finally:
        os.close(tree)


def _cgroup(root: int, destination: str, options: Options) -> None:
    """Version 2: the hierarchy itself. Version 1: a small tmpfs with one directory per hierarchy, as on the host."""
    layout = cgroup.layout
    if layout.v2:
        _attach(root, destination, mount.file_system("cgroup2", "cgroup", (), options.add))
        return
    if not layout.v1:
        return
    flags = mount.ATTR_NOSUID | mount.ATTR_NODEV | mount.ATTR_NOEXEC
    base = mount.file_system("tmpfs", "cgroup", [("mode", "755"), ("size", "64k")], flags)
    target = place(root, destination, directory=True)
    mount.attach(base, at=target)
    os.close(target)
    for path, controllers in layout.v1:
        data: list[tuple[str, str | int | None]] = []
        for name in controllers:
            data += [("none", None), ("name", name[5:])] if name.startswith("name=") else [(name, None)]
        folder = os.path.basename(path)
        os.mkdir(folder, 0o755, dir_fd=base)
        _attach(root, f"{destination}/{folder}", mount.file_system("cgroup", "cgroup", data, options.add))
    if options.add & mount.ATTR_RDONLY:
        mount.set_attributes(base, mount.ATTR_RDONLY)
    os.close(base)


def _devices(root: int, wanted: Any) -> None:
    """The standard devices, links, and those asked for, in the container's /dev, by descriptor."""
    dev = open_in_root(root, "dev", os.O_RDONLY | os.O_DIRECTORY)
    old = os.umask(0)
    try:
        for name, major, minor in _STANDARD_DEVICES:
            _node(dev, name, stat.S_IFCHR | 0o666, major, minor)
        for name, target in _LINKS:
            try:
                os.symlink(target, name, dir_fd=dev)
            except FileExistsError:
                continue
    finally:
        os.close(dev)
        os.umask(old)
    for device in wanted:
        above, _, name = device["path"].rpartition("/")
        kind = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}[device["type"]]
        folder = place(root, above or "/", directory=True)
        old = os.umask(0)
        try:
            _node(folder, name, kind | device.get("fileMode", 0o666), device.get("major", 0), device.get("minor", 0))
            os.chown(name, device.get("uid", 0), device.get("gid", 0), dir_fd=folder, follow_symlinks=False)
        finally:
            os.umask(old)
            os.close(folder)


def _node(folder: int, name: str, mode: int, major: int, minor: int) -> None:
    try:
        os.mknod(name, mode, os.makedev(major, minor), dir_fd=folder)
    except FileExistsError:
        there = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if (stat.S_IFMT(there.st_mode), there.st_rdev) != (stat.S_IFMT(mode), os.makedev(major, minor)):
            raise LaunchError("devices", 17, f"the image has another /dev/{name}") from None


def _console(root: int, terminal: list[int]) -> None:
    master, slave = open_terminal(root)
    terminal += [master, slave]
    tree = mount.clone("", at=slave)
    target = place(root, "/dev/console", directory=False)
    mount.attach(tree, at=target)
    os.close(target)
    os.close(tree)


def open_terminal(root: int) -> tuple[int, int]:
    """Master and slave of a new pseudo-terminal of the devpts at ROOT/dev/pts. The slave is opened from the master
    (TIOCGPTPEER), so nobody can put another file in its place (CVE-2025-52565)."""
    master = open_in_root(root, "dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(master, 0x40045431, pack("i", 0))  # TIOCSPTLCK
    slave = fcntl.ioctl(master, 0x5441, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)  # TIOCGPTPEER
    return master, slave


def _read_only(root: int, path: str) -> None:
    try:
        tree = mount.clone(path, recursive=True)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        mount.set_attributes(tree, mount.ATTR_RDONLY, recursive=True)
        mount.attach(tree, path)
    finally:
        os.close(tree)


def _mask(root: int, paths: Any) -> None:
    """Hide paths: directories behind one empty read-only tmpfs, files behind a /dev/null that is verified to be one
    (CVE-2025-31133)."""
    empty = null = -1
    try:
        for path in paths:
            target = _open_if_there(root, path)
            if target < 0:
                continue
            try:
                if stat.S_ISDIR(os.fstat(target).st_mode):
                    if empty < 0:
                        empty = mount.file_system(
                            "tmpfs", "masked", [("size", "0"), ("nr_inodes", "2")], mount.ATTR_RDONLY
                        )
                    tree = mount.clone("", at=empty)
                else:
                    if null < 0:
                        null = open_in_root(root, "dev/null", os.O_PATH)
                        there = os.fstat(null)
                        if not stat.S_ISCHR(there.st_mode) or there.st_rdev != os.makedev(1, 3):
                            raise LaunchError("mask", 0, "the container's /dev/null is something else")
                    tree = mount.clone("", at=null)
                mount.attach(tree, at=target)
                os.close(tree)
            finally:
                os.close(target)
    finally:
        for fd in (empty, null):
            if fd >= 0:
                os.close(fd)


def _open_if_there(root: int, path: str) -> int:
    try:
        return open_in_root(root, path, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return -1
