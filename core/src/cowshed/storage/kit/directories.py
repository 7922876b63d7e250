"""A store made of directories, for drivers whose layers are directories.

    ROOT/store                one line: the store's identity
    ROOT/format               one line: the number of the layout
    ROOT/active/ID  ROOT/committed/ID   the layers
    ROOT/temp/ID              of a call that is running, or died
    ROOT/trash/ID.WHERE       removed, waits for purge()

Publishing and removing are renames inside ROOT, so a crash leaves the old state or the new one, and at most an object
that scan() calls TEMP or TRASH. Directories are made durable by fsync of the parent.
"""

from __future__ import annotations

import errno
import os

from cowshed.storage.api import Kind, ObjectKind, PurgeResult, StoredObject
from cowshed.storage.errors import LayerId, WrongStore
from cowshed.storage.kit.trees import remove_tree
from cowshed_linux import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from cowshed.storage.api import Layer, StoreId

FOLDERS = ("active", "committed", "temp", "trash")
_FORMAT = 1


def init_store(root: str, kind: str) -> StoreId:
    """Make a store, or finish one that was begun; the identity of the one that is there. WrongStore if another
    driver's data, or anything else, lies at root."""
    os.makedirs(root, mode=0o700, exist_ok=True)
    try:
        return check_store(root, kind, None)
    except FileNotFoundError:
        pass
    strangers = set(os.listdir(root)) - {*FOLDERS, "format"}
    strangers = {name for name in strangers if not name.endswith(".new") and name != "lost+found"}
    if strangers:
        raise WrongStore(
            f"{root} is not empty and holds no store: {sorted(strangers)[0]}", remedy="choose an empty directory"
        )
    for folder in FOLDERS:
        try:
            os.mkdir(f"{root}/{folder}", 0o700)
        except FileExistsError:
            continue
    files.write_atomically(f"{root}/format", f"{kind} {_FORMAT}\n".encode())
    new = os.urandom(16).hex()
    files.write_atomically(f"{root}/store", f"{new}\n".encode())
    return new  # type: ignore[return-value]


def check_store(root: str, kind: str, store: StoreId | None) -> StoreId:
    """The identity of the store at root, which must be `store` unless that is None; makes nothing.

    FileNotFoundError if store is None and there is none; WrongStore for everything else that does not fit.
    """
    try:
        found = _line(f"{root}/store")
    except FileNotFoundError:
        if store is None:
            raise
        raise WrongStore(f"there is no {kind} store at {root}", remedy="is its file system mounted?") from None
    said = _line(f"{root}/format").split()
    if said[:1] != [kind]:
        raise WrongStore(f"{root} belongs to driver {said[0] if said else '?'}, not {kind}")
    if len(said) != 2 or not said[1].isdigit() or int(said[1]) > _FORMAT:
        raise WrongStore(f"{root} has format {' '.join(said[1:])}, newer than {_FORMAT}", remedy="use a newer Cowshed")
    if store is not None and found != store:
        raise WrongStore(f"{root} holds store {found}, not {store}", remedy="is the right file system mounted?")
    return found  # type: ignore[return-value]


def _line(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 256).decode(errors="replace").strip()
    finally:
        os.close(fd)


class Directories:
    """The layers of one such store."""

    def __init__(self, root: str) -> None:
        self.root = root

    def layer(self, layer: Layer) -> str:
        return f"{self.root}/{'committed' if layer.kind is Kind.COMMITTED else 'active'}/{layer.id}"

    def temporary(self, layer: Layer) -> str:
        """An unused path for a call to build its result at; what a dead call left there is removed."""
        path = f"{self.root}/temp/{layer.id}"
        remove_tree(path)
        return path

    def publish(self, source: str, folder: str, layer: Layer) -> str:
        """Rename source to its final place and make the rename durable."""
        target = f"{self.root}/{folder}/{layer.id}"
        os.rename(source, target)
        files.sync_directory(f"{self.root}/{folder}")
        return target

    def discard(self, path: str) -> None:
        """Rename to trash; absent is success."""
        name, folder = os.path.basename(path), os.path.basename(os.path.dirname(path))
        try:
            os.rename(path, f"{self.root}/trash/{name}.{folder}")
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            remove_tree(path)

    def scan(self, half_made: Callable[[str], bool]) -> Iterator[StoredObject]:
        """Every object. half_made(path of an active layer) tells what a dead commit left."""
        kinds = {"active": Kind.ACTIVE, "committed": Kind.COMMITTED}
        for folder in FOLDERS:
            for name in sorted(os.listdir(f"{self.root}/{folder}")):
                what = {"temp": ObjectKind.TEMP, "trash": ObjectKind.TRASH}.get(folder, ObjectKind.LAYER)
                if folder == "active" and half_made(f"{self.root}/active/{name}"):
                    what = ObjectKind.TEMP
                yield StoredObject(
                    what, f"{folder}/{name}", LayerId(name.partition(".")[0]), layer_kind=kinds.get(folder)
                )

    def purge(
        self,
        claim: Callable[[LayerId], AbstractContextManager[bool]],
        budget: float,
        half_made: Callable[[str], bool],
    ) -> PurgeResult:
        from time import monotonic

        until = monotonic() + budget
        left = 0
        for found in list(self.scan(half_made)):
            if found.kind is ObjectKind.LAYER or found.layer is None:
                continue
            if monotonic() > until:
                left += 1
                continue
            path = f"{self.root}/{found.name}"
            if found.kind is ObjectKind.TRASH:
                left += not remove_tree(path, until=until)
                continue
            with claim(found.layer) as mine:
                # Only now is it certain that no call owns it: it may have been published since the scan.
                if not mine or (found.name.startswith("active/") and not half_made(path)):
                    left += not mine
                    continue
                left += not remove_tree(path, until=until)
        return PurgeResult(left)
