"""bpf(2), as far as cgroup version 2 needs it: a device filter is a program attached to the group
(BPF_PROG_TYPE_CGROUP_DEVICE)."""

from __future__ import annotations

import os
from _struct import pack, unpack_from

from cowshed_linux.libc import NULL, ffi, syscall

_NUMBER = 321 if os.uname().machine == "x86_64" else 280
_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _PROG_GET_FD_BY_ID, _OBJ_GET_INFO_BY_FD, _PROG_QUERY = 5, 8, 9, 13, 15, 16
_CGROUP_DEVICE_PROGRAM, _CGROUP_DEVICE_HOOK, _ALLOW_MULTI, _REPLACE = 15, 6, 2, 4
_NAME = b"cowshed_devices"
_NAME_AT, _INFO = 64, 256  # offset in struct bpf_prog_info, and more than its size
_LOG = 1 << 20
_MANY = 64  # the kernel attaches no more to one group


def _call(what: str, command: int, attributes: bytes | bytearray) -> int:
    return syscall(what, _NUMBER, command, ffi.from_buffer(attributes), len(attributes))


def _address(data: object) -> int:
    return int(ffi.cast("uintptr_t", data))


def load_device_program(instructions: bytes) -> int:
    """The descriptor of a verified program. EINVAL or EACCES, with the verifier's last words, for a bad one; EPERM
    without CAP_BPF."""
    code, licence = ffi.from_buffer(instructions), ffi.new("char[]", b"Apache-2.0")

    def load(level: int, size: int, log: object) -> int:
        attributes = pack(
            "@IIQQIIQII16s", _CGROUP_DEVICE_PROGRAM, len(instructions) // 8, _address(code), _address(licence),
            level, size, _address(log), 0, 0, _NAME,
        )  # fmt: skip
        return _call("bpf", _PROG_LOAD, attributes)

    try:
        return load(0, 0, NULL)
    except OSError as error:
        if error.errno == 1:
            _lift_memory_lock()
            return load(0, 0, NULL)
        log = ffi.new("char[]", _LOG)
        try:
            return load(1, _LOG, log)
        except OSError:
            said = ffi.string(log).decode(errors="replace").strip().replace("\n", "; ")
        raise OSError(error.errno, f"{error.strerror}{f' (verifier: {said[-400:]})' if said else ''}") from None


def _lift_memory_lock() -> None:
    """Before Linux 5.11 programs count as locked memory of the process, which may not be let have more."""
    from resource import RLIM_INFINITY, RLIMIT_MEMLOCK, setrlimit

    try:
        setrlimit(RLIMIT_MEMLOCK, (RLIM_INFINITY, RLIM_INFINITY))
    except (OSError, ValueError):
        return


def attach_device_program(cgroup: int, program: int) -> None:
    """Let the program decide about devices for the processes of the cgroup at descriptor cgroup, and below it, in place
    of the one that this function attached before, if any: at no moment does neither or both decide. Programs of others,
    and of groups above, keep their say."""
    old = -1
    for number in _attached(cgroup):
        try:
            fd = _call("bpf", _PROG_GET_FD_BY_ID, pack("@III", number, 0, 0))
        except FileNotFoundError:
            continue
        if _name(fd) == _NAME:
            old = fd
            break
        os.close(fd)
    if old < 0:
        _attach(cgroup, program, _ALLOW_MULTI, 0)
        return
    try:
        _attach(cgroup, program, _ALLOW_MULTI | _REPLACE, old)
    except OSError as error:
        if error.errno != 22:
            raise
        # Before Linux 5.6: for a moment both decide, and what either denies is denied.
        _attach(cgroup, program, _ALLOW_MULTI, 0)
        _call("bpf detach", _PROG_DETACH, pack("@IIII", cgroup, old, _CGROUP_DEVICE_HOOK, 0))
    finally:
        os.close(old)


def _attach(cgroup: int, program: int, flags: int, old: int) -> None:
    _call("bpf attach", _PROG_ATTACH, pack("@IIIII", cgroup, program, _CGROUP_DEVICE_HOOK, flags, old))


def _attached(cgroup: int) -> tuple[int, ...]:
    """The numbers of the device programs attached to the group itself."""
    numbers = ffi.new("uint32_t[]", _MANY)
    attributes = bytearray(
        pack("@IIIIQII", cgroup, _CGROUP_DEVICE_HOOK, 0, 0, _address(numbers), _MANY, 0)
    )  # fmt: skip
    _call("bpf query", _PROG_QUERY, attributes)
    return tuple(numbers[0 : unpack_from("@I", attributes, 24)[0]])


def _name(program: int) -> bytes:
    info = ffi.new("char[]", _INFO)
    _call("bpf info", _OBJ_GET_INFO_BY_FD, pack("@IIQ", program, _INFO, _address(info)))
    return bytes(ffi.buffer(info, _INFO))[_NAME_AT : _NAME_AT + 16].rstrip(b"\0")
