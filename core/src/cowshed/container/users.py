"""Users of an image: NAME, UID, NAME:GROUP, UID:GID, resolved by the image's own passwd and group files.

The files are the image's, so they are opened beneath its root, must be plain files, and are read up to a limit. A
number is a number, never a name (CVE-2026-46680).
"""

from __future__ import annotations

import os
import stat

from cowshed.errors import BadUsage
from cowshed_linux.paths import open_in_root

_LIMIT = 4 << 20
_LAST, _DIGITS = 2**31 - 1, 10


def resolve(root: int, text: str) -> tuple[int, int, list[int], str]:
    """(uid, gid, supplementary groups, home) of a user in the tree at root. BadUsage if there is no such user."""
    user, colon, group = text.partition(":")
    passwd = [line.split(":") for line in _lines(root, "etc/passwd")]
    uid, gid, name, home = 0, 0, "root", "/"
    number = _number(user or "0", text)
    entry = next(
        (e for e in passwd if len(e) >= 6 and (e[2] == str(number) if number is not None else e[0] == user)), None
    )
    if entry is not None and _is_id(entry[2]) and _is_id(entry[3]):
        name, uid, gid, home = entry[0], int(entry[2]), int(entry[3]), entry[5] or "/"
    elif number is not None:
        uid, name = number, ""
        home = "/root" if uid == 0 else "/"
    else:
        raise BadUsage(f"the image has no user {user!r}", remedy="give a number, or a user of its /etc/passwd")
    if colon:
        wanted = _number(group, text)
        if wanted is None:
            wanted = next((int(g[2]) for g in _groups(root) if g[0] == group), None)
            if wanted is None:
                raise BadUsage(
                    f"the image has no group {group!r}", remedy="give a number, or a group of its /etc/group"
                )
        return uid, wanted, [], home
    extra = [int(g[2]) for g in _groups(root) if name and name in g[3].split(",")]
    return uid, gid, sorted({*extra} - {gid}), home


def _groups(root: int) -> list[list[str]]:
    split = [line.split(":") for line in _lines(root, "etc/group")]
    return [g for g in split if len(g) >= 4 and _is_id(g[2])]


def _number(text: str, whole: str) -> int | None:
    if not _is_number(text):
        return None
    if len(text.lstrip("0")) > _DIGITS or int(text) > _LAST:
        raise BadUsage(f"{whole[:100]!r} is no user: numbers end at {_LAST}")
    return int(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _is_id(text: str) -> bool:
    """Of an entry, which may hold anything."""
    return _is_number(text) and len(text) <= _DIGITS and int(text) <= _LAST


def _lines(root: int, path: str) -> list[str]:
    try:
        fd = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return []
        return os.read(fd, _LIMIT).decode(errors="replace").splitlines()
    finally:
        os.close(fd)
