"""Whether aufs works at a place: by mounting one there and doing what containers do. Neither the kernel's version nor
/proc/filesystems says so: aufs is a patch set, built with or without what is needed, and perhaps a module."""

from __future__ import annotations

import errno
import os
import stat

from cowshed.storage.api import Aufs, MountPlan, ProbeReport, Reason, Verdict
from cowshed.storage.kit.places import IN_MEMORY, file_system_name, nearest_directory
from cowshed.storage.kit.trees import remove_tree
from cowshed_driver_aufs.branches import OPAQUE, OPTIONS, capabilities, furnish
from cowshed_driver_aufs.limit import branch_limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.storage.api import Host, Options

    Facts = dict[str, str | int | bool]

_OTHER = "use another driver: --driver overlay"
_ELSEWHERE = "put the store (--root) on ext4, xfs or btrfs; or use another driver"
# aufs itself refuses these, or they say "done" too early, or lose what a copy must keep
_UNFIT = ("overlay", "aufs", "ecryptfs", "fuse", "nfs", "cifs", "smb", "9p", "vfat", "erofs", "squashfs", "ramfs")
_NOBODY = 65534


class _Refused(Exception):
    def __init__(self, code: str, text: str, remedy: str = _OTHER) -> None:
        super().__init__(text)
        self.reason = Reason(f"aufs.{code}", text, remedy, Verdict.UNUSABLE)


def probe(root: str, options: Options, host: Host) -> ProbeReport:
    """GOOD if a trial did all that containers do; else UNUSABLE, with the first thing that failed."""
    facts: Facts = {"kernel": os.uname().release}
    place = nearest_directory(root)
    try:
        facts["place"] = place
        try:
            facts["file_system"] = name = file_system_name(place)
            _may_mount()
            if name in _UNFIT:
                raise _Refused("backing", f"aufs is not to have its branches on {name}", _ELSEWHERE)
            _trial(place, host)
            facts["branches"] = branch_limit()
            version = _line("/sys/module/aufs/version")
            if version:
                facts["version"] = version
        except OSError as error:
            raise _Refused(
                "trial-failed", f"a trial in {place} failed: {error.strerror or error}", _ELSEWHERE
            ) from None
    except _Refused as refused:
        return ProbeReport(None, facts, (refused.reason,))
    reasons = [Reason("aufs.works", "a trial mount did all that containers do")]
    durable = name not in IN_MEMORY
    if not durable:
        reasons.append(Reason("aufs.in-memory", f"{name} forgets all layers at the next boot"))
    return ProbeReport(capabilities(branches=branch_limit(), durable=durable), facts, tuple(reasons))


def _may_mount() -> None:
    """Root outside user namespaces. A kernel can be told to let others mount aufs too (aufs.allow_userns); what they
    make then lacks device nodes and file capabilities, and belongs to the wrong owners."""
    fd = os.open("/proc/self/uid_map", os.O_RDONLY | os.O_CLOEXEC)
    try:
        private = os.read(fd, 128).split() != [b"0", b"0", b"4294967295"]
    finally:
        os.close(fd)
    if private:
        raise _Refused("user-namespace", "aufs is not for user namespaces", "run as root of the host; or use overlay")


def _line(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        return os.read(fd, 128).decode("ascii", "replace").strip()
    finally:
        os.close(fd)


def _trial(place: str, host: Host) -> None:
    trial = f"{place}/.cowshed-probe-{os.urandom(6).hex()}"
    try:
        os.mkdir(trial, 0o700)
    except OSError as error:
        raise _Refused("not-writable", f"{place}: {error.strerror}", "choose another --root") from None
    try:
        _mounted(trial, host)
    finally:
        remove_tree(trial)


def _mounted(trial: str, host: Host) -> None:
    branch, lower, bottom = (f"{trial}/{name}" for name in ("branch", "lower", "bottom"))
    for path in (branch, lower, bottom, f"{bottom}/dir", f"{bottom}/closed"):
        os.mkdir(path, 0o755)
    os.chmod(trial, 0o755)
    os.chmod(f"{bottom}/closed", 0o700)
    for path in (f"{lower}/file", f"{bottom}/dir/below", f"{bottom}/changed"):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    _attributes(f"{bottom}/changed")
    furnish(branch)
    try:
        with host.mounted(MountPlan((Aufs((branch, lower, bottom), True, OPTIONS),))) as tree:
            _do_what_containers_do(tree.path)
    except PermissionError as error:
        raise _Refused("not-permitted", f"aufs cannot be mounted: {error.strerror}", "run as root") from None
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise _Refused(
                "no-kernel",
                "this kernel has no aufs: it is no part of Linux, and neither built in nor a module here",
                "modprobe aufs; or boot a kernel with the patches of aufs-standalone; or use --driver overlay",
            ) from None
        text = f"aufs cannot be mounted here: {error.strerror} (the kernel's log has the reason)"
        raise _Refused("no-mount", text, _ELSEWHERE) from None
    _look_at_what_it_left(branch)


def _attributes(path: str) -> None:
    """What a file of an image may have: what its file system keeps, aufs must copy."""
    for name in ("user.cowshed", "trusted.cowshed"):
        try:
            os.setxattr(path, name, b"1")
        except OSError as error:
            text = f"the file system keeps no {name.partition('.')[0]}.* attributes: {error.strerror}"
            raise _Refused("no-xattr", text, _ELSEWHERE) from None


def _do_what_containers_do(root: str) -> None:
    doing = "delete a file"
    try:
        os.unlink(f"{root}/file")
        doing = "make a directory where a file was deleted"
        os.mkdir(f"{root}/file")
        doing = "replace a directory"
        os.unlink(f"{root}/dir/below")
        os.rmdir(f"{root}/dir")
        os.mkdir(f"{root}/dir")
        doing = "change a file of a layer below that has attributes"
        os.chmod(f"{root}/changed", 0o600)
        os.rename(f"{root}/changed", f"{root}/renamed")
        if "user.cowshed" not in os.listxattr(f"{root}/renamed"):
            raise _Refused("no-xattr", "aufs was built without extended attributes (AUFS_XATTR)")
        doing = "open a directory of a layer below to others"
        os.chmod(f"{root}/closed", 0o755)
    except OSError as error:
        raise _Refused("no-change", f"cannot {doing} on a trial mount: {error.strerror}", _ELSEWHERE) from None
    if os.listdir(f"{root}/dir"):
        raise _Refused("no-opaque", "a directory that was removed and made again still shows what lies below")
    if not {"dir", "file", "renamed"} <= {*os.listdir(root)} or os.path.lexists(f"{root}/changed"):
        raise _Refused("no-whiteouts", "a file that was renamed on a trial mount still shows under its old name")
    if not _open_to_others(root, "closed"):
        raise _Refused("no-dirperm1", "the mode of a directory below counts although it was changed (dirperm1)")


def _open_to_others(root: str, name: str) -> bool:
    """Whether a process without privileges may list a directory."""
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir(root)
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
            os.listdir(name)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _look_at_what_it_left(branch: str) -> None:
    mark = f"{branch}/.wh.changed"
    if not os.path.lexists(mark) or not stat.S_ISREG(os.lstat(mark).st_mode):
        raise _Refused("no-whiteouts", f"a deletion left no .wh. file in the branch but {sorted(os.listdir(branch))}")
    if OPAQUE not in os.listdir(f"{branch}/dir"):
        raise _Refused("no-opaque", f"a directory made anew has no {OPAQUE} in the branch")
