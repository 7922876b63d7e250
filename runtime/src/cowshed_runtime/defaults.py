"""What a container gets when nobody says otherwise: an OCI configuration to start from (runtime-spec config.md)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CAPABILITIES = (
    "CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
)  # fmt: skip
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MASKED = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
)  # fmt: skip
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_DEVICES = (("c", 1, 3), ("c", 1, 5), ("c", 1, 7), ("c", 1, 8), ("c", 1, 9), ("c", 5, 0), ("c", 5, 2), ("c", 136, -1))


def device_rules() -> list[dict[str, Any]]:
    """What a container may do with devices in any case: make nodes of any, and use those of config-linux.md, Default
    Devices."""
    return [
        *({"allow": True, "type": kind, "access": "m"} for kind in "bc"),
        *({"allow": True, "type": k, "major": a, "minor": b, "access": "rwm"} for k, a, b in _DEVICES),
    ]


def config(*, shm_size: int = 64 << 20, privileged: bool = False) -> dict[str, Any]:
    """A fresh configuration: all namespaces but user, the usual mounts, devices, masks. The caller fills process, root
    and what else it wants. Without linux.seccomp there is no filter."""
    ro = [] if privileged else ["ro"]
    safe = ["nosuid", "noexec", "nodev"]
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": safe},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
         "options": [*safe, "mode=1777", f"size={shm_size}"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": safe},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*safe, *ro]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": [*safe, *ro]},
    ]  # fmt: skip
    rules: list[dict[str, Any]] = [{"allow": privileged, "access": "rwm"}]
    if not privileged:
        rules += device_rules()
    kinds = ("pid", "ipc", "uts", "mount", "network", "cgroup")
    return {
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs", "readonly": False},
        "process": {
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "args": [],
            "env": [],
            "noNewPrivileges": False,
            "capabilities": {kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
            "rlimits": [],
        },
        "mounts": mounts,
        "linux": {
            "namespaces": [{"type": kind} for kind in kinds],
            "resources": {"devices": rules},
            "maskedPaths": [] if privileged else list(MASKED),
            "readonlyPaths": [] if privileged else list(READ_ONLY),
            "devices": [],
        },
    }
