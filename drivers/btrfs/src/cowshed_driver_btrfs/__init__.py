"""The plug-in object of the `btrfs` driver. See driver.py."""

from __future__ import annotations

from cowshed.storage.api import API_VERSION, DriverPlugin, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.storage.api import Host, Options, ProbeReport, StoreId
    from cowshed_driver_btrfs.driver import BtrfsDriver


def _probe(root: str, options: Options, host: Host) -> ProbeReport:
    from cowshed_driver_btrfs.probe import probe  # only the first command of a store needs it

    return probe(root, options, host)


def _init(root: str, options: Options, host: Host) -> StoreId:
    from cowshed_driver_btrfs.store import init

    return init(root, options, host)


def _open(root: str, options: Options, host: Host, *, store: StoreId) -> BtrfsDriver:
    from cowshed_driver_btrfs.driver import open_store

    return open_store(root, options, host, store=store)


def _destroy(root: str, options: Options, host: Host, *, store: StoreId) -> None:
    from cowshed_driver_btrfs.store import destroy

    destroy(root, options, host, store=store)


plugin = DriverPlugin(
    name="btrfs",
    api=API_VERSION,
    summary="layers are btrfs subvolumes, snapshots of each other: no copying, changes found by the file system",
    options=(
        Option(
            "quota",
            str,
            "auto",
            "size limits and exact usage: auto uses simple quotas that are on already, simple switches them on "
            "(Linux 6.7), full switches on qgroups, which make snapshots and removals slow",
            ("auto", "off", "simple", "full"),
            creation_only=True,
        ),
        Option(
            "compression",
            str,
            "none",
            "how new files are compressed on disk; the level is that of the mount (-o compress=zstd:N)",
            ("none", "lzo", "zlib", "zstd"),
            creation_only=True,
        ),
        Option(
            "nodatacow",
            str,
            "off",
            "new files are written in place between snapshots, without checksums and compression",
            ("off", "on"),
            creation_only=True,
        ),
    ),
    probe=_probe,
    init=_init,
    open=_open,
    destroy=_destroy,
    priority=40,
)
