"""A layer is a directory of what it changed, a branch; aufs lays them over each other when they are mounted.

    active/ID/branch      writable, with the bookkeeping of aufs in it
    committed/ID/branch   immutable, without

Deleted names and opaque directories are told by files: see branches.py.
"""

from __future__ import annotations

import os

from cowshed.storage import api
from cowshed.storage.errors import LayerId, TooDeep, Unsupported
from cowshed.storage.kit import directories
from cowshed.storage.kit.trees import measure_tree
from cowshed_driver_aufs.branches import OPTIONS, capabilities, copy_root, furnish, tidy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

NAME = "aufs"


class AufsDriver:
    """One open store (`cowshed.storage.api.Driver`, `DiffTreeDriver`)."""

    def __init__(self, root: str, host: api.Host) -> None:
        self._at, self._host = directories.Directories(root, "branch", host), host
        self._branches = 0  # how many a mount takes; 0 = not asked yet

    @property
    def capabilities(self) -> api.Capabilities:
        return capabilities(branches=self._limit(), durable=self._at.durable)

    def _limit(self) -> int:
        if not self._branches:
            from cowshed_driver_aufs.limit import branch_limit

            self._branches = branch_limit()
        return self._branches

    def close(self) -> None:
        self._at.close()

    def health(self) -> api.Health:
        return self._at.health()

    def scan(self) -> Iterator[api.StoredObject]:
        return self._at.scan()

    def prepare(self, new: api.Layer, options: api.LayerOptions) -> api.DriverData:
        if options.quota != api.Quota():
            raise Unsupported(
                "an aufs store has no quota: what aufs copies from the layers below goes past every limit",
                layer=new.id,
                remedy="leave the size limit out, or use another driver",
            )
        if self._at.exists(new):
            return {}
        parent = self._at.require(new.parent) if new.parent is not None else ""
        temporary = self._at.temporary(new)
        branch = f"{temporary}/branch"
        os.mkdir(branch)
        self._host.step("aufs.prepare.made")
        furnish(branch)
        if parent:
            copy_root(parent, branch)
        else:
            os.chmod(branch, 0o755)  # whatever the umask
            os.chown(branch, options.root_uid, options.root_gid)
        self._host.step("aufs.prepare.filled")
        self._at.publish(temporary, new, durable=options.durable)
        self._host.step("aufs.prepare.published")
        return {}

    def commit(self, active: api.Layer, new: api.Layer, durability: api.Durability) -> api.DriverData:
        if (depth := sum(1 for _ in new.chain())) >= self._limit():
            raise TooDeep(
                f"layer {new.id} would be number {depth} of its chain, aufs takes {self._limit() - 1} here",
                layer=new.id,
                remedy="squash the image, or use a kernel whose aufs was built for more branches",
            )
        if not self._at.exists(new):
            tidy(self._at.require(active))
            self._host.step("aufs.commit.tidied")
        # Syncs the whole file system first: aufs writes nothing back of what it copied from the layers below, and a
        # power cut would leave empty files on top of the good ones.
        self._at.commit(active, new, durable=durability > api.Durability.NONE, name=NAME)
        return {}

    def remove(self, layer: api.Layer) -> None:
        self._at.discard(layer)
        self._host.step("aufs.remove.renamed")

    def purge(self, claim: Callable[[LayerId], AbstractContextManager[bool]], budget: float) -> api.PurgeResult:
        return self._at.purge(claim, budget)

    def mounts(self, layer: api.Layer, request: api.MountRequest) -> api.MountPlan:
        if request.selinux_label:
            raise Unsupported("aufs cannot carry an SELinux label", layer=layer.id, remedy="use overlay")
        # A layer with nothing below it is mounted by aufs too: as a plain directory it would take names from its users
        # that are whiteouts in the layers above it.
        branches = tuple(dict.fromkeys([self._at.require(layer), *(self._at.content(x) for x in layer.chain())]))
        writable = layer.kind is api.Kind.ACTIVE and not request.read_only
        step = api.Aufs(branches, writable, (*OPTIONS, *request.options))
        # Nothing keeps aufs from mounting a writable branch twice, with undefined results.
        return api.MountPlan((step,), exclusive=layer.kind is api.Kind.ACTIVE)

    def diff_tree(self, layer: api.Layer) -> api.DiffTree:
        return api.DiffTree(self._at.require(layer), api.Whiteout.AUFS)

    def usage(self, layer: api.Layer) -> api.Usage:
        size, inodes = measure_tree(self._at.require(layer))
        return api.Usage(own=size, shared=None, inodes=inodes, exact=False)


def init(root: str, options: api.Options, host: api.Host) -> api.StoreId:
    return directories.init_store(root, NAME)


def open_store(root: str, options: api.Options, host: api.Host, *, store: api.StoreId) -> AufsDriver:
    directories.check_store(root, NAME, store)
    return AufsDriver(root, host)


def destroy_store(root: str, options: api.Options, host: api.Host, *, store: api.StoreId) -> None:
    directories.destroy_store(root, NAME, store)
