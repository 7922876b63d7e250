"""Mounting aufs, an out-of-tree union file system, so that what it is known to do wrong cannot happen.

One call to it has room for 84 branches and options; one more in the form `br` crashes the kernel. So a mount begins
with the writable branch alone and takes the others by `append`, a batch at a time. What it does not understand it
takes in silence: a misspelt permission becomes `ro`, in which whiteouts are ignored and deleted files come back. So
what it made of each batch is asked of the mount (AUFS_CTL_BRINFO, include/uapi/linux/aufs_type.h) and compared.

It is never asked in sysfs: to read a file of /sys/fs/aufs/si_* crashes the kernel while that mount, anybody's, is being
made or is going (sysaufs_si_show of aufs 6.1 follows si_sb, which is not set yet, or no more). That such a directory is
there may be looked at. Which is a mount's own is told by the options in the mount table (`si=`); it is noted in the
writable branch, among what aufs keeps there for itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import sys

from cowshed.storage.kit.descent import Descent, names
from cowshed_linux import mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cowshed.storage import api

    Branch = tuple[str, str]  # where it lies, as the kernel tells it, and its permission

_BATCH = 60  # branches and options in one call
_TOP, _BELOW = "rw", "ro+wh"  # +wh: the whiteouts in it count
_PERMISSIONS = {1: _TOP, 2 | 1 << 12: _BELOW}  # AuBrPerm_RW; AuBrPerm_RO, AuBrRAttr_WH
_BRANCHES = 0x5000_4105  # AUFS_CTL_BRINFO
_ENTRY, _PERMISSION, _PATH = 4096, 4, 8  # of the answer for a branch: size, and where in it what lies
_PLACE = "/proc"  # a directory that is always there; what is mounted on it is seen by one thread
_SYSFS = "/sys/fs/aufs"
_MAINTENANCE = "/proc/fs/aufs/plink_maint"
_LINKS = ".wh..wh.plnk"
_NOTE = "trusted.cowshed.mount"  # on it: which mount has the branch as its writable one
_ESCAPED = re.compile(rb"\\([0-7]{3})")


def mounted(step: api.Aufs) -> int:
    """The descriptor of a detached mount. OSError; ENOSPC for more branches than this kernel takes."""
    # Inode numbers lie in a file of no name on a file system of its own in memory: elsewhere it would count as the
    # layer's, fill up with the store, or be refused (xfs, btrfs).
    numbers = mount.file_system("tmpfs", "cowshed-xino", [("mode", "0700")])
    try:
        with mount.Context("aufs") as context:
            context.set("source", _source(step.branches[0]))
            for option, value in step.options:
                context.set(option, value)
            context.set("xino", f"/proc/self/fd/{numbers}/{os.urandom(16).hex()}")
            room = _BATCH - len(step.options) - 1
            wanted = _give(context, step, 0, room)
            if not step.writable:
                context.set("ro")
            _applied(context.create, step)
            tree = context.mount(0 if step.writable else mount.ATTR_RDONLY)
            try:
                _compare(branches(tree), wanted)
                for first in range(room, len(step.branches), _BATCH):
                    wanted += _give(context, step, first, first + _BATCH)
                    _applied(context.reconfigure, step)
                    _compare(branches(tree), wanted)
                return _noted(tree, step.branches[0]) if step.writable else tree
            except BaseException:
                os.close(tree)
                raise
    finally:
        os.close(numbers)


def _source(branch: str) -> str:
    """What the mount table shows: the top layer, whose end is kept if it is too long."""
    return branch if len(os.fsencode(branch)) <= 255 else "…" + os.fsencode(branch)[-240:].decode(errors="ignore")


def _give(context: mount.Context, step: api.Aufs, first: int, end: int) -> list[Branch]:
    """Name some branches by descriptor: their paths may be long, and hold commas, colons and equals signs."""
    given = []
    for n, path in enumerate(step.branches[first:end], first):
        permission = _TOP if n == 0 and step.writable else _BELOW
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            place = f"/proc/self/fd/{fd}"
            given.append((os.readlink(place), permission))
            context.set("append" if n else "br", f"{place}={permission}")
        finally:
            os.close(fd)
    return given


def _applied(call: Callable[[], None], step: api.Aufs) -> None:
    try:
        call()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        text = f"mount aufs: {len(step.branches)} branches: no space, or more than this kernel's aufs takes"
        raise OSError(errno.ENOSPC, text) from None


# ---------------------------------------------------------------- what the kernel says of its mounts


def branches(tree: int) -> list[Branch]:
    """Those of a mount, the topmost first."""
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
    try:
        answer = bytearray(fcntl.ioctl(fd, _BRANCHES, 0) * _ENTRY)
        fcntl.ioctl(fd, _BRANCHES, answer)
    finally:
        os.close(fd)
    return [parse(bytes(answer[at : at + _ENTRY])) for at in range(0, len(answer), _ENTRY)]


def parse(entry: bytes) -> Branch:
    """What the answer for a branch says: the path has octal escapes."""
    permission = int.from_bytes(entry[_PERMISSION:_PATH], sys.byteorder)
    path = _ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), entry[_PATH:].partition(b"\0")[0])
    return os.fsdecode(path), _PERMISSIONS.get(permission, hex(permission))


def _compare(found: Sequence[Branch], wanted: Sequence[Branch]) -> None:
    if found == wanted:
        return
    for n, branch in enumerate(wanted):
        if found[n : n + 1] != [branch]:
            got = "nothing" if n >= len(found) else "=".join(found[n])
            raise OSError(errno.EIO, f"mount aufs: branch {n} is {got} instead of {'='.join(branch)}")
    raise OSError(errno.EIO, f"mount aufs: {len(found)} branches instead of {len(wanted)}")


def _noted(tree: int, branch: str) -> int:
    """The same mount, detached, of which its writable branch says now which it is. Closes tree."""
    made, number = _numbered(tree)
    try:
        note = f"{number} {os.stat(f'{_SYSFS}/si_{number}').st_ino}"  # numbers are used again, inodes are not
        os.setxattr(f"{branch}/{_LINKS}", _NOTE, note.encode())
    except BaseException:
        os.close(made)
        raise
    os.close(tree)
    return made


def _numbered(tree: int) -> tuple[int, str]:
    """A clone of a detached mount, and its number: only a mount table tells that, in a namespace that lives for this
    call only."""
    from cowshed_linux import process

    def work() -> tuple[int, str]:
        table = os.open("/proc/thread-self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        try:
            mount.attach(tree, _PLACE)
            said = []
            while block := os.read(table, 1 << 16):
                said.append(block)
            return mount.clone(_PLACE), number_in(b"".join(said))
        finally:
            os.close(table)

    return process.aside(-1, work)


def number_in(table: bytes) -> str:
    """That of the last aufs that a mount table shows (proc_pid_mountinfo(5)): the one that was mounted last."""
    for line in reversed(table.splitlines()):
        words = line.split(b" ")
        at = words.index(b"-")
        if words[4] == _PLACE.encode() and words[at + 1] == b"aufs":
            for option in words[-1].split(b","):
                if option.startswith(b"si="):
                    return option[3:].decode()
    raise OSError(errno.EIO, "mount aufs: the mount table does not show which mount it is")


def _note(branch: str) -> str:
    """The number of the mount that has it as its writable branch; "" if that has gone, or never was."""
    try:
        number, _, inode = os.getxattr(f"{branch}/{_LINKS}", _NOTE).decode().partition(" ")
        there = os.stat(f"{_SYSFS}/si_{number}")
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOENT, errno.EOPNOTSUPP):
            return ""
        raise
    return number if str(there.st_ino) == inode else ""


def in_use(branch: str) -> bool:
    """Whether an aufs is mounted, in whatever namespace or held by open files only, that writes into this branch. Of
    read-only mounts nothing tells."""
    return bool(_note(branch))


# ---------------------------------------------------------------- before a mount ends


def settle(tree: int, branch: str) -> int:
    """Give every name of a hard-linked file that was changed through another of its names a place in the writable
    branch of a mount; how many files. Only the living mount knows them: after it they would be different files. Nobody
    may use the mount meanwhile.

    aufs keeps such files in a directory of its own, each called by its number in the mount (aufs.5, Pseudo Link).
    """
    kept = f"{branch}/{_LINKS}"
    try:
        entries = os.listdir(kept)
    except FileNotFoundError:
        return 0
    if not entries:
        return 0
    number = _note(branch)
    if not number:
        raise OSError(errno.EIO, f"{branch} has links of a mount of aufs, and no note says of which")
    numbers = {int(entry.partition(".")[0]) for entry in entries}
    # While this is open and has been told of the mount, aufs lets nobody else make such links in it.
    fd = os.open(_MAINTENANCE, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, f"si={number}".encode())
        _touch(tree, numbers)
        for entry in entries:
            os.unlink(f"{kept}/{entry}")
        os.write(fd, b"clean")
    finally:
        os.close(fd)
    return len(entries)


def _touch(tree: int, numbers: set[int]) -> None:
    """Set the mode of each name of these files to what it is: aufs makes its link in the writable branch then.
    (chown(2), which its own tool uses, would take set-user-id bits and capabilities away, utimensat(2) parts of
    seconds.)"""
    walk = Descent(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree))
    try:
        stack = [names(walk.fd)]
        while True:
            if not stack[-1]:
                stack.pop()
                if not stack:
                    return
                walk.up()
                continue
            name = stack[-1].pop()
            status = os.stat(name, dir_fd=walk.fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                walk.down(name)
                stack.append(names(walk.fd))
            elif status.st_ino in numbers:
                if stat.S_ISLNK(status.st_mode):  # has none of those, and no mode that can be set
                    os.chown(name, status.st_uid, status.st_gid, dir_fd=walk.fd, follow_symlinks=False)
                else:
                    os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=walk.fd)
    finally:
        walk.close()
