"""The plug-in object of the `copy` driver. See driver.py."""

from __future__ import annotations

from cowshed.storage.api import API_VERSION, DriverPlugin
from cowshed_driver_copy.driver import destroy_store, init, open_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.storage.api import Host, Options, ProbeReport


def _probe(root: str, options: Options, host: Host) -> ProbeReport:
    from cowshed_driver_copy.probe import probe  # only the first command of a store needs it

    return probe(root, options, host)


plugin = DriverPlugin(
    name="copy",
    api=API_VERSION,
    summary="every layer a full copy, or a reflinked one where the file system can; works everywhere",
    options=(),
    probe=_probe,
    init=init,
    open=open_store,
    destroy=destroy_store,
    priority=1,
)
