"""A new image from what a container has changed.

The layer's archive is written once: read, packed and hashed at the same time, in two threads. It becomes a layer of a
driver when a container first needs it, as a pulled one does. An error or a crash before the last transaction leaves no
image, and at most a blob that is written down as one that nobody lists: the next command deletes it.
"""

from __future__ import annotations

import time

from cowshed.container.access import Held
from cowshed.errors import BadUsage, Conflict, ImageError
from cowshed.image import instructions, reference
from cowshed.image.blobs import BlobStore
from cowshed.image.child import child
from cowshed.image.making import packing, publish, source_date_epoch
from cowshed.image.manifest import Descriptor
from cowshed.image.outgoing import Compressor
from cowshed.layers.faults import step
from cowshed.state import images
from cowshed_runtime.fastjson import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from cowshed.engine import Engine
    from cowshed.image.outgoing import NewBlob
    from cowshed.layers.layers import Layers
    from cowshed.state.rows import ContainerRow, ImageRow


def commit(
    engine: Engine,
    row: ContainerRow,
    *,
    name: str = "",
    author: str = "",
    message: str = "",
    changes: Sequence[str] = (),
    pause: bool = True,
    compression: str = "",
) -> ImageRow:
    """Make an image of a container, with a name if one is given; changes: Dockerfile instructions;
    compression: of the layer, one of `cowshed.image.making.COMPRESSIONS`.

    A running container is read from a snapshot if its driver has them, else frozen meanwhile unless pause is false.
    Raises BadUsage, Conflict, Busy (changed while it was read), ImageError (too deep), NoSpace; then nothing new is
    left.
    """
    parsed = reference.parse(name) if name else None
    if parsed is not None and parsed.digest:
        raise BadUsage(f"{name!r} names a digest, which cannot be given", remedy="write NAME[:TAG]")
    epoch = source_date_epoch()
    store = engine.store
    with Held(engine, row) as held:
        if row.image_id is None:
            raise Conflict(f"container {row.name} has no image that a new one could stand on")
        base = images.by_id(store, row.image_id)
        own = _own(row, base)
        instructions.change(own, changes)
        _deep_enough(engine.layers(row.driver), base)
        blobs = BlobStore(store.root)
        blobs.prune_partials()
        blobs.open_for_sync()
        try:
            with blobs.create() as new:
                layer = _packed(held, new, compression, pause=pause, clamp=epoch)
                step("commit.packed")
                image = child(
                    base, own, layer, created=time.time_ns() if epoch is None else epoch,
                    created_by=" ".join(row.config.get("command") or ()), author=author, comment=message,
                )  # fmt: skip
                publish(engine, blobs, new if layer else None, image, parsed.name if parsed else "", steps="commit")
        finally:
            blobs.close()
    step("commit.done")
    return image


def _packed(
    held: Held, new: NewBlob, compression: str, *, pause: bool, clamp: int | None
) -> tuple[Descriptor, str] | None:
    """Write the layer's archive into a new blob: its descriptor and diff id, None if nothing was changed."""
    with held.difference(pause=pause) as difference:
        if not difference.changes:
            return None
        codec, media_type = packing(compression)
        out = Compressor(new, codec)
        try:
            for piece in difference.stream(clamp=clamp):
                out.write(piece)
            out.close()
        except BaseException:
            out.abandon()
            raise
    return Descriptor(new.digest(), new.size, media_type), out.diff_id


def _own(row: ContainerRow, base: ImageRow) -> dict[str, Any]:
    """The image's own configuration with what the container was told instead."""
    own: dict[str, Any] = dict(loads(base.config).get("config") or {})
    asked = row.config
    instructions.set_variables(own, asked.get("env") or ())
    if not own["Env"]:
        del own["Env"]
    if asked.get("entrypoint") is not None:
        own["Entrypoint"] = [asked["entrypoint"]] if asked["entrypoint"] else None
        own["Cmd"] = None
    if asked.get("command"):
        own["Cmd"] = list(asked["command"])
    for key, name in (("user", "User"), ("workdir", "WorkingDir"), ("stop_signal", "StopSignal")):
        if asked.get(key):
            own[name] = asked[key]
    if asked.get("labels"):
        own["Labels"] = {**(own.get("Labels") or {}), **asked["labels"]}
    return own


def _deep_enough(layers: Layers, base: ImageRow) -> None:
    deepest = layers.driver.capabilities.max_depth
    if deepest is not None and len(base.diff_ids) >= deepest:
        raise ImageError(
            f"the image has {len(base.diff_ids)} layers, and driver {layers.name} takes {deepest} in a chain",
            remedy="build it again with fewer layers",
        )
