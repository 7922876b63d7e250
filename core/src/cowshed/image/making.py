"""What the commands share that make an image here: the time it is said to be of, and writing it down.

An error or a crash before the last transaction leaves no image, and at most a blob that is written down as one that
nobody lists: the next command deletes it.
"""

from __future__ import annotations

import os

from cowshed.errors import BadUsage
from cowshed.image.manifest import OCI_LAYER
from cowshed.layers.faults import step
from cowshed.state import images
from cowshed.state.leases import Lease

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.engine import Engine
    from cowshed.image.blobs import BlobStore
    from cowshed.image.outgoing import NewBlob
    from cowshed.state.rows import ImageRow


def source_date_epoch() -> int | None:
    """SOURCE_DATE_EPOCH in ns: the time that everything is said to be of, so that a repetition gives the same bytes."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return None
    if not text.isdigit():
        raise BadUsage(f"SOURCE_DATE_EPOCH is a number of seconds, not {text!r}")
    return int(text) * 10**9


COMPRESSIONS = ("gzip", "zstd", "none")


def packing(asked: str) -> tuple[str, str]:
    """What one of COMPRESSIONS is for a Compressor, and the media type of the layer that comes out. "": gzip."""
    name = {"": "gzip", "none": ""}.get(asked, asked)
    return name, f"{OCI_LAYER}+{name}" if name else OCI_LAYER


def publish(engine: Engine, blobs: BlobStore, new: NewBlob | None, image: ImageRow, name: str, *, steps: str) -> None:
    """Give the new layer's blob its place and write the image down, with a canonical name if there is one. steps: what
    tests of crashes call what this does."""
    store = engine.store
    with Lease(store, [new.digest()] if new is not None else [], made=True):
        if new is not None:
            new.publish()
        step(f"{steps}.published")
        if engine.settings.durability == "commit" and new is not None:
            blobs.sync()
        step(f"{steps}.synced")
        with store.transaction() as tx:
            images.insert(tx, image)
            if name:
                images.tag(tx, name, image.id)
        step(f"{steps}.written")
