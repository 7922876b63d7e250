"""Applying a layer's archive to a mounted tree (image-spec layer.md, Applying Changesets).

Containment is by structure: every directory is opened by the kernel beneath the root's descriptor and nowhere else
(openat2(2) RESOLVE_IN_ROOT), every change is made by name in such a directory and follows no link, attributes are set
on descriptors or without following. A name that an image chose never becomes a path of the host.
"""

from __future__ import annotations

import os
import stat

from cowshed import log
from cowshed.errors import ImageError, NoSpace
from cowshed.layers import xattrs
from cowshed.layers.tarstream import (
    BLOCKDEV,
    CHAR,
    DIRECTORY,
    FIFO,
    FILE,
    LINK,
    SYMLINK,
    Entry,
    Feed,
    clean,
    entries,
)
from cowshed.storage.kit.trees import remove_entry
from cowshed_linux.paths import RESOLVE_NO_SYMLINKS, open_in_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_WHITEOUT, _OPAQUE = b".wh.", b".wh..wh..opq"
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH = os.O_PATH | os.O_DIRECTORY
_CACHED = 256
_LINKS = 40  # one behind the other, as path_resolution(7) has it
_HOLE, _ZEROS = 1 << 14, bytes(1 << 20)
_DEFAULT_ACL = "system.posix_acl_default"
_KINDS = {CHAR: stat.S_IFCHR, BLOCKDEV: stat.S_IFBLK, FIFO: stat.S_IFIFO}


def apply(chunks: Iterable[bytes], root: int, *, limit: int = 1 << 40) -> int:
    """Apply an uncompressed archive to the tree at descriptor root; the number of entries.

    limit is the most bytes that files may have in sum. Raises ImageError (not sound, or an attempt to break out),
    NoSpace, OSError. Every descriptor is closed again. One thread of a process at a time: the umask is all threads'.
    """
    applier = Applier(root, limit)
    old_mask = os.umask(0)
    try:
        feed = Feed(chunks)
        for entry in entries(feed):
            applier.entry(entry, feed)
        applier.finish()
        if applier.twice:
            log.warn(f"a layer has {applier.twice} names more than once: the last of each counts")
    except OSError as error:
        if error.errno in (28, 122):  # ENOSPC, EDQUOT
            raise NoSpace(
                f"no space to unpack {applier.doing}: {error.strerror}", remedy="cowshed rmi, or free space"
            ) from None
        why = _too_long(root, applier.name) if error.errno == 36 else ""  # ENAMETOOLONG
        raise ImageError(f"it cannot be unpacked: {applier.doing}: {why or error.strerror or error}") from None
    finally:
        os.umask(old_mask)
        applier.close()
    return applier.count


def _too_long(root: int, path: bytes) -> str:
    """Which name in a path the layer's file system cannot have: aufs takes 242 bytes, where others take 255."""
    most = os.fstatvfs(root).f_namemax
    longest = max(map(len, path.split(b"/")))
    if longest <= most:
        return ""
    return f"a name of {longest} bytes, and the driver's file system takes {most}: another driver may take it"


class Applier:
    """Makes the entries of an archive in a tree."""

    def __init__(self, root: int, limit: int) -> None:
        self.root, self.left = root, limit
        self.directories: dict[bytes, tuple[int, bool]] = {}  # path -> descriptor, whether children inherit of it
        self.late: dict[bytes, Entry] = {}  # directories: times last, as every child changes them
        self.written: set[bytes] = set()
        self._ancestors: set[bytes] = set()
        self._ancestors_of = 0  # how many were written when they were found
        self.count = 0
        self.twice = 0  # entries that took the place of an earlier one of this archive
        self.name = b""

    @property
    def doing(self) -> str:
        return repr(os.fsdecode(self.name))

    def close(self) -> None:
        for fd, _ in self.directories.values():
            os.close(fd)
        self.directories.clear()

    # ------------------------------------------------------------ directories

    def directory(self, path: bytes, links: int = _LINKS) -> tuple[int, bool]:
        """A directory and whether children inherit of it; made if it is missing, at the end of links too: within the
        root, wherever they seem to lead."""
        found = self.directories.get(path)
        if found is not None:
            return found
        try:
            fd = open_in_root(self.root, path, _PATH)
        except FileNotFoundError:
            above, _, name = path.rpartition(b"/")
            parent, _ = self.directory(above, links)
            try:
                os.mkdir(name, 0o755, dir_fd=parent)
            except FileExistsError:
                self.target(parent, name, above, links)
            try:
                fd = open_in_root(self.root, path, _PATH)
            except FileNotFoundError:
                raise ImageError(
                    f"{os.fsdecode(path)!r} is a link that leads nowhere, and files are to be put below it"
                ) from None
        except NotADirectoryError:
            raise ImageError(f"{os.fsdecode(path)!r} is no directory, and files are to be put below it") from None
        entry = fd, bool(os.fstat(fd).st_mode & stat.S_ISGID) or _has_default_acl(fd)
        self.directories[path] = entry
        return entry

    def target(self, parent: int, name: bytes, above: bytes, links: int) -> None:
        """Make the directory that a link leads to."""
        try:
            leads = os.readlink(name, dir_fd=parent)
        except OSError:
            return  # no link: who opens it again finds out what it is
        if links:
            self.directory(clean(leads if leads.startswith(b"/") else above + b"/" + leads), links - 1)

    def forget(self, path: bytes) -> None:
        """A directory goes: descriptors of it and of all below it lead nowhere, and so would cached links to it."""
        self.close()
        below = path + b"/"
        self.late = {name: e for name, e in self.late.items() if name != path and not name.startswith(below)}

    def clear(self, parent: int, base: bytes, path: bytes) -> None:
        """Make room for an entry of another kind. Cached descriptors, parent too, may be closed afterwards."""
        kind = os.stat(base, dir_fd=parent, follow_symlinks=False).st_mode
        if stat.S_ISDIR(kind):
            remove_entry(parent, base)
            self.forget(path)
            return
        os.unlink(base, dir_fd=parent)
        if stat.S_ISLNK(kind):
            self.close()  # paths that led through it lead elsewhere now

    # ------------------------------------------------------------ entries

    def entry(self, entry: Entry, feed: Feed) -> None:
        name = self.name = entry.name
        self.count += 1
        if len(self.directories) > _CACHED:
            self.close()
        if not name:
            if entry.kind == DIRECTORY:
                self.late[b""] = entry
                return
            raise ImageError("the archive replaces its own root")
        above, _, base = name.rpartition(b"/")
        if self.is_whiteout(base):
            feed.skip(entry.size)
            self.whiteout(entry, above, base)
            return
        if name in self.written and entry.kind != DIRECTORY:
            self.twice += 1
        parent, inherits = self.directory(above)
        if entry.kind == FILE:
            self.file(entry, feed, parent, base, inherits)
        elif entry.kind == DIRECTORY:
            self.make_directory(entry, parent, base)
        else:
            self.special(entry, parent, base)
        self.written.add(name)

    def is_whiteout(self, base: bytes) -> bool:
        return base.startswith(_WHITEOUT)

    def file(self, entry: Entry, feed: Feed, parent: int, base: bytes, inherits: bool) -> None:
        self.left -= entry.real_size
        if self.left < 0:
            raise ImageError("it unpacks to more than is allowed")
        try:
            fd = os.open(base, _CREATE, entry.mode & 0o777, dir_fd=parent)
        except FileExistsError:
            self.clear(parent, base, entry.name)
            parent, inherits = self.directory(entry.name.rpartition(b"/")[0])
            fd = os.open(base, _CREATE, entry.mode & 0o777, dir_fd=parent)
        try:
            if entry.holes or entry.real_size != entry.size:
                for offset, length in entry.holes:
                    os.lseek(fd, offset, os.SEEK_SET)
                    for view in feed.views(length):
                        _write(fd, view)
                os.ftruncate(fd, entry.real_size)
            elif whole := feed.whole(entry.size):
                _write(fd, whole)
            elif entry.size:
                hole = False
                for view in feed.views(entry.size):
                    hole = _is_hole(view)
                    if hole:
                        os.lseek(fd, len(view), os.SEEK_CUR)
                    else:
                        _write(fd, view)
                if hole:
                    os.ftruncate(fd, entry.size)
            if entry.uid or entry.gid or inherits:
                os.fchown(fd, entry.uid, entry.gid)
            if inherits:
                _drop(fd, entry.xattrs)
            if entry.mode & 0o7000 or inherits:
                os.fchmod(fd, entry.mode)
            for key, value in entry.xattrs.items():
                if not key.startswith(xattrs.REFUSED):
                    os.setxattr(fd, key, value)
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(fd)

    def make_directory(self, entry: Entry, parent: int, base: bytes) -> None:
        try:
            os.mkdir(base, 0o755, dir_fd=parent)
        except FileExistsError:
            there = os.stat(base, dir_fd=parent, follow_symlinks=False).st_mode
            if not stat.S_ISDIR(there):
                self.clear(parent, base, entry.name)
                parent, _ = self.directory(entry.name.rpartition(b"/")[0])
                os.mkdir(base, 0o755, dir_fd=parent)
        self.late[entry.name] = entry

    def special(self, entry: Entry, parent: int, base: bytes) -> None:
        for attempt in (1, 2):
            try:
                self.make_special(entry, parent, base)
                break
            except FileExistsError:
                if attempt == 2:
                    raise
                if entry.kind == LINK and entry.link == entry.name:
                    raise ImageError(f"{self.doing} is a hard link to itself") from None
                self.clear(parent, base, entry.name)
                parent, _ = self.directory(entry.name.rpartition(b"/")[0])
        if entry.kind == LINK:
            return
        os.chown(base, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if entry.kind != SYMLINK:
            os.chmod(base, entry.mode, dir_fd=parent)  # made just now as what it is: no link to follow
        if entry.xattrs:
            path = f"/proc/self/fd/{parent}/".encode() + base
            for key, value in entry.xattrs.items():
                if not key.startswith((*xattrs.REFUSED, "user.")):
                    os.setxattr(path, key, value, follow_symlinks=False)
        os.utime(base, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def make_special(self, entry: Entry, parent: int, base: bytes) -> None:
        if entry.kind == SYMLINK:
            if not entry.link:
                raise ImageError(f"{self.doing} is a symbolic link to nothing")
            os.symlink(entry.link, base, dir_fd=parent)
        elif entry.kind == LINK:
            above, _, target = entry.link.rpartition(b"/")
            if not target:
                raise ImageError(f"{self.doing} is a hard link to the root")
            source, _ = self.directory(above)
            os.link(target, base, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        else:
            os.mknod(base, _KINDS[entry.kind] | 0o600, os.makedev(*entry.device), dir_fd=parent)

    def whiteout(self, entry: Entry, above: bytes, base: bytes) -> None:
        if entry.kind != FILE:
            raise ImageError(f"{self.doing} is a whiteout and no plain file")
        if base == _OPAQUE:
            self.opaque(above)
            return
        target = base[len(_WHITEOUT) :]
        if target in (b"", b".", b"..") or target.startswith(_WHITEOUT):
            raise ImageError(f"{self.doing} is a whiteout of nothing that can be")
        path = above + b"/" + target if above else target
        try:
            parent = open_in_root(self.root, above, _PATH)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            mine = path in self.written or path in self.ancestors()
            if mine and _is_directory(parent, target):
                self.hide(parent, target, path)  # a whiteout is for what lies below this layer
                self.close()
            elif path not in self.written:
                remove_entry(parent, target)
                self.forget(path)
        finally:
            os.close(parent)

    def opaque(self, path: bytes) -> None:
        """Hide what lower layers have in a directory; what this layer has put there already stays."""
        there, _ = self.directory(path)
        self.hide(there, b".", path)
        self.close()

    def hide(self, parent: int, base: bytes, path: bytes) -> None:
        """Remove what this layer has not written from the directory of that path."""
        ancestors = self.ancestors()
        fd = open_in_root(parent, base, os.O_RDONLY | os.O_DIRECTORY, resolve=RESOLVE_NO_SYMLINKS)
        try:
            for name in map(os.fsencode, os.listdir(fd)):
                below = path + b"/" + name if path else name
                if below in ancestors and _is_directory(fd, name):
                    self.hide(fd, name, below)
                elif below not in self.written:
                    remove_entry(fd, name)
        finally:
            os.close(fd)

    def ancestors(self) -> set[bytes]:
        """Every directory that this layer has put something into so far."""
        if self._ancestors_of != len(self.written):
            found: set[bytes] = set()
            for name in self.written:
                while name := name.rpartition(b"/")[0]:
                    if name in found:
                        break
                    found.add(name)
            self._ancestors, self._ancestors_of = found, len(self.written)
        return self._ancestors

    def finish(self) -> None:
        """Attributes of directories, deepest first."""
        self.close()
        for name, entry in reversed(self.late.items()):
            self.name = name
            try:
                fd = open_in_root(self.root, name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except (FileNotFoundError, NotADirectoryError):
                continue  # replaced by a later entry
            try:
                os.fchown(fd, entry.uid, entry.gid)
                _drop(fd, entry.xattrs)  # those that a directory of a lower layer had, or gave to its children
                os.fchmod(fd, entry.mode)
                for key, value in entry.xattrs.items():
                    if not key.startswith(xattrs.REFUSED):
                        os.setxattr(fd, key, value)
                os.utime(fd, ns=(entry.mtime, entry.mtime))
            finally:
                os.close(fd)


def _is_directory(at: int, name: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _write(fd: int, view: memoryview) -> None:
    done = os.write(fd, view)
    while done < len(view):
        done += os.write(fd, view[done:])


def _is_hole(view: memoryview) -> bool:
    """Whether a piece of a large file is all zeros, and long enough to be left out: archives are written without the
    holes of the files in them."""
    size = len(view)
    return _HOLE <= size <= len(_ZEROS) and view[0] == 0 == view[-1] and bytes(view) == _ZEROS[:size]


def _has_default_acl(fd: int) -> bool:
    """Whether a directory gives the entries made in it an access list; fd may be opened with O_PATH."""
    try:
        return bool(os.getxattr(f"/proc/self/fd/{fd}", _DEFAULT_ACL))
    except OSError as error:
        if error.errno not in (61, 95):  # ENODATA, EOPNOTSUPP
            raise
        return False


def _drop(fd: int, kept: dict[str, bytes]) -> None:
    for name in xattrs.listed(fd):
        if name not in kept and not name.startswith(xattrs.REFUSED):
            os.removexattr(fd, name)
