"""bpf(2), as far as cgroup version 2 needs it: a device filter is a program attached to the group
(BPF_PROG_TYPE_CGROUP_DEVICE)."""

from __future__ import annotations

import os
from _struct import pack

from cowshed_linux.libc import NULL, ffi, syscall

_NUMBER = 321 if os.uname().machine == "x86_64" else 280
_PROG_LOAD, _PROG_ATTACH = 5, 8
_CGROUP_DEVICE_PROGRAM, _CGROUP_DEVICE_HOOK, _ALLOW_MULTI = 15, 6, 2
_LOG = 1 << 20


def _call(what: str, command: int, attributes: bytes) -> int:
    return syscall(what, _NUMBER, command, ffi.from_buffer(attributes), len(attributes))


def _address(data: object) -> int:
    return int(ffi.cast("uintptr_t", data))


def load_device_program(instructions: bytes) -> int:
    """The descriptor of a verified program. EINVAL or EACCES, with the verifier's last words, for a bad one."""
    code, licence = ffi.from_buffer(instructions), ffi.new("char[]", b"Apache-2.0")

    def load(level: int, size: int, log: object) -> int:
        attributes = pack(
            "@IIQQIIQII", _CGROUP_DEVICE_PROGRAM, len(instructions) // 8, _address(code), _address(licence),
            level, size, _address(log), 0, 0,
        )  # fmt: skip
        return _call("bpf", _PROG_LOAD, attributes)

    try:
        return load(0, 0, NULL)
    except OSError as error:
        log = ffi.new("char[]", _LOG)
        try:
            return load(1, _LOG, log)
        except OSError:
            said = ffi.string(log).decode(errors="replace").strip().replace("\n", "; ")
        raise OSError(error.errno, f"{error.strerror}{f' (verifier: {said[-400:]})' if said else ''}") from None


def attach_device_program(cgroup: int, program: int) -> None:
    """Let the program decide about devices for the processes of the cgroup at descriptor cgroup, and below it. Programs
    of groups above keep their say."""
    _call("bpf attach", _PROG_ATTACH, pack("@IIIII", cgroup, program, _CGROUP_DEVICE_HOOK, _ALLOW_MULTI, 0))
