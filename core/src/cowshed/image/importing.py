"""A new image from the archive of a whole file system: what `import` makes."""

from __future__ import annotations

import time

from cowshed.errors import BadUsage, ImageError
from cowshed.image import instructions, reference
from cowshed.image import platform as platforms
from cowshed.image.blobs import BlobStore
from cowshed.image.child import first
from cowshed.image.contents import members
from cowshed.image.making import packing, publish, source_date_epoch
from cowshed.image.manifest import Descriptor
from cowshed.image.outgoing import Compressor
from cowshed.image.packed import unpacked
from cowshed.layers import tarstream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    from cowshed.engine import Engine
    from cowshed.image.outgoing import NewBlob
    from cowshed.image.platform import Platform
    from cowshed.state.rows import ImageRow


def import_archive(
    engine: Engine,
    chunks: Iterable[bytes],
    *,
    name: str = "",
    source: str = "-",
    message: str = "",
    changes: Sequence[str] = (),
    platform: Platform | None = None,
    compression: str = "",
) -> ImageRow:
    """Make an image of one layer of an archive, which may be packed by gzip, zstd, xz or bzip2; the archive's own bytes
    are the layer. source: what the history calls it; changes: Dockerfile instructions; platform: None for this
    machine's; compression: one of `making.COMPRESSIONS`.

    It is read to its end, and is no layer before every header in it has been found sound. Raises BadUsage, ImageError,
    NoSpace; then nothing new is left.
    """
    parsed = reference.parse(name) if name else None
    if parsed is not None and parsed.digest:
        raise BadUsage(f"{name!r} names a digest, which cannot be given", remedy="write NAME[:TAG]")
    epoch = source_date_epoch()
    own: dict[str, Any] = {}
    instructions.change(own, changes)
    blobs = BlobStore(engine.store.root)
    blobs.prune_partials()
    blobs.open_for_sync()
    try:
        with blobs.create() as new:
            layer = _packed(chunks, new, compression)
            image = first(
                platform or platforms.host(), own, layer, created=time.time_ns() if epoch is None else epoch,
                comment=message or f"Imported from {source}",
            )  # fmt: skip
            publish(engine, blobs, new, image, parsed.name if parsed else "", steps="import")
    finally:
        blobs.close()
    return image


def _packed(chunks: Iterable[bytes], new: NewBlob, compression: str) -> tuple[Descriptor, str]:
    codec, media_type = packing(compression)
    out = Compressor(new, codec)

    def written() -> Iterator[bytes]:
        for piece in unpacked(chunks):
            out.write(piece)
            yield piece

    try:
        count = 0
        feed = tarstream.Feed(written())
        for entry in members(tarstream.entries(feed), "import takes what `cowshed export` writes"):
            feed.skip(entry.size)
            count += 1
        out.close()
    except BaseException:
        out.abandon()
        raise
    if not out.size or (not count and out.size < tarstream.BLOCK):
        raise ImageError("the archive is empty", remedy="give it the tar archive of a root file system")
    return Descriptor(new.digest(), new.size, media_type), out.diff_id
