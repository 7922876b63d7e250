"""What a run could leave behind on the host: mounts, devices, descriptors, children, threads."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class HostState:
    mounts: tuple[str, ...]
    loops: tuple[str, ...]
    mapped: tuple[str, ...]
    descriptors: int
    children: tuple[int, ...]
    threads: int

    @classmethod
    def now(cls) -> HostState:
        return cls(
            mounts(),
            loops(),
            tuple(sorted(os.listdir("/dev/mapper"))) if os.path.isdir("/dev/mapper") else (),
            descriptors(),
            children(),
            threading.active_count(),
        )


def mounts() -> tuple[str, ...]:
    """The mount points of this process's namespace, sorted."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        return tuple(sorted(line.split()[4] for line in lines))


def loops() -> tuple[str, ...]:
    """Loop devices in use, with their images."""
    found = []
    for name in os.listdir("/sys/block"):
        if name.startswith("loop"):
            try:
                with open(f"/sys/block/{name}/loop/backing_file", encoding="utf-8", errors="surrogateescape") as file:
                    found.append(f"{name} {file.read().strip()}")
            except OSError:
                continue  # not in use
    return tuple(sorted(found))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) - 1  # listdir's own


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
