"""--storage-opt: the most that what a container writes to its root may take, in bytes and in inodes."""

from __future__ import annotations

from cowshed.storage.api import LayerOptions, Quota, QuotaScope
from cowshed.storage.errors import Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.layers.layers import Layers


def options(limits: dict[str, int]) -> LayerOptions:
    """What the driver is told of {"size": bytes, "inodes": number}, of which either may be missing."""
    return LayerOptions(quota=Quota(limits.get("size"), limits.get("inodes")))


def require(layers: Layers, limits: dict[str, int]) -> None:
    """Raises Unsupported if the driver cannot hold a layer to these limits in this store."""
    able = layers.driver.capabilities
    if able.quota is QuotaScope.NONE:
        raise Unsupported(
            f"--storage-opt: driver {layers.name} has no size limits in this store",
            remedy="cowshed driver why tells what they need; cowshed driver list shows the other drivers",
        )
    if "inodes" in limits and not able.quota_inodes:
        raise Unsupported(f"--storage-opt inodes: driver {layers.name} does not limit inodes", remedy="give size alone")
