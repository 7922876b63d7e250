"""Random changes of a tree that a seed repeats."""

from __future__ import annotations

import errno
import os
import random
import stat

from cowshed_conformance import standins, steps

# a directory into itself, or not empty; a lower directory of overlay; a link to itself
_HARMLESS = (errno.EBUSY, errno.EXDEV, errno.EINVAL, errno.ENOTEMPTY, errno.ELOOP)
_SPARED = {5: "link", 13: "fifo"}  # what a stand-in may be unable to change later
_NAMES = ("a", "b", "a-b", "ab", "c", "\udcff", ".x", "d", "e")


def change(root: str, chance: random.Random, count: int) -> None:
    """Make so many changes, of every kind, somewhere below root."""
    for _ in range(count):
        places, others = _paths(root)
        folder = chance.choice(places)
        path = f"{folder}/{chance.choice(_NAMES)}".lstrip("/")
        there = chance.choice(others) if others else path
        try:
            _one(root, chance, path, there, folder)
        except (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError):
            continue  # what it wanted to make or use is there, or not
        except OSError as error:
            if error.errno not in _HARMLESS:
                raise


def _paths(root: str) -> tuple[list[str], list[str]]:
    places, others = [""], []
    for folder, names, files in os.walk(root):
        below = folder[len(root) :].lstrip("/")
        for name in sorted((*names, *files)):
            path = f"{below}/{name}".lstrip("/")
            others.append(path)
            if name in names and not os.path.islink(f"{root}/{path}"):
                places.append(path)
    return sorted(places), sorted(others)


def _one(root: str, chance: random.Random, path: str, there: str, folder: str) -> None:
    data = chance.randbytes(chance.choice((0, 1, 100, 5000)))
    kind = chance.randrange(14)
    if standins.used is not None and _SPARED.get(kind) in standins.used.spares:
        kind = 0
    match kind:
        case 0 | 1:
            if not os.path.exists(f"{root}/{path}") or os.path.isfile(f"{root}/{path}"):  # a fifo would be waited at
                steps.do(root, steps.file(path, data))
        case 2 | 3:
            steps.do(root, steps.directory(path, chance.choice((0o755, 0o700, 0o1777))))
        case 4:
            steps.do(root, steps.symlink(chance.choice(("a", "/b", "../c")), path))
        case 5:
            if not stat.S_ISDIR(os.lstat(f"{root}/{there}").st_mode):
                steps.do(root, steps.link(there, path))
        case 6 | 7:
            is_directory = stat.S_ISDIR(os.lstat(f"{root}/{there}").st_mode)
            steps.do(root, steps.remove_all(there) if is_directory else steps.remove(there))
        case 8:
            if not f"{path}/".startswith(f"{there}/"):
                steps.do(root, steps.rename(there, path))
        case 9:
            if not os.path.islink(f"{root}/{there}"):
                steps.do(root, steps.chmod(there, chance.choice((0o600, 0o755, 0o711))))
        case 10:
            steps.do(root, steps.chown(there, chance.randrange(3), chance.randrange(3)))
        case 11:
            if stat.S_IFMT(os.lstat(f"{root}/{there}").st_mode) in (stat.S_IFREG, stat.S_IFDIR):
                steps.do(root, steps.set_xattr(there, "user.x", data[:20]))
        case 12:
            steps.do(root, steps.times(there, chance.randrange(1 << 60)))
        case _:
            if stat.S_ISREG(os.lstat(f"{root}/{there}").st_mode):
                steps.do(root, steps.append(there, data))
            elif folder:
                steps.do(root, steps.fifo(path))
