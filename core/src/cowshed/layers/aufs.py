"""Mounting aufs, an out-of-tree union file system, so that what it is known to do wrong cannot happen.

One call to it has room for 84 branches and options; one more in the form `br` crashes the kernel. So a mount begins
with the writable branch alone and takes the others by `append`, a batch at a time. What it does not understand it
takes in silence: a misspelt permission becomes `ro`, in which whiteouts are ignored and deleted files come back. So
what it made of each batch is read back from sysfs (Documentation/ABI/testing/sysfs-aufs of aufs) and compared.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time

from cowshed.storage.kit.descent import Descent, names
from cowshed_linux import mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cowshed.storage import api

    Branch = tuple[str, str]  # where it lies, as the kernel tells it, and its permission

_BATCH = 60  # branches and options in one call
_TOP, _BELOW = "rw", "ro+wh"  # +wh: the whiteouts in it count
_SYSFS = "/sys/fs/aufs"
_MAINTENANCE = "/proc/fs/aufs/plink_maint"
_LINKS = ".wh..wh.plnk"
_ESCAPED = re.compile(r"\\([0-7]{3})")
_TRIES = 100  # a file of sysfs that is busy because its mount is being changed


def mounted(step: api.Aufs) -> int:
    """The descriptor of a detached mount. OSError; ENOSPC for more branches than this kernel takes."""
    # Inode numbers lie in a file of no name on a file system of its own in memory: elsewhere it would count as the
    # layer's, fill up with the store, or be refused (xfs, btrfs). By its name sysfs tells which mount is this one.
    numbers = mount.file_system("tmpfs", "cowshed-xino", [("mode", "0700")])
    name = os.urandom(16).hex()
    try:
        with mount.Context("aufs") as context:
            context.set("source", _source(step.branches[0]))
            for option, value in step.options:
                context.set(option, value)
            context.set("xino", f"/proc/self/fd/{numbers}/{name}")
            room = _BATCH - len(step.options) - 1
            wanted = _give(context, step, 0, room)
            if not step.writable:
                context.set("ro")
            _applied(context.create, step)
            tree = context.mount(0 if step.writable else mount.ATTR_RDONLY)
            try:
                said = _directory_of(name)
                _compare(said, wanted)
                for first in range(room, len(step.branches), _BATCH):
                    wanted += _give(context, step, first, first + _BATCH)
                    _applied(context.reconfigure, step)
                    _compare(said, wanted)
            except BaseException:
                os.close(tree)
                raise
            return tree
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


def _directory_of(name: str) -> str:
    """The directory of sysfs of the mount whose numbers lie in a file of this name."""
    for said in _all():
        if f"/{name}" in _read(f"{said}/xi_path"):
            return said
    raise OSError(errno.EIO, f"mount aufs: {_SYSFS} does not show the mount that was made; is /sys mounted?")


def _all() -> Iterator[str]:
    try:
        entries = os.listdir(_SYSFS)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.startswith("si_"):
            yield f"{_SYSFS}/{entry}"


def _read(path: str) -> str:
    """A file of sysfs; "" if its mount has gone."""
    for _ in range(_TRIES):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return ""
        try:
            return os.fsdecode(os.read(fd, 1 << 13))
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENOENT):
                return ""
            if error.errno != errno.EBUSY:
                raise
        finally:
            os.close(fd)
        time.sleep(0.01)
    raise OSError(errno.EBUSY, f"{path} stays busy")


def parse(text: str) -> Branch:
    """What a file brN of sysfs says: PATH=PERMISSION, the path with octal escapes."""
    path, _, permission = text.rstrip("\n").rpartition("=")
    whole = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), path)
    return whole, permission


def _branches(said: str) -> list[Branch]:
    found: list[Branch] = []
    while text := _read(f"{said}/br{len(found)}"):
        found.append(parse(text))
    return found


def _compare(said: str, wanted: Sequence[Branch]) -> None:
    found = _branches(said)
    if found == wanted:
        return
    for n, branch in enumerate(wanted):
        if found[n : n + 1] != [branch]:
            got = "nothing" if n >= len(found) else "=".join(found[n])
            raise OSError(errno.EIO, f"mount aufs: branch {n} is {got} instead of {'='.join(branch)}")
    raise OSError(errno.EIO, f"mount aufs: {len(found)} branches instead of {len(wanted)}")


def in_use(branch: str) -> bool | None:
    """Whether a directory is a branch of any aufs that is mounted, in whatever namespace, or of one that only open
    files still hold. None if the kernel does not tell."""
    if not os.path.isdir(_SYSFS):
        return None
    place = os.path.realpath(branch)
    return any(path == place for said in _all() for path, _ in _branches(said))


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
    place = os.path.realpath(branch)
    said = next((said for said in _all() if _branches(said)[:1] == [(place, _TOP)]), "")
    if not said:
        raise OSError(errno.EIO, f"{_SYSFS} does not show the mount of {place}")
    numbers = {int(entry.partition(".")[0]) for entry in entries}
    # While this is open and has been told of the mount, aufs lets nobody else make such links in it.
    fd = os.open(_MAINTENANCE, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, f"si={said.rpartition('/si_')[2]}".encode())
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
