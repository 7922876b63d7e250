"""Every layer of an image against the archive that it was made of (`cowshed.check.content` compares one)."""

from __future__ import annotations

from cowshed import digests
from cowshed.check.content import Expected, compare
from cowshed.check.findings import Finding
from cowshed.check.objects import REBUILD, unverified
from cowshed.errors import CowshedError, ImageError, Tampered
from cowshed.image.archives import Archives
from cowshed.image.recipe import Recipe
from cowshed.layers.unpack import decompress
from cowshed.state import drivers, images
from cowshed.state import layers as rows
from cowshed.storage.api import Granularity
from cowshed.storage.errors import InUse, LayerId, StorageError
from cowshed_linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cowshed.check.memory import Memory
    from cowshed.engine import Engine
    from cowshed.layers.layers import Layers
    from cowshed.state.rows import LayerRow
    from cowshed.state.store import Store


def verify(engine: Engine, memory: Memory, told: Callable[[str], object]) -> Iterator[Finding]:
    for name in drivers.names(engine.store):
        try:
            layers = engine.layers(name)
        except (CowshedError, StorageError, OSError):
            continue  # which the look at the drivers tells
        yield from _Walk(layers, memory, told).run()


def archive_of(store: Store, row: LayerRow) -> str:
    """The digest of the blob that a layer was made of, "" if no image says it."""
    for image, _ in images.list_all(store):
        if row.diff_id in image.diff_ids and len(image.blobs) == len(image.diff_ids):
            return image.blobs[image.diff_ids.index(row.diff_id)][0]
    return ""


_CHANGED = "its files do not give its archive again, which was dropped"
_BELOW = "what it stands on is not what its archive says"


class _Walk:
    """The layers of one driver, each after the one that it stands on."""

    def __init__(self, layers: Layers, memory: Memory, told: Callable[[str], object]) -> None:
        self._layers, self._memory, self._told = layers, memory, told
        self._blobs = Archives(layers.store)
        self._rows = [row for row in rows.list_all(layers.store, layers.name) if row.kind == "committed"]
        self._whole = layers.driver.capabilities.granularity is Granularity.TREE
        self._done = 0

    def run(self) -> Iterator[Finding]:
        above: dict[int | None, list[LayerRow]] = {}
        for row in self._rows:
            above.setdefault(row.parent, []).append(row)
        stack = [(row, Expected()) for row in above.get(None, ())]
        while stack:
            row, expected = stack.pop()
            self._done += 1
            self._told(f"layer {self._done} of {len(self._rows)} of driver {self._layers.name}: {row.id[:12]}")
            why = self._read(row, expected)
            if why is _CHANGED:
                yield self._differs(row, why)
                yield from (unverified(each, _BELOW) for each in self._all_above(row, above)[1:])
                continue
            if why:
                yield from (unverified(each, why) for each in self._all_above(row, above))
                continue
            yield from self._compare(row, expected)
            stack += [(child, expected.copy()) for child in above.get(row.number, ())]

    def _all_above(self, row: LayerRow, above: dict[int | None, list[LayerRow]]) -> list[LayerRow]:
        found = [row]
        for each in found:
            found += above.get(each.number, ())
        self._done += len(found) - 1
        return found

    def _read(self, row: LayerRow, expected: Expected) -> str:
        """Put the layer's archive on what is expected; why that cannot be done, "" if it is."""
        digest = archive_of(self._layers.store, row) if row.diff_id is not None else ""
        if not digest or row.diff_id is None:
            return "no image lists its archive"
        found = digests.new(row.diff_id.partition(":")[0])

        def hashed() -> Iterator[bytes]:
            for piece in self._archive(row, digest):
                found.update(piece)
                yield piece

        dropped = self._blobs.size(digest) < 0
        pieces = hashed()
        try:
            expected.read(pieces)
            for _ in pieces:  # what lies behind the last member
                continue
        except FileNotFoundError:
            return f"its archive {digest[:19]} is missing"
        except (StorageError, OSError) as error:
            return f"its archive {digest[:19]} was dropped, and it cannot be read itself: {error}"
        except ImageError as error:
            return _CHANGED if isinstance(error, Tampered) else f"its archive {digest[:19]} is damaged: {error}"
        if found.hexdigest() != row.diff_id.partition(":")[2]:
            return _CHANGED if dropped else f"its archive {digest[:19]} is damaged"
        return ""

    def _archive(self, row: LayerRow, digest: str) -> Iterator[bytes]:
        """The archive, uncompressed; one that was dropped as this layer gives it."""
        if self._blobs.size(digest) >= 0 or self._blobs.fault(digest):
            yield from decompress(self._blobs.read(digest), trailing=True)
            return
        with self._layers.mounted(self._layers.load(row.number), read_only=True) as root:
            yield from Recipe(self._blobs.recipe(digest)).tar(root)

    def _compare(self, row: LayerRow, expected: Expected) -> Iterator[Finding]:
        mark = process.boot_id()
        if self._memory.has("layer", row.id, mark):
            return
        layers = self._layers
        if rows.get(layers.store, row.number) != row or layers.store.locks.held("layers", row.number):
            return  # another command removes it or makes it again
        try:
            with layers.mounted(layers.load(row.number), read_only=True) as root:
                differences = compare(
                    expected, root, layers.driver.capabilities, whole=self._whole, told=lambda: None
                )  # fmt: skip
        except InUse:
            return  # as above
        except (StorageError, OSError) as error:
            differences = [f"it cannot be read: {error}"]
        if not differences:
            self._memory.add("layer", row.id, mark)
        elif rows.get(layers.store, row.number) == row:
            yield self._differs(row, "; ".join(differences))

    def _differs(self, row: LayerRow, how: str) -> Finding:
        text = f"driver {row.driver}: layer {row.id} is not what its archive says: {how}"
        return Finding("layer.content", LayerId(row.id), text, repair=REBUILD, driver=row.driver)
