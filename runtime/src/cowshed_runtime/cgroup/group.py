"""The control groups of one container: one directory in every hierarchy, on version 1, version 2 and both at once
(cgroups(7), Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import os
from time import sleep

from cowshed_linux import bpf
from cowshed_runtime.cgroup import devices, layout, limits
from cowshed_runtime.cgroup.files import read, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from cowshed_runtime.cgroup.layout import Layout

PARENT = "/cowshed"
_SWAP = ("memory.memsw.limit_in_bytes", "memory.swap.max")


class Group:
    """Where the groups of the container called name are; making one touches nothing.

    path: of the group, from the mount point of each hierarchy on; /cowshed/NAME if not given. within: the hierarchies,
    by default the host's.
    """

    def __init__(self, name: str, path: str = "", within: Layout | None = None) -> None:
        self.name, self.path = name, path or f"{PARENT}/{name}"
        self.layout = within or layout.host

    def directories(self) -> Iterator[str]:
        """The group in each hierarchy, version 2 last."""
        for hierarchy in self.layout.hierarchies():
            yield hierarchy + self.path

    def find(self, controller: str) -> str:
        """The group's directory for a controller, "" if the host does not have it."""
        hierarchy = self.layout.find(controller)
        return hierarchy and hierarchy + self.path

    def create(self, resources: dict[str, Any]) -> None:
        """Make the groups and set their limits; on an error nothing is left. resources: OCI linux.resources.

        OSError says which limit the host does not have, or does not accept. FileExistsError: the path is in use.
        """
        made = []
        try:
            for hierarchy in self.layout.hierarchies():
                path = hierarchy + self.path
                try:
                    os.mkdir(path, 0o755)
                except FileNotFoundError:
                    self._make_parents(hierarchy)
                    os.mkdir(path, 0o755)
                made.append(path)
            cpuset = self.layout.find("cpuset")
            if cpuset and cpuset != self.layout.v2:
                _fill_cpuset(cpuset + self.path)
            for path, value in self.settings(resources):
                write(path, value)
            if resources.get("devices") and not self.layout.find("devices"):
                self._filter_devices(resources["devices"])
        except BaseException:
            for path in made:
                _remove(path)
            raise

    def _make_parents(self, hierarchy: str) -> None:
        """Make the directories above the group, with all controllers handed down to it."""
        at = hierarchy
        for part in self.path.split("/")[1:-1]:
            above, at = at, f"{at}/{part}"
            try:
                os.mkdir(at, 0o755)
            except FileExistsError:
                continue
            if hierarchy == self.layout.v2:
                for place in (above, at):
                    _hand_down(place, self.layout.v2_controllers)
            elif os.path.exists(f"{at}/cpuset.cpus"):
                _fill_cpuset(at)

    def settings(self, resources: dict[str, Any]) -> list[tuple[str, str]]:
        """The files to write, in order, for these limits. OSError ENOENT for a controller that the host does not
        have."""
        within = self.layout
        first = {controller for _, controllers in within.v1 for controller in controllers}
        second = within.v2_controllers
        for controller, _, _ in (limits.version1 if within.v1 else limits.version2)(resources):
            there = controller in first or ("io" if controller == "blkio" else controller) in second
            if not there and not (controller == "devices" and within.v2):
                raise OSError(2, f"this host has no {controller} cgroup controller, which the limits ask for")
        if resources.get("unified") and not within.v2:
            raise OSError(2, "this host has no cgroup version 2, whose files the limits name")
        wanted = [setting for setting in limits.version1(resources) if setting[0] in first]
        wanted += [setting for setting in limits.version2(resources) if setting[0] in second]
        result = []
        for controller, file, value in wanted:
            path = f"{self.find(controller)}/{file}"
            if file in _SWAP and not os.path.exists(path):
                continue  # a kernel that does not count swap: there is nothing to limit
            result.append((path, value))
        return result

    def _filter_devices(self, rules: list[dict[str, Any]]) -> None:
        if not self.layout.v2:
            raise OSError(2, "this host has no devices cgroup controller, which the device rules ask for")
        group = os.open(self.layout.v2 + self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            made = bpf.load_device_program(devices.program(rules))
            try:
                bpf.attach_device_program(group, made)
            finally:
                os.close(made)
        except OSError as error:
            raise OSError(error.errno, f"the device rules cannot be loaded: {error.strerror}") from None
        finally:
            os.close(group)

    def update(self, resources: dict[str, Any]) -> None:
        """Change limits of a running container; device rules stay as they are. OSError names the one refused: those
        before it are in force."""
        again = []
        for path, value in self.settings({key: value for key, value in resources.items() if key != "devices"}):
            try:
                write(path, value)
            except OSError:
                if "memory." not in path:
                    raise
                again.append((path, value))  # the limit with swap has to go up first, and down last
        for path, value in again:
            write(path, value)

    def processes(self) -> list[int]:
        """The pids in the groups, as this process sees them; none if there are no groups."""
        for path in self.directories():
            try:
                return [int(line) for line in read(f"{path}/cgroup.procs").split()]
            except FileNotFoundError:
                continue
        return []

    def oom_killed(self) -> bool:
        """Whether the kernel has killed a process of the container because its memory limit was reached."""
        memory = self.find("memory")
        file = "memory.events" if self.layout.find("memory") == self.layout.v2 else "memory.oom_control"
        try:
            said = read(f"{memory}/{file}") if memory else ""
        except FileNotFoundError:
            return False
        return any(line.startswith("oom_kill ") and int(line.split()[1]) > 0 for line in said.splitlines())

    def kill(self) -> None:
        """Send SIGKILL to everything in the groups; it may take a moment to die."""
        for path in self.directories():
            _kill(path)

    def remove(self) -> None:
        """Kill what is left in the groups and remove them; absent is success. OSError EBUSY if something does not die
        within a second: it sleeps in the kernel."""
        for path in self.directories():
            _remove(path)


class Entrance:
    """Descriptors that let a process into the groups of a container, opened where their paths can still be seen.

    Version 1: the process, which must have one thread, writes `0` to `tasks`; a pid written to `cgroup.procs` would
    wait 14 ms for a grace period of the kernel. Version 2: the process is born in `born` (clone3(2) CLONE_INTO_CGROUP).
    """

    def __init__(self, group: Group) -> None:
        self.tasks: list[int] = []
        self.born = -1
        try:
            for path, _ in group.layout.v1:
                self.tasks.append(os.open(f"{path}{group.path}/tasks", os.O_WRONLY | os.O_CLOEXEC))
            if group.layout.v2:
                self.born = os.open(group.layout.v2 + group.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise

    def enter(self) -> None:
        for fd in self.tasks:
            os.write(fd, b"0")

    def close(self) -> None:
        for fd in self.tasks:
            os.close(fd)
        if self.born >= 0:
            os.close(self.born)
        self.tasks, self.born = [], -1


def _fill_cpuset(path: str) -> None:
    """What a new version 1 group of the cpuset controller has of its parent: it is empty, and then takes no process."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        write(f"{path}/{file}", read(f"{os.path.dirname(path)}/{file}").strip())


def _hand_down(path: str, controllers: tuple[str, ...]) -> None:
    for controller in controllers:
        try:
            write(f"{path}/cgroup.subtree_control", f"+{controller}")
        except OSError:
            continue  # one that cannot be handed down is met again when a limit needs it


def _kill(path: str) -> None:
    try:
        fd = os.open(f"{path}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        pass
    else:
        try:
            os.write(fd, b"1")
        finally:
            os.close(fd)
        return
    try:
        found = read(f"{path}/cgroup.procs").split()
    except FileNotFoundError:
        return
    for pid in found:
        try:
            os.kill(int(pid), 9)
        except ProcessLookupError:
            continue


def _remove(path: str) -> None:
    for attempt in range(200):
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if attempt == 199:
                raise OSError(error.errno, f"{path}: still holds processes {_who(path)}") from None
        # A privileged container may have made groups below its own.
        for below in _below(path):
            _remove(below)
        _kill(path)
        sleep(0 if attempt == 0 else 0.005)


def _who(path: str) -> str:
    try:
        return ", ".join(read(f"{path}/cgroup.procs").split()) or "that end just now"
    except FileNotFoundError:
        return "no more"


def _below(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
