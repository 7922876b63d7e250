"""What can be wrong with a layer of directories that the engine does not see: its work directory, its limits."""

from __future__ import annotations

import os

from cowshed.storage.api import Finding, Kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cowshed.storage import api
    from cowshed.storage.kit.directories import Directories

NO_WORK, LOST_LIMIT = "overlay.no-work", "overlay.lost-limit"


def findings(at: Directories, layers: Sequence[api.Layer], host: api.Host) -> Iterator[Finding]:
    for n, layer in enumerate(layers):
        host.progress("checking", n, len(layers))
        if not at.exists(layer):
            yield Finding("overlay.missing", f"layer {layer.id} is missing", layer.id)
        elif layer.kind is Kind.ACTIVE and not os.path.isdir(f"{at.layer(layer)}/work"):
            text = f"layer {layer.id} has no work directory, without which it cannot be mounted"
            yield Finding(NO_WORK, text, layer.id, repair="make it again")
    for limit in at.lost_limits():
        yield Finding(LOST_LIMIT, f"no layer has {limit.name}, which is limited", found=limit, repair="lift the limit")


def repair(at: Directories, finding: Finding) -> None:
    if finding.code == NO_WORK and finding.layer is not None:
        folder = f"{at.root}/active/{finding.layer}"
        if os.path.isdir(folder):
            os.makedirs(f"{folder}/work", mode=0o700, exist_ok=True)
            at.adopt(f"{folder}/work")
    elif finding.code == LOST_LIMIT and finding.found is not None and finding.found.number is not None:
        at.lift_lost(finding.found.number)
