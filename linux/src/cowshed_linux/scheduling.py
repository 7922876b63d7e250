"""How a process is scheduled, on processors, disks and memory nodes: sched_setattr(2), ioprio_set(2),
set_mempolicy(2). What is set is inherited by children and survives execve(2)."""

from __future__ import annotations

import os
from _struct import pack

from cowshed_linux.libc import NULL, C, ffi, syscall

if os.uname().machine == "x86_64":
    _SCHED_SETATTR, _IOPRIO_SET, _SET_MEMPOLICY = 314, 251, 238
else:  # the generic table
    _SCHED_SETATTR, _IOPRIO_SET, _SET_MEMPOLICY = 274, 30, 237

# <linux/sched.h>
POLICIES = {
    "SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_ISO": 4, "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}  # fmt: skip
FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01, "SCHED_FLAG_RECLAIM": 0x02, "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08, "SCHED_FLAG_KEEP_PARAMS": 0x10, "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}  # fmt: skip
# <linux/ioprio.h>
IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
_WHO_GROUP, _CLASS_SHIFT = 2, 13
# <linux/mempolicy.h>
MEMORY_MODES = {
    "MPOL_DEFAULT": 0, "MPOL_PREFERRED": 1, "MPOL_BIND": 2, "MPOL_INTERLEAVE": 3, "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5, "MPOL_WEIGHTED_INTERLEAVE": 6,
}  # fmt: skip
MEMORY_FLAGS = {"MPOL_F_STATIC_NODES": 1 << 15, "MPOL_F_RELATIVE_NODES": 1 << 14, "MPOL_F_NUMA_BALANCING": 1 << 13}
# <linux/personality.h>
PERSONALITIES = {"LINUX": 0x0, "LINUX32": 0x8}
_RESET = 0xFFFFFFFF  # of a clamp of utilisation: what the system gives by itself


def set_scheduler(
    policy: int, *, flags: int = 0, nice: int = 0, priority: int = 0, runtime: int = 0, deadline: int = 0,
    period: int = 0,
) -> None:  # fmt: skip
    """The scheduling of this process; runtime, deadline and period in nanoseconds. OSError: EINVAL for what does not go
    together, EPERM without CAP_SYS_NICE, or where its control group has no real-time share, EBUSY if a deadline
    cannot be kept."""
    attributes = pack(
        "@IIQiIQQQII", 56, policy, flags, nice, priority, runtime, deadline, period, _RESET, _RESET
    )  # struct sched_attr, version 1
    syscall("sched_setattr", _SCHED_SETATTR, 0, ffi.from_buffer(attributes), 0)


def set_io_priority(kind: int, level: int) -> None:
    """The priority of this process group at disks: a class of IO_CLASSES, a level in it (0, the highest, to 7).
    OSError EPERM for IOPRIO_CLASS_RT without CAP_SYS_ADMIN or CAP_SYS_NICE."""
    syscall("ioprio_set", _IOPRIO_SET, _WHO_GROUP, 0, kind << _CLASS_SHIFT | level)


def set_memory_policy(mode: int, nodes: int) -> None:
    """From which memory nodes, a mask, this process gets memory. OSError: EINVAL for nodes that are not there."""
    if not nodes:
        syscall("set_mempolicy", _SET_MEMPOLICY, mode, NULL, 0)
        return
    words = (nodes.bit_length() + 63) // 64
    mask = ffi.new("uint64_t[]", [nodes >> 64 * n & 0xFFFFFFFFFFFFFFFF for n in range(words)])
    # The kernel looks at one bit less than it is told.
    syscall("set_mempolicy", _SET_MEMPOLICY, mode, mask, 64 * words + 1)


def set_personality(persona: int) -> None:
    """personality(2)."""
    C.personality(persona)
