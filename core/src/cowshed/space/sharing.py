"""Files that are the same in several layers of a driver, made to share their blocks where the file system can.

The kernel compares the bytes itself and holds both files meanwhile (ioctl_fideduperange(2)); contents and attributes
stay. So what is found out here is no more than a guess at what is worth a try: layers may be in use and may be removed
meanwhile, and a run that ends in the middle has done half of the work. Nothing is written down about it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress

from cowshed import log
from cowshed.state import layers as rows
from cowshed.storage import api
from cowshed.storage.errors import Unsupported
from cowshed.storage.kit.descent import DIRECTORY, Descent, names
from cowshed.storage.record import record
from cowshed_linux import extents
from cowshed_linux.paths import RESOLVE_NO_SYMLINKS, open_in_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cowshed.engine import Engine
    from cowshed.layers.layers import Layers

    Place = tuple[str, bytes]  # a layer's directory, and a path in it
    Where = tuple[tuple[int, int, int], ...]  # extents

_LEAST = 4096  # bytes of a file that is looked at: a smaller one may lie among its file system's metadata
_PIECE = 16 << 20  # what btrfs shares at once (ioctl_fideduperange(2))
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TRIAL = 1 << 16  # bytes: a block of any file system


@record(frozen=True)
class Shared:
    """What was found in a driver's layers, and is shared now, or would be."""

    layers: int
    files: int  # that were looked at
    same: int  # that share the blocks of another now
    bytes: int  # of blocks that come back: when the containers that were made on the old ones are gone too


def share(engine: Engine, driver: str, *, dry_run: bool) -> Shared:
    """Look at all committed layers of a driver. Unsupported if its layers are no directories of one file system, or if
    that cannot share blocks; NotFound, OSError."""
    layers = engine.look(driver)
    roots = list(_trees(layers))
    _try_out(driver, f"{layers.store.root}/drivers/{driver}")
    places = _Places()
    for root in roots:
        places.look_at(root)
    same = taken = 0
    for size, found in places.groups():
        for kept, others in _alike(found):
            for where, there in others:
                moved = len(there) if dry_run else _move(kept, there, size)
                same += moved
                taken += sum(length for _, _, length in where) if moved == len(there) else 0
    return Shared(len(roots), places.count, same, taken)


def _trees(layers: Layers) -> Iterator[str]:
    """The directory with the files of each committed layer: of what it changed, or of all. Unsupported."""
    for row in rows.list_all(layers.store, layers.name):
        if row.kind != "committed":
            continue
        layer = layers.load(row.number)
        if api.has_diff_tree(layers.driver):
            yield layers.driver.diff_tree(layer).directory
            continue
        steps = () if api.has_activation(layers.driver) else layers.plan(layer, read_only=True).steps
        if len(steps) != 1 or not isinstance(steps[0], api.Bind) or not isinstance(steps[0].source, str):
            raise Unsupported(
                f"driver {layers.name} does not keep its layers as directories of one file system: "
                "their files cannot share blocks"
            )
        yield steps[0].source


def _try_out(driver: str, folder: str) -> None:
    """Share the blocks of two files without a name. Unsupported."""
    fds: list[int] = []
    try:
        for _ in range(2):
            fds.append(os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600))
            os.write(fds[-1], b"x" * _TRIAL)
        extents.share(fds[0], fds[1], 0, _TRIAL)
    except OSError as error:
        raise Unsupported(
            f"the file system of driver {driver} cannot share blocks between files: {error.strerror}",
            remedy="btrfs can, and xfs as mkfs.xfs makes it",
        ) from None
    finally:
        for fd in fds:
            os.close(fd)


class _Places:
    """The files of several trees, by their size; of one with several names the first."""

    def __init__(self) -> None:
        self.count = 0
        self._by_size: dict[int, list[Place]] = {}
        self._seen: set[tuple[int, int]] = set()

    def look_at(self, root: str) -> None:
        with suppress(FileNotFoundError):  # the layer may be removed meanwhile
            top = Descent(os.open(root, DIRECTORY))
            try:
                self._walk(root, top)
            finally:
                top.close()

    def _walk(self, root: str, tree: Descent) -> None:
        stack = [(b"", names(tree.fd))]
        while stack:
            above, left = stack[-1]
            if not left:
                stack.pop()
                if stack:
                    tree.up()
                continue
            name = left.pop()
            path = above + os.fsencode(name)
            status = os.stat(name, dir_fd=tree.fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                tree.down(name)
                stack.append((path + b"/", names(tree.fd)))
            elif stat.S_ISREG(status.st_mode) and status.st_size >= _LEAST:
                self._add(root, path, status)

    def _add(self, root: str, path: bytes, status: os.stat_result) -> None:
        key = status.st_dev, status.st_ino
        if key not in self._seen:
            self._seen.add(key)
            self.count += 1
            self._by_size.setdefault(status.st_size, []).append((root, path))

    def groups(self) -> Iterator[tuple[int, list[Place]]]:
        """Files of one size, and that size; the largest first, as they give most."""
        for size in sorted(self._by_size, reverse=True):
            if len(self._by_size[size]) > 1:
                yield size, self._by_size[size]


def _alike(places: Iterable[Place]) -> Iterator[tuple[Place, list[tuple[Where, list[Place]]]]]:
    """Of files of one size, those with the same bytes at several places of the device: one of those whose blocks most
    have, and the others by where they lie."""
    by_where: dict[Where, list[Place]] = {}
    for place in places:
        with _Opened(place) as fd:
            where = extents.extents(fd) if fd >= 0 else None
        if where:
            by_where.setdefault(where, []).append(place)
    if len(by_where) < 2:
        return
    by_digest: dict[bytes, list[Where]] = {}
    for where, found in by_where.items():
        if digest := _digest(found[0]):
            by_digest.setdefault(digest, []).append(where)
    for wheres in by_digest.values():
        most, *others = sorted(wheres, key=lambda where: -len(by_where[where]))
        if others:
            yield by_where[most][0], [(where, by_where[where]) for where in others]


def _move(kept: Place, places: Iterable[Place], size: int) -> int:
    """Let files share the blocks of another; how many do now."""
    moved = 0
    with _Opened(kept) as source:
        for place in places if source >= 0 else ():
            with _Opened(place) as target:
                try:
                    moved += target >= 0 and _share_all(source, target, size)
                except OSError as error:  # a file that cannot be changed (chattr(1)), or has no copy on write
                    log.info(f"{place[0]}/{os.fsdecode(place[1])} keeps its own blocks: {error.strerror}")
    return moved


def _share_all(source: int, target: int, size: int) -> bool:
    at = 0
    while at < size:
        count = extents.share(source, target, at, min(_PIECE, size - at))
        if not count:
            return False
        at += count
    return True


def _digest(place: Place) -> bytes:
    """Of a file's bytes; b"" if it is gone."""
    with _Opened(place) as fd:
        if fd < 0:
            return b""
        with os.fdopen(os.dup(fd), "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()


class _Opened:
    """`with _Opened(place) as fd:` -1 if it is not there any more."""

    def __init__(self, place: Place) -> None:
        self._place, self._fd = place, -1

    def __enter__(self) -> int:
        root, path = self._place
        with suppress(FileNotFoundError, NotADirectoryError):
            top = os.open(root, DIRECTORY)
            try:
                self._fd = open_in_root(top, path, _READ, resolve=RESOLVE_NO_SYMLINKS)
            finally:
                os.close(top)
        return self._fd

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
