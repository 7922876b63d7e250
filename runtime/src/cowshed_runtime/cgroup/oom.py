"""Notices that the kernel has killed a process of a container for want of memory (cgroup-v1/memory.rst section 10,
cgroup-v2.rst memory.events)."""

from __future__ import annotations

import os
import select

from cowshed_runtime.cgroup.files import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed_runtime.cgroup.group import Group


class Notice:
    """What to poll: `fd` for the events in `mask`. After each, `kills` tells how many processes were killed by now: a
    notice may be of less, and on version 1 it comes before the kill, which is followed by none."""

    def __init__(self, group: Group) -> None:
        """FileNotFoundError if there is no such group, or this host has no memory controller."""
        folder = group.find("memory")
        if not folder:
            raise FileNotFoundError(2, "this host has no memory cgroup controller")
        self._second = group.layout.find("memory") == group.layout.v2
        self._file = f"{folder}/{'memory.events' if self._second else 'memory.oom_control'}"
        self._source = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
        if self._second:
            self.fd, self.mask = self._source, select.EPOLLPRI
            os.read(self.fd, 4096)  # what has been read is no news
            return
        self.fd, self.mask = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), select.EPOLLIN
        control = os.open(f"{folder}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(control, f"{self.fd} {self._source}".encode())
        finally:
            os.close(control)

    def kills(self) -> int:
        """FileNotFoundError when the group has gone, which is a notice too."""
        if self._second:
            try:
                os.pread(self.fd, 4096, 0)  # else it would be told again and again
            except OSError:
                pass  # gone: the next line tells
        else:
            try:
                os.eventfd_read(self.fd)
            except BlockingIOError:
                pass  # asked without a notice
        lines = (line.split() for line in read(self._file).splitlines())
        return next((int(words[1]) for words in lines if words[0] == "oom_kill"), 0)

    def close(self) -> None:
        for fd in {self.fd, self._source}:
            os.close(fd)
