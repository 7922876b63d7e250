"""What a piece of work takes: wall and processor time, bytes to and from its device, memory."""

from __future__ import annotations

import os
import resource
import time

from cowshed.bench.samples import Sample
from cowshed_linux import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cowshed.bench.scratch import FileSystem, Place


class Meter:
    """`with Meter(system, device=True) as meter:` and then `meter.sample`.

    device: also what came to and from the file system's device (/sys/block/*/stat), the writing back of it included,
    which is no part of the time. of: how many operations the block has; times are of one. trees: descriptors of mounted
    layers, each of which may be a file system of its own above the system's.
    """

    def __init__(
        self, system: FileSystem | Place, *, device: bool = False, of: int = 1, trees: Sequence[int] = ()
    ) -> None:
        self._system, self._device, self._of, self._trees = system, device, of, trees

    def __enter__(self) -> Meter:
        self.sample = Sample(0.0)
        self._io = self._system.transferred() if self._device else None
        _forget_peak()
        self._memory = _memory("VmRSS")
        self._cpu = _cpu()
        self._began = time.perf_counter()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        wall, cpu = time.perf_counter() - self._began, _cpu() - self._cpu
        it = self.sample
        it.value, it.cpu = wall * 1000 / self._of, cpu * 1000 / self._of
        it.memory = max(0, _memory("VmHWM") - self._memory)
        if self._io is not None and kind is None:
            for tree in self._trees:
                sync(f"/proc/self/fd/{tree}")
            sync(self._system.path)
            now = self._system.transferred()
            if now is not None:
                it.read, it.written = now[0] - self._io[0], now[1] - self._io[1]


def sync(path: str) -> None:
    """syncfs(2) of the file system at path."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        files.syncfs(fd)
    finally:
        os.close(fd)


def _cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _memory(name: str) -> int:
    """A field of /proc/self/status (proc(5)), in bytes."""
    with open("/proc/self/status", encoding="ascii") as lines:
        for line in lines:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def _forget_peak() -> None:
    """Let VmHWM begin anew (proc(5), clear_refs)."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
