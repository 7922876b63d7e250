"""An overlay on top, for drivers whose layers are diffs, however they keep the committed ones: directories, images, …

A writable layer has two directories beside each other: `upper`, what it changed, and `work`, overlay's own. Every
switch is said at every mount, as distributions build kernels with defaults of their own
(Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import os

from cowshed.storage import api
from cowshed.storage.kit.trees import copy_top

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_LAYERS = 500  # OVL_MAX_STACK: lower directories of one mount
PREFIX = "trusted.overlay."  # where overlay keeps its own extended attributes
# With these an upper directory alone tells what its layer changed, wherever it is moved and whatever it is put on.
SWITCHES = (
    ("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off"), ("xino", "off"), ("nfs_export", "off"),
)  # fmt: skip


def capabilities(*, durable: bool, **more: Any) -> api.Capabilities:
    """What a store can whose layers are mounted by `mount`. durable: the place survives a power cut; more: fields that
    go before those that are given here."""
    found: dict[str, Any] = {
        "granularity": api.Granularity.FILE,
        "max_depth": MAX_LAYERS,
        "durability": api.Durability.COMMIT if durable else api.Durability.NONE,
        "rebase": True,
        "rename_lower_directory": False,
        "hard_links_survive_copy_up": False,
        "inodes_stable": False,
        "stale_reads_after_copy_up": True,
        "char_0_0_visible": False,
        "shared_page_cache": True,
        "idmapped_mounts": True,
        "selinux": True,
        "lost_xattrs": (PREFIX,),
    }
    return api.Capabilities(**{**found, **more})


def make(folder: str, options: api.LayerOptions, parent: str = "") -> None:
    """Make `upper` and `work` of a new layer in folder. parent: where the layer below is mounted, "" if there is none.

    The upper's own root is what a container sees as /: it looks as its parent's does, or as the options say.
    """
    upper = f"{folder}/upper"
    os.mkdir(upper)
    os.mkdir(f"{folder}/work", 0o700)
    if parent:
        copy_top(parent, upper, PREFIX)
    else:
        os.chmod(upper, 0o755)  # whatever the umask
        os.chown(upper, options.root_uid, options.root_gid)


def mount(lowers: tuple[api.Source, ...], upper: str, work: str, request: api.MountRequest) -> api.Mount:
    """The last step of a layer's plan. lowers: what the layers below are, top first; upper: the directory of a writable
    layer, "" for a committed one. A plan with an upper is exclusive: the kernel would mount it twice.

    Raises Unsupported for an SELinux label without a layer below: it needs an overlay.
    """
    if upper and not lowers:  # overlay wants two directories at least; one needs no overlay
        if request.selinux_label:
            from cowshed.storage.errors import Unsupported

            text = "a layer without another below is a bind mount, which cannot carry an SELinux label"
            raise Unsupported(text, remedy="build the container on an image")
        return api.Bind(upper, request.read_only)
    options: list[tuple[str, str | None]] = [*SWITCHES]
    writable = bool(upper) and not request.read_only
    if request.volatile and writable:
        options.append(("volatile", None))
    if request.selinux_label:
        options.append(("context", request.selinux_label))
    options.extend(request.options)
    if writable or (upper and len(lowers) == MAX_LAYERS):  # as a lower directory it would be one too many
        return api.Overlay(lowers, upper, work, read_only=not writable, options=tuple(options))
    return api.Overlay((upper, *lowers) if upper else lowers, options=tuple(options))


def try_out(host: api.Host, folder: str, below: tuple[api.Mount, ...]) -> None:
    """Do on a trial mount what containers do; folder is empty. OSError tells what cannot be done.

    below: steps whose mounts are the lower directories, the top one of which has a file `file`, and a directory `dir`
    with a file in it."""
    make(folder, api.LayerOptions())
    lowers = tuple(api.Step(index) for index in range(len(below)))
    last = mount(lowers, f"{folder}/upper", f"{folder}/work", api.MountRequest(read_only=False))
    with host.mounted(api.MountPlan((*below, last), exclusive=True)) as tree:
        os.unlink(f"{tree.path}/file")
        os.mkdir(f"{tree.path}/file")  # over a whiteout: EIO in a user namespace
        for name in os.listdir(f"{tree.path}/dir"):
            os.unlink(f"{tree.path}/dir/{name}")
        os.rmdir(f"{tree.path}/dir")
        os.mkdir(f"{tree.path}/dir")
        if os.listdir(f"{tree.path}/dir"):
            raise OSError("a directory that was removed and made again still shows what lies below")
    if os.getxattr(f"{folder}/upper/dir", f"{PREFIX}opaque") != b"y":
        raise OSError(f"overlay does not mark a directory that hides what lies below with {PREFIX}opaque")
