"""A driver of somebody else: a module of its own, written with the kit that authors have."""

from cowshed.storage.api import API_VERSION, DriverPlugin
from cowshed.storage.kit import directories
from cowshed_driver_copy import plugin as copy
from cowshed_driver_copy.driver import CopyDriver


def open_store(root, options, host, *, store):
    directories.check_store(root, "elsewhere", store)
    return CopyDriver(root, host)


plugin = DriverPlugin(
    name="elsewhere",
    api=API_VERSION,
    summary="copies, as another package",
    options=(),
    probe=copy.probe,
    init=lambda root, options, host: directories.init_store(root, "elsewhere"),
    open=open_store,
    destroy=lambda root, options, host, *, store: directories.destroy_store(root, "elsewhere", store),
)
