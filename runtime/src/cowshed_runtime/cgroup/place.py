"""Where a container's control groups are to be, and who may manage them: linux.cgroupsPath, and what else of a
configuration concerns the groups themselves (config-linux.md, Control Groups)."""

from __future__ import annotations

import os

from cowshed_runtime.cgroup import layout, resctrl
from cowshed_runtime.cgroup.files import read
from cowshed_runtime.cgroup.group import PARENT, Group
from cowshed_runtime.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed_runtime.cgroup.layout import Layout


def locate(
    config: dict[str, Any],
    name: str,
    *,
    systemd: bool = False,
    rootless: bool = False,
    within: Layout | None = None,
) -> Group:
    """The groups of the container called name.

    An absolute cgroupsPath starts at the mount points of the hierarchies, a relative one, and the default, below
    /cowshed. With systemd it is `slice:prefix:name`. rootless: only what has been delegated to this user is used, and
    /cowshed is beside the group of this process, or in it, and systemd is that of the user; there may be no groups at
    all. SpecError for a path that leads elsewhere; OSError if systemd cannot be reached.
    """
    path, within = str((config.get("linux") or {}).get("cgroupsPath") or ""), within or layout.host
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path or (path and not parts):
        raise SpecError(f"linux.cgroupsPath: {path!r} must name a group, without `..`")
    if systemd:
        return _scope(config, name, path, within, user=rootless)
    if rootless:
        return _delegated(name, parts, absolute=path.startswith("/"), within=within)
    if not path:
        return Group(name, within=within)
    return Group(name, "/".join(("" if path.startswith("/") else PARENT, *parts)), within)


def nowhere(name: str) -> Group:
    """No groups at all, although the host has some: the container stays in those of who makes it. It has no device
    rules then, and any limit is an error, as it is for a plain user who has been delegated none."""
    made = Group(name, within=layout.host.only(lambda hierarchy: False))
    made.rootless, made.wanted = True, False
    return made


def _scope(config: dict[str, Any], name: str, path: str, within: Layout, *, user: bool) -> Group:
    from cowshed_runtime.cgroup import systemd as units

    slice_, unit = units.place(path, name, user=user)
    above = ""
    if user:
        within = within.only(lambda hierarchy: hierarchy == within.v2)
        with units.Manager(user=True) as manager:
            above = manager.own()
    made = units.Scope(name, f"{above}{units.expand(slice_)}/{unit}", unit, slice_, within, user=user)
    made.adopt(config)
    return made


def _delegated(name: str, parts: list[str], *, absolute: bool, within: Layout) -> Group:
    path = "/".join(("", *parts)) if absolute else f"{_base(within)}{PARENT}/{'/'.join(parts) or name}"
    made = Group(name, path, within.only(lambda hierarchy: _may_make(hierarchy, path)))
    made.own, made.rootless = not parts, True
    return made


def _base(within: Layout) -> str:
    """Where this process may make groups of version 2: beside its own, else in its own, which holds processes and so
    can hand no controllers down."""
    own = ""
    for line in read("/proc/self/cgroup").splitlines():
        if line.startswith("0::"):
            own = line[3:].rstrip("/")
    above = os.path.dirname(own).rstrip("/")
    return above if within.v2 and own and _writable(within.v2 + above) else own


def _may_make(hierarchy: str, path: str) -> bool:
    at = path
    while at and not os.path.isdir(hierarchy + at):
        at = os.path.dirname(at).rstrip("/")
    return _writable(hierarchy + at)


def _writable(folder: str) -> bool:
    """Whether groups can be made in a group, and processes moved between them (cgroups(7), Delegation containment)."""
    return os.access(folder, os.W_OK | os.X_OK) and os.access(f"{folder}/cgroup.procs", os.W_OK)


def restore(record: dict[str, Any]) -> Group:
    """The group of which Group.record() was kept."""
    within = layout.host.only(lambda hierarchy: hierarchy in record["hierarchies"])
    if "unit" in record:
        from cowshed_runtime.cgroup.systemd import Scope

        words = (record["name"], record["path"], record["unit"], record["slice"])
        made: Group = Scope(*words, within, user=record["user"])
    else:
        made = Group(record["name"], record["path"], within)
    made.own, made.rootless, made.wanted = record["own"], record["rootless"], record["wanted"]
    if record["intelRdt"] is not None:
        made.service = resctrl.Class(record["intelRdt"], made.name)
    return made
