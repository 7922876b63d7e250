"""Making a store and taking it away."""

from __future__ import annotations

import os
from time import monotonic, sleep

from cowshed.storage.errors import BadOption, Unsupported
from cowshed.storage.kit import directories, places
from cowshed_driver_btrfs import ioctls, quota, subvolumes
from cowshed_driver_btrfs.driver import FOLDERS, NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.storage.api import Host, Options, StoreId

ELSEWHERE = "put the store (--root) on a btrfs file system, which mkfs.btrfs makes; or use --driver overlay"
_PATIENCE = 20.0  # seconds for the cleaner to finish


def check_options(options: Options) -> None:
    if options["compression"] != "none" and options["nodatacow"] == "on":
        raise BadOption(
            "options compression and nodatacow of driver btrfs exclude each other: what is written in place is not "
            "compressed",
            remedy="set one of them",
        )


def init(root: str, options: Options, host: Host) -> StoreId:
    """Raises Unsupported if the place is not on btrfs, BadOption, WrongStore."""
    check_options(options)
    name = places.file_system_name(places.nearest_directory(root))
    if name != "btrfs":
        raise Unsupported(f"{root} would be on {name}, not on btrfs", remedy=ELSEWHERE)
    store = directories.init_store(root, NAME, FOLDERS)
    wanted = options["quota"]
    if wanted != quota.OFF:
        fd = ioctls.directory(root)
        try:
            if wanted in (quota.SIMPLE, quota.FULL):
                quota.switch_on(fd, root, str(wanted), host)
            if quota.state(fd)[0] in (quota.SIMPLE, wanted):
                quota.Groups(fd, store, host).make()
        finally:
            os.close(fd)
    return store


def destroy(root: str, options: Options, host: Host, *, store: StoreId) -> None:
    """Raises WrongStore."""
    if os.path.lexists(f"{root}/store"):
        directories.check_store(root, NAME, store)
        _empty(root, store, host)
    directories.destroy_store(root, NAME, store)


def _empty(root: str, store: StoreId, host: Host) -> None:
    fd = ioctls.directory(root)
    try:
        mode, _ = quota.state(fd)
        groups = quota.Groups(fd, store, host)
        for folder in FOLDERS:
            for name in _listed(f"{root}/{folder}"):
                path = f"{root}/{folder}/{name}"
                quota.release(fd, mode, path, host)
                host.call("btrfs.destroy", lambda path=path: subvolumes.remove(path))
        if mode in (quota.SIMPLE, quota.FULL):
            dying = groups.members(groups.store)
            groups.destroy()
            quota.switch_off(fd, host)
            if quota.state(fd)[0] == quota.SIMPLE:
                _forget(fd, dying)
    finally:
        os.close(fd)
    try:
        os.unlink(f"{root}/quota")
    except FileNotFoundError:
        pass


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _forget(fd: int, dying: list[int]) -> None:
    """Remove the subvolumes' own groups, which kernels before 6.11 leave, once the cleaner has finished with them."""
    until = monotonic() + _PATIENCE
    ioctls.sync(fd)
    while subvolumes.being_cleaned(fd).intersection(dying) and monotonic() < until:
        sleep(0.01)
    ioctls.sync(fd)
    for one in dying:
        quota.removed(fd, one)
