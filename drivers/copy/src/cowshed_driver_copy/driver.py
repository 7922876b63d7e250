"""A layer is a directory that holds everything: its own files and those of all layers below, copied.

    active/ID/root   committed/ID/root

Where the file system shares extents (btrfs, xfs with reflink) the copy costs metadata only. There is nothing here that
could go subtly wrong, so this driver is what the conformance suite compares the others with.
"""

from __future__ import annotations

import os

from cowshed.storage import api
from cowshed.storage.errors import LayerId, Unsupported
from cowshed.storage.kit import directories
from cowshed.storage.kit.trees import copy_tree, measure_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

NAME = "copy"


def capabilities(*, durable: bool = True) -> api.Capabilities:
    """What a store can. durable: the place survives a power cut (tmpfs does not)."""
    return api.Capabilities(
        granularity=api.Granularity.TREE,
        durability=api.Durability.COMMIT if durable else api.Durability.NONE,
        idmapped_mounts=True,
        rootless=True,
    )


class CopyDriver:
    """One open store (`cowshed.storage.api.Driver`)."""

    def __init__(self, root: str, host: api.Host) -> None:
        self._at, self._host = directories.Directories(root, "root", host), host

    @property
    def capabilities(self) -> api.Capabilities:
        return capabilities(durable=self._at.durable)

    def close(self) -> None:
        self._at.close()

    def health(self) -> api.Health:
        return self._at.health()

    def scan(self) -> Iterator[api.StoredObject]:
        return self._at.scan()

    def prepare(self, new: api.Layer, options: api.LayerOptions) -> api.DriverData:
        if options.quota != api.Quota():
            raise Unsupported("the copy driver has no quota", layer=new.id, remedy="leave the size limit out")
        if self._at.exists(new):
            return {}
        parent = self._at.require(new.parent) if new.parent is not None else ""
        temporary = self._at.temporary(new)
        root = f"{temporary}/root"
        self._host.step("copy.prepare.made")
        if parent:
            copy_tree(parent, root, step=_Ticks(self._host).one)
            # The layer counts as made from the rename on: a power cut must not find its files empty then.
            self._at.sync()
        else:
            os.mkdir(root)
            os.chmod(root, 0o755)  # whatever the umask
            os.chown(root, options.root_uid, options.root_gid)
        self._host.step("copy.prepare.filled")
        self._at.publish(temporary, new, durable=options.durable)
        self._host.step("copy.prepare.published")
        return {}

    def commit(self, active: api.Layer, new: api.Layer, durability: api.Durability) -> api.DriverData:
        if new.parent != active.parent:
            raise Unsupported(
                f"layer {active.id} is a full copy of what lies below it and cannot be put on another parent",
                layer=active.id,
                remedy="prepare a layer on that parent and copy the changes",
            )
        self._at.commit(active, new, durable=durability > api.Durability.NONE, name=NAME)
        return {}

    def remove(self, layer: api.Layer) -> None:
        self._at.discard(layer)
        self._host.step("copy.remove.renamed")

    def purge(self, claim: Callable[[LayerId], AbstractContextManager[bool]], budget: float) -> api.PurgeResult:
        return self._at.purge(claim, budget)

    def mounts(self, layer: api.Layer, request: api.MountRequest) -> api.MountPlan:
        if request.selinux_label:
            raise Unsupported("a bind mount cannot carry an SELinux label", layer=layer.id, remedy="use overlay")
        read_only = request.read_only or layer.kind is api.Kind.COMMITTED
        return api.MountPlan((api.Bind(self._at.require(layer), read_only),))

    def usage(self, layer: api.Layer) -> api.Usage:
        size, inodes = measure_tree(self._at.require(layer))
        return api.Usage(own=size, shared=None, inodes=inodes, exact=False)


class _Ticks:
    """Tells the host of every 256th entry, which is also where a long copy can be cancelled."""

    def __init__(self, host: api.Host) -> None:
        self._host, self._done = host, 0

    def one(self) -> None:
        self._done += 1
        if not self._done & 255:
            self._host.progress("copying", self._done, None)


def init(root: str, options: api.Options, host: api.Host) -> api.StoreId:
    return directories.init_store(root, NAME)


def open_store(root: str, options: api.Options, host: api.Host, *, store: api.StoreId) -> CopyDriver:
    directories.check_store(root, NAME, store)
    return CopyDriver(root, host)


def destroy_store(root: str, options: api.Options, host: api.Host, *, store: api.StoreId) -> None:
    directories.destroy_store(root, NAME, store)
