"""From an OCI configuration to an ordered list of small steps. Making a plan touches nothing; `describe` prints it.

The order follows from what each step can still see and still may do:

1. sources of bind mounts: the host's names, before they are gone, and with the rights of who starts the container: a
   root does this before a user namespace is entered, anybody else after it, which is what allows him to;
2. propagation, then every mount and device, beneath the root's descriptor, while the host's root is still there;
3. hooks of the host: in its own namespaces (prestart, createRuntime), in the container's (createContainer);
4. the change of root;
5. sysctls, before /proc/sys is read-only; read-only and masked paths; the root's own attributes;
6. as the container's user, before its filter is loaded: hooks in the container (startContainer).
"""

from __future__ import annotations

import os

from cowshed_linux import process
from cowshed_runtime import hooks, mappings, mounting, rootfs
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.options import PROPAGATION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cowshed_runtime.cgroup.group import Group

NAMESPACES = {
    "mount": process.CLONE_NEWNS, "uts": process.CLONE_NEWUTS, "ipc": process.CLONE_NEWIPC,
    "pid": process.CLONE_NEWPID, "network": process.CLONE_NEWNET, "cgroup": process.CLONE_NEWCGROUP,
    "time": process.CLONE_NEWTIME, "user": process.CLONE_NEWUSER,
}  # fmt: skip
# Root can join all of them; the rights over his own user namespace are gone when he joins another: last.
_JOIN_ORDER = ("ipc", "uts", "network", "cgroup", "time", "pid", "mount", "user")


def _nobody() -> None:
    raise LaunchError("hooks", 0, "there is no launcher that could run hooks")


class Scene:
    """What the steps know of each other while they are executed."""

    def __init__(self, root: int, *, isolated_users: bool = False) -> None:
        self.root = root  # -1: OpenRoot makes it
        self.isolated_users = isolated_users  # in another user namespace than who starts the container
        self.trees: dict[mounting.Bind | mounting.FileSystem, int] = {}  # opened sources
        self.sealed: list[int] = []  # mounts to be made read-only when all is in its place
        self.terminal: tuple[int, int] | None = None  # master, slave
        self.ask: Callable[[], None] = _nobody  # have the launcher run hooks, and wait
        self.output: hooks.Output | None = None  # of hooks, opened on the host
        self.confine: Callable[[], object] | None = None  # of a hook in the container, before it is executed

    def close(self, root: int) -> None:
        """Close what was opened for the container, but for the root that the caller gave, or -1."""
        for tree in self.trees.values():
            os.close(tree)
        self.trees.clear()
        if self.root != root:
            os.close(self.root)
            self.root = root


class Plan:
    """What is done to start a container.

    create: clone3 flags of the new namespaces; late: of those that the child makes itself, once it is inside the
    groups and has its identities; join: (kind, path) of those of others, in the order for root; users, groups: the
    identities of a new user namespace; clocks: offsets of a new time namespace; devices: network devices of the host to
    move; sources: steps that open what the host has; early: only the launcher can, as root; steps: what the child does
    to its root; last: what it does right before it executes its program.
    """

    def __init__(self) -> None:
        self.create = self.late = 0
        self.join: list[tuple[str, str]] = []
        self.users: mappings.Extents = []
        self.groups: mappings.Extents = []
        self.clocks: list[tuple[str, int, int]] = []
        self.devices: dict[str, str] = {}
        self.sources: list[Any] = []
        self.early = False
        self.steps: list[Any] = []
        self.last: list[Any] = []

    @property
    def user_namespace(self) -> bool:
        """Whether the container is in another user namespace than who starts it."""
        return bool(self.create & process.CLONE_NEWUSER) or any(kind == "user" for kind, _ in self.join)

    def describe(self) -> str:
        """One line per step, for people."""
        new = [kind for kind, flag in NAMESPACES.items() if (self.create | self.late) & flag]
        lines = [f"new namespaces: {' '.join(new) or 'none'}"]
        lines += [f"join the {kind} namespace {path}" for kind, path in self.join]
        for what, mapped in (("user", self.users), ("group", self.groups)):
            lines += [f"map {count} {what} ids from {host} to {inside}" for inside, host, count in mapped]
        lines += [f"set the {clock} clock {seconds}.{nano:09} s ahead" for clock, seconds, nano in self.clocks]
        lines += [f"move the network device {old} in as {new}" for old, new in self.devices.items()]
        return "\n".join([*lines, *(step.describe() for step in (*self.sources, *self.steps, *self.last))])


def build(
    config: dict[str, Any],
    group: Group,
    state: dict[str, Any] | None = None,
    *,
    bundle: str = "",
    pivot: bool = True,
    own_root: bool = False,
) -> Plan:
    """The plan for a validated configuration.

    group: its control groups; state: what hooks are told; bundle: what relative paths are relative to; pivot: change
    the root by pivot_root(2), which an initial RAM file system as root does not allow; own_root: the root is that of
    config.root.path and not one that the caller has mounted.
    """
    plan = Plan()
    _namespaces(plan, config)
    linux, work = config.get("linux") or {}, config["process"]
    isolated = bool(plan.create & process.CLONE_NEWNS)
    label = linux.get("mountLabel") or ""
    mounts = mounting.mounts(config.get("mounts") or [], group, bundle, _mapping(plan), label)
    binds = [step for step in mounts if isinstance(step, mounting.Bind)]
    if own_root:
        plan.sources.append(rootfs.OpenRoot(mounting.joined(bundle, config["root"]["path"])))
    opened = [step for step in mounts if isinstance(step, mounting.Bind | mounting.FileSystem) and step.opened]
    if opened:
        plan.sources.append(mounting.OpenSources(opened))
    plan.early = any(step.options.idmap or isinstance(step, mounting.FileSystem) for step in opened)
    steps = plan.steps
    word = linux.get("rootfsPropagation") or ""
    recursive = word not in PROPAGATION
    propagation = PROPAGATION.get(word.removeprefix("r") if recursive else word, 0)
    steps += [rootfs.Isolate(propagation) if isolated else rootfs.EnterRoot(), *mounts]
    if not any((bind.source, bind.destination) == ("/dev", "/dev") for bind in binds):  # the host has its own in it
        steps.append(rootfs.Devices(linux.get("devices") or []))
    if work.get("terminal"):
        steps.append(rootfs.Console())
    for_hooks = config.get("hooks") or {}
    if for_hooks.get("prestart") or for_hooks.get("createRuntime"):
        steps.append(hooks.InRuntime())
    if for_hooks.get("createContainer"):
        steps.append(hooks.Run("createContainer", for_hooks["createContainer"], state or {}))
    steps.append(rootfs.Pivot() if isolated and pivot else rootfs.ChangeRoot())
    if linux.get("sysctl"):
        steps.append(rootfs.Sysctl(linux["sysctl"]))
    steps.append(rootfs.MakeDirectory(work["cwd"]))
    if any(step.late_read_only for step in mounts):
        steps.append(rootfs.SealMounts())
    if linux.get("readonlyPaths"):
        steps.append(rootfs.ReadOnly(linux["readonlyPaths"]))
    if linux.get("maskedPaths"):
        steps.append(rootfs.Mask(linux["maskedPaths"], label))
    read_only = bool((config.get("root") or {}).get("readonly"))
    if read_only or propagation:
        steps.append(rootfs.SealRoot(read_only=read_only, propagation=propagation, recursive=recursive))
    if for_hooks.get("startContainer"):
        plan.last.append(hooks.Run("startContainer", for_hooks["startContainer"], state or {}))
    return plan


def _namespaces(plan: Plan, config: dict[str, Any]) -> None:
    linux, join = config.get("linux") or {}, {}
    for entry in linux.get("namespaces") or ():
        kind, path = entry["type"], entry.get("path")
        if path:
            join[kind] = path
        elif kind in ("cgroup", "time"):
            plan.late |= NAMESPACES[kind]
        else:
            plan.create |= NAMESPACES[kind]
    plan.join = [(kind, join[kind]) for kind in _JOIN_ORDER if kind in join]
    if plan.create & process.CLONE_NEWUSER:
        plan.users = mappings.extents(linux["uidMappings"])
        plan.groups = mappings.extents(linux["gidMappings"])
    for clock, offset in (linux.get("timeOffsets") or {}).items():
        plan.clocks.append((clock, offset.get("secs") or 0, offset.get("nanosecs") or 0))
    for name, device in (linux.get("netDevices") or {}).items():
        plan.devices[name] = device.get("name") or name


def _mapping(plan: Plan) -> mounting.Mapping | None:
    """The identities of the container, for mounts that have none of their own."""
    for kind, path in plan.join:
        if kind == "user":
            return mounting.Mapping([], [], path)
    return mounting.Mapping(plan.users, plan.groups) if plan.users else None
