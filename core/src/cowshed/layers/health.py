"""What a driver has to say of its back end."""

from __future__ import annotations

from cowshed import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.layers.layers import Layers


def warn_of_health(held: Layers) -> None:
    """Tell what a driver has to say of its back end: a pool that is nearly full, or was made for trying out."""
    for reason in held.driver.health().reasons:
        log.warn(f"driver {held.name}: {reason.text}" + (f": {reason.remedy}" if reason.remedy else ""))
