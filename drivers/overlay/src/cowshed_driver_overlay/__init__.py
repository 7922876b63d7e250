"""The plug-in object of the `overlay` driver. See driver.py."""

from __future__ import annotations

from cowshed.storage.api import API_VERSION, DriverPlugin, Option
from cowshed_driver_overlay.driver import destroy_store, init, open_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.storage.api import Host, Options, ProbeReport


def _probe(root: str, options: Options, host: Host) -> ProbeReport:
    from cowshed_driver_overlay.probe import probe  # only the first command of a store needs it

    return probe(root, options, host)


_SWITCH = ("off", "on")

plugin = DriverPlugin(
    name="overlay",
    api=API_VERSION,
    summary="the kernel's overlay file system: layers are directories, the first write copies the whole file",
    options=(
        Option("index", str, "off", "hard links of lower layers survive the first write to one of them", _SWITCH),
        Option("xino", str, "off", "inode numbers that say which layer they come from", (*_SWITCH, "auto")),
        Option(
            "redirect_dir",
            str,
            "off",
            "directories of lower layers can be renamed; diffs are then found by comparing",
            _SWITCH,
            creation_only=True,
        ),
        Option(
            "metacopy",
            str,
            "off",
            "chmod and chown copy no data; diffs are then found by comparing",
            _SWITCH,
            creation_only=True,
        ),
    ),
    probe=_probe,
    init=init,
    open=open_store,
    destroy=destroy_store,
    priority=50,
)
