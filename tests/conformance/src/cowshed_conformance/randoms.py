"""Random changes of a tree that a seed repeats; and, when they have shown a fault, the few of them that show it."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable, Collection, Sequence

from cowshed_conformance import standins, steps
from cowshed_conformance.steps import Step

# a directory into itself, or not empty; a lower directory or a device 0:0 of overlay; a link to itself
_HARMLESS = (errno.EBUSY, errno.EXDEV, errno.EINVAL, errno.ENOTEMPTY, errno.ELOOP, errno.EPERM)
_SPARED = {5: "link", 13: "fifo"}  # what a stand-in may be unable to change later
_NAMES = ("a", "b", "a-b", "ab", "c", "\udcff", ".x", "d", "e")


def change(
    root: str, chance: random.Random, count: int, *, spared: Collection[int] = (), unmoved: Collection[int] = ()
) -> list[Step]:
    """Make so many changes, of every kind, somewhere below root; those that were made.

    spared: inodes that get no other content, attribute or name; unmoved: directories that keep their place. Both can be
    deleted.
    """
    done = []
    for _ in range(count):
        places, others = _paths(root)
        folder = chance.choice(places)
        path = f"{folder}/{chance.choice(_NAMES)}".lstrip("/")
        there = chance.choice(others) if others else path
        try:
            step, touched, moved = _one(root, chance, path, there, folder)
            number = os.lstat(f"{root}/{touched}").st_ino if touched is not None else 0
            free = number not in spared and not (moved and number in unmoved)
            if step is not None and free and not repeat(root, [step]):
                done.append(step)
        except (FileNotFoundError, NotADirectoryError):
            continue  # what it wanted to use is not there
    return done


def repeat(root: str, script: Sequence[Step]) -> int:
    """Make the changes again, there or elsewhere; how many could not be made, as what they need is not there."""
    failed = 0
    for step in script:
        try:
            step(root)
        except (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError):
            failed += 1
        except OSError as error:
            if error.errno not in _HARMLESS:
                raise
            failed += 1
    return failed


def shrink(
    scripts: Sequence[Sequence[Step]], fails: Callable[[list[list[Step]]], bool], *, tries: int = 300
) -> list[list[Step]]:
    """The scripts without the steps that a failure does not need: first halves are left out, then ever fewer."""
    kept = [(n, step) for n, script in enumerate(scripts) for step in script]

    def grouped(chosen: Sequence[tuple[int, Step]]) -> list[list[Step]]:
        return [[step for m, step in chosen if m == n] for n in range(len(scripts))]

    size = max(len(kept) // 2, 1)
    while tries > 0:
        at, before = 0, len(kept)
        while at < len(kept) and tries > 0:
            tries -= 1
            fewer = kept[:at] + kept[at + size :]
            if fails(grouped(fewer)):
                kept = fewer
            else:
                at += size
        if size == 1 and len(kept) == before:
            break
        size = max(size // 2, 1)
    return grouped(kept)


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


def _one(root: str, chance: random.Random, path: str, there: str, folder: str) -> tuple[Step | None, str | None, bool]:
    """A step; what of that which is there it changes; whether it gives that another place."""
    data = chance.randbytes(chance.choice((0, 1, 100, 5000)))
    kind = chance.randrange(14)
    if standins.used is not None and _SPARED.get(kind) in standins.used.spares:
        kind = 0
    if kind in (0, 1):
        is_there = os.path.lexists(f"{root}/{path}")
        # A fifo would be waited at, and a link may lead out of the tree.
        useful = not is_there or stat.S_ISREG(os.lstat(f"{root}/{path}").st_mode)
        return (steps.file(path, data) if useful else None), (path if is_there else None), False
    if kind in (2, 3):
        return steps.directory(path, chance.choice((0o755, 0o700, 0o1777))), None, False
    if kind == 4:
        return steps.symlink(chance.choice(("a", "/b", "../c")), path), None, False
    mode = os.lstat(f"{root}/{there}").st_mode
    if kind == 5:
        return (None if stat.S_ISDIR(mode) else steps.link(there, path)), there, False
    if kind in (6, 7):
        return (steps.remove_all(there) if stat.S_ISDIR(mode) else steps.remove(there)), None, False
    if kind == 8:
        return (None if f"{path}/".startswith(f"{there}/") else steps.rename(there, path)), there, True
    if kind == 9:
        return (None if stat.S_ISLNK(mode) else steps.chmod(there, chance.choice((0o600, 0o755, 0o711)))), there, False
    if kind == 10:
        return steps.chown(there, chance.randrange(3), chance.randrange(3)), there, False
    if kind == 11:
        plain = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
        return (steps.set_xattr(there, "user.x", data[:20]) if plain else None), there, False
    if kind == 12:
        return steps.times(there, chance.randrange(1 << 60)), there, False
    if stat.S_ISREG(mode):
        return steps.append(there, data), there, False
    return (steps.fifo(path) if folder else None), None, False
