"""The plug-in object of the `copy` driver. See driver.py."""

from __future__ import annotations

from cowshed.storage.api import API_VERSION, DriverPlugin
from cowshed_driver_copy.driver import destroy_store, init, open_store
from cowshed_driver_copy.probe import probe

plugin = DriverPlugin(
    name="copy",
    api=API_VERSION,
    summary="every layer a full copy, or a reflinked one where the file system can; works everywhere",
    options=(),
    probe=probe,
    init=init,
    open=open_store,
    destroy=destroy_store,
    priority=1,
)
