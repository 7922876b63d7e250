"""What is wrong in a store: devices that no layer has, layers without one, and, deep, damaged file systems."""

from __future__ import annotations

from cowshed.storage.api import Finding, Kind, ObjectKind
from cowshed.storage.errors import NotFound, StorageError, ToolFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cowshed.storage import api
    from cowshed_driver_devicemapper.driver import DeviceMapperDriver

LOST = "devicemapper.lost-device"
_TIMEOUT = 3600.0  # seconds for the check of one file system


def findings(driver: DeviceMapperDriver, layers: Sequence[api.Layer], *, deep: bool) -> Iterator[Finding]:
    devices = driver.pool.devices()
    for layer in layers:
        try:
            device = driver.device(layer)
        except NotFound:
            yield Finding("devicemapper.missing", f"layer {layer.id} is missing", layer.id)
            continue
        except StorageError as error:
            yield Finding("devicemapper.no-record", str(error), layer.id)
            continue
        if device.thin not in devices:
            text = f"thin pool {driver.pool.name} has no device {device.thin}, which layer {layer.id} is"
            yield Finding("devicemapper.no-device", text, layer.id)
        elif deep and layer.kind is Kind.COMMITTED:
            yield from _file_system(driver, layer)
    for found in driver.scan():
        if found.kind is ObjectKind.AUXILIARY:
            if found.data["unclear"]:
                text = f"no layer has {found.name}, unless it is the one whose record is damaged"
                yield Finding(LOST, text, found=found)
            else:
                yield Finding(LOST, f"no layer has {found.name}", found=found, repair="delete it")


def _file_system(driver: DeviceMapperDriver, layer: api.Layer) -> Iterator[Finding]:
    """A committed layer's, which is not written any more: it may be mounted meanwhile."""
    driver.activate(layer, read_only=True)
    try:
        node = driver.pool.node(driver.device_name(layer.id))
        tool = ("xfs_repair", "-n") if driver.pool.known.filesystem == "xfs" else ("e2fsck", "-fn")
        driver.host.run((*tool, node), timeout=_TIMEOUT)
    except ToolFailed as error:
        yield Finding("devicemapper.file-system", f"the file system of layer {layer.id}: {error}", layer.id)
    finally:
        driver.deactivate(layer)


def repair(driver: DeviceMapperDriver, finding: Finding) -> None:
    """Delete a device that still is nobody's."""
    if finding.code != LOST or finding.found is None:
        return
    for found in driver.scan():
        if found.name == finding.found.name and not found.data["unclear"]:
            driver.pool.delete(int(found.data["thin"]))
