"""Processes: clone3(2), unshare(2), setns(2), prctl(2), close_range(2), pidfds."""

from __future__ import annotations

import os

from cowshed_linux import libc
from cowshed_linux.libc import NULL, C, check, ffi, string, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

CLONE_FS = 0x200
CLONE_NEWTIME, CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x80, 0x20000, 0x2000000, 0x4000000
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x8000000, 0x10000000, 0x20000000, 0x40000000
CLONE_FILES, CLONE_PIDFD, CLONE_PARENT, CLONE_INTO_CGROUP = 0x400, 0x1000, 0x8000, 0x200000000
WALL = 0x40000000  # waitpid(2) __WALL: also children that send no SIGCHLD

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_NAME, PR_CAPBSET_DROP = 1, 4, 8, 15, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 36, 38, 47
CLOSE_RANGE_CLOEXEC = 4

_CLONE_ARGS = ffi.sizeof("clone_args")


def clone3(flags: int, *, exit_signal: int = 17, cgroup: int = -1, pidfd: bool = False) -> tuple[int, int]:
    """Fork with new namespaces; (pid, pidfd or -1) in the parent, (0, -1) in the child.

    Only from a single-threaded process. With CLONE_PARENT exit_signal must be 0. cgroup is a descriptor of a cgroup v2
    directory that the child is born in.
    """
    arguments = ffi.new("clone_args *")
    arguments.flags, arguments.exit_signal = flags, exit_signal
    slot = None
    if pidfd:
        slot = ffi.new("int *", -1)
        arguments.pidfd = int(ffi.cast("uintptr_t", slot))
        arguments.flags |= CLONE_PIDFD
    if cgroup >= 0:
        arguments.cgroup = cgroup
        arguments.flags |= CLONE_INTO_CGROUP
    pid = syscall("clone3", libc.CLONE3, arguments, _CLONE_ARGS)
    return pid, (slot[0] if slot is not None and pid else -1)


# Made once: a monitor that calls these after its fork touches as little memory as can be.
_SHARING = ffi.new("clone_args *")
_SHARING.flags = CLONE_FILES
_FORK_SHARING = (ffi.cast("long", libc.CLONE3), _SHARING, ffi.cast("long", _CLONE_ARGS))
_BECOME_SUBREAPER = (PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
_syscall, _prctl = C.syscall, C.prctl


def fork_sharing_descriptors() -> int:
    """Fork a child that shares this process's table of descriptors: what one opens or closes, the other has or has not.
    It sends no signal when it ends: waitpid(2) with WALL."""
    pid: int = _syscall(*_FORK_SHARING)
    if pid < 0:
        libc.fail("clone3")
    return pid


def become_subreaper() -> None:
    """Orphans below this process become its children."""
    if _prctl(*_BECOME_SUBREAPER) < 0:
        libc.fail("prctl PR_SET_CHILD_SUBREAPER")


def unshare(flags: int) -> None:
    check(C.unshare(flags), f"unshare {flags:#x}")


def setns(fd: int, kind: int) -> None:
    check(C.setns(fd, kind), f"setns {kind:#x}")


def prctl(option: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0) -> int:
    return check(C.prctl(option, a, b, c, d), f"prctl {option}")


def close_range(first: int, last: int = 0xFFFFFFFF, *, on_exec: bool = False) -> None:
    """Close descriptors first … last, or let execve(2) do it."""
    syscall("close_range", libc.CLOSE_RANGE, first, last, CLOSE_RANGE_CLOEXEC if on_exec else 0)


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A duplicate of descriptor fd of another process."""
    return syscall(f"pidfd_getfd {fd}", libc.PIDFD_GETFD, pidfd, fd, 0)


def set_hostname(name: str) -> None:
    check(C.sethostname(string(name), len(os.fsencode(name))), f"sethostname {name}")


def set_domainname(name: str) -> None:
    check(C.setdomainname(string(name), len(os.fsencode(name))), f"setdomainname {name}")


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot: with the pid and the boot id its name for ever (proc(5), stat
    field 22). ProcessLookupError if there is none."""
    return int(_stat(pid)[19])


def lives(pid: int, started: int) -> bool:
    """Whether the process that had this pid and start time is there and no zombie."""
    try:
        stat = _stat(pid)
    except ProcessLookupError:
        return False
    return int(stat[19]) == started and stat[0] not in (b"Z", b"X")


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the state on, which is field 3 of proc(5)."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ProcessLookupError(3, f"no process {pid}") from None
    try:
        return os.read(fd, 4096).rpartition(b")")[2].split()
    finally:
        os.close(fd)


def _arguments() -> tuple[int, int]:
    """Where the arguments of this process are, and how many bytes (proc(5), stat fields 48 and 49)."""
    with open("/proc/self/stat", "rb") as f:
        fields = f.read().rpartition(b")")[2].split()
    return int(fields[45]), int(fields[46]) - int(fields[45])


_ARGUMENTS = _arguments()  # read while /proc is sure to be the host's; a fork has them at the same place


def rename(name: bytes) -> None:
    """What ps shows of this process instead of the command line that it was started with."""
    place, size = _ARGUMENTS
    ffi.memmove(ffi.cast("char *", place), name[: size - 1].ljust(size, b"\0"), size)
    short = ffi.new("char[]", name[:15])
    prctl(PR_SET_NAME, int(ffi.cast("uintptr_t", short)))


def boot_id() -> str:
    fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64).decode().strip()
    finally:
        os.close(fd)


def new_session_keyring() -> None:
    """A session keyring of its own for this process, so that it does not share its parent's (keyctl(2))."""
    try:
        syscall("keyctl", libc.KEYCTL, 1, libc.NULL, 0, 0, 0)
    except OSError as error:
        if error.errno not in (1, 38, 122):  # EPERM, ENOSYS: forbidden or not there; EDQUOT: the user has too many
            raise


def default_reserved_signals() -> None:
    """Give the two signals that the C library keeps to itself their default action: whoever is started by
    posix_spawn(3) has them ignored, and its sigaction(2) does not take their numbers."""
    nothing = ffi.new("char[32]")  # struct sigaction of the kernel: SIG_DFL, no flags, no mask
    for number in (32, 33):
        syscall("rt_sigaction", libc.RT_SIGACTION, number, nothing, NULL, 8)


def aside(namespace: int, work: Callable[[], T]) -> T:
    """Do work in a mount namespace (-1: a new one, private) and come back with what it gives.

    In a thread of its own: a thread can be in another namespace than the rest of its process. Nothing is imported
    there: what a container calls a library of ours must not become one (CVE-2019-14271).
    """
    import threading

    from cowshed_linux import mount

    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            home = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if namespace < 0:
                    unshare(CLONE_NEWNS)
                    mount.mount(None, "/", None, mount.REC | mount.PRIVATE)
                else:
                    unshare(CLONE_FS)
                    setns(namespace, CLONE_NEWNS)
                done.append(work())
                setns(home, CLONE_NEWNS)  # a new namespace goes now, not some time after the thread
            finally:
                os.close(home)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="aside")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
