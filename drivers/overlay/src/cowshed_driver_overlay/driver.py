"""A layer is a directory of what it changed (`upper`); the kernel lays them over each other when they are mounted.

    active/ID/upper   active/ID/work     writable; work is overlay's own
    committed/ID/upper                   immutable

Deleted names are character devices 0:0, opaque directories carry PREFIX.opaque=y
(Documentation/filesystems/overlayfs.rst).

Where the file system below has quota by project, the directory ID is a project, and all that is made in upper and work:
a file that is copied up is made in work and renamed, which the kernel allows within one project only.
"""

from __future__ import annotations

import os

from cowshed.storage import api
from cowshed.storage.errors import LayerId, TooDeep, Unsupported
from cowshed.storage.kit import directories
from cowshed.storage.kit.places import private_namespace
from cowshed.storage.kit.trees import copy_top, remove_tree
from cowshed_driver_overlay.switches import MAX_LAYERS, capabilities, prefix, switches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

NAME = "overlay"


class OverlayDriver:
    """One open store (`cowshed.storage.api.Driver`, `DiffTreeDriver`, `QuotaDriver`, `SelfCheckDriver`)."""

    def __init__(self, root: str, options: api.Options, host: api.Host) -> None:
        user = private_namespace()
        self._switches, self._prefix = switches(options, user_attributes=user), prefix(user_attributes=user)
        self._at, self._host = directories.Directories(root, "upper", host, quota=True), host
        self._options, self._user = options, user

    @property
    def capabilities(self) -> api.Capabilities:
        at = self._at
        return capabilities(
            self._options,
            user_attributes=self._user,
            durable=at.durable,
            quota=at.has_quota,
            exact=at.usage_exact,
        )

    def close(self) -> None:
        self._at.close()

    def health(self) -> api.Health:
        return self._at.health()

    def scan(self) -> Iterator[api.StoredObject]:
        return self._at.scan()

    def prepare(self, new: api.Layer, options: api.LayerOptions) -> api.DriverData:
        if self._at.exists(new):
            return {}
        limited = options.quota != api.Quota()
        if limited:
            self._at.require_quota(new)
        parent = self._at.require(new.parent) if new.parent is not None else ""
        temporary = self._at.temporary(new)
        upper = f"{temporary}/upper"
        os.mkdir(upper)
        os.mkdir(f"{temporary}/work", 0o700)
        self._host.step("overlay.prepare.made")
        if parent:
            # The upper's own root is what a container sees as /: it must look as its parent's does.
            copy_top(parent, upper, self._prefix)
        else:
            os.chmod(upper, 0o755)  # whatever the umask
            os.chown(upper, options.root_uid, options.root_gid)
        if limited:
            self._at.limit(new, options.quota, temporary)
        self._host.step("overlay.prepare.filled")
        self._at.publish(temporary, new, durable=options.durable)
        self._host.step("overlay.prepare.published")
        return {}

    def commit(self, active: api.Layer, new: api.Layer, durability: api.Durability) -> api.DriverData:
        if (depth := sum(1 for _ in new.chain())) > MAX_LAYERS:
            raise TooDeep(
                f"layer {new.id} would be number {depth} of its chain, overlay takes {MAX_LAYERS}",
                layer=new.id,
                remedy="squash the image, or use a driver without this limit",
            )
        self._at.commit(active, new, durable=durability > api.Durability.NONE, name=NAME)
        remove_tree(f"{self._at.layer(new)}/work")
        return {}

    def remove(self, layer: api.Layer) -> None:
        self._at.discard(layer)
        self._host.step("overlay.remove.renamed")

    def purge(self, claim: Callable[[LayerId], AbstractContextManager[bool]], budget: float) -> api.PurgeResult:
        return self._at.purge(claim, budget)

    def mounts(self, layer: api.Layer, request: api.MountRequest) -> api.MountPlan:
        own = self._at.require(layer)
        # A dict keeps the order and each once: the kernel refuses a lower directory that it gets twice (ELOOP).
        below = tuple(dict.fromkeys(self._at.content(x) for x in layer.chain() if x is not layer))
        writable = layer.kind is api.Kind.ACTIVE and not request.read_only
        if not below:  # overlay wants two directories at least; one needs no overlay
            if request.selinux_label:
                raise Unsupported(
                    f"layer {layer.id} has no layer below: a bind mount cannot carry an SELinux label",
                    layer=layer.id,
                    remedy="build the container on an image",
                )
            return api.MountPlan((api.Bind(own, not writable),))
        options = list(self._switches)
        if request.volatile and writable:
            options.append(("volatile", None))
        if request.selinux_label:
            options.append(("context", request.selinux_label))
        options.extend(request.options)
        if writable or len(below) == MAX_LAYERS:  # as a lower directory, the active layer would be one too many
            work = f"{self._at.layer(layer)}/work"
            step = api.Overlay(below, own, work, read_only=not writable, options=tuple(options))
        else:
            step = api.Overlay((own, *below), options=tuple(options))
        # index=off lets the kernel mount an upper directory twice, with undefined results.
        return api.MountPlan((step,), exclusive=layer.kind is api.Kind.ACTIVE)

    def diff_tree(self, layer: api.Layer) -> api.DiffTree:
        if not self.capabilities.diff_tree:
            raise Unsupported("with redirect_dir or metacopy an upper directory alone is no diff", layer=layer.id)
        return api.DiffTree(self._at.require(layer), api.Whiteout.CHAR, self._prefix)

    def usage(self, layer: api.Layer) -> api.Usage:
        return self._at.usage(layer, beside=("work",))

    def set_quota(self, layer: api.Layer, quota: api.Quota) -> None:
        self._at.limit(layer, quota)

    def check(self, layers: Sequence[api.Layer], *, deep: bool) -> Iterator[api.Finding]:
        from cowshed_driver_overlay import check

        return check.findings(self._at, layers, self._host)

    def repair(self, finding: api.Finding) -> None:
        from cowshed_driver_overlay import check

        check.repair(self._at, finding)


def init(root: str, options: api.Options, host: api.Host) -> api.StoreId:
    switches(options, user_attributes=private_namespace())
    return directories.init_store(root, NAME)


def open_store(root: str, options: api.Options, host: api.Host, *, store: api.StoreId) -> OverlayDriver:
    directories.check_store(root, NAME, store)
    return OverlayDriver(root, options, host)


def destroy_store(root: str, options: api.Options, host: api.Host, *, store: api.StoreId) -> None:
    directories.destroy_store(root, NAME, store, host)
