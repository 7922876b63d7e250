"""Making an image's layers in a driver, from wherever their archives come."""

from __future__ import annotations

from cowshed.errors import ImageError
from cowshed.image.blobs import Blobs
from cowshed.layers.faults import step
from cowshed.layers.unpack import unpack
from cowshed.state import images
from cowshed.state.locks import chain_byte

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cowshed.layers.layers import Layers
    from cowshed.state.rows import ImageRow
    from cowshed.state.store import Transaction
    from cowshed.storage.api import Layer

    Source = Callable[[], Iterable[bytes]]


def realise(
    layers: Layers,
    image: ImageRow,
    sources: Sequence[Source],
    *,
    names: Sequence[str],
    durability: str,
    report: Callable[[str], None],
) -> Layer | None:
    """Apply those layers of image that the driver lacks; then write image, names and layers down at once.

    The top layer, None for an image without layers. On an error nothing that is new stays.
    """
    locks = layers.store.locks
    made: list[tuple[Layer, str, str]] = []
    taken: list[int] = []
    top: Layer | None = None
    try:
        for n, (chain, diff) in enumerate(zip(image.chain_ids, image.diff_ids, strict=True)):
            byte = chain_byte(layers.name, chain)
            if not made:
                locks.take("chains", byte, wait=600, what=f"layer {chain[7:19]}")
                taken.append(byte)
                there = layers.by_chain_id(chain)
                if there is not None:
                    top = there
                    continue
            elif locks.try_take("chains", byte):
                taken.append(byte)
            report(f"layer {n + 1} of {len(image.diff_ids)}: {diff[7:19]}")
            active = layers.begin(top)
            made.append((active, chain, diff))
            step("realise.begun")
            with layers.mounted(active, read_only=False) as tree:
                unpack(sources[n](), tree, diff_id=diff)
            step("realise.applied")
            top = layers.seal(active)
            made[-1] = (top, chain, diff)

        def rows(tx: Transaction) -> None:
            images.insert(tx, image)
            for name in names:
                images.tag(tx, name, image.id)

        layers.publish(made, durability, rows)
        made.clear()
        return top
    finally:
        for layer, _, _ in reversed(made):
            layers.abandon(layer)
        for byte in taken:
            locks.release("chains", byte)


def top_layer(layers: Layers, image: ImageRow, durability: str, report: Callable[[str], None]) -> Layer | None:
    """The image's top layer in this driver, made from the blobs that the store has kept if it is not there yet."""
    if not image.chain_ids:
        return None
    there = layers.by_chain_id(image.chain_ids[-1])
    if there is not None:
        return there
    blobs = Blobs(layers.store.root)

    def source(digest: str) -> Source:
        def chunks() -> Iterable[bytes]:
            try:
                yield from blobs.read(digest)
            except FileNotFoundError:
                raise ImageError(
                    f"blob {digest[:19]} of image {image.id[7:19]} is gone", remedy="pull it again"
                ) from None

        return chunks

    sources = [source(digest) for digest, _, _ in image.blobs]
    return realise(layers, image, sources, names=[], durability=durability, report=report)
