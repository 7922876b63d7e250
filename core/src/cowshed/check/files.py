"""The store's own files and directories, before anything in them is opened: there, ours, and closed to others."""

from __future__ import annotations

import os
import stat

from cowshed.check.findings import WARNING, Finding
from cowshed.state.locks import FILES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDERS = ("", "locks", "blobs", "blobs/sha256", "blobs/partial", "drivers", "containers", "volumes", "cache")
DATABASE = "db.sqlite"
_MODE = 0o700  # they hold what images and containers keep secret
REBUILD = "cowshed storage repair --rebuild-database makes it again from what is left"
_SQLITE = b"SQLite format 3\0"  # the first bytes of a database (sqlite.org/fileformat.html)


def look(root: str, *, opened: bool = False) -> Iterator[Finding]:
    """What is wrong with the places themselves. Takes no lock. opened: this process has a connection to the database,
    whose locks it would lose by reading the file (sqlite.org/howtocorrupt.html)."""
    if not is_store(root):
        return
    for name in FOLDERS:
        yield from _folder(root, name)
    if os.path.isdir(f"{root}/locks"):
        for name in FILES:
            if name != "records" and not os.path.exists(f"{root}/locks/{name}"):  # which older stores have not
                yield Finding(
                    "file.missing", f"locks/{name}", f"the lock file locks/{name} is missing", WARNING, "make it again"
                )
    yield from _database(root, opened=opened)


def is_store(root: str) -> bool:
    """Whether anything of a store is there: else the first command makes one."""
    return any(os.path.lexists(f"{root}/{name}") for name in (*FOLDERS[1:], DATABASE))


def _folder(root: str, name: str) -> Iterator[Finding]:
    shown = name or "."
    try:
        status = os.stat(f"{root}/{name}")
    except FileNotFoundError:
        yield Finding("file.missing", shown, f"the directory {shown} of the store is missing", repair="make it again")
        return
    if not stat.S_ISDIR(status.st_mode):
        yield Finding("file.type", shown, f"{shown} of the store is no directory", remedy="see what lies there")
        return
    if status.st_uid != os.geteuid():
        text = f"the directory {shown} of the store belongs to user {status.st_uid}, not {os.geteuid()}"
        yield Finding("file.owner", shown, text, WARNING, "give it to the user who runs this")
    if stat.S_IMODE(status.st_mode) & 0o7077:
        text = f"the directory {shown} of the store has mode {stat.S_IMODE(status.st_mode):o}, not {_MODE:o}"
        yield Finding("file.mode", shown, text, WARNING, f"set it to {_MODE:o}")


def _database(root: str, *, opened: bool) -> Iterator[Finding]:
    try:
        status = os.stat(f"{root}/{DATABASE}")
    except FileNotFoundError:
        yield Finding("database.missing", DATABASE, "the database of the store is missing", remedy=REBUILD)
        return
    if not opened:
        with open(f"{root}/{DATABASE}", "rb", buffering=0) as file:
            first = file.read(len(_SQLITE))
        if first != _SQLITE:
            yield Finding("database.unreadable", DATABASE, "the database of the store is none", remedy=REBUILD)
    if status.st_uid != os.geteuid():
        text = f"the database belongs to user {status.st_uid}, not {os.geteuid()}"
        yield Finding("file.owner", DATABASE, text, WARNING, "give it to the user who runs this")


def is_blocking(finding: Finding) -> bool:
    """Whether nothing else can be looked at before this is repaired."""
    return finding.code in ("database.missing", "database.unreadable", "file.type") or (
        finding.code == "file.missing" and not finding.object.startswith("locks/")
    )


def repair(root: str, finding: Finding) -> None:
    """OSError."""
    name = "" if finding.object == "." else finding.object
    path = f"{root}/{name}"
    if finding.code == "file.missing":
        if name.startswith("locks/"):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        else:
            os.makedirs(path, mode=_MODE, exist_ok=True)
        for each in FILES if name == "locks" else ():
            os.close(os.open(f"{path}/{each}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    elif finding.code == "file.owner":
        os.chown(path, os.geteuid(), os.getegid())
    elif finding.code == "file.mode":
        os.chmod(path, _MODE)
