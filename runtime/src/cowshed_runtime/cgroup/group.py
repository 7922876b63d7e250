"""The control groups of one container: one directory in every hierarchy, on version 1, version 2 and both at once
(cgroups(7), Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import os
from time import sleep

from cowshed_linux import bpf
from cowshed_runtime.cgroup import devices, freezer, layout, ownership, resctrl, version1, version2
from cowshed_runtime.cgroup.files import read, write
from cowshed_runtime.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from cowshed_runtime.cgroup.layout import Layout

PARENT = layout.PARENT
# In the order in which they are set: their names in version 1 and in version 2.
_CONTROLLERS = (
    ("memory", "memory"), ("cpu", "cpu"), ("cpuset", "cpuset"), ("pids", "pids"), ("blkio", "io"),
    ("hugetlb", "hugetlb"), ("rdma", "rdma"), ("net_cls", ""), ("net_prio", ""), ("devices", ""),
)  # fmt: skip


class Group:
    """Where the groups of the container called name are; making one touches nothing.

    path: of the group, from the mount point of each hierarchy on; /cowshed/NAME if not given, which must not be there
    yet, while any other may be, empty. within: the hierarchies, by default the host's.

    rootless: a plain user's, who cannot have device rules. foreign: its processes must be moved into it by somebody
    else (`attach`). holder: a process in it that only keeps it there. wanted: whether there are to be groups at all.
    """

    foreign, holder = False, 0

    def __init__(self, name: str, path: str = "", within: Layout | None = None) -> None:
        self.name, self.path = name, path or f"{PARENT}/{name}"
        self.layout = within or layout.host
        self.own, self.rootless, self.wanted = not path, False, True
        self.owner: int | None = None
        self.below = ""
        self.service: resctrl.Class | None = None

    def record(self) -> dict[str, Any]:
        """What place.restore makes the same object from, in another process."""
        return {
            "name": self.name, "path": self.path, "own": self.own, "rootless": self.rootless,
            "wanted": self.wanted,
            "hierarchies": list(self.layout.hierarchies()),
            "intelRdt": self.service.wanted if self.service else None,
        }  # fmt: skip

    def adopt(self, config: dict[str, Any]) -> None:
        """Be made as a configuration says besides its limits: given to the container's user, or with a group below that
        the container manages itself, in which its processes are. SpecError."""
        self.owner = ownership.owner(config)
        wanted = (config.get("linux") or {}).get("intelRdt")
        self.service = resctrl.Class(wanted, self.name) if wanted is not None else None
        below = (config.get("annotations") or {}).get(ownership.DELEGATE) or ""
        if below and (below.startswith("/") or ".." in below.split("/") or "\0" in below):
            key = f"annotations.{ownership.DELEGATE}"
            raise SpecError(f"{key}: {below!r} must be a path below the container's group, without `..`")
        self.below = below.strip("/")

    def prepare(self) -> None:
        """Of a foreign group: be able to attach, also when paths are a container's. OSError."""
        raise NotImplementedError

    def attach(self, pid: int) -> None:
        """Have a process moved into a foreign group. OSError."""
        raise NotImplementedError

    def settled(self) -> None:
        """The container's process is in its groups, or will not be."""

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

        OSError says which limit the host does not have, or does not accept. FileExistsError: the container's own path
        is in use; EBUSY: another path holds processes, or the group is frozen and would not let the container start.
        """
        made: list[str] = []
        within, rules = self.layout, self._rules(resources)
        try:
            made.extend(path for path in self.directories() if self._make(path))
            if within.v2:
                self._hand_down()
            cpuset = within.find("cpuset")
            if cpuset and cpuset != within.v2:
                _fill_cpuset(cpuset + self.path, cpuset)
            if freezer.stopped(self):
                raise OSError(16, f"{self.path}: the control group, or one above it, is frozen")
            _write_all(self.settings({**resources, "devices": rules}))
            if rules and not within.find("devices"):
                self._filter_devices(rules)
            self._delegate()
            if self.service:
                self.service.create()
        except BaseException:
            for path in made:
                _remove(path, self.kill)
            raise

    def _rules(self, resources: dict[str, Any]) -> list[dict[str, Any]]:
        # Device rules need rights over the whole host; a plain user's containers have no devices but those bound.
        return [] if self.rootless else devices.completed(resources.get("devices") or [])

    def _delegate(self) -> None:
        """Make the group below, and give what the container may manage to its owner (cgroups(7), Delegation)."""
        if not self.layout.v2 or self.layout.v1:
            return
        path = self.layout.v2 + self.path
        places = [path]
        if self.below:
            os.makedirs(f"{path}/{self.below}", 0o755, exist_ok=True)
            places.append(f"{path}/{self.below}")
        if self.owner is None or self.owner == os.geteuid():
            return
        for folder in places:
            os.chown(folder, self.owner, -1)
            for file in ownership.files():
                try:
                    os.chown(f"{folder}/{file}", self.owner, -1)
                except FileNotFoundError:
                    continue

    def _make(self, path: str) -> bool:
        """Make the directory and those above it; whether it was not there."""
        try:
            os.mkdir(path, 0o755)
        except FileNotFoundError:
            os.makedirs(path, 0o755)
        except FileExistsError:
            if self.own:
                raise
            inside = [pid for pid in _processes(path) if pid != self.holder]
            if inside:
                raise OSError(16, f"{path}: the control group is in use by process {inside[0]}") from None
            return False
        return True

    def _hand_down(self) -> None:
        """Have all controllers of version 2 in the group: each group above must hand them down."""
        wanted = set(self.layout.v2_controllers)
        if set(read(f"{self.layout.v2}{self.path}/cgroup.controllers").split()) == wanted:
            return
        at = self.layout.v2
        for part in self.path.split("/")[1:]:
            _hand_down(at, wanted)
            at = f"{at}/{part}"

    def settings(self, resources: dict[str, Any]) -> list[tuple[str, str]]:
        """The files to write, in order, for these limits. OSError ENOENT for a controller that the host does not have,
        EOPNOTSUPP for a limit that its version does not have."""
        within, result = self.layout, []
        first = {controller for _, controllers in within.v1 for controller in controllers}
        for old, new in _CONTROLLERS:
            name, plan = old, version1.CONTROLLERS[old]
            if old not in first and new in within.v2_controllers:
                name, plan = new, version2.CONTROLLERS[new]
            folder = self.find(name)
            rows = [(f"{folder}/{file}", value) for file, value in plan(resources, _reader(folder))]
            if rows and not folder and not (name == "devices" and within.v2):
                whose = "this user has been delegated" if self.rootless else "this host has"
                if not self.wanted:
                    whose = "the container is to have no groups, and so"
                raise OSError(2, f"{whose} no {name} cgroup controller, which the limits ask for")
            result += rows if folder else []
        for file, value in version2.unified(resources):
            result.append((f"{self._unified(file)}/{file}", value))
        return result

    def _unified(self, file: str) -> str:
        if not self.layout.v2:
            raise OSError(2, f"unified: this host has no cgroup version 2 with controllers, which {file} is of")
        path, controller = self.layout.v2 + self.path, file.partition(".")[0]
        if controller != "cgroup" and controller not in read(f"{path}/cgroup.controllers").split():
            raise OSError(2, f"unified: {file}: {path} has no {controller} controller")
        return path

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
        """Change limits of a running container. OSError names the one refused: those before it are in force.

        Device rules take effect at once and together: a program is replaced by another, and the files of version 1,
        which take one rule at a time, are written while nothing of the container runs.
        """
        rules = self._rules(resources)
        _write_all(self.settings({key: value for key, value in resources.items() if key != "devices"}))
        if not rules:
            return
        if not self.layout.find("devices"):
            self._filter_devices(rules)
            return
        running = not freezer.frozen(self)
        if running:
            freezer.freeze(self)
        try:
            _write_all(self.settings({"devices": rules}))
        finally:
            if running:
                freezer.thaw(self)

    def processes(self) -> list[int]:
        """The pids in the groups and below them, as this process sees them; none if there are no groups."""
        for path in self.directories():
            if os.path.exists(path):
                return _processes(path)
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
        """Send SIGKILL to everything in the groups and below, frozen or not; it may take a moment to die."""
        stopped = None
        for path in self.directories():
            if _kill_at_once(path):
                continue
            if stopped is None:
                # What is frozen cannot fork meanwhile; it dies when it is let go.
                stopped = freezer.stop(self)
            for pid in _processes(path):
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    continue
        if stopped:
            freezer.thaw(self)

    def remove(self) -> None:
        """Kill what is left in the groups and remove them; absent is success. OSError EBUSY if something does not die
        within a second: it sleeps in the kernel."""
        for path in self.directories():
            _remove(path, self.kill)
        if self.service:
            self.service.remove()


class Entrance:
    """Descriptors that let a process into the groups of a container, opened where their paths can still be seen.

    Version 1: the process, which must have one thread, writes `0` to `tasks`; a pid written to `cgroup.procs` would
    wait 14 ms for a grace period of the kernel. Version 2: the process is born in `born` (clone3(2) CLONE_INTO_CGROUP),
    unless a limit on their number may forbid that. pid: of the container's first process if it runs, to follow it where
    it may have gone below its group.
    """

    def __init__(self, group: Group, pid: int = 0) -> None:
        self.tasks: list[int] = []
        self.born, self._below, self._handing = -1, -1, ""
        self.group = group
        try:
            if group.foreign:
                group.prepare()
            for path in group.service.tasks() if group.service else ():
                self.tasks.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
            if group.foreign:
                return
            for path, _ in group.layout.v1:
                self.tasks.append(os.open(f"{path}{group.path}/tasks", os.O_WRONLY | os.O_CLOEXEC))
            if group.layout.v2:
                folder = group.layout.v2 + group.path
                if pid and read(f"{folder}/cgroup.subtree_control").strip():
                    folder += _where(pid, group.path)  # a group that hands controllers down takes no process itself
                elif group.below and not group.layout.v1 and not pid:
                    self._handing = folder
                    self._below = os.open(f"{folder}/{group.below}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
                if _reader(folder)("pids.max") in ("0\n", "1\n"):
                    self.tasks.append(os.open(f"{folder}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
                else:
                    self.born = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise

    def descriptors(self) -> list[int]:
        """What the process that enters needs open."""
        return [*self.tasks, self._below]

    def enter(self) -> None:
        for fd in self.tasks:
            os.write(fd, b"0")
            os.close(fd)

    def descend(self) -> None:
        """Go to the group that the container manages itself: after the cgroup namespace is made, whose root stays the
        group with the limits."""
        if self._below >= 0:
            os.write(self._below, b"0")
            os.close(self._below)

    def close(self) -> None:
        """When the process is in its place."""
        self.group.settled()
        for fd in (*self.tasks, self.born, self._below):
            if fd >= 0:
                os.close(fd)
        if self._handing and os.path.isdir(self._handing):
            _hand_down(self._handing, set(read(f"{self._handing}/cgroup.controllers").split()))
        self.tasks, self.born, self._below, self._handing = [], -1, -1, ""


def _hand_down(path: str, controllers: set[str]) -> None:
    for controller in controllers - set(read(f"{path}/cgroup.subtree_control").split()):
        try:
            write(f"{path}/cgroup.subtree_control", f"+{controller}")
        except OSError:
            continue  # one that cannot be handed down is met again when a limit needs it


def _where(pid: int, path: str) -> str:
    """The group of version 2 that a process is in, from the one at path on; "" if it is not below that."""
    for line in read(f"/proc/{pid}/cgroup").splitlines():
        if line.startswith("0::") and f"{path}/" in line:
            return line[line.index(f"{path}/") + len(path) :]
    return ""


def _reader(folder: str) -> Callable[[str], str | None]:
    def now(file: str) -> str | None:
        try:
            return read(f"{folder}/{file}")
        except FileNotFoundError:
            return None

    return now


def _write_all(settings: list[tuple[str, str]]) -> None:
    """Write limits. Some bound each other (memory and memory with swap, quota and burst): what is refused is tried once
    more when the others stand."""
    again = []
    for path, value in settings:
        try:
            write(path, value)
        except OSError as error:
            if error.errno not in (16, 22) or os.path.basename(path).partition(".")[0] not in ("memory", "cpu"):
                raise
            again.append((path, value))
    for path, value in again:
        write(path, value)


def _fill_cpuset(path: str, top: str) -> None:
    """Give a version 1 group of the cpuset controller, and those above it, what their parents have, where they have
    nothing: a new one is empty, and then takes no process."""
    above = os.path.dirname(path)
    for file in ("cpuset.cpus", "cpuset.mems"):
        if read(f"{path}/{file}").strip():
            continue
        value = read(f"{above}/{file}").strip()
        if not value and above != top:
            _fill_cpuset(above, top)
            value = read(f"{above}/{file}").strip()
        write(f"{path}/{file}", value)


def _processes(path: str) -> list[int]:
    """The pids in a group and below it; none if it is not there."""
    found = []
    try:
        found += [int(line) for line in read(f"{path}/cgroup.procs").split()]
    except OSError as error:
        if error.errno in (2, 19):  # also while it is read
            return found
        if error.errno != 95:  # a threaded group of version 2: its processes are told by the one above
            raise
    for below in _below(path):
        found += _processes(below)
    return found


def _kill_at_once(path: str) -> bool:
    """Kill by one write (Linux 5.14, version 2) everything in a group and below; whether that can be done."""
    try:
        fd = os.open(f"{path}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)
    return True


def _remove(path: str, kill: Callable[[], None]) -> None:
    for attempt in range(200):
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if attempt == 199:
                inside = ", ".join(map(str, _processes(path))) or "that end just now"
                raise OSError(error.errno, f"{path}: still holds processes {inside}") from None
        # A privileged container may have made groups below its own.
        for below in _below(path):
            _remove(below, kill)
        kill()
        sleep(0 if attempt == 0 else 0.005)


def _below(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
