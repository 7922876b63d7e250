"""Making an image's layers in a driver, from wherever their archives come.

`run` looks here for a layer that is there already; so what only the making needs is imported by the making.
"""

from __future__ import annotations

from time import sleep

from cowshed.errors import Busy, ImageError
from cowshed.layers.faults import step
from cowshed.state import images
from cowshed.state.locks import chain_byte

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Protocol

    from cowshed.image.blobs import BlobStore
    from cowshed.image.progress import Progress
    from cowshed.layers.layers import Layers
    from cowshed.state.origins import OriginRow
    from cowshed.state.rows import ImageRow
    from cowshed.state.store import Transaction
    from cowshed.storage.api import Layer

    class Source(Protocol):
        """The archive of one layer, as it is kept or as it comes."""

        @property
        def held_against(self) -> str:
            """The digest that `chunks` hold their bytes against before their end, "" for none."""

        def chunks(self) -> Iterable[bytes]: ...

        def cancel(self) -> None:
            """Let whoever reads chunks, in another thread, end with an error."""


_PATIENCE = 3600.0  # seconds to wait for another command that makes the same layer
_TRIES, _PAUSE = 40, 0.05  # seconds to wait for a removal to be over
_PURGE_SECONDS = 30.0  # to delete what a failed pull has unpacked
_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"


def realise(
    layers: Layers,
    image: ImageRow,
    sources: Sequence[Source],
    *,
    names: Sequence[str],
    digest: str = "",
    durability: str,
    progress: Progress,
    ready: Callable[[bool], None] = lambda synced: None,
    came: OriginRow | None = None,
    indexes: Mapping[str, bytes] | None = None,
) -> Layer | None:
    """Apply those layers of image that the driver lacks; then write image, names and layers down at once.

    digest: of what the names stand for where they come from, if that is known. came: the registry's name of it.
    indexes: by digest, those that lead from there to the image.
    ready(synced) is called when all is applied and nothing is written down yet: it returns when all blobs are there;
    synced tells whether the blobs' file system will be synced here, if durability asks for that.
    The top layer, None for an image without layers. On an error nothing that is new stays.
    """
    from cowshed.layers.unpack import unpack
    from cowshed.storage.api import Layer, LayerOptions

    locks = layers.store.locks
    made: list[tuple[Layer, str, str]] = []
    reserved: list[Layer] = []  # those that are still to be made
    taken: list[int] = []
    top: Layer | None = None
    tries = _TRIES
    n = 0
    try:
        while n < len(image.chain_ids):
            chain, diff = image.chain_ids[n], image.diff_ids[n]
            byte = chain_byte(layers.name, chain)
            if not made:
                there = layers.by_chain_id(chain)
                if there is None:
                    locks.take("chains", byte, wait=_PATIENCE, what=f"layer {chain[7:19]}")
                    taken.append(byte)
                    there = layers.by_chain_id(chain)
                if there is not None:
                    top = there
                    n += 1
                    continue
            elif locks.try_take("chains", byte):
                taken.append(byte)
            if not made:
                try:
                    reserved = layers.reserve_chain(top, len(image.diff_ids) - n)
                except Busy:  # the layer to stand on is being removed by another command
                    if tries == 0:
                        raise
                    tries -= 1
                    sleep(_PAUSE)
                    n, top = 0, None
                    _release(layers, taken)
                    continue
            from cowshed import words  # not by commands that find every layer there

            _, media_type, size = image.blobs[n]
            progress.step(f"layer {n + 1} of {len(image.diff_ids)}: {diff[7:19]}, {words.size(size)}")
            active = reserved.pop(0)
            made.append((active, chain, diff))
            active = layers.prepare(Layer(active.id, active.number, active.kind, top), LayerOptions(durable=False))
            made[-1] = (active, chain, diff)
            step("realise.begun")
            source = sources[n]
            with layers.mounted(active, read_only=False) as tree:
                where = f"layer {n + 1} of {len(image.diff_ids)}"
                try:
                    chunks = _typed(source.chunks(), media_type, progress, where)
                    unpack(
                        chunks, tree, diff_id=diff, verified=source.held_against == diff,
                        trailing=layers.store.ignores_trailing, cancel=source.cancel,
                    )  # fmt: skip
                except ImageError as error:
                    error.args = (f"{where}: {error}",)
                    raise
            step("realise.applied")
            top = layers.seal(active)
            made[-1] = (top, chain, diff)
            n += 1
        ready(bool(made))

        def rows(tx: Transaction) -> None:
            images.insert(tx, image)
            for name in names:
                images.tag(tx, name, image.id, digest)
            if came is not None:
                from cowshed.state import origins

                origins.write(tx, image.id, came)
            if indexes:
                from cowshed.state import indexes as known

                known.write(tx, digest, indexes)

        layers.publish(made, durability, rows)
        made.clear()
        return top
    finally:
        if made:  # their space first: on a full disk nothing could be written down else
            begun = [layer for layer, _, _ in reversed(made)]
            for layer in begun:
                layers.erase(layer)
            layers.purge(_PURGE_SECONDS)
            layers.abandon(*reversed(reserved), *begun)
        _release(layers, taken)


def _release(layers: Layers, taken: list[int]) -> None:
    while taken:
        layers.store.locks.release("chains", taken.pop())


class Kept:
    """A layer's blob in the store, or made again."""

    held_against = ""

    def __init__(self, blobs: BlobStore, digest: str, image_id: str) -> None:
        self._blobs, self._digest, self._image_id = blobs, digest, image_id

    def chunks(self) -> Iterator[bytes]:
        try:
            yield from self._blobs.read(self._digest)
        except FileNotFoundError:
            raise ImageError(
                f"blob {self._digest[:19]} of image {self._image_id[7:19]} is gone", remedy="pull the image again"
            ) from None

    def cancel(self) -> None:
        """A file never keeps its reader waiting."""


def top_layer(layers: Layers, image: ImageRow, durability: str, progress: Progress) -> Layer | None:
    """The image's top layer in this driver, made from the blobs that the store has kept if it is not there yet.

    Raises ImageError if a blob is gone or damaged, NoSpace.
    """
    if not image.chain_ids:
        return None
    there = layers.by_chain_id(image.chain_ids[-1])
    if there is not None:
        return there
    from cowshed.image.archives import Archives, follow_policy
    from cowshed.state.leases import Lease

    archives = Archives(layers.store)
    digests = [digest for digest, _, _ in image.blobs]
    with Lease(layers.store, digests):
        sources = [Kept(archives, digest, image.id) for digest in digests]
        top = realise(layers, image, sources, names=[], durability=durability, progress=progress)
    follow_policy(layers.store, digests)
    return top


def _typed(chunks: Iterable[bytes], media_type: str, progress: Progress, where: str) -> Iterator[bytes]:
    """Hold what a layer is against what its manifest says it is. zstd that is none, and plain that is compressed, is
    an error; many old images call plain archives gzip, so that is only told."""
    from cowshed.image.manifest import LAYER_TYPES

    claimed = LAYER_TYPES.get(media_type)
    source = iter(chunks)
    first = b""
    for chunk in source:
        first += chunk
        if len(first) >= 4:
            break
    found = next((name for name, magic in _MAGIC.items() if first.startswith(magic)), "")
    if first[1:4] == _ZSTD_SKIPPABLE and first[0] >> 4 == 5:
        found = "zstd"
    if claimed is not None and found != claimed:
        text = f"it is called {claimed or 'uncompressed'} by its manifest and is {found or 'something else'}"
        if claimed != "gzip":
            raise ImageError(text, remedy="build the image again")
        progress.warn(f"{where}: {text}")
    if first:
        yield first
    yield from source
