"""Control groups of containers: /cowshed/NAME in every hierarchy, on version 1, version 2 and both at once
(cgroups(7), Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import os
from time import sleep

from cowshed_linux import bpf
from cowshed_runtime import devices, limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

PARENT = "cowshed"
_SWAP = ("memory.memsw.limit_in_bytes", "memory.swap.max")
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
        self.v2_controllers = tuple(_read(f"{self.v2}/cgroup.controllers").split()) if self.v2 else ()
        if self.v1 and not self.v2_controllers:
            self.v2 = ""

    def find(self, controller: str) -> str:
        """The mount point of the hierarchy that has a controller, "" if none has."""
        for path, controllers in self.v1:
            if controller in controllers:
                return path
        return self.v2 if controller in self.v2_controllers else ""

    def directories(self, name: str) -> Iterator[str]:
        for path, _ in self.v1:
            yield f"{path}/{PARENT}/{name}"
        if self.v2:
            yield f"{self.v2}/{PARENT}/{name}"


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while block := os.read(fd, 1 << 16):
            text += block
        return text.decode(errors="surrogateescape")
    finally:
        os.close(fd)


def _write(path: str, value: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise OSError(2, f"{path}: this kernel has no such limit") from None
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, f"{path}: cannot be set to {value}: {os.strerror(error.errno or 0)}") from None
    finally:
        os.close(fd)


layout = Layout(_read("/proc/self/mountinfo"))


def create(name: str, resources: dict[str, Any]) -> None:
    """Make the groups and set their limits; on an error nothing is left. resources: OCI linux.resources.

    OSError says which limit the host does not have, or does not accept. FileExistsError: the name is in use.
    """
    made = []
    try:
        for path in layout.directories(name):
            try:
                os.mkdir(path, 0o755)
            except FileNotFoundError:
                _make_parent(os.path.dirname(path))
                os.mkdir(path, 0o755)
            made.append(path)
        cpuset = layout.find("cpuset")
        if cpuset and cpuset != layout.v2:
            # Empty in a new version 1 group, which then takes no process.
            for file in ("cpuset.cpus", "cpuset.mems"):
                _write(f"{cpuset}/{PARENT}/{name}/{file}", _read(f"{cpuset}/{PARENT}/{file}").strip())
        for path, value in settings(name, resources):
            _write(path, value)
        if resources.get("devices") and not layout.find("devices"):
            _filter_devices(name, resources["devices"])
    except BaseException:
        for path in made:
            _remove(path)
        raise


def _make_parent(path: str) -> None:
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        return
    if os.path.dirname(path) == layout.v2:
        for at in (layout.v2, path):
            for controller in layout.v2_controllers:
                try:
                    _write(f"{at}/cgroup.subtree_control", f"+{controller}")
                except OSError:
                    continue  # one that cannot be handed down is met again when a limit needs it
    elif os.path.exists(f"{path}/cpuset.cpus"):
        for file in ("cpuset.cpus", "cpuset.mems"):
            _write(f"{path}/{file}", _read(f"{os.path.dirname(path)}/{file}").strip())


def settings(name: str, resources: dict[str, Any]) -> list[tuple[str, str]]:
    """The files to write, in order, for these limits. OSError ENOENT for a controller that the host does not have."""
    first = {controller for _, controllers in layout.v1 for controller in controllers}
    second = layout.v2_controllers
    for controller, _, _ in (limits.version1 if layout.v1 else limits.version2)(resources):
        there = controller in first or ("io" if controller == "blkio" else controller) in second
        if not there and not (controller == "devices" and layout.v2):
            raise OSError(2, f"this host has no {controller} cgroup controller, which the limits ask for")
    if resources.get("unified") and not layout.v2:
        raise OSError(2, "this host has no cgroup version 2, whose files the limits name")
    wanted = [setting for setting in limits.version1(resources) if setting[0] in first]
    wanted += [setting for setting in limits.version2(resources) if setting[0] in second]
    result = []
    for controller, file, value in wanted:
        path = f"{layout.find(controller)}/{PARENT}/{name}/{file}"
        if file in _SWAP and not os.path.exists(path):
            continue  # a kernel that does not count swap: there is nothing to limit
        result.append((path, value))
    return result


def _filter_devices(name: str, rules: list[dict[str, Any]]) -> None:
    if not layout.v2:
        raise OSError(2, "this host has no devices cgroup controller, which the device rules ask for")
    group = os.open(f"{layout.v2}/{PARENT}/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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


def update(name: str, resources: dict[str, Any]) -> None:
    """Change limits of a running container; device rules stay as they are. OSError names the one refused: those before
    it are in force."""
    again = []
    for path, value in settings(name, {key: value for key, value in resources.items() if key != "devices"}):
        try:
            _write(path, value)
        except OSError:
            if "memory." not in path:
                raise
            again.append((path, value))  # the limit with swap has to go up first, and down last
    for path, value in again:
        _write(path, value)


class Entrance:
    """Descriptors that let a process into the groups of a container, opened where their paths can still be seen.

    Version 1: the process, which must have one thread, writes `0` to `tasks`; a pid written to `cgroup.procs` would
    wait 14 ms for a grace period of the kernel. Version 2: the process is born in `born` (clone3(2) CLONE_INTO_CGROUP).
    """

    def __init__(self, name: str) -> None:
        self.tasks: list[int] = []
        self.born = -1
        try:
            for path, _ in layout.v1:
                self.tasks.append(os.open(f"{path}/{PARENT}/{name}/tasks", os.O_WRONLY | os.O_CLOEXEC))
            if layout.v2:
                self.born = os.open(f"{layout.v2}/{PARENT}/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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


def processes(name: str) -> list[int]:
    """The pids in the container's groups, as this process sees them; none if there are no groups."""
    for path in layout.directories(name):
        try:
            return [int(line) for line in _read(f"{path}/cgroup.procs").split()]
        except FileNotFoundError:
            continue
    return []


def oom_killed(name: str) -> bool:
    """Whether the kernel has killed a process of the container because its memory limit was reached."""
    memory = layout.find("memory")
    file = "memory.events" if memory == layout.v2 else "memory.oom_control"
    try:
        said = _read(f"{memory}/{PARENT}/{name}/{file}") if memory else ""
    except FileNotFoundError:
        return False
    return any(line.startswith("oom_kill ") and int(line.split()[1]) > 0 for line in said.splitlines())


def kill(name: str) -> None:
    """Send SIGKILL to everything in the groups; it may take a moment to die."""
    for path in layout.directories(name):
        _kill(path)


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
        found = _read(f"{path}/cgroup.procs").split()
    except FileNotFoundError:
        return
    for pid in found:
        try:
            os.kill(int(pid), 9)
        except ProcessLookupError:
            continue


def remove(name: str) -> None:
    """Kill what is left in the groups and remove them; absent is success. OSError EBUSY if something does not die
    within a second: it sleeps in the kernel."""
    for path in layout.directories(name):
        _remove(path)


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
        return ", ".join(_read(f"{path}/cgroup.procs").split()) or "that end just now"
    except FileNotFoundError:
        return "no more"


def _below(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
