"""A whole tree as a value: every attribute that a container can see, and the differences of two of them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

# the host's to say; and what xfs shows root of an access list, as it lies on disk
_HIDDEN = ("security.selinux", "trusted.SGI_ACL_FILE", "trusted.SGI_ACL_DEFAULT")
_ATTRIBUTES = ("kind", "mode", "uid", "gid", "mtime", "size", "content", "xattrs", "links")


@dataclass(frozen=True)
class Node:
    kind: str  # file dir link char block fifo socket
    mode: int
    uid: int
    gid: int
    mtime: int  # ns
    size: int  # of files
    content: str  # digest of a file, target of a link, number of a device
    xattrs: tuple[tuple[str, bytes], ...]
    links: tuple[str, ...] = ()  # all names of the same inode, if there are several


Tree = Mapping[str, Node]
granularity = 1  # ns: the coarsest `Capabilities.time_granularity` of a store that was opened in this process
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def cut(moment: int) -> int:
    """A time in ns, as far as the driver under test keeps those that are set."""
    return moment // granularity * granularity


def cut_times(root: str) -> None:
    """Take from every time below root what `cut` takes from it."""
    for where, folders, others in os.walk(f"{root}/."):
        for path in (where, *(f"{where}/{name}" for name in (*others, *folders))):
            status = os.lstat(path)
            if cut(status.st_mtime_ns) != status.st_mtime_ns:
                os.utime(path, ns=(status.st_atime_ns, cut(status.st_mtime_ns)), follow_symlinks=False)


def read(root: str) -> dict[str, Node]:
    """path (relative, `.` is the root) → node."""
    found: dict[str, Node] = {}
    names: dict[tuple[int, int], list[str]] = {}
    _read(root, ".", found, names)
    for group in names.values():
        if len(group) > 1:
            for name in group:
                found[name] = replace(found[name], links=tuple(sorted(group)))
    return found


def _read(root: str, path: str, found: dict[str, Node], names: dict[tuple[int, int], list[str]]) -> None:
    full = f"{root}/{path}"
    status = os.lstat(full)
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    content, size = "", 0
    if kind == "file":
        content, size = digest(full), status.st_size
    elif kind == "link":
        content = os.readlink(full)
    elif kind in ("char", "block"):
        content = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    names_ = sorted(name for name in os.listxattr(full, follow_symlinks=False) if name not in _HIDDEN)
    xattrs = [(name, os.getxattr(full, name, follow_symlinks=False)) for name in names_]
    found[path] = Node(
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        size,
        content,
        tuple(xattrs),
    )
    if kind == "dir":
        for name in sorted(os.listdir(full)):
            _read(root, name if path == "." else f"{path}/{name}", found, names)
    elif status.st_nlink > 1:
        names.setdefault((status.st_dev, status.st_ino), []).append(path)


def digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(wanted: Tree, found: Tree, *, ignore: Iterable[str] = ()) -> list[str]:
    """One line for each path that differs, empty if the trees are equal. ignore: names of attributes."""
    looked_at = [name for name in _ATTRIBUTES if name not in set(ignore)]
    lines = []
    for path in sorted({*wanted, *found}):
        a, b = wanted.get(path), found.get(path)
        if a is None or b is None:
            lines.append(f"{path!r} is {'missing' if b is None else 'there and should not be'}")
            continue
        wrong = [f"{n} {getattr(b, n)!r} for {getattr(a, n)!r}" for n in looked_at if _told(a, n) != _told(b, n)]
        if wrong:
            lines.append(f"{path!r} has {', '.join(wrong)}")
    return lines


def _told(node: Node, name: str) -> object:
    return cut(node.mtime) if name == "mtime" else getattr(node, name)


def same(wanted: Tree, found: Tree, why: str, *, ignore: Iterable[str] = ()) -> None:
    """Fail with the differences, unless there are none."""
    lines = differences(wanted, found, ignore=ignore)
    if lines:
        more = f"\n… and {len(lines) - 20} more" if len(lines) > 20 else ""
        raise AssertionError(f"{why}:\n" + "\n".join(lines[:20]) + more)
