"""What has been built, each thing in a directory named after what it was made of.

An entry appears by one rename when it is whole, so that a build that was stopped never counts as one. Whoever builds
holds the entry's lock: a second build of the same waits and then finds it made.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cowshed_vm.errors import NotHere

UNUSED = 30 * 86400.0  # seconds after which an entry that nobody has used is thrown away
SOON = 3600.0  # seconds in which whoever asked for an entry opens it


def key(*parts: str | bytes) -> str:
    """A name for what is made of these parts; no two lists of parts share one."""
    sum_ = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        sum_.update(b"%d:" % len(data) + data)
    return sum_.hexdigest()[:20]


def recipe(*modules: str) -> bytes:
    """The text of files beside this one: when a recipe changes, what was made by it is made again."""
    here = Path(__file__).parent
    return b"".join((here / name).read_bytes() for name in modules)


class Cache:
    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def default(cls) -> Cache:
        """COWSHED_VM_CACHE, or cowshed-vm in the user's cache directory."""
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        return cls(Path(os.environ.get("COWSHED_VM_CACHE") or f"{home}/cowshed-vm").absolute())

    def require_space(self, megabytes: int) -> None:
        """Raises NotHere: too little of it."""
        self.path.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.path).free >> 20
        if free < megabytes:
            raise NotHere(f"{self.path} has {free} MB of free space, {megabytes} MB are needed: set COWSHED_VM_CACHE")

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """One process at a time; freed by the kernel when its holder dies."""
        folder = self.path / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / name, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def entry(self, kind: str, name: str, build: Callable[[Path], None]) -> Path:
        """The directory of an entry. build fills an empty one if there is none yet."""
        made = self.path / kind / name
        with self.lock(f"{kind}-{name}"):
            if not made.is_dir():
                half = self.path / "building" / f"{kind}-{name}"
                if half.exists():  # whoever made that no longer runs: the lock is ours
                    shutil.rmtree(half)
                half.mkdir(parents=True)
                build(half)
                _settle(half)
                made.parent.mkdir(parents=True, exist_ok=True)
                half.rename(made)
            os.utime(made)
        return made

    def prune(self, kind: str, keep: int | None = None) -> None:
        """Throw away the entries of a kind that were not used for a month, or all but the last used and those of the
        last hour. One that a guest runs from stays readable for it: its files are open."""
        folder = self.path / kind
        if not folder.is_dir():
            return
        entries = sorted(((_used(made), made) for made in folder.iterdir()), reverse=True)
        for place, (_, made) in enumerate(entries):
            unused = SOON if keep is not None and place >= keep else UNUSED
            with self.lock(f"{kind}-{made.name}"):  # whoever is about to use it says so under the lock
                if _used(made) < time.time() - unused:
                    shutil.rmtree(made)


def _used(made: Path) -> float:
    """When an entry was last used; one that another run has thrown away is none to throw away."""
    try:
        return made.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _settle(folder: Path) -> None:
    """Write an entry's files to the disk before it gets its name: a power cut must not leave an empty one."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
