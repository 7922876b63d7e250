"""Whether and how well copying serves at a place. It nearly always does; what differs is the cost."""

from __future__ import annotations

import errno
import os

from cowshed.storage.api import ProbeReport, Reason, Verdict
from cowshed.storage.kit.places import IN_MEMORY, file_system_name, nearest_directory
from cowshed_driver_copy.driver import capabilities
from cowshed_linux import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.storage.api import Host, Options

_FLAGS = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC


def probe(root: str, options: Options, host: Host) -> ProbeReport:
    """POOR always: a full copy per layer fills disks; the facts say whether extents are shared."""
    place = nearest_directory(root)
    facts: dict[str, str | int | bool] = {"place": place}
    try:
        facts["file_system"] = file_system_name(place)
        facts["reflink"] = shares = _shares_extents(place)
    except OSError as error:
        text = f"no file can be made in {place}: {error.strerror or error}"
        return ProbeReport(None, facts, (Reason("copy.not-writable", text, "choose another --root", Verdict.UNUSABLE),))
    cost = "metadata only, data is shared" if shares else "all of the data, for each layer and container"
    text = f"every layer is a copy of the one below: it costs {cost}"
    durable = facts["file_system"] not in IN_MEMORY
    return ProbeReport(
        capabilities(durable=durable), facts, (Reason("copy.copies", text, "use overlay", Verdict.POOR),)
    )


def _shares_extents(place: str) -> bool:
    """Try it with two files that have no name, so that nothing is left whatever happens."""
    try:
        source = os.open(place, _FLAGS, 0o600)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT):
            raise
        return False  # a file system without O_TMPFILE has no reflinks either
    try:
        os.write(source, b"x" * 4096)
        target = os.open(place, _FLAGS, 0o600)
        try:
            files.reflink(source, target)
        except OSError:
            return False
        finally:
            os.close(target)
        return True
    finally:
        os.close(source)
