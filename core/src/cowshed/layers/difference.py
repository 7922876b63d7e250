"""What a layer changed of the one below it, in the quickest way that its driver has.

    changes()     the driver names candidates, which are compared; if it cannot this time, the trees are
    diff_tree()   a directory that holds what changed (overlay's upper directory), read as it lies
    else          both trees are mounted and compared

The two that look at the mounted tree of a layer need its mount: a new one if the layer is not mounted, or if a second
mount of it is allowed; else a copy of the living one, which the caller hands in.
"""

from __future__ import annotations

import os

from cowshed import log
from cowshed.layers import archive, changes
from cowshed.storage import api
from cowshed.storage.errors import InUse, ToolFailed, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from cowshed.layers.changes import Changed, Difference
    from cowshed.layers.layers import Layers, Mounted


class _Trees:
    """The mounts of a layer and of what it stands on, for as long as they are looked at.

    live: the layer is mounted elsewhere; what it gives is a descriptor of a copy of that mount, which is used, and
    closed, only if the layer cannot be mounted once more.
    """

    def __init__(self, layers: Layers, layer: api.Layer, *, live: Callable[[], int] | None = None) -> None:
        self._layers, self._layer, self._live = layers, layer, live
        self._mounts: list[Mounted] = []
        self._fds: list[int] = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        while self._mounts:
            self._mounts.pop().__exit__(None, None, None)

    def _mounted(self, layer: api.Layer) -> int:
        mount = self._layers.mounted(layer, read_only=True)
        fd = mount.__enter__()
        self._mounts.append(mount)
        return fd

    def _tree(self) -> int:
        """The root of the layer's own tree."""
        if self._live is None:
            return self._mounted(self._layer)
        if not self._layers.plan(self._layer, read_only=True).exclusive:
            self._fds.append(self._layers.mount(self._layer, read_only=True))
        else:
            fd = self._live()
            if fd < 0:
                raise InUse(f"layer {self._layer.id[:12]} is mounted elsewhere", layer=self._layer.id)
            self._fds.append(fd)
        return self._fds[-1]


class LayerTree(_Trees):
    """`with LayerTree(layers, layer) as root:` a descriptor of the root of a layer's tree, to be read. live: as that of
    LayerDifference."""

    def __enter__(self) -> int:
        try:
            return self._tree()
        except BaseException:
            self._close()
            raise


class LayerDifference(_Trees):
    """`with LayerDifference(layers, layer) as difference:` the changes of a layer against its parent, and their
    archive. The layer may not be committed or removed meanwhile, which is the caller's to see to.

    hidden: places at which something is mounted; what was made only for that is no change.
    live: the layer is mounted elsewhere; what it gives is a descriptor of a copy of that mount, which is used, and
    closed, only if the layer cannot be mounted once more.
    """

    def __init__(
        self, layers: Layers, layer: api.Layer, *, hidden: Sequence[bytes] = (), live: Callable[[], int] | None = None
    ) -> None:
        super().__init__(layers, layer, live=live)
        self._hidden = hidden
        self._found = changes.Difference([], [])
        self._lower: int | None = None
        self._root, self._private = -1, ""
        self._whole = True  # the root is that of the layer's tree, not of what changed in it

    def __enter__(self) -> LayerDifference:
        try:
            self._find()
            self._found = changes.without(self._found, self._hidden)
        except BaseException:
            self._close()
            raise
        return self

    @property
    def changes(self) -> list[Changed]:
        """Each path that changed, a directory before what is in it."""
        return self._found.changes

    @property
    def found(self) -> Difference:
        return self._found

    @property
    def root(self) -> int:
        """The descriptor of the tree that has the contents of what changed."""
        return self._root

    @property
    def private(self) -> str:
        """The driver's own prefix of extended attributes in that tree, "" if there is none."""
        return self._private

    def stream(self, *, clamp: int | None = None) -> Iterator[bytes]:
        """The archive of the changes, in pieces (`cowshed.layers.archive.stream`)."""
        return archive.stream(self._found, self._root, private=self._private, clamp=clamp)

    def disagreements(self) -> list[str]:
        """Compare both trees as well: each path of which that says something else, with what both say. Empty is right,
        and true of a layer that nobody writes to meanwhile."""
        root = self._root if self._whole else self._tree()
        walked = changes.without(changes.of_trees(self._lower, root), self._hidden)
        told, right = ({c.path: c.kind.value for c in d.changes} for d in (self._found, walked))
        return [
            f"/{os.fsdecode(path)}: {told.get(path, 'unchanged')}, and {right.get(path, 'unchanged')} in the trees"
            for path in sorted(told.keys() | right.keys())
            if told.get(path) != right.get(path)
        ]

    def _find(self) -> None:
        driver, layer = self._layers.driver, self._layer
        lower = self._lower = self._mounted(layer.parent) if layer.parent is not None else None
        if api.has_changes(driver):
            self._root = self._tree()
            try:
                self._found = changes.of_candidates(lower, self._root, driver.changes(layer.parent, layer))
            except (Unsupported, ToolFailed) as error:
                log.info(f"driver {self._layers.name} cannot tell what changed ({error}): the trees are compared")
                self._found = changes.of_trees(lower, self._root)
            return
        if api.has_diff_tree(driver):
            tree = driver.diff_tree(layer)
            self._root = os.open(tree.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._fds.append(self._root)
            self._private = tree.xattr_prefix
            self._whole = False
            try:
                self._found = changes.of_diff_tree(lower, self._root, tree.whiteout, tree.xattr_prefix)
                return
            except changes.NotPlain:
                self._private, self._whole = "", True
        self._root = self._tree()
        self._found = changes.of_trees(lower, self._root)
