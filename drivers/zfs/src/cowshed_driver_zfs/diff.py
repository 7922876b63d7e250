"""What `zfs diff` says (zfs-diff(8)), and what it leaves out.

It prints one path for each object (inode) that changed. That is not enough:

    a file with several names      one of them is printed; a name that was added or taken away, perhaps never
    a directory                    that its entries changed is printed, which ones is not
    a renamed directory            what is in it is not printed
    a file deleted while open      no path, or one that says so
    attributes kept in a hidden directory   a path below the file, with <xattrdir> in it
    nothing at all                 if an object's ctime is the same in both, whatever is in it

So its lines are candidates, and the rest is found here: by the inode numbers in both sides of each directory that it
names, which clones share, and by a search for the other names of files that have several. Against equal ctimes
prepare() sees to it that the clock has ticked between the last write to a layer and the first to its child.
"""

from __future__ import annotations

import errno
import os
import re
import stat

from cowshed.storage.api import Change, ChangeKind
from cowshed.storage.errors import ToolFailed
from cowshed.storage.kit.descent import DIRECTORY, Descent, Moved
from cowshed.storage.record import record
from cowshed_linux import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_ESCAPE = re.compile(rb"\\(0[0-3][0-7]{2})")
_HIDDEN = b"/<xattrdir>"
_KINDS = {b"M": 2, b"+": 1, b"-": 1, b"R": 2}  # how many words a line of the kind has after the type of file
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # the last: a link where a directory was


@record(slots=True)
class Line:
    """One object. Paths are below the layer's root; None for what lies outside, or has no path any more."""

    kind: bytes  # M modified, + added, - deleted, R renamed
    directory: bool
    path: bytes | None
    to: bytes | None  # of R


def lines(output: bytes, place: bytes) -> Iterator[Line]:
    """The lines of `zfs diff -FH` of a dataset mounted at `place`, whose directory `root` is the layer.

    Raises ToolFailed for what it does not print.
    """
    for raw in output.split(b"\n"):
        if not raw:
            continue
        kind, *words = raw.split(b"\t")
        most = _KINDS.get(kind)
        if most is None or not 2 <= len(words) <= most + 1 or (kind == b"R" and len(words) != 3):
            raise ToolFailed(f"zfs diff printed what was not understood: {raw[:200]!r}")
        kept = [_below(decoded(word), place) for word in words[1:]]
        yield Line(kind, words[0] == b"/", kept[0], kept[1] if kind == b"R" else None)


def decoded(word: bytes) -> bytes:
    """A path as it is: what is no printing ASCII character is a backslash and four octal digits."""
    return _ESCAPE.sub(lambda found: bytes((int(found[1], 8),)), word)


def _below(path: bytes, place: bytes) -> bytes | None:
    root = place + b"/root"
    if path in (root, root + b"/"):
        return b""
    return path[len(root) + 1 :] if path.startswith(root + b"/") else None


@record(slots=True)
class Candidates:
    """What the lines name."""

    paths: dict[bytes, bool]  # whether with all below
    directories: set[bytes]  # whose entries may have changed


def candidates(found: Iterable[Line]) -> Candidates:
    names: dict[bytes, bool] = {}
    directories: set[bytes] = set()

    def add(path: bytes | None, subtree: bool) -> None:
        if path is not None:
            names[path] = names.get(path, False) or subtree
            owner, hidden, _ = path.partition(_HIDDEN)
            if hidden:  # or a file that somebody called so
                names.setdefault(owner, False)

    for line in found:
        add(line.path, line.directory and line.kind == b"+")
        add(line.to, line.directory)
        if line.directory and line.kind == b"M" and line.path is not None:
            directories.add(line.path)
    return Candidates(names, directories)


def completed(named: Candidates, lower: int, upper: int) -> Iterator[Change]:
    """All paths that may differ between two trees, given as descriptors of their roots, of which one is a clone of the
    other: none is missed, some may be the same."""
    names = dict(named.paths)
    for path in named.directories:
        before, now = entries(lower, path), entries(upper, path)
        for name in before.keys() | now.keys():
            if before.get(name) != now.get(name):
                names[path + b"/" + name if path else name] = True
    for path in _other_names(names, upper):
        names.setdefault(path, False)
    for path, subtree in names.items():
        yield Change(path, ChangeKind.CANDIDATE, subtree)


def entries(root: int, path: bytes) -> dict[bytes, int]:
    """The inode number of each name in a directory below root; nothing if it is none."""
    fd = _opened(root, path, DIRECTORY)
    if fd < 0:
        return {}
    try:
        with os.scandir(fd) as found:
            return {os.fsencode(entry.name): entry.inode() for entry in found}
    finally:
        os.close(fd)


def _other_names(names: Iterable[bytes], upper: int) -> list[bytes]:
    """Names of the files with several among `names` that are not among them."""
    missing: dict[int, int] = {}
    for path in names:
        status = _status(upper, path)
        if status is not None and status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            missing[status.st_ino] = missing.get(status.st_ino, status.st_nlink) - 1
    wanted = {inode for inode, count in missing.items() if count}
    return list(_names_of(wanted, upper)) if wanted else []


def _status(root: int, path: bytes) -> os.stat_result | None:
    fd = _opened(root, path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    if fd < 0:
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _opened(root: int, path: bytes, flags: int) -> int:
    """A descriptor of what is at path below root; -1 for nothing."""
    try:
        return paths.open_in_root(root, path, flags, resolve=paths.RESOLVE_NO_SYMLINKS)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        return -1


def _names_of(wanted: set[int], root: int) -> Iterator[bytes]:
    """Every path below root of the inodes wanted. No inode is read, only directories."""
    tree = Descent(os.open(".", DIRECTORY, dir_fd=root))
    try:
        below, found = _listed(tree.fd, wanted)
        yield from found
        stack = [(b"", below)]
        while stack:
            path, below = stack[-1]
            if not below:
                stack.pop()
                if stack:
                    tree.up()
                continue
            name = below.pop()
            try:
                tree.down(name)
            except OSError:
                continue  # of a layer that is being written: it has gone just now
            inner = path + name + b"/"
            below, found = _listed(tree.fd, wanted)
            yield from (inner + each for each in found)
            stack.append((inner, below))
    except Moved:
        return  # of a layer that is being written: no moment is asked for
    finally:
        tree.close()


def _listed(fd: int, wanted: set[int]) -> tuple[list[bytes], list[bytes]]:
    """The directories in an open directory, and the names of what is wanted."""
    below, found = [], []
    with os.scandir(fd) as listing:
        for entry in listing:
            if entry.is_dir(follow_symlinks=False):
                below.append(os.fsencode(entry.name))
            elif entry.inode() in wanted:
                found.append(os.fsencode(entry.name))
    return below, found
