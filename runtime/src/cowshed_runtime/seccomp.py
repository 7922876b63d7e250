"""OCI seccomp profiles (config-linux.md, Seccomp): the default one, and compiling one to a BPF program that is kept for
the next time."""

from __future__ import annotations

import os
from _blake2 import blake2b

from cowshed_linux import files, seccomp
from cowshed_runtime.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ACTIONS = {
    "SCMP_ACT_ALLOW": seccomp.ALLOW, "SCMP_ACT_KILL": seccomp.KILL, "SCMP_ACT_KILL_THREAD": seccomp.KILL,
    "SCMP_ACT_KILL_PROCESS": seccomp.KILL_PROCESS, "SCMP_ACT_TRAP": seccomp.TRAP, "SCMP_ACT_LOG": seccomp.LOG,
    "SCMP_ACT_ERRNO": seccomp.ERRNO, "SCMP_ACT_TRACE": seccomp.TRACE, "SCMP_ACT_NOTIFY": seccomp.NOTIFY,
}  # fmt: skip
WITH_ERRNO = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
# by the names of libseccomp
ARCHITECTURES = {
    f"SCMP_ARCH_{name.upper()}": name for name in
    "x86 x86_64 x32 arm aarch64 mips mips64 mips64n32 mipsel mipsel64 mipsel64n32 ppc ppc64 ppc64le s390 s390x parisc "
    "parisc64 riscv64 loongarch64 m68k sh sheb".split()
}  # fmt: skip
BPF_DATA = "run.oci.seccomp_bpf_data"
_SUBARCHITECTURES = {"x86_64": ["x86_64", "x86", "x32"], "aarch64": ["aarch64", "arm"]}

# What any program may call. Left out: what changes the kernel, the clock, other processes' memory or the mount table,
# what has a record of holes and no users (io_uring, userfaultfd, bpf, perf, keyrings), what a capability adds.
_ALWAYS = """
accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime
clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64
close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old
epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2
fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64
fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync
ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat getcpu getcwd
getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername
getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit
get_robust_list getrusage getsid getsockname getsockopt get_thread_area gettid gettimeofday getuid getuid32 getxattr
getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy io_getevents
io_pgetevents io_pgetevents_time64 ioprio_get ioprio_set io_setup io_submit ipc kill landlock_add_rule
landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr
listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier
memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 modify_ldt mprotect
mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap
mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open
openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64
prctl pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv process_vm_writev pselect6 pselect6_time64
ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg
remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction
rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64
rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min
sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64
sendmmsg sendmsg sendto setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid
setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit
set_robust_list setsid setsockopt set_thread_area set_tid_address setuid setuid32 setxattr setxattrat shmat shmctl shmdt
shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs
statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete
timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime
timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink
unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev
arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls riscv_flush_icache
"""
_BY_CAPABILITY = {
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_ADMIN": "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr "
    "move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 "
    "unshare",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module init_module finit_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "settimeofday stime clock_settime clock_settime64",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYSLOG": "syslog",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
}
_DIGEST = 16
_NO_ROOM = (28, 30, 122)  # ENOSPC, EROFS, EDQUOT: a full disk starts containers, 13 ms later
_NEW_NAMESPACES = 0x7E020000
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
_AF_VSOCK = 40
# FS_IOC_FSSETXATTR, FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS (linux/fs.h): with these the owner of a file takes it out of the
# project by which a storage driver counts it
_LEAVE_A_PROJECT = (0x401C5820, 0x40086602, 0x40046602)


def default_profile(capabilities: list[str], *, keep_projects: bool = False) -> dict[str, Any]:
    """The profile of a container with these capabilities, as OCI linux.seccomp.

    keep_projects: its files stay in the project that their directory gave them, so that it keeps to a size limit. The
    price is chattr(1).
    """

    def allow(names: str, args: list[dict[str, int | str]] | None = None) -> dict[str, Any]:
        return {"names": names.split(), "action": "SCMP_ACT_ALLOW", "args": args or []}

    rules = [allow(_ALWAYS)]
    rules += [allow("personality", [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]) for value in _PERSONALITIES]
    rules.append(allow("socket", [{"index": 0, "value": _AF_VSOCK, "op": "SCMP_CMP_NE"}]))
    if keep_projects:
        rules[0]["names"].remove("ioctl")
        rules += [allow("ioctl", [test]) for test in _none_of(_LEAVE_A_PROJECT)]
    held = set(capabilities)
    rules += [allow(names) for capability, names in _BY_CAPABILITY.items() if capability in held]
    if "CAP_SYS_ADMIN" not in held:
        masked: dict[str, int | str] = {"index": 0, "value": _NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
        rules.append(allow("clone", [masked]))
        # The flags of clone3 are behind a pointer, which a filter cannot follow: as if it did not exist, so that
        # C libraries fall back to clone.
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "args": []})
    return {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": rules}


def _none_of(values: tuple[int, ...], *, high: int = 0, bit: int = 31) -> list[dict[str, int | str]]:
    """Tests of an ioctl's request of which one holds if it is none of these: a rule that forbids beside one that allows
    cannot be, and a rule has one test of an argument. high: the bits above `bit`, which all these values have."""
    if not values:
        mask = 0xFFFFFFFF & ~((1 << (bit + 1)) - 1)
        return [{"index": 1, "value": mask, "valueTwo": high, "op": "SCMP_CMP_MASKED_EQ"}]
    if bit < 0:
        return []
    one = 1 << bit
    without, having = tuple(v for v in values if not v & one), tuple(v for v in values if v & one)
    return [*_none_of(without, high=high, bit=bit - 1), *_none_of(having, high=high | one, bit=bit - 1)]


class Filter:
    """flags: of seccomp(2); notifies: an agent is to decide about some calls, it listens at the UNIX socket `listener`,
    "" for none, and is told `metadata`."""

    def __init__(self, program: bytes, *, flags: int, notifies: bool, listener: str, metadata: str) -> None:
        self.program, self.flags, self.notifies = program, flags, notifies
        self.listener, self.metadata = listener, metadata


def wanted(linux: dict[str, Any], annotations: dict[str, str], cache: str) -> Filter | None:
    """The filter of a validated configuration. OSError or ValueError for a profile that cannot be compiled."""
    raw, profile = annotations.get(BPF_DATA), linux.get("seccomp")
    if raw:
        return Filter(_decoded(raw), flags=0, notifies=False, listener="", metadata="")
    if not profile:
        return None
    flags = 0
    for flag in profile.get("flags") or ():
        flags |= seccomp.FLAGS[flag]
    notifies = any(rule["action"] == "SCMP_ACT_NOTIFY" for rule in profile.get("syscalls") or ())
    if not notifies:
        flags &= ~seccomp.WAIT_KILLABLE_RECV  # of a notification, which there is none of
    return Filter(
        program(profile, cache), flags=flags, notifies=notifies,
        listener=profile.get("listenerPath") or "", metadata=profile.get("listenerMetadata") or "",
    )  # fmt: skip


def _decoded(text: str) -> bytes:
    from binascii import a2b_base64

    code = a2b_base64(text, strict_mode=True)
    if not code or len(code) % 8:
        raise ValueError(f"{BPF_DATA} is no program of instructions of 8 bytes")
    return code


def program(profile: dict[str, Any], cache: str) -> bytes:
    """The BPF program of a profile. Compiling costs 13 ms, so it is kept in the folder cache, with a digest of its own:
    what a power cut has spoilt is compiled again, and so is what another file of the library made, which may know more
    calls. The library is not loaded for what is kept. OSError, KeyError for a profile that cannot be compiled."""
    parts = [profile.get(key) for key in ("defaultAction", "defaultErrnoRet", "architectures", "syscalls")]
    named = f"{os.uname().machine} {dumps(parts)}".encode()
    path = f"{cache}/seccomp-{blake2b(named, digest_size=16).hexdigest()}.bpf"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return _keep(profile, path)
    try:
        kept = os.read(fd, 1 << 20)
    finally:
        os.close(fd)
    made = kept[_DIGEST:]
    if kept[:_DIGEST] != blake2b(made, digest_size=_DIGEST).digest():
        return _keep(profile, path)
    library, _, code = made.partition(b"\n")
    if library != _library(library.partition(b" ")[2].decode(errors="surrogateescape")):
        return _keep(profile, path)
    return code


def _library(path: str) -> bytes:
    """The file of the library, and its path: of two that differ, one is another version. Empty if there is none."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return b""
    return f"{there.st_ino}-{there.st_size}-{there.st_mtime_ns} {path}".encode(errors="surrogateescape")


def _keep(profile: dict[str, Any], path: str) -> bytes:
    code = _compile(profile)
    made = _library(seccomp.library_path()) + b"\n" + code
    try:
        files.write_atomically(path, blake2b(made, digest_size=_DIGEST).digest() + made, durable=False)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
    return code


def _action(name: str, errno: int | None) -> int:
    action = ACTIONS[name]
    return action | (1 if errno is None else errno) if name in WITH_ERRNO else action


def _compile(profile: dict[str, Any]) -> bytes:
    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    wanted = [ARCHITECTURES[name] for name in profile.get("architectures") or ()]
    architectures = wanted or _SUBARCHITECTURES.get(os.uname().machine, [])
    rules = []
    for rule in profile.get("syscalls") or ():
        tests = [
            (a["index"], seccomp.COMPARE[a["op"]], a["value"], a.get("valueTwo") or 0) for a in rule.get("args") or ()
        ]
        rules.append((_action(rule["action"], rule.get("errnoRet")), rule["names"], tests))
    return seccomp.compile_filter(default, architectures, rules)
