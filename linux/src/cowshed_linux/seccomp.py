"""Seccomp filters: compiled by libseccomp, loaded by seccomp(2)."""

from __future__ import annotations

import os

from cowshed_linux import libc
from cowshed_linux.libc import NULL, ffi, string, syscall
from cowshed_linux.process import PR_SET_NO_NEW_PRIVS, prctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ALLOW, KILL, KILL_PROCESS, TRAP, LOG, ERRNO, TRACE, NOTIFY = (
    0x7FFF0000, 0x00000000, 0x80000000, 0x00030000, 0x7FFC0000, 0x00050000, 0x7FF00000, 0x7FC00000,
)  # fmt: skip
# <linux/seccomp.h>: of seccomp(2) SECCOMP_SET_MODE_FILTER
FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1, "SECCOMP_FILTER_FLAG_LOG": 2, "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 32,
}  # fmt: skip
TSYNC, WAIT_KILLABLE_RECV = 1, 32
_NEW_LISTENER, _TSYNC_ESRCH = 8, 16
_SET_MODE_FILTER = 1
_NO_SUCH_ADDRESS = 14  # EFAULT
COMPARE = {
    "SCMP_CMP_NE": 1, "SCMP_CMP_LT": 2, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4, "SCMP_CMP_GE": 5, "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}  # fmt: skip
_library: Any = None


def _load() -> Any:
    global _library
    if _library is None:
        try:
            _library = ffi.dlopen("libseccomp.so.2")
        except OSError:
            raise OSError(2, "libseccomp.so.2 is not installed (Debian: libseccomp2)") from None
    return _library


def version() -> str:
    """Of the library, as it says itself."""
    it = _load().seccomp_version()
    return f"{it.major}.{it.minor}.{it.micro}"


def library_path() -> str:
    """The file that the library is loaded from. OSError if it is not installed."""
    _load()
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        return next(line.split(None, 5)[5].strip() for line in file if "libseccomp.so" in line)


def compile_filter(
    default: int, architectures: list[str], rules: list[tuple[int, list[str], list[tuple[int, int, int, int]]]]
) -> bytes:
    """The BPF program of rules (action, names of calls, argument tests (index, operator, value, second value)).

    Calls that libseccomp does not know on this machine are left out: they then meet the default action. Tests of a rule
    must all hold; of those of one argument, of which the library takes one, any. OSError: the library refused it.
    """
    library = _load()
    filter_ = library.seccomp_init(default)
    if filter_ == NULL:
        raise OSError(22, f"seccomp_init {default:#x}")
    try:
        for architecture in architectures:
            token = library.seccomp_arch_resolve_name(string(architecture))
            result = library.seccomp_arch_add(filter_, token) if token else -22
            if result not in (0, -17):  # -EEXIST: the native one
                raise OSError(-result, f"seccomp architecture {architecture}")
        for action, names, tests in rules:
            if action == default:
                continue
            distinct = len({test[0] for test in tests}) == len(tests)
            arguments = [ffi.new("scmp_arg_cmp[]", some) for some in ([tests] if distinct else [[t] for t in tests])]
            for name in names:
                number = library.seccomp_syscall_resolve_name(string(name))
                if number == -1:
                    continue
                for argument in arguments:
                    result = library.seccomp_rule_add_array(filter_, action, number, len(argument), argument)
                    if result < 0:
                        raise OSError(-result, f"seccomp rule for {name}")
        fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        try:
            result = library.seccomp_export_bpf(filter_, fd)
            if result < 0:
                raise OSError(-result, "seccomp_export_bpf")
            return os.pread(fd, 1 << 22, 0)
        finally:
            os.close(fd)
    finally:
        library.seccomp_release(filter_)


def load(program: bytes, flags: int = 0, *, listener: bool = False) -> int:
    """Confine this thread and all it becomes; the descriptor at which notifications arrive, if a listener is wanted,
    else 0. OSError: EACCES without CAP_SYS_ADMIN or no_new_privs, EINVAL for what is no program or for flags that this
    kernel does not have, EBUSY if another filter has a listener."""
    buffer = ffi.from_buffer(program)
    argument = ffi.new("sock_fprog *")
    argument.length, argument.filter = len(program) // 8, buffer
    if listener:
        # Else the kernel could not tell a descriptor from the id of a thread that failed.
        flags |= _NEW_LISTENER | (_TSYNC_ESRCH if flags & TSYNC else 0)
    return syscall("seccomp", libc.SECCOMP, _SET_MODE_FILTER, flags, argument)


def knows_flag(flag: int) -> bool:
    """Whether this kernel has a flag of FLAGS: it then looks for the program, which is not there."""
    # One that only goes with a listener is asked for together with that.
    asked = flag | _NEW_LISTENER if flag == WAIT_KILLABLE_RECV else flag
    try:
        syscall("seccomp", libc.SECCOMP, _SET_MODE_FILTER, asked, NULL)
    except OSError as error:
        return error.errno == _NO_SUCH_ADDRESS
    return True


def no_new_privileges() -> None:
    prctl(PR_SET_NO_NEW_PRIVS, 1)
