"""What aufs keeps in a branch beside the user's files, and what follows from the number of branches it takes.

    .wh.NAME          NAME of the layers below is deleted
    .wh..wh..opq      nothing of the directory's namesakes below shines through
    .wh..wh.aufs      the file of which all those are hard links
    .wh..wh.plnk/     names by which it finds hard-linked files again that were changed through one of their names
    .wh..wh.orph/     files that are open and have no name any more
    .wh..wh.NAME.X    beside NAME: of a copy or a removal that a crash has interrupted

The first two are the layer's changes; the others are bookkeeping of a mount, made at every first mount of a writable
branch, and no part of a layer (aufs.5, Whiteout; aufs-standalone, Documentation/filesystems/aufs/design).
"""

from __future__ import annotations

import os
import stat

from cowshed.storage import api
from cowshed.storage.kit.descent import DIRECTORY, Descent, enter, names
from cowshed.storage.kit.trees import remove_entry

RESERVED = ".wh."
NAME_MAX = 255 - len(".wh..wh.") - len(".XXXX")  # what a copy is called while it is being made
OPAQUE = ".wh..wh..opq"
_OWN = ".wh..wh."
_FILE, _FOLDERS = ".wh..wh.aufs", (".wh..wh.plnk", ".wh..wh.orph")

OPTIONS: tuple[tuple[str, str | None], ...] = (
    ("acl", None),
    ("dirperm1", None),  # what lies on top alone says who may enter a directory
    ("nowarn_perm", None),  # roots of layers may differ in mode; their owner has said so
)


def capabilities(*, branches: int, durable: bool) -> api.Capabilities:
    """What a store can. branches: how many one mount takes; durable: the place survives a power cut (tmpfs does not).

    No quota, though project quotas stop a growing file: a copy-up goes past them, whoever makes it.
    """
    return api.Capabilities(
        granularity=api.Granularity.FILE,
        max_depth=branches - 1,
        durability=api.Durability.COMMIT if durable else api.Durability.NONE,
        diff_tree=True,
        rebase=True,
        rename_lower_directory=False,
        hard_links_survive_copy_up=True,
        parent_times_survive_copy_up=False,
        time_granularity=1_000_000_000,  # it never tells the kernel that it keeps parts of seconds (s_time_gran)
        inodes_stable=False,
        stale_reads_after_copy_up=True,
        shared_page_cache=True,
        xattrs_removable=False,
        name_max=NAME_MAX,
        reserved_names=(RESERVED,),
    )


def furnish(branch: str) -> None:
    """Make the bookkeeping of a new branch: by making it itself, the first mount would change the directory's times."""
    os.close(os.open(f"{branch}/{_FILE}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    for name in _FOLDERS:
        os.mkdir(f"{branch}/{name}", 0o700)


def tidy(branch: str) -> None:
    """Take out of a branch that nothing has mounted what its mounts have left in it. Repeatable.

    The three names at the top stay, empty: aufs shows them to nobody, and the engine leaves them out. Taking them away
    would change the time of the layer's root, which cannot be put right in the same instant.
    """
    walk = Descent(os.open(branch, DIRECTORY))
    try:
        for name in _FOLDERS:
            _empty(walk.fd, name)
        stack = [_cleaned(walk.fd, kept=(_FILE, *_FOLDERS))]
        while True:
            if stack[-1]:
                walk.down(stack[-1].pop())
                stack.append(_cleaned(walk.fd))
                continue
            stack.pop()
            if not stack:
                return
            walk.up()
    finally:
        walk.close()


def _empty(branch: int, folder: str) -> None:
    """What lies there keeps the data of deleted files alive."""
    try:
        fd = enter(branch, folder)
    except FileNotFoundError:
        return
    try:
        for name in names(fd):
            remove_entry(fd, name)
    finally:
        os.close(fd)


def _cleaned(directory: int, kept: tuple[str, ...] = ()) -> list[str]:
    """The directories in a directory, out of which bookkeeping was taken: what a crash had left."""
    folders, own = [], []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(_OWN):
                if entry.name != OPAQUE and entry.name not in kept:
                    own.append(entry.name)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
    if own:
        status = os.fstat(directory)
        for name in own:
            remove_entry(directory, name)
        os.utime(directory, ns=(status.st_atime_ns, status.st_mtime_ns))
    return folders


def copy_root(source: str, target: str) -> None:
    """Give the root of a branch what the one below it has: aufs shows the topmost one's."""
    status = os.stat(source)
    os.chown(target, status.st_uid, status.st_gid)
    os.chmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
