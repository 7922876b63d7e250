"""linux.intelRdt: shares of caches and memory bandwidth, and their monitoring, by the resctrl file system
(config-linux.md, IntelRdt; Documentation/filesystems/resctrl.rst)."""

from __future__ import annotations

import os

from cowshed_runtime.cgroup.files import read, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LINES = ("l3CacheSchema", "memBwSchema")


def mounted(mountinfo: str) -> str:
    """Where resctrl is mounted, "" if it is not; pure."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[:1] == ["resctrl"]:
            return before.split()[4]
    return ""


def schemata(wanted: dict[str, Any]) -> list[str]:
    """The lines to write, in order; pure."""
    lines = [str(wanted[key]) for key in _LINES if wanted.get(key)]
    return [*lines, *(wanted.get("schemata") or ())]


def parts(line: str) -> tuple[str, dict[str, str]]:
    """A line of a schemata file as its resource and what each domain has, numbers without leading zeros; pure."""
    kind, _, text = line.strip().partition(":")
    pairs = (pair.partition("=") for pair in text.split(";") if pair.strip())
    return kind.strip(), {key.strip(): value.strip().lstrip("0") or "0" for key, _, value in pairs}


class Class:
    """The class of service of a container, and its monitoring group. wanted: linux.intelRdt, name: the container's id;
    making one touches nothing. top: where resctrl is mounted, by default found out."""

    def __init__(self, wanted: dict[str, Any], name: str, top: str = "") -> None:
        self.wanted, self.name = wanted, name
        self.top = top or mounted(read("/proc/self/mountinfo"))
        given = wanted.get("closID")
        self.path = self.top if given == "/" else f"{self.top}/{given or name}"
        self._own = not given

    @property
    def monitor(self) -> str:
        """The directory of the monitoring group, "" if none is asked for."""
        return f"{self.path}/mon_groups/{self.name}" if self.wanted.get("enableMonitoring") else ""

    def create(self) -> None:
        """Make what is not there, with its schemata; on an error nothing is left. OSError ENOENT if resctrl is not
        mounted or a class without schemata is not there; EINVAL if one that is there has others."""
        if not self.top:
            remedy = "mount -t resctrl resctrl /sys/fs/resctrl"
            raise OSError(2, f"linux.intelRdt: no resctrl file system is mounted ({remedy})")
        lines, made = schemata(self.wanted), []
        try:
            if self._make(lines):
                made.append(self.path)
                self._write(lines)
            elif lines:
                self._compare(lines)
            if self.monitor:
                os.mkdir(self.monitor, 0o755)
                made.append(self.monitor)
        except BaseException:
            for path in reversed(made):
                os.rmdir(path)
            raise

    def _make(self, lines: list[str]) -> bool:
        if os.path.isdir(self.path):
            if self._own:
                raise FileExistsError(17, f"{self.path}: the class of service is there already")
            return False
        if not self._own and not lines:
            raise OSError(2, f"linux.intelRdt.closID: there is no class of service {self.path}")
        os.mkdir(self.path, 0o755)
        return True

    def _write(self, lines: list[str]) -> None:
        for line in lines:
            write(f"{self.path}/schemata", f"{line}\n")

    def _compare(self, lines: list[str]) -> None:
        there = dict(parts(line) for line in read(f"{self.path}/schemata").splitlines())
        for kind, domains in map(parts, lines):
            found = there.get(kind, {})
            if any(found.get(key) != value for key, value in domains.items()):
                raise OSError(22, f"{self.path} has other schemata than linux.intelRdt asks for ({kind})")

    def update(self, changes: dict[str, Any]) -> None:
        """Write other schemata: the class of a container that runs. OSError."""
        self._write(schemata(changes))

    def tasks(self) -> list[str]:
        """The files that a process writes `0` to, to be in them."""
        return [f"{path}/tasks" for path in (self.path, self.monitor) if path]

    def remove(self) -> None:
        """Remove what was made for the container alone; absent is success."""
        for path in (self.monitor, self.path if self._own else ""):
            try:
                if path:
                    os.rmdir(path)
            except FileNotFoundError:
                continue
