"""Whether ZFS serves at a place: by making there a dataset like a store's, a snapshot and a clone of it, and files as
images hold them. Versions and names are facts in the report, for people."""

from __future__ import annotations

import os
import shutil
import time

from cowshed.storage.api import FileSystem, MountPlan, ProbeReport, Reason, Verdict
from cowshed.storage.errors import StorageError
from cowshed.storage.kit.places import file_system_name, nearest_directory
from cowshed_driver_zfs import names
from cowshed_driver_zfs.driver import capabilities
from cowshed_driver_zfs.reading import Reader
from cowshed_driver_zfs.stores import dataset_of, module_version, properties

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cowshed.storage.api import Host, Options
    from cowshed_driver_zfs.binding import Zfs

    Facts = dict[str, str | int | bool]

_TOOL_TIMEOUT = 60.0
_TRIAL = "cowshed-probe-"
_DEAD = 3600.0  # seconds after which a trial is that of a probe that was killed
_INSTALL = "install ZFS (Debian: zfs-dkms and zfsutils-linux), then modprobe zfs; or use --driver overlay"
_ACL = bytes.fromhex("0200000001000700ffffffff02000500e803000004000500ffffffff10000500ffffffff20000500ffffffff")


class _Refused(Exception):
    def __init__(self, code: str, text: str, remedy: str) -> None:
        super().__init__(text)
        self.reason = Reason(f"zfs.{code}", text, remedy, Verdict.UNUSABLE)


def probe(root: str, options: Options, host: Host) -> ProbeReport:
    """GOOD if a trial did all that containers do, POOR if what they have synced may be lost; else UNUSABLE, with the
    first thing that failed."""
    place = nearest_directory(root)
    facts: Facts = {"kernel": os.uname().release, "place": place}
    try:
        try:
            facts["file_system"] = file_system_name(place)
            reasons = list(_versions(host, facts))
            dataset = dataset_of(root, options)
            facts["dataset"] = dataset
            if not os.access(place, os.W_OK):
                raise _Refused("not-writable", f"{place} cannot be written to", "choose another --root")
            found = _trial(dataset, options, host)
        except StorageError as error:
            raise _Refused(error.code, str(error), error.remedy or _INSTALL) from None
        except OSError as error:
            raise _Refused(
                "trial-failed", f"a trial failed: {error.strerror or error}", "look at zpool status"
            ) from None
    except _Refused as refused:
        return ProbeReport(None, facts, (refused.reason,))
    facts.update(found)
    durable = found["sync"] != "disabled"
    if durable:
        reasons.insert(0, Reason("zfs.works", "a trial dataset did all that containers do"))
    else:
        reasons.append(
            Reason(
                "zfs.sync-disabled",
                f"sync is disabled on {dataset}: a power cut undoes what containers have synced",
                f"zfs inherit sync {dataset}, or --driver-option sync=standard",
                Verdict.POOR,
            )
        )
    can = capabilities(durable=durable, exact=found["dedup"] == "off", idmapped=module_version() >= (2, 2))
    return ProbeReport(can, facts, tuple(reasons))


def _versions(host: Host, facts: Facts) -> list[Reason]:
    """The module and the tools must be there; that they are of two versions is told."""
    if os.geteuid() != 0:
        raise _Refused("not-root", "only root may make datasets and mount them", "run as root, or use --driver overlay")
    if not os.path.exists("/sys/module/zfs"):
        raise _Refused("no-module", "the kernel has not loaded its module of ZFS", _INSTALL)
    module = module_version()
    facts["module"] = ".".join(map(str, module))
    if not os.path.exists("/dev/zfs"):
        raise _Refused("no-device", "/dev/zfs is missing here, as in most containers", "run Cowshed outside of it")
    for tool in ("zfs", "zpool"):
        if shutil.which(tool) is None:
            raise _Refused("no-tool", f"the program {tool} is not installed", _INSTALL)
    said = host.run(("zfs", "version"), timeout=_TOOL_TIMEOUT).stdout.decode("ascii", "replace")
    tools = names.version(said)
    facts["tools"] = ".".join(map(str, tools))
    if module < (2, 1):
        raise _Refused("too-old", f"the module is ZFS {facts['module']}, 2.1 is wanted", "use a newer ZFS")
    if module[:2] != tools[:2]:
        text = f"the kernel's module is ZFS {facts['module']}, the tools are {facts['tools']}"
        return [Reason("zfs.skew", text, "reboot, or install tools of the module's version")]
    return []


def _trial(dataset: str, options: Options, host: Host) -> Facts:
    from cowshed_driver_zfs.binding import Zfs

    zfs = host.library("zfs", Zfs)
    try:
        if not zfs.exists(dataset):
            raise _Refused("no-dataset", f"there is no dataset {dataset}", f"zfs create {dataset}")
        _forget(zfs, dataset, host)
        trial = f"{dataset}/{_TRIAL}{os.urandom(6).hex()}"
        wanted = {**properties(options), "canmount": "noauto"}
        arguments = [f"-o{name}={value}" for name, value in wanted.items()]
        host.run(("zfs", "create", "-u", *arguments, trial), timeout=_TOOL_TIMEOUT)
        try:
            with host.mounted(MountPlan((FileSystem("zfs", trial),))) as tree:
                _kinds(tree.path)
            zfs.snapshot(f"{trial}@c", {})
            zfs.clone(f"{trial}/clone", f"{trial}@c", {})
            with host.mounted(MountPlan((FileSystem("zfs", f"{trial}/clone"),))) as tree:
                if os.getxattr(f"{tree.path}/file", "trusted.cowshed") != b"1":
                    raise _Refused("no-clone", "a clone does not show what its origin holds", "look at zpool status")
            asked = ("sync", "dedup", "compression", "recordsize")
            return {**(Reader(zfs, trial, host).properties(trial, *asked) or {})}
        finally:
            _undone(zfs, trial)
    finally:
        zfs.close()


def _forget(zfs: Zfs, dataset: str, host: Host) -> None:
    """Destroy what probes that were killed have left."""
    argv = ("zfs", "list", "-Hp", "-r", "-d", "1", "-t", "filesystem", "-o", "name,creation", dataset)
    said = host.run(argv, timeout=_TOOL_TIMEOUT).stdout.decode("utf-8", "surrogateescape")
    for line in said.splitlines():
        name, _, made = line.partition("\t")
        if name.startswith(f"{dataset}/{_TRIAL}") and time.time() - int(made) > _DEAD:
            try:
                _undone(zfs, name)
            except OSError:
                continue  # somebody has it mounted: the next probe tries again


def _undone(zfs: Zfs, trial: str) -> None:
    steps: tuple[Callable[[], None], ...] = (
        lambda: zfs.destroy(f"{trial}/clone"),
        lambda: zfs.destroy_snapshots([f"{trial}@c"]),
        lambda: zfs.destroy(trial),
    )
    for destroy in steps:
        try:
            destroy()
        except FileNotFoundError:
            continue  # the trial did not come so far


def _kinds(root: str) -> None:
    """What images hold, and what the properties of a dataset can forbid."""
    file = f"{root}/file"
    made: dict[str, Callable[[], object]] = {
        "make a file": lambda: os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)),
        "make a device": lambda: os.mknod(f"{root}/device", 0o20600, os.makedev(1, 3)),
        "keep extended attributes": lambda: os.setxattr(file, "trusted.cowshed", b"1"),
        "keep an access list": lambda: os.setxattr(file, "system.posix_acl_access", _ACL),
        "tell upper case from lower": lambda: os.mkdir(f"{root}/FILE"),
        "take a name that is not UTF-8": lambda: os.mkdir(os.fsencode(root) + b"/\xff"),
        "take a name beyond ASCII": lambda: os.mkdir(f"{root}/\u00e9"),
        "tell forms of one character": lambda: os.mkdir(f"{root}/e\u0301"),
    }
    for doing, make in made.items():
        try:
            make()
        except OSError as error:
            text = f"a dataset made here cannot {doing}: {error.strerror}"
            raise _Refused("not-posix", text, "name another dataset: --driver-option dataset=POOL/NAME") from None
