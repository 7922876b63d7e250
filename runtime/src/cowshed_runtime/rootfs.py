"""The steps of a plan that make a root file system the container's: isolation, devices, change of root, masks."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from _struct import pack

from cowshed_linux import mount, procfs
from cowshed_linux.files import DEVPTS_MAGIC, file_system_magic
from cowshed_linux.paths import RESOLVE_NO_SYMLINKS, open_in_root
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.targets import open_if_there, place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed_runtime.plan import Scene

_STANDARD_DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
_LINKS = (
    ("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)  # fmt: skip
_KINDS = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
# Of what hides a directory: no less than any mount that it lies on
_EMPTY = mount.ATTR_RDONLY | mount.ATTR_NOSUID | mount.ATTR_NODEV | mount.ATTR_NOEXEC
_UNLOCK_TERMINAL, _OPEN_PEER = 0x40045431, 0x5441  # TIOCSPTLCK, TIOCGPTPEER


class OpenRoot:
    """The root file system by its path on the host."""

    stage = "mount"

    def __init__(self, path: str) -> None:
        self.path = path

    def describe(self) -> str:
        return f"open the root {self.path}"

    def execute(self, scene: Scene) -> None:
        try:
            scene.root = mount.clone(self.path, recursive=True)
        except OSError as error:
            text = f"root {self.path}: {os.strerror(error.errno or 0)}"
            raise LaunchError("mount", error.errno or 0, text) from None


class Isolate:
    """Cut the new mount namespace off from the host's, and put the root into it. With `slave` as the propagation of the
    root, what the host mounts below its root file system is seen; with `shared` it begins a group of its own, later."""

    stage = "mount"

    def __init__(self, propagation: int) -> None:
        self.propagation = propagation

    def describe(self) -> str:
        return "cut mount propagation and attach the root"

    def execute(self, scene: Scene) -> None:
        mount.mount(None, "/", None, mount.REC | mount.PRIVATE)
        kept = mount.SLAVE if self.propagation == mount.SLAVE else mount.PRIVATE
        mount.set_attributes(scene.root, propagation=kept, recursive=True)
        # On top of `/`, which hides nothing from a process that already has its root there: hooks still see the host.
        mount.attach(scene.root, "/")
        os.fchdir(scene.root)


class EnterRoot:
    """Without a mount namespace of its own the container's mounts are made on its root, which is attached nowhere and
    goes with the last process in it (Linux 6.15): the namespace that it shares does not see them."""

    stage = "mount"

    def describe(self) -> str:
        return "enter the root, which no mount namespace has"

    def execute(self, scene: Scene) -> None:
        mount.set_attributes(scene.root, propagation=mount.PRIVATE, recursive=True)
        os.fchdir(scene.root)


class Devices:
    """The standard devices and links in /dev, then those asked for. By descriptor, so that a /dev of the image that is
    a symbolic link leads nowhere outside (CVE-2026-41579)."""

    stage = "devices"

    def __init__(self, wanted: list[dict[str, Any]]) -> None:
        # docker lists the host's with --privileged; the container's is of its own devpts
        self.wanted = [device for device in wanted if device["path"] != "/dev/ptmx"]

    def describe(self) -> str:
        names = [f"/dev/{name}" for name, _, _ in _STANDARD_DEVICES] + [device["path"] for device in self.wanted]
        return f"make devices {' '.join(names)}"

    def execute(self, scene: Scene) -> None:
        dev = place(scene.root, "/dev", directory=True)
        old = os.umask(0)
        try:
            for name, major, minor in _STANDARD_DEVICES:
                _node(dev, f"/dev/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
            for name, target in _LINKS:
                try:
                    os.symlink(target, name, dir_fd=dev)
                except FileExistsError:
                    continue
            for device in self.wanted:
                self._make(scene.root, device)
        finally:
            os.close(dev)
            os.umask(old)

    def _make(self, root: int, device: dict[str, Any]) -> None:
        folder = place(root, device["path"].rpartition("/")[0] or "/", directory=True)
        try:
            number = os.makedev(device.get("major", 0), device.get("minor", 0))
            if _node(folder, device["path"], _KINDS[device["type"]] | device.get("fileMode", 0o666) & 0o7777, number):
                name = device["path"].rpartition("/")[2]
                os.chown(name, device.get("uid", 0), device.get("gid", 0), dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(folder)


def _node(folder: int, path: str, mode: int, number: int) -> bool:
    """Make a device, or bind the host's where a user namespace forbids that; whether it was made."""
    name = path.rpartition("/")[2]
    try:
        os.mknod(name, mode, number, dir_fd=folder)
        return True
    except FileExistsError:
        there = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if (stat.S_IFMT(there.st_mode), there.st_rdev) != (stat.S_IFMT(mode), number):
            raise LaunchError("devices", 17, f"the image has another {path}") from None
    except PermissionError:
        _bind_node(folder, path, stat.S_IFMT(mode), number)
    return False


def _bind_node(folder: int, path: str, kind: int, number: int) -> None:
    """Its owner and mode stay those of the host."""
    found = _find_node(path, kind, number)
    tree = mount.clone("", at=found)
    name = path.rpartition("/")[2]
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=folder))
    target = open_in_root(folder, name, os.O_PATH, resolve=RESOLVE_NO_SYMLINKS)
    mount.attach(tree, at=target)
    for fd in (target, tree, found):
        os.close(fd)


def _find_node(path: str, kind: int, number: int) -> int:
    """A descriptor (O_PATH) of the host's node for a device: at the same path, or anywhere in /dev."""
    for place_of_host in (path, *(f"/dev/{name}" for name in os.listdir("/dev"))):
        try:
            found = os.open(place_of_host, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        there = os.fstat(found)
        if (stat.S_IFMT(there.st_mode), there.st_rdev) == (kind, number):
            return found
        os.close(found)
    numbers = f"{os.major(number)}:{os.minor(number)}"
    text = f"{path}: no device can be made in a user namespace, and the host has no node for {numbers} to bind"
    raise LaunchError("devices", 1, text)


class Console:
    """A pseudo-terminal of the container's own devpts, bound at /dev/console by its descriptor (CVE-2025-52565)."""

    stage = "terminal"

    def describe(self) -> str:
        return "open a terminal and bind it at /dev/console"

    def execute(self, scene: Scene) -> None:
        scene.terminal = open_terminal(scene.root)
        tree = mount.clone("", at=scene.terminal[1])
        target = place(scene.root, "/dev/console", directory=False)
        if procfs.in_it(target):
            raise LaunchError("terminal", 1, "/dev/console of the image leads into the kernel's /proc")
        mount.attach(tree, at=target)
        os.close(target)
        os.close(tree)


def is_multiplexer(fd: int) -> bool:
    return file_system_magic(fd) == DEVPTS_MAGIC and os.fstat(fd).st_rdev == os.makedev(5, 2)


def open_terminal(root: int) -> tuple[int, int]:
    """Master and slave of a new pseudo-terminal of the devpts at ROOT/dev/pts. The slave is opened from the master
    (TIOCGPTPEER), so nobody can put another file in its place."""
    master = open_in_root(root, "dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
    if not is_multiplexer(master):
        raise LaunchError("terminal", 0, "the container's /dev/pts/ptmx is not what the kernel made")
    fcntl.ioctl(master, _UNLOCK_TERMINAL, pack("i", 0))
    slave = fcntl.ioctl(master, _OPEN_PEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    return master, slave


class Pivot:
    stage = "mount"

    def describe(self) -> str:
        return "change the root, and drop the host's"

    def execute(self, scene: Scene) -> None:
        os.fchdir(scene.root)  # a hook may have been elsewhere
        mount.pivot_root(".", ".")
        mount.unmount(".", mount.MNT_DETACH)
        os.chdir("/")


class ChangeRoot:
    """chroot(2), where the mount namespace is shared, or where the host's root is an initramfs, which pivot_root(2)
    refuses: the container's root is mounted on top of it then, and what is below stays out of reach of names."""

    stage = "mount"

    def describe(self) -> str:
        return "change the root, in the mount namespace that is there"

    def execute(self, scene: Scene) -> None:
        enter(scene.root)


def enter(root: int) -> None:
    """Make a directory this process's root and working directory."""
    os.fchdir(root)
    os.chroot(".")


class SealMounts:
    """File systems that are read-only for the container, but in which mount points had to be made."""

    stage = "mount"

    def describe(self) -> str:
        return "make the file systems read-only that shall be"

    def execute(self, scene: Scene) -> None:
        for tree in scene.sealed:
            try:
                mount.set_attributes(tree, mount.ATTR_RDONLY)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                _cover(tree, recursive=False)  # on a root that is attached nowhere only what is moved can be changed
            os.close(tree)


class Sysctl:
    """Through the container's own, verified procfs, before /proc/sys is made read-only (CVE-2025-52881)."""

    stage = "sysctl"

    def __init__(self, values: dict[str, str]) -> None:
        self.values = values

    def describe(self) -> str:
        return "set " + " ".join(f"{key}={value}" for key, value in self.values.items())

    def execute(self, scene: Scene) -> None:
        try:
            proc = procfs.handle(scene.root)
        except OSError as error:
            text = "sysctl: the container has no /proc of its own"
            raise LaunchError("sysctl", error.errno or 0, text) from None
        for key, value in self.values.items():
            path = key if "/" in key else key.replace(".", "/")
            try:
                fd = procfs.open_beneath(proc, f"sys/{path}", os.O_WRONLY)
                try:
                    os.write(fd, str(value).encode())
                finally:
                    os.close(fd)
            except OSError as error:
                text = f"sysctl {key}={value}: {error.strerror}"
                raise LaunchError("sysctl", error.errno or 0, text) from None
        os.close(proc)


class MakeDirectory:
    """The working directory, if the image lacks it."""

    stage = "working directory"

    def __init__(self, path: str) -> None:
        self.path = path

    def describe(self) -> str:
        return f"make sure that {self.path} is there"

    def execute(self, scene: Scene) -> None:
        try:
            os.close(place(scene.root, self.path, directory=True))
        except OSError:
            return  # where it cannot be made, entering it says why


def _below_root(root: int, path: str) -> int:
    """open_if_there, but for the root itself: who has it as his root already would not see what is put onto it."""
    target = open_if_there(root, path)
    if target >= 0 and os.path.samestat(os.fstat(target), os.fstat(root)):
        raise LaunchError("mount", 22, f"{path} is the root, which cannot be hidden (root.readonly makes it read-only)")
    return target


class ReadOnly:
    stage = "mount"

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def describe(self) -> str:
        return f"make read-only {' '.join(self.paths)}"

    def execute(self, scene: Scene) -> None:
        for path in self.paths:
            target = _below_root(scene.root, path)
            if target < 0:
                continue
            _cover(target, recursive=True)
            os.close(target)


def is_null(fd: int) -> bool:
    there = os.fstat(fd)
    return stat.S_ISCHR(there.st_mode) and there.st_rdev == os.makedev(1, 3)


def _cover(target: int, *, recursive: bool) -> None:
    """Mount what is there over itself, read-only; recursive: with all that is mounted below."""
    tree = mount.clone("", at=target, recursive=True)
    mount.set_attributes(tree, mount.ATTR_RDONLY, recursive=recursive)
    mount.attach(tree, at=target)
    os.close(tree)


class Mask:
    """Hide paths: directories behind one empty read-only tmpfs, files behind a /dev/null that is verified to be one
    (CVE-2025-31133). label: of SELinux, for the tmpfs."""

    stage = "mount"

    def __init__(self, paths: list[str], label: str = "") -> None:
        self.paths, self.label = paths, label

    def describe(self) -> str:
        return f"hide {' '.join(self.paths)}"

    def execute(self, scene: Scene) -> None:
        null = open_in_root(scene.root, "dev/null", os.O_PATH)
        if not is_null(null):
            raise LaunchError("mask", 0, "the container's /dev/null is something else")
        empty = -1
        for path in self.paths:
            target = _below_root(scene.root, path)
            if target < 0:
                continue
            if stat.S_ISDIR(os.fstat(target).st_mode):
                if empty < 0:
                    options: list[tuple[str, str | int | None]] = [("size", "4k"), ("nr_inodes", "2"), ("mode", "555")]
                    if self.label:
                        options.append(("context", self.label))
                    tree = empty = mount.file_system("tmpfs", "masked", options, _EMPTY)
                else:  # from where the first is attached: before Linux 6.15 what is detached cannot be cloned
                    tree = mount.clone("", at=empty)
            else:
                tree = mount.clone("", at=null)
                mount.set_attributes(tree, mount.ATTR_RDONLY)
            mount.attach(tree, at=target)
            if tree != empty:
                os.close(tree)
            os.close(target)
        os.close(null)
        if empty >= 0:
            os.close(empty)


class SealRoot:
    """Attributes of the root itself, last: everything before may have had to make mount points."""

    stage = "mount"

    def __init__(self, *, read_only: bool, propagation: int, recursive: bool) -> None:
        self.read_only, self.propagation, self.recursive = read_only, propagation, recursive

    def describe(self) -> str:
        return f"root: {'read-only' if self.read_only else 'writable'}, propagation {self.propagation:#x}"

    def execute(self, scene: Scene) -> None:
        if self.read_only:
            mount.set_attributes(scene.root, mount.ATTR_RDONLY)
        if self.propagation:
            mount.set_attributes(scene.root, propagation=self.propagation, recursive=self.recursive)
