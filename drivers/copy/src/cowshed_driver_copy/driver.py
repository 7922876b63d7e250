"""A layer is a directory that holds everything: its own files and those of all layers below, copied.

Where the file system shares extents (btrfs, xfs with reflink) the copy costs metadata only. There is nothing here that
could go subtly wrong, so this driver is what the conformance suite compares the others with.
"""

from __future__ import annotations

import os

from cowshed.storage import api
from cowshed.storage.errors import LayerId, NotFound, Unsupported
from cowshed.storage.kit.directories import Directories, check_store, init_store
from cowshed.storage.kit.trees import copy_tree, measure_tree, remove_tree
from cowshed_linux import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

CAPABILITIES = api.Capabilities(
    granularity=api.Granularity.TREE,
    durability=api.Durability.COMMIT,
    idmapped_mounts=True,
    selinux=True,
    rootless=True,
)


class CopyDriver:
    """One open store (`cowshed.storage.api.Driver`)."""

    capabilities = CAPABILITIES

    def __init__(self, root: str, host: api.Host) -> None:
        self._at, self._host = Directories(root), host
        self._closed = False

    def close(self) -> None:
        self._closed = True

    def health(self) -> api.Health:
        status = os.statvfs(self._at.root)
        return api.Health(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize, None, None)

    def scan(self) -> Iterator[api.StoredObject]:
        return self._at.scan(_half_made)

    def prepare(self, new: api.Layer, options: api.LayerOptions) -> api.DriverData:
        if options.quota != api.Quota():
            raise Unsupported("the copy driver has no quota", layer=new.id)
        if os.path.isdir(f"{self._at.layer(new)}/root"):
            return {}
        temporary = self._at.temporary(new)
        os.mkdir(temporary, 0o700)
        self._host.step("copy.prepare.made")
        if new.parent is None:
            os.mkdir(f"{temporary}/root", 0o755)
            os.chmod(f"{temporary}/root", 0o755)
            os.chown(f"{temporary}/root", options.root_uid, options.root_gid)
        else:
            parent = f"{self._at.layer(new.parent)}/root"
            if not os.path.isdir(parent):
                raise NotFound("the parent layer is missing", layer=new.parent.id, remedy="cowshed system check")
            copy_tree(parent, f"{temporary}/root")
        self._host.step("copy.prepare.filled")
        files.sync_directory(temporary)
        self._at.publish(temporary, "active", new)
        self._host.step("copy.prepare.published")
        return {}

    def commit(self, active: api.Layer, new: api.Layer, durability: api.Durability) -> api.DriverData:
        source, target = self._at.layer(active), self._at.layer(new)
        if not os.path.isdir(f"{target}/root"):
            if not os.path.isdir(f"{source}/root"):
                raise NotFound("there is no such active layer", layer=active.id)
            if durability > api.Durability.NONE:
                fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    self._host.sync(fd)
                finally:
                    os.close(fd)
            self._host.step("copy.commit.synced")
            os.rename(source, target)
            self._host.step("copy.commit.renamed")
        if durability > api.Durability.NONE:
            files.sync_directory(f"{self._at.root}/committed")
            files.sync_directory(f"{self._at.root}/active")
        if active.id != new.id:
            self._at.discard(source)
        return {}

    def remove(self, layer: api.Layer) -> None:
        self._at.discard(self._at.layer(layer))
        self._host.step("copy.remove.renamed")

    def purge(self, claim: Callable[[LayerId], AbstractContextManager[bool]], budget: float) -> api.PurgeResult:
        return self._at.purge(claim, budget, _half_made)

    def mounts(self, layer: api.Layer, request: api.MountRequest) -> api.MountPlan:
        read_only = request.read_only or layer.kind is api.Kind.COMMITTED
        return api.MountPlan((api.Bind(f"{self._at.layer(layer)}/root", read_only),))

    def usage(self, layer: api.Layer) -> api.Usage:
        size, inodes = measure_tree(f"{self._at.layer(layer)}/root")
        return api.Usage(own=size, shared=None, inodes=inodes, exact=False)


def _half_made(path: str) -> bool:
    return not os.path.isdir(f"{path}/root")


def init(root: str, options: api.Options, host: api.Host) -> api.StoreId:
    return init_store(root, "copy")


def open_store(root: str, options: api.Options, host: api.Host, *, store: api.StoreId) -> CopyDriver:
    check_store(root, "copy", store)
    return CopyDriver(root, host)


def destroy_store(root: str, options: api.Options, host: api.Host, *, store: api.StoreId) -> None:
    if os.path.isdir(root):
        check_store(root, "copy", store)
        remove_tree(root)
