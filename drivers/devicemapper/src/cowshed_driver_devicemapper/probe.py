"""Whether device-mapper serves here: by asking the kernel and the library, never by versions."""

from __future__ import annotations

import os

from cowshed.storage.api import ProbeReport, Reason, Verdict
from cowshed.storage.errors import StorageError
from cowshed.storage.kit.places import IN_MEMORY, file_system_name, nearest_directory
from cowshed_driver_devicemapper import making, record
from cowshed_driver_devicemapper.driver import LOOP_IS_POOR, capabilities

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cowshed.storage.api import Host, Options
    from cowshed_driver_devicemapper.mapper import Mapper

    Facts = dict[str, str | int | bool]


class _Refused(Exception):
    def __init__(self, code: str, text: str, remedy: str) -> None:
        super().__init__(text)
        self.reason = Reason(f"devicemapper.{code}", text, remedy, Verdict.UNUSABLE)


def probe(root: str, options: Options, host: Host, *, mapper: Callable[[], Mapper]) -> ProbeReport:
    """GOOD on a pool or devices that the user names, POOR on loop files, UNUSABLE with what is missing."""
    place = nearest_directory(root)
    facts: Facts = {"kernel": os.uname().release, "place": place}
    reasons: list[Reason] = []
    try:
        try:
            facts["file_system"] = file_system_name(place)
            _permitted(facts)
            if not os.access(place, os.W_OK):
                raise _Refused("not-writable", f"{place} cannot be written", "choose another --root")
            _tools(facts, str(options["filesystem"]))
            _kernel(mapper, facts)
            loop = _backing(place, options, mapper, facts, host)
        except StorageError as error:
            raise _Refused(error.code, str(error), error.remedy) from None
        except OSError as error:
            raise _Refused("not-usable", f"{place}: {error}", "see the kernel's log") from None
    except _Refused as refused:
        return ProbeReport(None, facts, (refused.reason,))
    durable = facts["file_system"] not in IN_MEMORY
    reasons.append(LOOP_IS_POOR if loop else Reason("devicemapper.works", "the kernel has thin pools"))
    if not durable:
        reasons.append(Reason("devicemapper.in-memory", f"{facts['file_system']} forgets all layers at the next boot"))
    quota = options["quota"] == "on"
    can = capabilities(filesystem=str(options["filesystem"]), durable=durable, quota=quota)
    return ProbeReport(can, facts, tuple(reasons))


def _permitted(facts: Facts) -> None:
    facts["udev"] = os.path.exists("/run/udev/control")  # not needed: nodes are the driver's own
    with open("/proc/self/uid_map", encoding="ascii") as file:
        if file.read().split() != ["0", "0", "4294967295"]:
            text = "device-mapper cannot be used inside a user namespace"
            raise _Refused("user-namespace", text, "run as root, or use overlay")
    if os.geteuid() != 0:
        raise _Refused("not-permitted", "this user may not set up devices", "run as root, or use overlay")


def _tools(facts: Facts, filesystem: str) -> None:
    """The program that makes the base; the kernel has the rest."""
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    name = f"mkfs.{filesystem}"
    facts[name] = found = any(os.access(f"{folder}/{name}", os.X_OK) for folder in path)
    if not found:
        package = "xfsprogs" if filesystem == "xfs" else "e2fsprogs"
        raise _Refused("no-tool", f"{name} is not installed", f"install {package}")


def _kernel(mapper: Callable[[], Mapper], facts: Facts) -> None:
    try:
        library = mapper()
    except FileNotFoundError as error:
        raise _Refused("no-library", error.strerror or str(error), "install libdevmapper1.02.1") from None
    facts["libdevmapper"] = library.library_version()
    try:
        facts["device_mapper"] = library.driver_version()
    except OSError:
        text = "this kernel has no device-mapper"
        raise _Refused("no-kernel", text, "modprobe dm_mod; or use another driver") from None
    targets = library.targets()
    for kind in ("thin-pool", "thin"):
        if kind not in targets:
            raise _Refused("no-thin", f"device-mapper has no target {kind}", "modprobe dm_thin_pool")
        facts[kind] = targets[kind]


def _backing(place: str, options: Options, mapper: Callable[[], Mapper], facts: Facts, host: Host) -> bool:
    """Whether the pool would lie on loop files. Raises what init() would raise for wrong options."""
    plan = making.plan(place, options, mapper(), "0" * 32, host)
    facts["pool"] = plan.name or plan.kind
    facts["layer_bytes"] = plan.sectors * 512
    if plan.kind == record.LOOP and not os.path.exists("/dev/loop-control"):
        raise _Refused("no-loop", "there are no loop devices", "modprobe loop; or name a pool: option pool")
    return plan.kind == record.LOOP
