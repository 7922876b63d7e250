"""The plug-in object of the `erofs` driver. See driver.py."""

from __future__ import annotations

from cowshed.storage.api import DriverPlugin, Option
from cowshed_driver_erofs.driver import destroy_store, init, open_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.storage.api import Host, Options, ProbeReport


def _probe(root: str, options: Options, host: Host) -> ProbeReport:
    from cowshed_driver_erofs.probe import probe  # only the first command of a store needs it

    return probe(root, options, host)


plugin = DriverPlugin(
    name="erofs",
    api=(1, 1),
    summary="committed layers as read-only EROFS images, with an overlay on top",
    options=(
        Option(
            "compression", str, "lz4", "how new images are compressed; with none the holes of files are filled",
            ("none", "lz4", "lz4hc"),
        ),
    ),
    probe=_probe,
    init=init,
    open=open_store,
    destroy=destroy_store,
    priority=0,  # never chosen unless somebody names it
)  # fmt: skip
