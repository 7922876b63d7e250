"""Whether a place suits: by making a subvolume there, a snapshot, and taking both away."""

from __future__ import annotations

import errno
import os

from cowshed.storage.api import ProbeReport, Reason, Verdict
from cowshed.storage.errors import BadOption
from cowshed.storage.kit.places import file_system_name, nearest_directory
from cowshed_driver_btrfs import ioctls, quota
from cowshed_driver_btrfs.driver import CONTENT, capabilities
from cowshed_driver_btrfs.store import ELSEWHERE, check_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.storage.api import Host, Options

    Facts = dict[str, str | int | bool]

_WANTED = (quota.SIMPLE, quota.FULL)
_MIXED = 1 | 4  # data and metadata in one kind of chunk
_RAID56 = 1 << 7 | 1 << 8


class _Refused(Exception):
    def __init__(self, code: str, text: str, remedy: str) -> None:
        super().__init__(text)
        self.reason = Reason(f"btrfs.{code}", text, remedy, Verdict.UNUSABLE)


def probe(root: str, options: Options, host: Host) -> ProbeReport:
    """POOR where the file system makes every snapshot dear, or loses data in a power cut."""
    facts: Facts = {"kernel": os.uname().release, "simple_quotas": quota.kernel_has_simple()}
    place = nearest_directory(root)
    facts["place"] = place
    reasons: list[Reason] = []
    try:
        try:
            check_options(options)
            name = facts["file_system"] = file_system_name(place)
            if name != "btrfs":
                raise _Refused("not-btrfs", f"{place} is on {name}", ELSEWHERE)
            if os.statvfs(place).f_flag & os.ST_RDONLY:
                raise _Refused("read-only", f"{place} is on a file system that is mounted read-only", "mount it rw")
            fd = ioctls.directory(place)
            try:
                mode = _quotas(fd, options, facts, reasons)
                then = _then(mode, options, root)
                _profiles(fd, facts, reasons)
            finally:
                os.close(fd)
            _trial(place, facts)
        except BadOption as error:
            raise _Refused("options", str(error), error.remedy) from None
        except OSError as error:
            text = f"a trial in {place} failed: {error.strerror or error}"
            raise _Refused("trial-failed", text, "choose another --root, or run as root") from None
    except _Refused as refused:
        return ProbeReport(None, facts, (refused.reason,))
    if mode == quota.UNKNOWN:
        text = "for a plain user changes are found by comparing whole trees, and layers are removed entry by entry"
        remedy = "mount the file system with user_subvol_rm_allowed to remove them at once"
        reasons.append(Reason("btrfs.plain-user", text, remedy))
    reasons.append(Reason("btrfs.works", "a subvolume and a snapshot of it were made and removed"))
    if then == quota.OFF and options["quota"] in _WANTED:
        text = "quotas of the file system were switched off since the store was made: no size limits"
        simple = " --simple" if options["quota"] == quota.SIMPLE else ""
        remedy = f"btrfs quota enable{simple} {root} (btrfs-progs 6.7)"
        reasons.append(Reason("btrfs.quota-off", text, remedy))
    return ProbeReport(capabilities(then, options), facts, tuple(reasons))


def _then(mode: str, options: Options, root: str) -> str:
    """The mode that the file system will be in when there is a store: making one switches quotas on that are wanted."""
    made = os.path.exists(f"{root}/store")
    return str(options["quota"]) if mode == quota.OFF and options["quota"] in _WANTED and not made else mode


def _quotas(fd: int, options: Options, facts: Facts, reasons: list[Reason]) -> str:
    wanted = options["quota"]
    mode, _ = quota.state(fd)
    facts["quotas"] = mode
    if wanted in _WANTED:
        if mode == quota.UNKNOWN:
            raise _Refused("quota-not-permitted", "quotas are for root outside user namespaces", "leave quota out")
        if mode not in (quota.OFF, wanted):
            remedy = f"use quota={mode} or auto; or, if nothing else needs them, btrfs quota disable"
            raise _Refused("other-quotas", f"the file system has {mode} quotas on, and {wanted} are wanted", remedy)
        if wanted == quota.SIMPLE and mode == quota.OFF and not facts["simple_quotas"]:
            raise _Refused("no-simple-quotas", "this kernel has no simple quotas", "Linux 6.7 has; or leave quota out")
    if quota.FULL in (mode, wanted if mode == quota.OFF else mode):
        text = "full quotas (qgroups) make every snapshot slower the more there are, and a removal takes minutes"
        remedy = "btrfs quota disable, and quota=simple" if mode == quota.FULL else "use quota=simple (Linux 6.7)"
        reasons.append(Reason("btrfs.qgroups", text, remedy, Verdict.POOR))
    elif mode == quota.OFF and wanted == "auto":
        text = "there are no size limits, as quotas are off and may be somebody's choice"
        remedy = "--driver-option quota=simple switches them on for this file system (Linux 6.7)"
        reasons.append(Reason("btrfs.no-quotas", text, remedy))
    return mode


def _profiles(fd: int, facts: Facts, reasons: list[Reason]) -> None:
    flags = [kind for kind, _, _ in ioctls.space(fd)]
    facts["mixed"] = any(kind & _MIXED == _MIXED for kind in flags)
    if facts["mixed"]:
        text = "data and metadata share chunks (mkfs.btrfs --mixed), which is slow beyond a few gigabytes"
        reasons.append(Reason("btrfs.mixed", text, "make the file system without --mixed"))
    if any(kind & _RAID56 for kind in flags):
        text = "raid5 and raid6 of btrfs can lose data in a power cut"
        reasons.append(Reason("btrfs.raid56", text, "btrfs balance start -mconvert=raid1", Verdict.POOR))


def _trial(place: str, facts: Facts) -> None:
    from cowshed_driver_btrfs import subvolumes

    trial = f"{place}/.cowshed-probe-{os.urandom(6).hex()}"
    try:
        subvolumes.create(trial)
    except OSError as error:
        if error.errno == errno.EACCES:
            raise _Refused("not-writable", f"{place}: {error.strerror}", "choose another --root") from None
        raise
    try:
        os.mkdir(f"{trial}/{CONTENT}")
        subvolumes.snapshot(trial, f"{trial}.snapshot", read_only=True)
    finally:
        for path in (f"{trial}.snapshot", trial):
            subvolumes.remove(path)
    facts["place_is_subvolume"] = subvolumes.is_subvolume(place)
