"""The plug-in object of the `aufs` driver. See driver.py."""

from __future__ import annotations

from cowshed.storage.api import API_VERSION, DriverPlugin
from cowshed_driver_aufs.driver import destroy_store, init, open_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.storage.api import Host, Options, ProbeReport


def _probe(root: str, options: Options, host: Host) -> ProbeReport:
    from cowshed_driver_aufs.probe import probe  # only the first command of a store needs it

    return probe(root, options, host)


plugin = DriverPlugin(
    name="aufs",
    api=API_VERSION,
    summary="the aufs union file system, on kernels that have its patches: layers are directories",
    options=(),
    probe=_probe,
    init=init,
    open=open_store,
    destroy=destroy_store,
    priority=20,
)
