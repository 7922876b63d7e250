"""Device-mapper as the driver sees it: libdevmapper, and the metadata of pools. Tests put a simulation in its place."""

from __future__ import annotations

from cowshed_driver_devicemapper import blockdevices, tables
from cowshed_driver_devicemapper.libdevmapper import DeviceMapper
from cowshed_driver_devicemapper.metadata import Metadata


class Mapper(DeviceMapper):
    nodes = "/dev/mapper"  # where the driver makes nodes for its devices

    def thin_devices(self, pool: str) -> dict[int, int]:
        """Thin id → blocks mapped, of all devices of a pool."""
        with self._metadata(pool) as metadata:
            return metadata.devices()

    def thin_difference(self, pool: str, old: int | None, new: int) -> list[tuple[int, int]]:
        """Ranges of blocks in which two thin devices of a pool differ."""
        with self._metadata(pool) as metadata:
            return metadata.difference(old, new)

    def _metadata(self, pool: str) -> Metadata:
        lines = self.table(pool)
        table = tables.parse_pool_table(lines[0].parameters if lines else "")
        return Metadata(blockdevices.node_of(table.metadata))
