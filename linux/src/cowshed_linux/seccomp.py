"""Seccomp filters: compiled by libseccomp, loaded by seccomp(2)."""

from __future__ import annotations

import os

from cowshed_linux import libc
from cowshed_linux.libc import NULL, ffi, string, syscall
from cowshed_linux.process import PR_SET_NO_NEW_PRIVS, prctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ALLOW, KILL, KILL_PROCESS, TRAP, LOG, ERRNO, TRACE = (
    0x7FFF0000, 0x00000000, 0x80000000, 0x00030000, 0x7FFC0000, 0x00050000, 0x7FF00000,
)  # fmt: skip
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
    it = _load().seccomp_version()
    return f"{it.major}.{it.minor}.{it.micro}"


def compile_filter(
    default: int, architectures: list[str], rules: list[tuple[int, list[str], list[tuple[int, int, int, int]]]]
) -> bytes:
    """The BPF program of rules (action, names of calls, argument tests (index, operator, value, second value)).

    Calls that libseccomp does not know on this machine are left out: they then meet the default action.
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
            arguments = ffi.new("scmp_arg_cmp[]", tests) if tests else NULL
            for name in names:
                number = library.seccomp_syscall_resolve_name(string(name))
                if number == -1:
                    continue
                result = library.seccomp_rule_add_array(filter_, action, number, len(tests), arguments)
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


def load(program: bytes) -> None:
    """Confine this thread and all it becomes. Needs CAP_SYS_ADMIN or no_new_privs."""
    buffer = ffi.from_buffer(program)
    argument = ffi.new("sock_fprog *")
    argument.length, argument.filter = len(program) // 8, buffer
    syscall("seccomp", libc.SECCOMP, 1, 0, argument)


def no_new_privileges() -> None:
    prctl(PR_SET_NO_NEW_PRIVS, 1)
