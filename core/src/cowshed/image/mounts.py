"""Images that are mounted on this host, to be read.

A mount is at RUN/images/ID and nowhere written down: the mount table tells which there are, so that a reboot leaves
none. An image that is mounted is in use: it is not removed.
"""

from __future__ import annotations

import os

from cowshed.errors import Busy, Conflict, ImageError, NotFound
from cowshed.state import images
from cowshed_linux import mount as mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.image.progress import Progress
    from cowshed.layers.layers import Layers
    from cowshed.state.rows import ImageRow
    from cowshed.state.store import Store

_EBUSY = 16
_ATTRIBUTES = mounts.ATTR_RDONLY | mounts.ATTR_NOSUID | mounts.ATTR_NODEV  # a stranger's devices are not opened here


def folder(store: Store) -> str:
    return f"{store.run}/images"


def mounted(store: Store) -> dict[str, str]:
    """The images that this mount namespace shows: the path of each by its id."""
    if not os.path.isdir(folder(store)):
        return {}
    from cowshed_linux.mounts import table

    top = os.path.realpath(folder(store)) + "/"
    places = [each.point for each in table() if each.point.startswith(top)]
    return {f"sha256:{place[len(top) :]}": place for place in places if "/" not in place[len(top) :]}


def mount(layers: Layers, image: ImageRow, *, durability: str, progress: Progress) -> str:
    """Mount an image's tree, made first if the driver lacks it; the path. One that is mounted stays as it is.

    Raises NotFound if the image is removed meanwhile, and what realising raises.
    """
    from cowshed.image.realise import top_layer

    store = layers.store
    there = mounted(store).get(image.id)
    if there:
        return there
    top = top_layer(layers, image, durability, progress)
    if top is None:
        raise ImageError(f"image {image.id[7:19]} has no layers that could be mounted")
    place = f"{store.run_directory()}/images/{image.id.partition(':')[2]}"
    os.makedirs(place, mode=0o700, exist_ok=True)
    with layers.mounted(top, read_only=True) as tree:
        mounts.set_attributes(tree, _ATTRIBUTES)
        mounts.attach(tree, place)  # which stays when its descriptor is closed
    if images.exact(store, image.id) is None:
        unmount(store, image.id)
        raise NotFound(f"image {image.id[7:19]} was removed meanwhile")
    return place


def unmount(store: Store, id_: str, *, force: bool = False) -> bool:
    """Take an image's mount away; False if there is none. Busy if a process uses it; force: it goes when the last has
    ended."""
    place = mounted(store).get(id_)
    if place is None:
        return False
    try:
        mounts.unmount(place, mounts.UMOUNT_NOFOLLOW | (mounts.MNT_DETACH if force else 0))
    except OSError as error:
        if error.errno != _EBUSY:
            raise
        raise Busy(f"the mount of image {id_[7:19]} is in use", remedy="end what uses it, or use --force") from None
    os.rmdir(place)
    return True


def refuse_mounted(store: Store, image: ImageRow) -> None:
    """Conflict if an image is mounted."""
    if image.id in mounted(store):
        raise Conflict(f"image {image.id[7:19]} is mounted", remedy=f"cowshed image unmount {image.id[7:19]} first")


def clean(store: Store) -> None:
    """Take away what is left of mounts: those of images that are gone, unless they are in use, and empty places."""
    top = folder(store)
    if not os.path.isdir(top):
        return
    for id_ in mounted(store):
        if images.exact(store, id_) is None:
            try:
                unmount(store, id_)
            except Busy:
                continue
    for name in os.listdir(top):
        try:
            os.rmdir(f"{top}/{name}")
        except OSError:
            continue  # mounted, or about to be
