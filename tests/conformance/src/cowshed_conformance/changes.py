"""Changes between two layers, found in the driver's own way and by comparing the whole trees."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import replace

from cowshed.storage import api
from cowshed_conformance import tree
from cowshed_conformance.harness import Store

Changes = dict[str, str]  # path → A, C or D


def naive(lower: tree.Tree, upper: tree.Tree) -> Changes:
    """By comparing everything. A deleted directory is one change; what lay in it is none."""
    found: Changes = {}
    for path in {*lower, *upper}:
        change = at(path, lower, upper)
        if change:
            found[path] = change
    return collapse(found)


def at(path: str, lower: tree.Tree, upper: tree.Tree) -> str:
    """What has become of one path. Which names share an inode is not looked at: the archive completes them."""
    old, new = lower.get(path), upper.get(path)
    if new is None:
        return "D" if old is not None else ""
    if old is None:
        return "A"
    return "C" if replace(old, links=()) != replace(new, links=()) else ""


def collapse(found: Changes) -> Changes:
    """Without deletions below a deletion, or below what is no directory any more."""
    return {p: c for p, c in found.items() if c != "D" or not any(found.get(a) in ("D",) for a in above(p))}


def above(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def of_driver(store: Store, lower: api.Layer | None, upper: api.Layer) -> Changes:
    """As an engine asks for them: changes(), else the diff tree, else both trees."""
    below = store.look(lower) if lower is not None else {}
    return between(store.driver, lower, upper, below, store.look(upper))


def between(driver: api.Driver, lower: api.Layer | None, upper: api.Layer, below: tree.Tree, now: tree.Tree) -> Changes:
    """The same of layers that have been looked at."""
    if api.has_changes(driver):
        candidates: set[str] = set()
        for change in driver.changes(lower, upper):
            path = os.fsdecode(change.path) or "."
            candidates.add(path)
            if change.subtree:
                candidates.update(p for p in {*below, *now} if path == "." or p.startswith(path + "/"))
        # What a candidate has become is seen on both sides; below what has come or gone all has come or gone.
        for path in list(candidates):
            for side, other in ((below, now), (now, below)):
                if path in side and path not in other:
                    candidates.update(p for p in side if p.startswith(path + "/"))
        return collapse({p: c for p in candidates if (c := at(p, below, now))})
    if api.has_diff_tree(driver) and lower == upper.parent:
        return collapse(_of_diff_tree(driver.diff_tree(upper), below, now))
    return naive(below, now)


def _of_diff_tree(diff: api.DiffTree, below: tree.Tree, now: tree.Tree) -> Changes:
    found: Changes = {}
    for path, kind in read_diff_tree(diff):
        if kind == "gone":
            if path in below:
                found[path] = "D"
            continue
        change = at(path, below, now)
        if change:
            found[path] = change
        old = below.get(path)
        if kind == "opaque" or (old is not None and old.kind == "dir" and now[path].kind != "dir"):
            prefix = "" if path == "." else path + "/"
            for name in below:
                if name != "." and name.startswith(prefix) and name not in now:
                    found[name] = "D"
    return found


def read_diff_tree(diff: api.DiffTree) -> Iterator[tuple[str, str]]:
    """(path, entry | opaque | gone) of each entry of a diff tree."""
    yield from _entries(diff, diff.directory, ".")


def _entries(diff: api.DiffTree, full: str, path: str) -> Iterator[tuple[str, str]]:
    status = os.lstat(full)
    if diff.whiteout is api.Whiteout.CHAR and stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        yield path, "gone"
        return
    if not stat.S_ISDIR(status.st_mode):
        yield path, "entry"
        return
    names = sorted(os.listdir(full))
    mark = _xattr(full, f"{diff.xattr_prefix}opaque") if diff.xattr_prefix else None
    opaque = mark == b"y" or (diff.whiteout is api.Whiteout.AUFS and ".wh..wh..opq" in names)
    yield path, "opaque" if opaque else "entry"
    for name in names:
        below = name if path == "." else f"{path}/{name}"
        if diff.whiteout is api.Whiteout.AUFS and name.startswith(".wh."):
            if not name.startswith(".wh..wh."):
                yield below[: len(below) - len(name)] + name[4:], "gone"
        elif mark == b"x" and _xattr(f"{full}/{name}", f"{diff.xattr_prefix}whiteout") is not None:
            yield below, "gone"
        else:
            yield from _entries(diff, f"{full}/{name}", below)


def _xattr(path: str, name: str) -> bytes | None:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError:
        return None


def check(
    store: Store,
    lower: api.Layer | None,
    upper: api.Layer,
    *,
    added: set[str] = frozenset(),  # type: ignore[assignment]
    modified: set[str] = frozenset(),  # type: ignore[assignment]
    deleted: set[str] = frozenset(),  # type: ignore[assignment]
) -> None:
    """Exactly these changes. Directories whose own times changed because a name in them did may be in it as well."""
    found = of_driver(store, lower, upper)
    wanted = {**dict.fromkeys(added, "A"), **dict.fromkeys(modified, "C"), **dict.fromkeys(deleted, "D")}
    parents = {a for p in wanted for a in (*above(p), ".")}
    extra = {p: c for p, c in found.items() if p not in wanted and not (c == "C" and p in parents)}
    missing = {p: c for p, c in wanted.items() if found.get(p) != c}
    assert not missing, f"changes that were missed: {missing}; found: {found}"
    assert not extra, f"changes that were none: {extra}"
