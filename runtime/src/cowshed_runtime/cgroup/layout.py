"""Which hierarchies of control groups are mounted, and which controllers are where (cgroups(7))."""

from __future__ import annotations

import os

from cowshed_runtime.cgroup.files import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PARENT = "/cowshed"
_NOT_CONTROLLERS = ("rw", "ro", "none", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods")
_ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))


class Layout:
    """The hierarchies that are mounted: version 1 as (path, controllers), and version 2 if it has controllers or is the
    only one. In a hybrid, each controller is in one of them."""

    def __init__(self, mountinfo: str) -> None:
        self.v1: list[tuple[str, tuple[str, ...]]] = []
        self.v2 = ""
        seen = set()
        for line in mountinfo.splitlines():
            before, _, after = line.partition(" - ")
            kind, _, options = after.split()[:3]
            path = before.split()[4]
            for escape, character in _ESCAPES:
                path = path.replace(escape, character)
            if kind == "cgroup":
                names = tuple(
                    o for o in options.split(",") if o not in _NOT_CONTROLLERS and not o.startswith("release_agent")
                )
                if names not in seen:  # mounted twice is still one hierarchy
                    seen.add(names)
                    self.v1.append((path, names))
            elif kind == "cgroup2" and not self.v2:
                self.v2 = path
        self.v2_controllers: tuple[str, ...] = tuple(read(f"{self.v2}/cgroup.controllers").split()) if self.v2 else ()
        if self.v1 and not self.v2_controllers:
            self.v2 = ""

    def find(self, controller: str) -> str:
        """The mount point of the hierarchy that has a controller, "" if none has."""
        for path, controllers in self.v1:
            if controller in controllers:
                return path
        return self.v2 if controller in self.v2_controllers else ""

    def only(self, usable: Callable[[str], bool]) -> Layout:
        """The hierarchies of which usable(mount point) is true."""
        made = Layout("")
        made.v1 = [entry for entry in self.v1 if usable(entry[0])]
        if self.v2 and usable(self.v2):
            made.v2, made.v2_controllers = self.v2, self.v2_controllers
        return made

    def hierarchies(self) -> Iterator[str]:
        """The mount points, version 2 last."""
        for path, _ in self.v1:
            yield path
        if self.v2:
            yield self.v2


host = Layout(read("/proc/self/mountinfo"))


def exist(name: str) -> bool:
    """Whether anything is left of the control groups that the engine made for the container called name: a command
    that asks only this need not import all that limits are made of."""
    return any(os.path.exists(f"{hierarchy}{PARENT}/{name}") for hierarchy in host.hierarchies())
