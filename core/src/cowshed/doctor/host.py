"""Checks of this host: versions, kernel features, control groups, limits, room on the file systems."""

from __future__ import annotations

import os
import sys

from cowshed.doctor.patient import Finding, Severity
from cowshed.storage.kit.places import IN_MEMORY, file_system_name, nearest_directory
from cowshed_linux import seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowshed.doctor.patient import Patient

_OLDEST_KERNEL = (6, 1)
_NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "cgroup")
_CONTROLLERS = {  # by what a container cannot be given without it
    "memory": "--memory is refused", "pids": "--pids-limit is refused", "cpu": "--cpus is refused",
}  # fmt: skip
_DESCRIPTORS = 1024
_NETWORK = frozenset(("nfs", "cifs", "smb", "9p"))
_MOST_SCARCE, _MOST_LOW = 64 << 20, 2 << 30  # bytes: where more is free, a share that is small is no lack


def versions(patient: Patient) -> Iterator[Finding]:
    """Linux and what the engine stands on; older kernels than those that are tested are told."""
    import sqlite3

    release = os.uname().release
    python = ".".join(map(str, sys.version_info[:3]))
    text = f"Linux {release}, Python {python}, SQLite {sqlite3.sqlite_version}"
    try:
        text += f", libseccomp {seccomp.version()}"
    except OSError:
        pass  # `kernel` tells
    yield Finding(Severity.NOTE, "versions.found", text)
    if _numbers(release) < _OLDEST_KERNEL:
        wanted = ".".join(map(str, _OLDEST_KERNEL))
        yield Finding(
            Severity.WARNING, "versions.old-kernel", f"Linux {release} is older than {wanted}",
            "nothing was tested on it", f"boot Linux {wanted} or newer",
        )  # fmt: skip


def _numbers(release: str) -> tuple[int, ...]:
    found = []
    for word in release.replace("-", ".").split(".")[:2]:
        digits = word[: len(word) - len(word.lstrip("0123456789"))]
        found.append(int(digits or 0))
    return tuple(found)


def kernel(patient: Patient) -> Iterator[Finding]:
    """Namespaces and seccomp, without which no container starts."""
    for name in _NAMESPACES:
        if not os.path.exists(f"/proc/self/ns/{name}"):
            yield Finding(
                Severity.ERROR, "kernel.no-namespace", f"this kernel has no {name} namespaces",
                "no container can be started", "boot a kernel that has them (CONFIG_NAMESPACES)",
            )  # fmt: skip
        elif _number(f"/proc/sys/user/max_{name}_namespaces") == 0:
            yield Finding(
                Severity.ERROR, "kernel.no-namespaces-left", f"user.max_{name}_namespaces is 0",
                "no container can be started", f"sysctl user.max_{name}_namespaces=10000",
            )  # fmt: skip
    try:
        seccomp.version()
    except OSError as error:
        yield Finding(
            Severity.ERROR, "kernel.no-libseccomp", error.strerror or str(error),
            "containers start with --security-opt seccomp=unconfined only", "install libseccomp2",
        )  # fmt: skip
    if not os.path.exists("/proc/sys/kernel/seccomp/actions_avail"):
        yield Finding(
            Severity.ERROR, "kernel.no-seccomp", "this kernel has no seccomp filters",
            "containers start with --security-opt seccomp=unconfined only", "boot a kernel with CONFIG_SECCOMP_FILTER",
        )  # fmt: skip


def user(patient: Patient) -> Iterator[Finding]:
    """Whether this is a user who may start containers."""
    me = os.geteuid()
    if me != 0:
        yield Finding(
            Severity.ERROR, "user.not-root", f"this version starts containers for root only, and this is user {me}",
            "no container can be started", "sudo cowshed doctor, and so for the other commands",
        )  # fmt: skip


def _number(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def control_groups(patient: Patient) -> Iterator[Finding]:
    """Hierarchies, and the controllers that limits ask for."""
    from cowshed_runtime.cgroup.layout import host as layout

    places = [path for path, _ in layout.v1] + ([layout.v2] if layout.v2 else [])
    if not places:
        yield Finding(
            Severity.ERROR, "cgroups.none", "no control groups are mounted", "no container can be started",
            "mount -t cgroup2 none /sys/fs/cgroup",
        )  # fmt: skip
        return
    version = "hybrid" if layout.v1 and layout.v2 else "1" if layout.v1 else "2"
    controllers = sorted({name for _, names in layout.v1 for name in names} | set(layout.v2_controllers))
    shown = ", ".join(name for name in controllers if not name.startswith("name="))
    yield Finding(Severity.NOTE, "cgroups.found", f"control groups of version {version} with {shown}")
    closed = [path for path in places if os.statvfs(path).f_flag & os.ST_RDONLY or not os.access(path, os.W_OK)]
    if closed and os.geteuid() == 0:  # `user` tells of others
        yield Finding(
            Severity.ERROR, "cgroups.read-only", f"{', '.join(closed)} cannot be written",
            "no container can be started", f"mount -o remount,rw {closed[0]}",
        )  # fmt: skip
    for name, consequence in _CONTROLLERS.items():
        if not layout.find(name):
            yield Finding(
                Severity.WARNING, "cgroups.no-controller", f"there is no {name} controller", consequence,
                f"boot with cgroup_enable={name}" if name == "memory" else f"boot a kernel that has {name}",
            )  # fmt: skip


def limits(patient: Patient) -> Iterator[Finding]:
    """Limits of this process, which what it starts inherits, and of the whole host."""
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most != resource.RLIM_INFINITY and most < _DESCRIPTORS:
        yield Finding(
            Severity.WARNING, "limits.open-files", f"a process may open {most} files at most (RLIMIT_NOFILE)",
            "images of many layers cannot be mounted, and containers inherit it", "ulimit -Hn 65536, or limits.conf(5)",
        )  # fmt: skip
    for name, what in (("RLIMIT_FSIZE", "file size"), ("RLIMIT_AS", "address space")):
        if resource.getrlimit(getattr(resource, name))[1] != resource.RLIM_INFINITY:
            yield Finding(
                Severity.WARNING, "limits.process", f"the {what} of processes is limited ({name})",
                "pulls of large images fail, and containers inherit it", "start Cowshed without that limit",
            )  # fmt: skip
    with open("/proc/self/mountinfo", "rb") as file:
        mounts = sum(1 for _ in file)
    yield from _nearly("mounts in one namespace", mounts, _number("/proc/sys/fs/mount-max"), "fs.mount-max")
    yield from _nearly("open files", _number("/proc/sys/fs/file-nr"), _number("/proc/sys/fs/file-max"), "fs.file-max")
    with open("/proc/loadavg", encoding="ascii") as file:
        threads = int(file.read().split()[3].partition("/")[2])
    yield from _nearly("threads", threads, _number("/proc/sys/kernel/threads-max"), "kernel.threads-max")
    yield from _nearly("process ids", threads, _number("/proc/sys/kernel/pid_max"), "kernel.pid_max")


def _nearly(what: str, used: int | None, most: int | None, setting: str) -> Iterator[Finding]:
    if used is not None and most and used > 0.9 * most:
        yield Finding(
            Severity.WARNING, "limits.host", f"{used:,} of at most {most:,} {what} are in use on this host",
            "soon no container can be started", f"sysctl {setting}={2 * most}",
        )  # fmt: skip


# ---------------------------------------------------------------- room


def places(patient: Patient) -> Iterator[Finding]:
    """The file systems of the store and of the run directory: kind, room for data, inodes."""
    if patient.settings is None:
        return
    place = patient.place
    kind = file_system_name(place)
    yield Finding(Severity.NOTE, "places.found", f"the store's place {patient.root} is on {kind}")
    if kind in IN_MEMORY:
        yield Finding(
            Severity.WARNING, "places.in-memory", f"{patient.root} is on {kind}",
            "all images and containers are gone at the next boot", "put the store on a disk: --root DIRECTORY",
        )  # fmt: skip
    if kind in _NETWORK:
        yield Finding(
            Severity.ERROR, "places.network", f"{patient.root} is on {kind}",
            "locks and the database do not work across machines: no store can be made there",
            "put the store on a local file system: --root DIRECTORY",
        )  # fmt: skip
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        yield Finding(
            Severity.ERROR, "places.read-only", f"{place} is mounted read-only", "nothing but looking works",
            f"mount -o remount,rw {place}; if the kernel made it so, dmesg tells why",
        )  # fmt: skip
    elif not os.access(place, os.W_OK | os.X_OK):
        yield Finding(
            Severity.ERROR, "places.not-writable", f"{place} cannot be written by this user", "no command works",
            "run as the store's owner, or choose another --root",
        )  # fmt: skip
    elif os.path.isdir(patient.root):
        status = os.stat(patient.root)
        if status.st_mode & 0o022:
            mode = f"mode {status.st_mode & 0o777:o}"
            yield Finding(
                Severity.WARNING, "places.open", f"{patient.root} can be written by others ({mode})",
                "other users can change what containers run", f"chmod 700 {patient.root}",
            )  # fmt: skip
    seen = set()
    for what, path, little in (
        ("the store", patient.root, False),
        *((f"driver {name}", f"{patient.root}/drivers/{name}", False) for name in patient.used()),
        ("the run directory", patient.settings.run_root, True),
    ):
        at = nearest_directory(path)
        device = os.stat(at).st_dev
        if device not in seen:
            seen.add(device)
            yield from _room(what, at, little=little)


def _room(what: str, place: str, *, little: bool) -> Iterator[Finding]:
    status = os.statvfs(place)
    where = f"{what}'s file system ({place})"
    lack = scarcity(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)
    if not status.f_bavail and status.f_bfree > status.f_blocks // 20 and file_system_name(place) == "btrfs":
        free = status.f_bfree * status.f_frsize >> 20
        yield Finding(
            Severity.ERROR, "places.metadata",
            f"{where} has {free:,} MiB free that cannot be used, as its metadata is full",
            "nothing can be made, and little removed, though there is room for data",
            f"btrfs balance start -dusage=20 {place} makes room for metadata; or btrfs device add",
        )  # fmt: skip
    elif lack is not None and not (little and status.f_bavail * status.f_frsize > _MOST_SCARCE):
        free, total = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
        yield Finding(
            lack, "places.data", f"{where} has {free >> 20:,} MiB of {total >> 20:,} MiB free",
            "pulls, commits and writes of containers fail" if lack is Severity.ERROR else "it will be full soon",
            "cowshed storage df shows what takes it, cowshed system prune gives back; or enlarge the file system",
        )  # fmt: skip
    if status.f_files:
        lack = scarcity(status.f_files, status.f_favail, scarce=256, low=50_000)
        if lack is not None:
            yield Finding(
                lack, "places.inodes", f"{where} has {status.f_favail:,} of {status.f_files:,} inodes free",
                "no file can be made, though there may be room for data" if lack is Severity.ERROR
                else "files cannot be made soon, though there is room for data",
                "cowshed system prune removes what is unused; or move the store to a file system made with more inodes "
                "(mkfs.ext4 -N)",
            )  # fmt: skip


def scarcity(total: int, free: int, *, scarce: int = _MOST_SCARCE, low: int = _MOST_LOW) -> Severity | None:
    """How bad it is that so much of total is free: an error under 1 % and `scarce`, a warning under 10 % and `low`."""
    if free < min(total // 100, scarce) or not free:
        return Severity.ERROR
    return Severity.WARNING if free < min(total // 10, low) else None
