"""A layer is a directory of what it changed (`upper`); the kernel lays them over each other when they are mounted.

    active/ID/upper   active/ID/work     writable; work is overlay's own
    committed/ID/upper                   immutable

Deleted names are character devices 0:0, opaque directories carry PREFIX.opaque=y
(Documentation/filesystems/overlayfs.rst). The kernel takes 500 lower directories.
"""

from __future__ import annotations

import os

from cowshed.storage import api
from cowshed.storage.errors import LayerId, NotFound, TooDeep, Unsupported
from cowshed.storage.kit.directories import Directories, check_store, init_store
from cowshed.storage.kit.trees import measure_tree, remove_tree
from cowshed_linux import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

MAX_LOWERS = 500


def private_namespace() -> bool:
    """Whether this process is in a user namespace of its own, where overlay keeps its attributes under user.*"""
    fd = os.open("/proc/self/uid_map", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 128).split() != [b"0", b"0", b"4294967295"]
    finally:
        os.close(fd)


def switches(options: api.Options, *, user_attributes: bool) -> tuple[tuple[str, str | None], ...]:
    """Every behaviour switch of overlay, always said: distributions set their own defaults when they build kernels."""
    if user_attributes:  # excludes redirect_dir and metacopy, which would need trusted.*
        return ("userxattr", None), ("index", "off"), ("xino", str(options["xino"]))
    return (
        ("redirect_dir", "on" if options["redirect_dir"] == "on" else "nofollow"),
        ("metacopy", str(options["metacopy"])),
        ("index", str(options["index"])),
        ("xino", str(options["xino"])),
        ("nfs_export", "off"),
    )


def capabilities(options: api.Options, *, user_attributes: bool) -> api.Capabilities:
    redirects = options["redirect_dir"] == "on" and not user_attributes
    plain = not redirects and (options["metacopy"] == "off" or user_attributes)
    return api.Capabilities(
        granularity=api.Granularity.FILE,
        max_depth=MAX_LOWERS,
        durability=api.Durability.COMMIT,
        diff_tree=plain,
        rebase=plain,
        rename_lower_directory=redirects,
        hard_links_survive_copy_up=options["index"] == "on" and not user_attributes,
        inodes_stable=False,
        stale_reads_after_copy_up=True,
        char_0_0_visible=False,
        shared_page_cache=True,
        idmapped_mounts=True,
        selinux=True,
        rootless=True,
        lost_xattrs=("user.overlay.",) if user_attributes else ("trusted.overlay.",),
    )


class OverlayDriver:
    """One open store (`cowshed.storage.api.Driver`, `DiffTreeDriver`)."""

    def __init__(self, root: str, options: api.Options, host: api.Host) -> None:
        self._at, self._host = Directories(root), host
        user = private_namespace()
        self._switches = switches(options, user_attributes=user)
        self._prefix = "user.overlay." if user else "trusted.overlay."
        self.capabilities = capabilities(options, user_attributes=user)

    def close(self) -> None:
        """Nothing is held open."""

    def health(self) -> api.Health:
        status = os.statvfs(self._at.root)
        return api.Health(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize, None, None)

    def scan(self) -> Iterator[api.StoredObject]:
        return self._at.scan(_half_made)

    def prepare(self, new: api.Layer, options: api.LayerOptions) -> api.DriverData:
        if options.quota != api.Quota():
            raise Unsupported("this store has no quota", layer=new.id)
        if new.parent is not None and (depth := sum(1 for _ in new.parent.chain())) > MAX_LOWERS:
            raise TooDeep(f"{depth} layers below; overlay takes {MAX_LOWERS}", layer=new.id, remedy="squash the image")
        if os.path.isdir(f"{self._at.layer(new)}/upper"):
            return {}
        temporary = self._at.temporary(new)
        os.mkdir(temporary, 0o700)
        upper = f"{temporary}/upper"
        os.mkdir(upper, 0o755)
        os.mkdir(f"{temporary}/work", 0o700)
        self._host.step("overlay.prepare.made")
        if new.parent is None:
            os.chmod(upper, 0o755)
            os.chown(upper, options.root_uid, options.root_gid)
        else:
            # The upper's own root is what a container sees as /: it must look as its parent's does.
            parent = f"{self._at.layer(new.parent)}/upper"
            if not os.path.isdir(parent):
                raise NotFound("the parent layer is missing", layer=new.parent.id, remedy="cowshed system check")
            self._copy_root(parent, upper)
        self._host.step("overlay.prepare.filled")
        files.sync_directory(temporary)
        self._at.publish(temporary, "active", new)
        self._host.step("overlay.prepare.published")
        return {}

    def _copy_root(self, parent: str, upper: str) -> None:
        status = os.stat(parent)
        os.chown(upper, status.st_uid, status.st_gid)
        os.chmod(upper, status.st_mode & 0o7777)
        for name in os.listxattr(parent):
            if not name.startswith(self._prefix):
                os.setxattr(upper, name, os.getxattr(parent, name))
        os.utime(upper, ns=(status.st_atime_ns, status.st_mtime_ns))

    def commit(self, active: api.Layer, new: api.Layer, durability: api.Durability) -> api.DriverData:
        source, target = self._at.layer(active), self._at.layer(new)
        if not os.path.isdir(f"{target}/upper"):
            if not os.path.isdir(f"{source}/upper"):
                raise NotFound("there is no such active layer", layer=active.id)
            if durability > api.Durability.NONE:
                fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    self._host.sync(fd)
                finally:
                    os.close(fd)
            self._host.step("overlay.commit.synced")
            os.rename(source, target)
            self._host.step("overlay.commit.renamed")
        remove_tree(f"{target}/work")
        if durability > api.Durability.NONE:
            files.sync_directory(f"{self._at.root}/committed")
            files.sync_directory(f"{self._at.root}/active")
        if active.id != new.id:
            self._at.discard(source)
        return {}

    def remove(self, layer: api.Layer) -> None:
        self._at.discard(self._at.layer(layer))
        self._host.step("overlay.remove.renamed")

    def purge(self, claim: Callable[[LayerId], AbstractContextManager[bool]], budget: float) -> api.PurgeResult:
        return self._at.purge(claim, budget, _half_made)

    def mounts(self, layer: api.Layer, request: api.MountRequest) -> api.MountPlan:
        own, *below = [f"{self._at.layer(x)}/upper" for x in layer.chain()]
        writable = layer.kind is api.Kind.ACTIVE and not request.read_only
        if not below:
            return api.MountPlan((api.Bind(own, not writable),))
        options: list[tuple[str, str | None]] = list(self._switches)
        if request.volatile and writable:
            options.append(("volatile", None))
        if request.selinux_label:
            options.append(("context", request.selinux_label))
        options.extend(request.options)
        if writable:
            work = f"{self._at.layer(layer)}/work"
            step = api.Overlay(tuple(below), own, work, options=tuple(options))
        else:
            step = api.Overlay((own, *below), options=tuple(options))
        return api.MountPlan((step,), exclusive=layer.kind is api.Kind.ACTIVE)

    def diff_tree(self, layer: api.Layer) -> api.DiffTree:
        return api.DiffTree(f"{self._at.layer(layer)}/upper", api.Whiteout.CHAR, self._prefix)

    def usage(self, layer: api.Layer) -> api.Usage:
        size, inodes = measure_tree(f"{self._at.layer(layer)}/upper")
        return api.Usage(own=size, shared=None, inodes=inodes, exact=False)


def _half_made(path: str) -> bool:
    return not os.path.isdir(f"{path}/upper")


def init(root: str, options: api.Options, host: api.Host) -> api.StoreId:
    return init_store(root, "overlay")


def open_store(root: str, options: api.Options, host: api.Host, *, store: api.StoreId) -> OverlayDriver:
    check_store(root, "overlay", store)
    return OverlayDriver(root, options, host)


def destroy_store(root: str, options: api.Options, host: api.Host, *, store: api.StoreId) -> None:
    if os.path.isdir(root):
        check_store(root, "overlay", store)
        remove_tree(root)
