"""Capabilities: capabilities(7), capset(2), prctl(2)."""

from __future__ import annotations

from cowshed_linux import process
from cowshed_linux.libc import C, check, fail, ffi

NAMES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN "
    "SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE "
    "MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split()
NUMBERS = {f"CAP_{name}": number for number, name in enumerate(NAMES)}
_VERSION_3 = 0x20080522
_AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 2, 4


def bits(names: list[str]) -> int:
    """The mask of capabilities by name; names that this kernel's header does not know are left out."""
    mask = 0
    for name in names:
        number = NUMBERS.get(name)
        if number is not None:
            mask |= 1 << number
    return mask


def numbers(mask: int) -> list[int]:
    """The capabilities of a mask."""
    return [number for number in range(mask.bit_length()) if mask >> number & 1]


def names(mask: int) -> list[str]:
    """The capabilities of a mask by name."""
    return [f"CAP_{NAMES[number]}" for number in numbers(mask) if number < len(NAMES)]


def last() -> int:
    """The highest capability of the running kernel."""
    with open("/proc/sys/kernel/cap_last_cap") as f:
        return int(f.read())


def permitted() -> int:
    """What this process may have at most."""
    header = ffi.new("cap_header *", (_VERSION_3, 0))
    data = ffi.new("cap_data[2]")
    check(C.capget(header, data), "capget")
    return int(data[0].permitted) | int(data[1].permitted) << 32


def drop_bounding(numbers: list[int]) -> None:
    """Take capabilities out of the bounding set for good; OSError EPERM without CAP_SETPCAP."""
    call, option = C.prctl, process.PR_CAPBSET_DROP
    for number in numbers:
        if call(option, number, 0, 0, 0) < 0:
            fail(f"prctl PR_CAPBSET_DROP {number}")


def set_all(effective: int, permitted_: int, inheritable: int, ambient: int) -> None:
    """Set this thread's four sets. OSError EPERM for what it does not have."""
    if inheritable:  # without it the kernel clears the ambient set by itself
        process.prctl(process.PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    header = ffi.new("cap_header *", (_VERSION_3, 0))
    data = ffi.new("cap_data[2]")
    for half in (0, 1):
        data[half].effective = effective >> 32 * half & 0xFFFFFFFF
        data[half].permitted = permitted_ >> 32 * half & 0xFFFFFFFF
        data[half].inheritable = inheritable >> 32 * half & 0xFFFFFFFF
    check(C.capset(header, data), "capset")
    if ambient:
        for number in range(64):
            if ambient >> number & 1:
                process.prctl(process.PR_CAP_AMBIENT, _AMBIENT_RAISE, number)
