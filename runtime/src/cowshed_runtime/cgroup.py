"""Control groups of containers: /cowshed/NAME in every hierarchy, on version 1, version 2 and both at once
(cgroups(7), Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

PARENT = "cowshed"
_DEVICE_KINDS = {"a": "a", "b": "b", "c": "c"}


class Layout:
    """The hierarchies that are mounted: version 1 as (path, controllers), and version 2 if it has controllers."""

    def __init__(self) -> None:
        self.v1: list[tuple[str, tuple[str, ...]]] = []
        self.v2 = ""
        unified = ""
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
            for line in f:
                before, _, after = line.partition(" - ")
                kind, _, options = after.split()[:3]
                path = before.split()[4]
                if kind == "cgroup":
                    names = [
                        o
                        for o in options.split(",")
                        if o not in ("rw", "ro", "none", "xattr", "noprefix", "clone_children")
                    ]
                    self.v1.append((path, tuple(n for n in names if not n.startswith("release_agent"))))
                elif kind == "cgroup2":
                    unified = path
        if unified and not self.v1:
            self.v2 = unified

    def find(self, controller: str) -> str:
        """The directory of a version 1 controller's hierarchy, "" if there is none."""
        return next((path for path, controllers in self.v1 if controller in controllers), "")

    def directories(self, name: str) -> Iterator[str]:
        for path, _ in self.v1:
            yield f"{path}/{PARENT}/{name}"
        if self.v2:
            yield f"{self.v2}/{PARENT}/{name}"


layout = Layout()


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16).decode()
    finally:
        os.close(fd)


def _write(path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, f"{path}: cannot be set to {value}: {os.strerror(error.errno or 0)}") from None
    finally:
        os.close(fd)


def create(name: str, resources: dict[str, Any]) -> None:
    """Make the groups and set their limits; on an error nothing is left. resources: OCI linux.resources."""
    try:
        for path in layout.directories(name):
            try:
                os.mkdir(path, 0o755)
            except FileNotFoundError:
                _make_parent(os.path.dirname(path))
                os.mkdir(path, 0o755)
        cpuset = layout.find("cpuset")
        if cpuset:
            for file in ("cpuset.cpus", "cpuset.mems"):
                _write(f"{cpuset}/{PARENT}/{name}/{file}", _read(f"{cpuset}/{PARENT}/{file}").strip())
        for path, value in settings(name, resources):
            _write(path, value)
    except BaseException:
        remove(name)
        raise


def _make_parent(path: str) -> None:
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        return
    if layout.v2:
        for at in (layout.v2, path):
            for controller in _read(f"{at}/cgroup.controllers").split():
                try:
                    _write(f"{at}/cgroup.subtree_control", f"+{controller}")
                except OSError:
                    continue  # one that cannot be handed down is met again when a limit needs it
    elif os.path.exists(f"{path}/cpuset.cpus"):
        for file in ("cpuset.cpus", "cpuset.mems"):
            _write(f"{path}/{file}", _read(f"{os.path.dirname(path)}/{file}").strip())


def settings(name: str, resources: dict[str, Any]) -> list[tuple[str, str]]:
    """The files to write, in order, for these limits. Pure."""
    return list(_v2(name, resources) if layout.v2 else _v1(name, resources))


def _v1(name: str, resources: dict[str, Any]) -> Iterator[tuple[str, str]]:
    def at(controller: str, file: str) -> str:
        path = layout.find(controller)
        if not path:
            raise OSError(2, f"this host has no {controller} cgroup controller, which the limits ask for")
        return f"{path}/{PARENT}/{name}/{file}"

    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    if memory.get("limit"):
        yield at("memory", "memory.limit_in_bytes"), str(memory["limit"])
    if memory.get("swap"):
        yield at("memory", "memory.memsw.limit_in_bytes"), str(memory["swap"])
    if memory.get("reservation"):
        yield at("memory", "memory.soft_limit_in_bytes"), str(memory["reservation"])
    if cpu.get("shares"):
        yield at("cpu", "cpu.shares"), str(cpu["shares"])
    if cpu.get("period"):
        yield at("cpu", "cpu.cfs_period_us"), str(cpu["period"])
    if cpu.get("quota"):
        yield at("cpu", "cpu.cfs_quota_us"), str(cpu["quota"])
    for key in ("cpus", "mems"):
        if cpu.get(key):
            yield at("cpuset", f"cpuset.{key}"), cpu[key]
    pids = (resources.get("pids") or {}).get("limit")
    if pids is not None:
        yield at("pids", "pids.max"), str(pids) if pids > 0 else "max"
    for rule in resources.get("devices") or ():
        kind = _DEVICE_KINDS[rule.get("type", "a")]
        major, minor = (str(rule[k]) if rule.get(k, -1) >= 0 else "*" for k in ("major", "minor"))
        text = "a" if kind == "a" else f"{kind} {major}:{minor} {rule.get('access', 'rwm')}"
        yield at("devices", "devices.allow" if rule["allow"] else "devices.deny"), text


def _v2(name: str, resources: dict[str, Any]) -> Iterator[tuple[str, str]]:
    at = f"{layout.v2}/{PARENT}/{name}"
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    limit, swap = memory.get("limit"), memory.get("swap")
    if limit:
        yield f"{at}/memory.max", "max" if limit < 0 else str(limit)
    if swap:
        yield f"{at}/memory.swap.max", "max" if swap < 0 else str(swap - limit)
    if memory.get("reservation"):
        yield f"{at}/memory.low", str(memory["reservation"])
    if cpu.get("shares"):
        yield f"{at}/cpu.weight", str(1 + (cpu["shares"] - 2) * 9999 // 262142)
    if cpu.get("quota") or cpu.get("period"):
        quota = cpu.get("quota") or -1
        yield f"{at}/cpu.max", f"{'max' if quota < 0 else quota} {cpu.get('period') or 100000}"
    for key in ("cpus", "mems"):
        if cpu.get(key):
            yield f"{at}/cpuset.{key}", cpu[key]
    pids = (resources.get("pids") or {}).get("limit")
    if pids is not None:
        yield f"{at}/pids.max", str(pids) if pids > 0 else "max"


def join(name: str) -> None:
    """Move this process, which must have one thread, into the groups.

    Version 1: `0` to `tasks`; a pid to `cgroup.procs` would wait 14 ms for a grace period of the kernel.
    """
    for path, _ in layout.v1:
        _write(f"{path}/{PARENT}/{name}/tasks", "0")
    if layout.v2:
        _write(f"{layout.v2}/{PARENT}/{name}/cgroup.procs", "0")


def processes(name: str) -> list[int]:
    for path in layout.directories(name):
        try:
            return [int(line) for line in _read(f"{path}/cgroup.procs").split()]
        except FileNotFoundError:
            continue
    return []


def oom_killed(name: str) -> bool:
    memory = layout.find("memory")
    path = f"{layout.v2}/{PARENT}/{name}/memory.events" if layout.v2 else f"{memory}/{PARENT}/{name}/memory.oom_control"
    try:
        for line in _read(path).splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1]) > 0
    except OSError:
        return False
    return False


def remove(name: str) -> None:
    """Kill what is left in the groups and remove them; absent is success."""
    from time import sleep

    for path in layout.directories(name):
        for _ in range(200):
            try:
                os.rmdir(path)
                break
            except FileNotFoundError:
                break
            except OSError:
                try:
                    for line in _read(f"{path}/cgroup.procs").split():
                        os.kill(int(line), 9)
                except (FileNotFoundError, ProcessLookupError):
                    continue
                sleep(0.005)
