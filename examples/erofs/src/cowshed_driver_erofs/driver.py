"""A committed layer is one read-only EROFS image of what it changed; the kernel lays the images over each other.

    active/ID/upper   active/ID/work   a writable layer, as overlay has it
    committed/ID/tree                  an immutable one: mkfs.erofs of its upper directory, whiteouts and all

Nothing can write to an image, whatever a mount says. Many small files become one, which is what backups and network
disks like. EROFS mounts an image by its path since Linux 6.12 (CONFIG_EROFS_FS_BACKED_BY_FILE), without a loop device
(Documentation/filesystems/erofs.rst).

mkfs.erofs 1.5 cannot keep a name of 255 bytes. A layer that has one stays a directory: `tree` links to `upper` then.
"""

from __future__ import annotations

import os

from cowshed.storage import api
from cowshed.storage.errors import LayerId, NoSpace, TooDeep, ToolFailed, Unsupported
from cowshed.storage.kit import directories, overlays
from cowshed.storage.kit.trees import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

NAME = "erofs"
TREE = "tree"
_TIMEOUT = 600.0  # seconds that one image may take
_LONGEST = 254  # bytes of a name that mkfs.erofs keeps
MAX_LAYERS = overlays.MAX_LAYERS


def capabilities(*, durable: bool) -> api.Capabilities:
    """Those of overlay, but for what an image cannot have: the kernel sets no access list on it, which overlay asks of
    the file below, and shows no holes of a compressed one. durable: the place survives a power cut."""
    return overlays.capabilities(durable=durable, shared_page_cache=False, acl_before_copy_up=False, sparse=False)


class ErofsDriver:
    """One open store (`cowshed.storage.api.Driver`)."""

    def __init__(self, root: str, options: api.Options, host: api.Host) -> None:
        self._at = directories.Directories(root, "upper", host, committed=TREE)
        self._host, self._compression = host, str(options["compression"])

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
            raise Unsupported(f"the {NAME} driver has no quota", layer=new.id, remedy="leave the size limit out")
        if self._at.exists(new):
            return {}  # the call is repeated, and had succeeded
        temporary = self._at.temporary(new)
        if new.parent is None:
            overlays.make(temporary, options)
        else:
            self._make_on(temporary, options, self._at.require(new.parent))
        self._host.step("erofs.prepare.filled")
        self._at.publish(temporary, new, durable=options.durable)
        return {}

    def _make_on(self, temporary: str, options: api.LayerOptions, parent: str) -> None:
        """The root of a layer is in its own image, so no more of the chain is needed."""
        if os.path.isdir(parent):
            overlays.make(temporary, options, parent)
            return
        with self._host.mounted(api.MountPlan((api.FileSystem("erofs", parent, read_only=True),))) as below:
            overlays.make(temporary, options, below.path)

    def commit(self, active: api.Layer, new: api.Layer, durability: api.Durability) -> api.DriverData:
        if (depth := sum(1 for _ in new.chain())) > MAX_LAYERS:
            raise TooDeep(
                f"layer {new.id} would be number {depth} of its chain, overlay takes {MAX_LAYERS}",
                layer=new.id,
                remedy="squash the image, or use a driver without this limit",
            )
        if not self._at.exists(new):
            self._pack(self._at.require(active), f"{self._at.layer(active)}/{TREE}", new.id)
        self._at.commit(active, new, durable=durability > api.Durability.NONE, name=NAME)
        done = self._at.layer(new)
        for name in ("work",) if os.path.islink(f"{done}/{TREE}") else ("work", "upper"):
            remove_tree(f"{done}/{name}")
        return {}

    def _pack(self, upper: str, image: str, layer: LayerId) -> None:
        """Make the image of a directory. Raises NoSpace, ToolFailed; then there is none."""
        identity = f"{layer[:8]}-{layer[8:12]}-{layer[12:16]}-{layer[16:20]}-{layer[20:]}"
        # --chunksize would keep holes, but with it mkfs.erofs 1.5 fails (EIO) where /tmp is another file system.
        how = () if self._compression == "none" else (f"-z{self._compression}",)
        remove_tree(image)  # of a call that was killed
        if _has_longer_names(upper):
            os.symlink("upper", image)
            return
        argv = ("mkfs.erofs", "--quiet", "--preserve-mtime", "-U", identity, *how, image, upper)
        try:
            self._host.run(argv, timeout=_TIMEOUT)
        except ToolFailed as error:
            remove_tree(image)
            if "No space left" in str(error):
                remedy = "cowshed system prune, or give the file system more room"
                raise NoSpace(f"no room for the image of layer {layer}", layer=layer, remedy=remedy) from error
            raise
        self._host.step("erofs.commit.packed")

    def remove(self, layer: api.Layer) -> None:
        self._at.discard(layer)

    def purge(self, claim: Callable[[LayerId], AbstractContextManager[bool]], budget: float) -> api.PurgeResult:
        return self._at.purge(claim, budget)

    def mounts(self, layer: api.Layer, request: api.MountRequest) -> api.MountPlan:
        own = self._at.require(layer)
        below = [self._at.require(each) for each in layer.chain() if each is not layer]
        images = [own, *below] if layer.kind is api.Kind.COMMITTED else below
        steps: list[api.Mount] = []
        lowers: list[api.Source] = []
        for image in images:
            if os.path.isdir(image):
                lowers.append(image)
            else:
                lowers.append(api.Step(len(steps)))
                steps.append(api.FileSystem("erofs", image, read_only=True, options=_label(request, images)))
        if layer.kind is api.Kind.COMMITTED and len(images) == 1:
            return api.MountPlan(tuple(steps) or (api.Bind(own, read_only=True),))
        upper = own if layer.kind is api.Kind.ACTIVE else ""
        last = overlays.mount(tuple(lowers), upper, f"{self._at.layer(layer)}/work", request)
        # The kernel lets an upper directory be mounted twice, with undefined results.
        return api.MountPlan((*steps, last), exclusive=layer.kind is api.Kind.ACTIVE)

    def usage(self, layer: api.Layer) -> api.Usage:
        return self._at.usage(layer, beside=("work",))


def _has_longer_names(path: str) -> bool:
    return any(len(name) > _LONGEST for _, folders, names in os.walk(os.fsencode(path)) for name in (*folders, *names))


def _label(request: api.MountRequest, images: list[str]) -> tuple[tuple[str, str | None], ...]:
    """The SELinux label of an image that is mounted alone; what is in an overlay has the overlay's."""
    return (("context", request.selinux_label),) if request.selinux_label and len(images) == 1 else ()


def init(root: str, options: api.Options, host: api.Host) -> api.StoreId:
    return directories.init_store(root, NAME)


def open_store(root: str, options: api.Options, host: api.Host, *, store: api.StoreId) -> ErofsDriver:
    directories.check_store(root, NAME, store)
    return ErofsDriver(root, options, host)


def destroy_store(root: str, options: api.Options, host: api.Host, *, store: api.StoreId) -> None:
    directories.destroy_store(root, NAME, store)
