"""Namespaces by descriptor, and id mappings: namespaces(7), ioctl_ns(2), user_namespaces(7), time_namespaces(7)."""

from __future__ import annotations

import fcntl
import os

from cowshed_linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_GET_TYPE = 0xB703  # NS_GET_NSTYPE
# The names of /proc/PID/ns
FILES = {
    process.CLONE_NEWNS: "mnt", process.CLONE_NEWUTS: "uts", process.CLONE_NEWIPC: "ipc", process.CLONE_NEWPID: "pid",
    process.CLONE_NEWNET: "net", process.CLONE_NEWCGROUP: "cgroup", process.CLONE_NEWUSER: "user",
    process.CLONE_NEWTIME: "time",
}  # fmt: skip


def kind(fd: int) -> int:
    """The CLONE_NEW flag of the namespace that fd refers to. OSError ENOTTY if it refers to none."""
    return fcntl.ioctl(fd, _GET_TYPE)


def is_own(fd: int, flag: int) -> bool:
    """Whether this process is in the namespace that fd refers to."""
    own, other = os.stat(f"/proc/self/ns/{FILES[flag]}"), os.fstat(fd)
    return (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino)


def write_map(pid: int, file: str, extents: Iterable[tuple[int, int, int]]) -> None:
    """Write /proc/PID/uid_map or gid_map: (first id inside, first id outside, count) each, all at once.

    OSError EPERM without CAP_SETUID over all the ids, EINVAL for what overlaps or is longer than a page.
    """
    _write(f"/proc/{pid}/{file}", "".join(f"{inside} {outside} {count}\n" for inside, outside, count in extents))


def read_map(pid: int | str, file: str) -> list[tuple[int, int, int]]:
    """What write_map wrote, as seen from this process's own user namespace."""
    with open(f"/proc/{pid}/{file}") as f:
        return [(int(a), int(b), int(c)) for a, b, c in (line.split() for line in f)]


def deny_setgroups(pid: int) -> None:
    """Before a gid_map is written without CAP_SETGID: nobody in the namespace may leave a group (CVE-2014-8989)."""
    _write(f"/proc/{pid}/setgroups", "deny")


def may_set_groups(pid: int | str) -> bool:
    """Whether setgroups(2) is allowed in the user namespace of a process."""
    with open(f"/proc/{pid}/setgroups") as f:
        return f.read().strip() == "allow"


def offset_clocks(offsets: Iterable[tuple[str, int, int]]) -> None:
    """Put this process, which must have one thread, into a new time namespace whose clocks are ahead by (clock,
    seconds, nanoseconds); a clock is `monotonic` or `boottime`. OSError ERANGE for what the kernel does not count
    to."""
    process.unshare(process.CLONE_NEWTIME)  # of the children to come; offsets can be set until the first one enters
    text = "".join(f"{clock} {seconds} {nanoseconds}\n" for clock, seconds, nanoseconds in offsets)
    if text:
        _write("/proc/self/timens_offsets", text)
    fd = os.open("/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
    try:
        process.setns(fd, process.CLONE_NEWTIME)
    finally:
        os.close(fd)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"{path}: {error.strerror}") from None
    finally:
        os.close(fd)
