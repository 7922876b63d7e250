"""The state directory: what is known of each container between commands.

ROOT is 0700 and holds a directory for each container, which appears and goes by one rename. In it: state.json, replaced
by rename; config.json, the configuration as it was when the container was made; what it waits at (waiting.py). A
command that changes a container holds a lock on its directory, which the kernel releases; readers take none.
"""

from __future__ import annotations

import fcntl
import os
from time import gmtime, strftime, time_ns

from cowshed_linux import process
from cowshed_runtime import waiting
from cowshed_runtime.cgroup import freezer, place
from cowshed_runtime.command.errors import CommandError
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from cowshed_runtime.cgroup.group import Group
    from cowshed_runtime.command.parser import Values

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+.-")
_NEW, _OLD = ".new-", ".old-"  # no id begins with a dot


def root(flags: Values) -> str:
    """The directory of --root, or the usual one."""
    if flags.root:
        return os.path.abspath(str(flags.root))
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    # Rootless podman calls it as root of the user's namespace; a container's own root is one too.
    if runtime and (os.geteuid() != 0 or (plain() and os.environ.get("USER") != "root")):
        return f"{runtime}/cowshed-runtime"
    return "/run/cowshed-runtime"


def plain() -> bool:
    """Whether this process has the rights of a plain user alone: also root of a user namespace."""
    if os.geteuid() != 0:
        return True
    with open("/proc/self/uid_map", "rb") as file:
        return file.read().split() != [b"0", b"0", b"4294967295"]


def cache(folder: str) -> str:
    """Where compiled seccomp filters are kept."""
    path = f"{folder}/.cache"
    if not os.path.isdir(path):
        os.makedirs(path, 0o700, exist_ok=True)
    return path


def check_id(name: str) -> None:
    if not name:
        raise CommandError("container id cannot be empty")
    if name[0] == "." or len(name) > 200 or not set(name) <= _LETTERS:
        raise CommandError(f"invalid container ID format: {name!r} (letters, digits, _ + - . and not first a .)")


class Unknown(CommandError):
    """There is no such container."""


class Container:
    """One container's directory, by descriptor, and its record.

    record: id, pid and started (0 before there is a process), made (create has finished), bundle, rootfs, created,
    ociVersion, annotations, group.
    """

    def __init__(self, place: str, fd: int, record: dict[str, Any]) -> None:
        self.place, self.fd, self.record = place, fd, record

    @property
    def id(self) -> str:
        return str(self.record["id"])

    @property
    def pid(self) -> int:
        return int(self.record["pid"])

    @property
    def group(self) -> Group:
        return place.restore(self.record["group"])

    def config(self) -> dict[str, Any]:
        """The configuration as it was when the container was made."""
        return dict(loads(_read(self.fd, "config.json")))

    def save(self, **changes: Any) -> None:
        self.record.update(changes)
        _write(self.fd, "state.json", dumps(self.record).encode())

    def lock(self) -> None:
        """Wait until no other command changes it. CommandError if one has removed it meanwhile."""
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        if os.fstat(self.fd).st_nlink == 0 or not _same(self.place, self.fd):
            raise _unknown(self.id)
        self.record = loads(_read(self.fd, "state.json"))

    def unlock(self) -> None:
        """Let other commands change it."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def lives(self) -> bool:
        return self.pid > 0 and process.lives(self.pid, self.record["started"])

    def status(self, *, mine: bool = False) -> str:
        """creating, created, running, paused or stopped. mine: this process holds the lock."""
        lives = self.lives()
        if not self.record["made"] and not mine and self._busy():
            return "creating"
        if not lives:
            return "stopped"
        if waiting.holds(self.fd):
            return "created"
        return "paused" if freezer.frozen(self.group) else "running"

    def _busy(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        return False

    def told(self, status: str) -> dict[str, Any]:
        """The state document (runtime.md, State), with what runc adds."""
        record = self.record
        shown = {
            "ociVersion": record["ociVersion"],
            "id": self.id,
            "pid": 0 if status == "stopped" else self.pid,
            "status": status,
            "bundle": record["bundle"],
            "rootfs": record["rootfs"],
            "created": record["created"],
        }
        if record["annotations"]:
            shown["annotations"] = record["annotations"]
        return {**shown, "owner": str(record["owner"])}

    def remove(self) -> None:
        """Take the directory away, in one step for whoever looks."""
        old = f"{os.path.dirname(self.place)}/{_OLD}{time_ns()}-{os.getpid()}"
        os.rename(self.place, old)
        _clear(old)

    def close(self) -> None:
        os.close(self.fd)


def create(folder: str, record: dict[str, Any], config: bytes) -> Container:
    """A new container's directory, locked. CommandError if the id is in use."""
    name = record["id"]
    place = f"{folder}/{name}"
    os.makedirs(folder, 0o700, exist_ok=True)
    _sweep(folder)
    exists = CommandError(f"container with given ID already exists: {name}")
    if os.path.lexists(place):
        raise exists
    new = f"{folder}/{_NEW}{time_ns()}-{os.getpid()}"
    os.mkdir(new, 0o700)
    fd = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        record = {
            "pid": 0, "started": 0, "made": False, "created": _now(), "owner": os.geteuid(), **record,
        }  # fmt: skip
        container = Container(place, fd, record)
        _write(fd, "config.json", config)
        container.save()
        os.rename(new, place)  # over a directory that is not empty it fails
    except BaseException as error:
        os.close(fd)
        _clear(new)
        if isinstance(error, OSError) and error.errno in (17, 39):  # EEXIST, ENOTEMPTY
            raise exists from None
        raise
    return container


def load(folder: str, name: str, *, lock: bool = False) -> Container:
    """The container called name. CommandError if there is none. lock: see Container.lock."""
    check_id(name)
    place = f"{folder}/{name}"
    try:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        container = Container(place, fd, loads(_read(fd, "state.json")))
    except (FileNotFoundError, NotADirectoryError):
        raise _unknown(name) from None
    if lock:
        container.lock()
    return container


def names(folder: str) -> Iterator[str]:
    """The ids of all containers, sorted."""
    try:
        found = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    for name in found:
        if name[0] != "." and os.path.isdir(f"{folder}/{name}"):
            yield name


def _unknown(name: str) -> Unknown:
    return Unknown(f"container does not exist: {name}")


def _same(path: str, fd: int) -> bool:
    try:
        there, here = os.stat(path, follow_symlinks=False), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _sweep(folder: str) -> None:
    """Directories of commands that were killed before they gave them a name, or while they removed them."""
    for name in os.listdir(folder):
        if not name.startswith((_NEW, _OLD)):
            continue
        try:
            fd = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _clear(f"{folder}/{name}")
        except BlockingIOError:
            continue  # its maker lives
        finally:
            os.close(fd)


def _clear(path: str) -> None:
    """Remove a directory of ours: files, and one level of directories (notify)."""
    try:
        entries = list(os.scandir(path))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            _clear(entry.path)
            continue
        try:
            os.unlink(entry.path)
        except FileNotFoundError:
            continue
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return


def _now() -> str:
    now = time_ns()
    return f"{strftime('%Y-%m-%dT%H:%M:%S', gmtime(now // 10**9))}.{now % 10**9:09}Z"


def _read(place: int, name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=place)
    try:
        text = b""
        while block := os.read(fd, 1 << 20):
            text += block
        return text
    finally:
        os.close(fd)


def _write(place: int, name: str, data: bytes) -> None:
    fd = os.open(f"{name}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=place)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)
    os.rename(f"{name}.new", name, src_dir_fd=place, dst_dir_fd=place)
