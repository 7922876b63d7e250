"""The plug-in object of the `zfs` driver. See driver.py.

What speaks to ZFS is loaded by the first call that needs it: the object itself is looked at on machines without ZFS.
"""

from __future__ import annotations

from cowshed.storage.api import API_VERSION, DriverPlugin, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.storage.api import Driver, Host, Options, ProbeReport, StoreId


def _probe(root: str, options: Options, host: Host) -> ProbeReport:
    from cowshed_driver_zfs.probe import probe

    return probe(root, options, host)


def _init(root: str, options: Options, host: Host) -> StoreId:
    from cowshed_driver_zfs.stores import init

    return init(root, options, host)


def _open(root: str, options: Options, host: Host, *, store: StoreId) -> Driver:
    from cowshed_driver_zfs.stores import open_store

    return open_store(root, options, host, store=store)


def _destroy(root: str, options: Options, host: Host, *, store: StoreId) -> None:
    from cowshed_driver_zfs.stores import destroy_store

    destroy_store(root, options, host, store=store)


plugin = DriverPlugin(
    name="zfs",
    api=API_VERSION,
    summary="datasets of ZFS: a layer is a clone or a snapshot, the first write copies a record",
    options=(
        Option(
            "dataset",
            str,
            None,
            "dataset below which the store makes its own; by default the one that the store's directory lies on",
            creation_only=True,
            outside=True,
        ),
        Option("compression", str, None, "as zfsprops(7); by default that of the dataset above", creation_only=True),
        Option("recordsize", str, None, "as zfsprops(7), 512 to 1M: what the first write copies", creation_only=True),
        Option("atime", bool, False, "times of access are kept, which writes when files are read", creation_only=True),
        Option(
            "sync",
            str,
            None,
            "disabled lets a power cut undo what containers have synced; by default as the dataset above",
            ("standard", "always", "disabled"),
            creation_only=True,
        ),
    ),
    probe=_probe,
    init=_init,
    open=_open,
    destroy=_destroy,
    priority=60,
)
