"""What a run could leave behind on the host: mounts, devices, descriptors, children, threads."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass

ours: list[str] = []  # directories of this run: loop devices on other images are other people's


@dataclass(frozen=True)
class HostState:
    mounts: tuple[str, ...]
    loops: tuple[str, ...]
    mapped: tuple[str, ...]
    descriptors: tuple[str, ...]
    children: tuple[int, ...]
    threads: int

    @classmethod
    def now(cls) -> HostState:
        return cls(
            mounts(),
            loops(),
            mapped(),
            descriptors(),
            children(),
            threading.active_count(),
        )


def mounts() -> tuple[str, ...]:
    """The mount points of this process's namespace, sorted."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        return tuple(sorted(line.split()[4] for line in lines))


def loops() -> tuple[str, ...]:
    """Loop devices in use by this run, with their images."""
    found = []
    for name in os.listdir("/sys/block"):
        if name.startswith("loop"):
            try:
                with open(f"/sys/block/{name}/loop/backing_file", encoding="utf-8", errors="surrogateescape") as file:
                    image = file.read().strip()
            except OSError:
                continue  # not in use
            if image.startswith(tuple(ours)):
                found.append(f"{name} {image}")
    return tuple(sorted(found))


def mapped() -> tuple[str, ...]:
    """Mapped devices that stand on an image of this run."""
    found = []
    for name in os.listdir("/dev/mapper") if os.path.isdir("/dev/mapper") else ():
        try:
            device = os.stat(f"/dev/mapper/{name}").st_rdev
        except OSError:
            continue  # gone meanwhile
        block = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
        if os.path.isdir(f"{block}/dm") and _is_ours(block):
            found.append(name)
    return tuple(sorted(found))


def _is_ours(block: str) -> bool:
    try:
        with open(f"{block}/loop/backing_file", encoding="utf-8", errors="surrogateescape") as file:
            return file.read().strip().startswith(tuple(ours))
    except OSError:
        pass  # no loop device: what it is made of
    below = f"{block}/slaves"
    return os.path.isdir(below) and any(_is_ours(f"{below}/{name}") for name in os.listdir(below))


def descriptors() -> tuple[str, ...]:
    """What this process has open; names only, as the paths change when a mount namespace goes away."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}").rpartition("/")[2])
        except OSError:
            continue  # listdir's own
    return tuple(sorted(found))


def children() -> tuple[int, ...]:
    """Processes that were started here and not waited for."""
    found: list[int] = []
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
                found.extend(int(word) for word in file.read().split())
        except OSError:
            continue  # the thread has gone, or the kernel lacks the file
    return tuple(sorted(found))
