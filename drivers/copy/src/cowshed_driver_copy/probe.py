"""Whether and how well copying serves at a place. It always does; what differs is the cost."""

from __future__ import annotations

import os

from cowshed.storage.api import ProbeReport, Reason, Verdict
from cowshed_driver_copy.driver import CAPABILITIES
from cowshed_linux import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.storage.api import Host, Options


def probe(root: str, options: Options, host: Host) -> ProbeReport:
    """POOR always: a full copy per layer fills disks; the facts say whether extents are shared."""
    place = root
    while not os.path.isdir(place):
        place = os.path.dirname(place) or "/"
    if not os.access(place, os.W_OK):
        reason = Reason("copy.not-writable", f"{place} cannot be written", "choose another --root", Verdict.UNUSABLE)
        return ProbeReport(None, {}, (reason,))
    try:
        shares = _shares_extents(place)
    except OSError as error:
        reason = Reason("copy.no-files", f"no file can be made in {place}: {error.strerror}", "", Verdict.UNUSABLE)
        return ProbeReport(None, {}, (reason,))
    cost = "metadata only, data is shared" if shares else "all of the data, for each layer and container"
    reason = Reason(
        "copy.copies", f"every layer is a copy of the one below: it costs {cost}", "use overlay", Verdict.POOR
    )
    return ProbeReport(CAPABILITIES, {"reflink": shares}, (reason,))


def _shares_extents(place: str) -> bool:
    """Try it with two files that have no name."""
    flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
    try:
        source = os.open(place, flags, 0o600)
    except OSError:
        return False  # a file system without O_TMPFILE has no reflinks either
    try:
        os.write(source, b"x" * 4096)
        target = os.open(place, flags, 0o600)
        try:
            files.reflink(source, target)
            return True
        except OSError:
            return False
        finally:
            os.close(target)
    finally:
        os.close(source)
