"""Whether the driver serves at a place: by making an image there, mounting it by its path, and an overlay on top."""

from __future__ import annotations

import errno
import os

from cowshed.storage.api import FileSystem, MountPlan, ProbeReport, Reason, Verdict
from cowshed.storage.errors import StorageError
from cowshed.storage.kit import overlays
from cowshed.storage.kit.places import IN_MEMORY, file_system_name, nearest_directory
from cowshed.storage.kit.trees import remove_tree
from cowshed_driver_erofs.driver import NAME, capabilities

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.storage.api import Host, Options


def probe(root: str, options: Options, host: Host) -> ProbeReport:
    """GOOD if a trial did all that containers do; else UNUSABLE, with the first thing that failed."""
    place = nearest_directory(root)
    facts: dict[str, str | int | bool] = {"kernel": os.uname().release, "place": place}
    trial = f"{place}/.cowshed-probe-{os.urandom(6).hex()}"
    remedy = "put the store (--root) on ext4, xfs or btrfs"
    try:
        facts["file_system"] = file_system_name(place)
        os.mkdir(trial, 0o700)
        try:
            image = _image(trial, host)
            remedy = "Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE is needed; or use --driver overlay"
            _mounts(image, host)
            remedy = "put the store (--root) where overlay can write, on ext4, xfs or btrfs"
            os.mkdir(f"{trial}/top")
            overlays.try_out(host, f"{trial}/top", (FileSystem("erofs", image, read_only=True),))
        finally:
            remove_tree(trial)
    except (OSError, StorageError) as error:
        text = f"{place}: {error}"
        if isinstance(error, StorageError):
            remedy = "install mkfs.erofs (Debian: erofs-utils)"
        return ProbeReport(None, facts, (Reason(f"{NAME}.not-usable", text, remedy, Verdict.UNUSABLE),))
    durable = facts["file_system"] not in IN_MEMORY
    reason = Reason(f"{NAME}.works", "an image was made and mounted, and an overlay on top did all that containers do")
    return ProbeReport(capabilities(durable=durable), facts, (reason,))


def _image(trial: str, host: Host) -> str:
    os.makedirs(f"{trial}/tree/dir")
    for name in ("file", "dir/below"):
        os.close(os.open(f"{trial}/tree/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    host.run(("mkfs.erofs", "--quiet", f"{trial}/image", f"{trial}/tree"), timeout=60)
    return f"{trial}/image"


def _mounts(image: str, host: Host) -> None:
    try:
        with host.mounted(MountPlan((FileSystem("erofs", image, read_only=True),))) as tree:
            os.stat(f"{tree.path}/dir/below")
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise OSError("this kernel has no erofs") from None
        if error.errno == errno.ENOTBLK:
            raise OSError("this kernel mounts no erofs image by its path") from None
        raise
