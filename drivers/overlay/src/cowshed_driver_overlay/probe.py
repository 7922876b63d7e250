"""Whether overlay works at a place: by mounting one there and doing what containers do, never by the kernel's version
or the file system's name."""

from __future__ import annotations

import os

from cowshed.storage.api import MountPlan, Overlay, ProbeReport, Reason, Verdict
from cowshed.storage.kit.trees import remove_tree
from cowshed_driver_overlay.driver import capabilities, private_namespace, switches
from cowshed_linux import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.storage.api import Host, Options

_ELSEWHERE = "put the store on ext4, btrfs, or xfs made with ftype=1 (--root), or use --driver copy"


class _Refused(Exception):
    def __init__(self, code: str, text: str, remedy: str = _ELSEWHERE) -> None:
        super().__init__(text)
        self.reason = Reason(f"overlay.{code}", text, remedy, Verdict.UNUSABLE)


def probe(root: str, options: Options, host: Host) -> ProbeReport:
    facts: dict[str, str | int | bool] = {}
    place = root
    while not os.path.isdir(place):
        place = os.path.dirname(place) or "/"
    trial = f"{place}/.cowshed-probe-{os.urandom(6).hex()}"
    try:
        if "overlay" not in _known_file_systems():
            raise _Refused("no-kernel", "this kernel has no overlay file system", "load it: modprobe overlay")
        try:
            os.mkdir(trial, 0o700)
        except OSError as error:
            raise _Refused("not-writable", f"{place}: {error.strerror}", "choose another --root") from None
        try:
            _try_out(trial, options, host, facts)
        finally:
            remove_tree(trial)
    except _Refused as refused:
        return ProbeReport(None, facts, (refused.reason,))
    user = private_namespace()
    reason = Reason("overlay.works", "a trial mount did all that containers do")
    return ProbeReport(capabilities(options, user_attributes=user), facts, (reason,))


def _known_file_systems() -> set[str]:
    fd = os.open("/proc/filesystems", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, 1 << 16).decode()
    finally:
        os.close(fd)
    known = {line.split()[-1] for line in text.splitlines() if line}
    if "overlay" not in known and os.path.isdir("/sys/module/overlay"):
        known.add("overlay")
    return known


def _try_out(trial: str, options: Options, host: Host, facts: dict[str, str | int | bool]) -> None:
    lower, bottom, upper, work = (f"{trial}/{name}" for name in ("lower", "bottom", "upper", "work"))
    for path in (lower, bottom, upper, work, f"{lower}/dir", f"{bottom}/dir"):
        os.mkdir(path, 0o755)
    for path in (f"{lower}/file", f"{bottom}/dir/below"):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))

    fd = os.open(lower, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        facts["d_type"] = files.directory_tells_types(fd)
    finally:
        os.close(fd)
    if not facts["d_type"]:
        raise _Refused("no-d-type", "the file system does not tell the kinds of directory entries (d_type)")

    user = private_namespace()
    facts["userxattr"] = user
    explicit = switches(options, user_attributes=user)
    plan = MountPlan((Overlay((lower, bottom), upper, work, options=explicit),))
    try:
        with host.mounted(plan) as tree:
            _do_what_containers_do(tree.path)
    except _Refused:
        raise
    except OSError as error:
        raise _Refused("no-mount", f"overlay cannot be mounted here: {error.strerror}") from None
    _look_at_what_it_left(upper, "user.overlay." if user else "trusted.overlay.")


def _do_what_containers_do(root: str) -> None:
    try:
        os.unlink(f"{root}/file")
        os.mkdir(f"{root}/file")  # over a whiteout: EIO in a user namespace without userxattr
        os.unlink(f"{root}/dir/below")
        os.rmdir(f"{root}/dir")
        os.mkdir(f"{root}/dir")
        os.setxattr(f"{root}/file", "user.cowshed" if os.geteuid() else "trusted.cowshed", b"1")
    except OSError as error:
        raise _Refused("no-whiteouts", f"deleting and making again fails on a trial mount: {error.strerror}") from None
    if os.listdir(f"{root}/dir"):
        raise _Refused("no-opaque", "a directory that was removed and made again still shows what lies below")


def _look_at_what_it_left(upper: str, prefix: str) -> None:
    try:
        opaque = os.getxattr(f"{upper}/dir", f"{prefix}opaque")
    except OSError as error:
        raise _Refused("no-xattr", f"the file system keeps no {prefix}* attributes: {error.strerror}") from None
    if opaque not in (b"y", b"x"):
        raise _Refused("no-opaque", f"{prefix}opaque came back as {opaque!r}")
