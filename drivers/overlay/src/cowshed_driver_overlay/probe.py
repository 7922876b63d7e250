"""Whether overlay works at a place: by mounting one there and doing what containers do, never by the kernel's version
or the file system's name. Names and versions are facts in the report, for people."""

from __future__ import annotations

import errno
import os

from cowshed.storage.api import MountPlan, Overlay, ProbeReport, Reason, Verdict
from cowshed.storage.errors import BadOption
from cowshed.storage.kit.places import IN_MEMORY, SHARING, file_system_name, nearest_directory, private_namespace
from cowshed.storage.kit.projects import why_not
from cowshed.storage.kit.trees import remove_tree
from cowshed_driver_overlay.switches import capabilities, prefix, switches
from cowshed_linux import files, paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cowshed.storage.api import Host, Options

    Facts = dict[str, str | int | bool]

_ELSEWHERE = "put the store (--root) on ext4, btrfs, or xfs made with ftype=1; or use --driver copy"


class _Refused(Exception):
    def __init__(self, code: str, text: str, remedy: str = _ELSEWHERE) -> None:
        super().__init__(text)
        self.reason = Reason(f"overlay.{code}", text, remedy, Verdict.UNUSABLE)


def probe(root: str, options: Options, host: Host) -> ProbeReport:
    """GOOD if a trial did all that containers do; else UNUSABLE, with the first thing that failed."""
    facts: Facts = {"kernel": os.uname().release}
    place = nearest_directory(root)
    try:
        facts["place"] = place
        try:
            facts["file_system"] = file_system_name(place)
            user = private_namespace()
            facts["userxattr"] = user
            explicit = switches(options, user_attributes=user)
            facts["switches"] = ",".join(name if value is None else f"{name}={value}" for name, value in explicit)
            without_quota = why_not(place)
            facts["quota"] = "project" if without_quota is None else "none"
            _trial(place, explicit, prefix(user_attributes=user), host, facts)
        except BadOption as error:
            raise _Refused("options", str(error), error.remedy) from None
        except OSError as error:
            raise _Refused("trial-failed", f"a trial in {place} failed: {error.strerror or error}") from None
    except _Refused as refused:
        return ProbeReport(None, facts, (refused.reason,))
    reasons = [Reason("overlay.works", "a trial mount did all that containers do")]
    durable = facts["file_system"] not in IN_MEMORY
    if not durable:
        reasons.append(Reason("overlay.in-memory", f"{facts['file_system']} forgets all layers at the next boot"))
    if without_quota is not None:
        code, text, remedy = without_quota
        reasons.append(Reason(f"overlay.quota-{code}", text, remedy))
    quota = without_quota is None
    exact = quota and facts["file_system"] not in SHARING
    found = capabilities(options, user_attributes=user, durable=durable, quota=quota, exact=exact)
    return ProbeReport(found, facts, tuple(reasons))


def _trial(place: str, explicit: tuple[tuple[str, str | None], ...], private: str, host: Host, facts: Facts) -> None:
    trial = f"{place}/.cowshed-probe-{os.urandom(6).hex()}"
    try:
        os.mkdir(trial, 0o700)
    except OSError as error:
        raise _Refused("not-writable", f"{place}: {error.strerror}", "choose another --root") from None
    try:
        _backing(trial, private, facts)
        _mounted(trial, explicit, private, host, facts)
    finally:
        remove_tree(trial)


# ---------------------------------------------------------------- what lies below


def _backing(trial: str, private: str, facts: Facts) -> None:
    """The abilities that an upper directory needs of its file system, each tried by itself so that it can be named."""
    ground = f"{trial}/ground"
    os.mkdir(ground, 0o700)
    os.close(os.open(f"{ground}/file", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    fd = os.open(ground, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        facts["d_type"] = files.directory_tells_types(fd)
        facts["whiteouts"] = _works(lambda: os.mknod("node", 0o20600, 0, dir_fd=fd))
        facts["rename_whiteout"] = _works(lambda: paths.rename2(fd, "file", fd, "renamed", paths.RENAME_WHITEOUT))
        facts["xattrs"] = _attributes_work(ground, private)
    finally:
        os.close(fd)
    name = str(facts["file_system"])
    if name == "overlay":
        raise _Refused(
            "on-overlay",
            "the place is itself on overlay, which cannot hold the upper directory of another",
            "put the store (--root) on a volume or another file system; or use --driver copy",
        )
    if not facts["d_type"]:
        raise _Refused("no-d-type", f"{name} does not tell the kinds of directory entries (d_type) here")
    if not facts["xattrs"]:
        raise _Refused("no-xattr", f"{name} keeps no {private}* attributes here")
    if not facts["whiteouts"]:
        raise _Refused("no-whiteouts", f"no character device 0:0 can be made on {name} here")
    if not facts["rename_whiteout"]:
        raise _Refused("no-rename-whiteout", f"{name} cannot rename and leave a whiteout (RENAME_WHITEOUT)")


def _works(do: Callable[[], object]) -> bool:
    try:
        do()
    except OSError:
        return False
    return True


def _attributes_work(path: str, private: str) -> bool:
    try:
        os.setxattr(path, f"{private}probe", b"y")
    except PermissionError:
        text = f"this user may not set {private}* attributes, in which overlay keeps what was deleted"
        raise _Refused("not-permitted", text, "run as root") from None
    except OSError:
        return False
    return True


# ---------------------------------------------------------------- the trial mount


def _mounted(trial: str, explicit: tuple[tuple[str, str | None], ...], private: str, host: Host, facts: Facts) -> None:
    lower, bottom, upper, work = (f"{trial}/{name}" for name in ("lower", "bottom", "upper", "work"))
    for path in (lower, bottom, upper, work, f"{lower}/dir", f"{bottom}/dir"):
        os.mkdir(path, 0o755)
    for path in (f"{lower}/file", f"{bottom}/dir/below", f"{bottom}/changed"):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    plan = MountPlan((Overlay((lower, bottom), upper, work, options=explicit),))
    try:
        with host.mounted(plan) as tree:
            _do_what_containers_do(tree.path)
    except PermissionError as error:
        raise _Refused("not-permitted", f"overlay cannot be mounted: {error.strerror}", "run as root") from None
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise _Refused("no-kernel", "this kernel has no overlay file system", "modprobe overlay") from None
        raise _Refused("no-mount", f"overlay cannot be mounted here: {error.strerror}") from None
    _look_at_what_it_left(upper, private)
    facts["volatile"] = _volatile(trial, explicit, host)


def _do_what_containers_do(root: str) -> None:
    try:
        os.unlink(f"{root}/file")
        os.mkdir(f"{root}/file")  # over a whiteout: EIO in a user namespace without userxattr
        os.unlink(f"{root}/dir/below")
        os.rmdir(f"{root}/dir")
        os.mkdir(f"{root}/dir")
        os.chmod(f"{root}/changed", 0o600)
        os.rename(f"{root}/changed", f"{root}/renamed")
    except OSError as error:
        raise _Refused("no-whiteouts", f"deleting and making again fails on a trial mount: {error.strerror}") from None
    if os.listdir(f"{root}/dir"):
        raise _Refused("no-opaque", "a directory that was removed and made again still shows what lies below")
    if sorted(os.listdir(root)) != ["dir", "file", "renamed"]:
        raise _Refused("no-whiteouts", "a file that was renamed on a trial mount still shows under its old name")


def _look_at_what_it_left(upper: str, private: str) -> None:
    try:
        opaque = os.getxattr(f"{upper}/dir", f"{private}opaque")
    except OSError as error:
        raise _Refused("no-xattr", f"overlay left no {private}opaque in its upper: {error.strerror}") from None
    if opaque not in (b"y", b"x"):
        raise _Refused("no-opaque", f"{private}opaque came back as {opaque!r}")


def _volatile(trial: str, explicit: tuple[tuple[str, str | None], ...], host: Host) -> bool:
    """Whether a mount can do without syncs (Linux 5.10)."""
    upper, work = f"{trial}/upper2", f"{trial}/work2"
    os.mkdir(upper)
    os.mkdir(work)
    try:
        options = (*explicit, ("volatile", None))
        with host.mounted(MountPlan((Overlay((f"{trial}/lower",), upper, work, options=options),))):
            return True
    except OSError:
        return False
