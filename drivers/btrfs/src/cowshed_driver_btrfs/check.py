"""What can be wrong with a layer that is a subvolume: it is none, or it is committed and can be written."""

from __future__ import annotations

import os

from cowshed.storage.api import Finding, Kind
from cowshed_driver_btrfs import subvolumes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cowshed.storage import api
    from cowshed.storage.kit.directories import Directories

UNSEALED = "btrfs.unsealed"


def findings(at: Directories, layers: Sequence[api.Layer], host: api.Host) -> Iterator[Finding]:
    for n, layer in enumerate(layers):
        host.progress("checking", n, len(layers))
        place = at.layer(layer)
        if not at.exists(layer):
            yield Finding("btrfs.missing", f"layer {layer.id} is missing", layer.id)
        elif not subvolumes.is_subvolume(place):
            yield Finding("btrfs.no-subvolume", f"layer {layer.id} is a directory and no subvolume", layer.id)
        elif layer.kind is Kind.COMMITTED and not subvolumes.read_only(place):
            text = f"layer {layer.id} is committed, and its subvolume can be written"
            yield Finding(UNSEALED, text, layer.id, repair="make it read-only")


def repair(at: Directories, finding: Finding, host: api.Host) -> None:
    if finding.code == UNSEALED and finding.layer is not None:
        place = f"{at.root}/committed/{finding.layer}"
        if os.path.isdir(place):
            host.call("btrfs.seal", lambda: subvolumes.set_read_only(place, value=True))
