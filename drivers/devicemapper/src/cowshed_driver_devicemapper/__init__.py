"""The plug-in object of the `devicemapper` driver. See driver.py."""

from __future__ import annotations

from cowshed.storage.api import API_VERSION, DriverPlugin, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cowshed.storage.api import Driver, Host, Options, ProbeReport, StoreId
    from cowshed_driver_devicemapper.mapper import Mapper


def make_plugin(mapper: Callable[[], Mapper]) -> DriverPlugin:
    """The plug-in on one way to reach device-mapper. Nothing of it is loaded until the first call."""

    def probe(root: str, options: Options, host: Host) -> ProbeReport:
        from cowshed_driver_devicemapper import probe

        return probe.probe(root, options, host, mapper=mapper)

    def init(root: str, options: Options, host: Host) -> StoreId:
        from cowshed_driver_devicemapper import driver

        return driver.init(root, options, host, mapper=mapper)

    def open_store(root: str, options: Options, host: Host, *, store: StoreId) -> Driver:
        from cowshed_driver_devicemapper import driver

        return driver.open_store(root, options, host, store=store, mapper=mapper)

    def destroy_store(root: str, options: Options, host: Host, *, store: StoreId) -> None:
        from cowshed_driver_devicemapper import driver

        driver.destroy_store(root, options, host, store=store, mapper=mapper)

    return DriverPlugin(
        name="devicemapper",
        api=API_VERSION,
        summary="thin devices of a device-mapper pool: the first write copies one block of 64 KiB",
        options=_OPTIONS,
        probe=probe,
        init=init,
        open=open_store,
        destroy=destroy_store,
        priority=15,
    )


_OPTIONS = (
    Option("pool", str, "", "a thin pool that is there: its name or device; other stores may use it too",
           creation_only=True, outside=True),
    Option("data_device", str, "", "block device to make a pool of this store on; it must be blank",
           creation_only=True, outside=True),
    Option("metadata_device", str, "", "block device for that pool's metadata; it must be blank",
           creation_only=True, outside=True),
    Option("loop_size", str, "", "size of the pool on loop files that is made without the above; absent: as space is",
           creation_only=True),
    Option("filesystem", str, "ext4", "what each layer is formatted with", ("ext4", "xfs"), creation_only=True),
    Option("layer_size", str, "10G",
           "what a layer holds, with all below it, if the pool is as large; a larger limit lets it grow",
           creation_only=True),
    Option("quota", str, "on", "size limits on layers: the kernel counts in each file system what its tree uses",
           ("on", "off"), creation_only=True),
    Option("reserve", int, 10, "percent of the pool that new layers leave free"),
    Option("discard", bool, True, "give the space of removed layers back to what lies below the pool"),
)  # fmt: skip


def _mapper() -> Mapper:
    from cowshed_driver_devicemapper.mapper import Mapper

    return Mapper()


plugin = make_plugin(_mapper)
