"""What one image's tree has that another's has not."""

from __future__ import annotations

import os
import stat

from cowshed.errors import ImageError
from cowshed.image.realise import top_layer
from cowshed.layers import changes
from cowshed.layers.difference import LayerTree
from cowshed.storage.kit.descent import DIRECTORY
from cowshed.storage.record import record
from cowshed_linux.paths import open_in_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.image.progress import Progress
    from cowshed.layers.layers import Layers
    from cowshed.state.rows import ImageRow


@record(frozen=True)
class Different:
    """One path that two images do not share. A removed directory stands for all that was in it, and so does what is
    counted of it."""

    kind: str  # A, C, D as of `diff`
    path: bytes
    before: int  # bytes of the files
    after: int


def difference(layers: Layers, old: ImageRow, new: ImageRow, *, durability: str, progress: Progress) -> list[Different]:
    """What the second image's tree has changed of the first's, by path. Both are made in the driver if it lacks
    them."""
    tops = [top_layer(layers, image, durability, progress) for image in (old, new)]
    if tops[0] is None or tops[1] is None:
        raise ImageError("an image without layers has no files that could be compared")
    with LayerTree(layers, tops[0]) as lower, LayerTree(layers, tops[1]) as upper:
        found = changes.of_trees(lower, upper) if tops[0].id != tops[1].id else changes.Difference([], [])
        return [_different(changed, lower) for changed in found.changes]


def _different(changed: changes.Changed, lower: int) -> Different:
    before = 0 if changed.kind is changes.ADDED else _bytes(lower, changed.path, whole=changed.kind is changes.DELETED)
    return Different(changed.kind.value, changed.path, before, _size(changed.status))


def _bytes(root: int, path: bytes, *, whole: bool) -> int:
    """Of a file; with whole, of all files that are in a directory too."""
    fd = open_in_root(root, path or b"/", os.O_PATH | os.O_NOFOLLOW)
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    if not whole or not stat.S_ISDIR(status.st_mode):
        return _size(status)
    fd = open_in_root(root, path, DIRECTORY)
    try:
        return sum(_size(each.status) for each in changes.everything(fd))
    finally:
        os.close(fd)


def _size(status: os.stat_result | None) -> int:
    return status.st_size if status is not None and stat.S_ISREG(status.st_mode) else 0
