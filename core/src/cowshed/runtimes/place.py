"""What is made for one container of another runtime in its run directory: the bundle, and what the runtime keeps.

FOLDER/ID/config.json and rootfs, the bundle, which shims expect under the container's name; FOLDER/state.
The root is attached in a mount namespace that the helper, and what it starts, are alone in: nothing of it is left when
they are gone.
"""

from __future__ import annotations

import errno
import os

from cowshed.runtimes import program
from cowshed_linux import mount, process
from cowshed_runtime.cgroup.group import Group
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.runtimes.api import Task


def make(task: Task, config: dict[str, Any]) -> str:
    """The bundle; its path."""
    bundle = bundle_of(task)
    for path in (task.folder, f"{task.folder}/state", bundle, f"{bundle}/rootfs"):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            continue
    fd = os.open(f"{bundle}/config.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as f:
        f.write(dumps(config))
    return bundle


def bundle_of(task: Task) -> str:
    return f"{task.folder}/{task.id}"


def group(task: Task, config: dict[str, Any]) -> None:
    """The control groups, if they are the engine's to make, and the doors to them, opened where they can be seen."""
    if task.grouped:
        made = Group(task.id)
        try:
            made.create(config["linux"].get("resources") or {})
            for path in made.directories():
                task.doors.append(os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
        except OSError as error:
            raise LaunchError("cgroup", error.errno or 0, str(error.strerror or error)) from None


def shut(task: Task) -> None:
    """Nobody enters the groups any more."""
    for fd in task.doors:
        os.close(fd)
    task.doors.clear()


def confined(task: Task, pid: int) -> None:
    """LaunchError if a process that was made for the container is in none of its control groups: no limit would hold,
    and nothing would find it when its monitor is killed."""
    if pid not in Group(task.id).processes():
        raise LaunchError(
            "cgroup", 0, f"the runtime {task.path} does not put its processes into the control group that its "
            "configuration names, so that no limit would hold",
        )  # fmt: skip


def enter(task: Task, root: int) -> None:
    """Into a mount namespace of this process's own, where the root is at the bundle's rootfs."""
    process.unshare(process.CLONE_NEWNS)
    # A slave of the host's: what is mounted there later still comes to volumes that ask for it, and nothing goes back.
    program.hide(task.hidden)
    mount.attach(root, f"{bundle_of(task)}/rootfs")
    mount.set_attributes(root, propagation=mount.PRIVATE)


def remove(path: str) -> None:
    """A folder and all in it; what is not there is no error."""
    for attempt in range(5):
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        remove(entry.path)
                    else:
                        os.unlink(entry.path)
            os.rmdir(path)
            return
        except FileNotFoundError:
            continue  # one that somebody else has just removed
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or attempt == 4:
                raise  # a signal that comes too late may have left a lock of the runtime meanwhile


def configured(config: dict[str, Any], task: Task) -> dict[str, Any]:
    """The configuration of a container for another runtime: with the groups where the engine looks for them, and of a
    version of the specification that old ones know; it uses nothing newer. A number of a device that stands for all is
    left out, as the specification has it: -1 is a custom that not all know."""
    changed = {**config, "ociVersion": "1.0.2", "root": {**config.get("root", {}), "path": "rootfs"}}
    changed["linux"] = {**config["linux"], "cgroupsPath": f"/cowshed/{task.id}"}
    limits = changed["linux"].get("resources") or {}
    rules = [{k: v for k, v in rule.items() if v != -1} for rule in limits.get("devices") or ()]
    changed["linux"]["resources"] = {**limits, "devices": rules}
    return changed
