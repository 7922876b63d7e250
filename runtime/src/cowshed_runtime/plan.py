"""From an OCI configuration to an ordered list of small steps. Making a plan touches nothing; `describe` prints it.

The order follows from what each step can still see and still may do:

1. sources of bind mounts: the host's names, before they are gone;
2. propagation, then every mount and device, beneath the root's descriptor, while the host's root is still there;
3. hooks of the host: in its own namespaces (prestart, createRuntime), in the container's (createContainer);
4. the change of root;
5. sysctls, before /proc/sys is read-only; read-only and masked paths; the root's own attributes;
6. as the container's user, before its filter is loaded: hooks in the container (startContainer).
"""

from __future__ import annotations

from cowshed_linux import process
from cowshed_runtime import hooks, mounting, rootfs
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
}  # fmt: skip
# The pid namespace of a process cannot be changed, only that of its children: last.
_JOIN_ORDER = ("ipc", "uts", "network", "cgroup", "mount", "pid")


def _nobody() -> None:
    raise LaunchError("hooks", 0, "there is no launcher that could run hooks")


class Scene:
    """What the steps know of each other while they are executed."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.trees: dict[mounting.Bind, int] = {}  # opened sources
        self.terminal: tuple[int, int] | None = None  # master, slave
        self.ask: Callable[[], None] = _nobody  # have the launcher run hooks, and wait
        self.output: hooks.Output | None = None  # of hooks, opened on the host
        self.confine: Callable[[], object] | None = None  # of a hook in the container, before it is executed


class Plan:
    """create: clone3 flags of the new namespaces; cgroup_namespace: one is made once inside the groups; join:
    (kind, path) of those of others; steps: what the child does to its root; last: what it does right before it
    executes its program."""

    def __init__(
        self, create: int, cgroup_namespace: bool, join: list[tuple[str, str]], steps: list[Any], last: list[Any]
    ) -> None:
        self.create, self.cgroup_namespace, self.join = create, cgroup_namespace, join
        self.steps, self.last = steps, last

    def describe(self) -> str:
        """One line per step, for people."""
        new = [kind for kind, flag in NAMESPACES.items() if self.create & flag]
        if self.cgroup_namespace:
            new.append("cgroup")
        lines = [f"new namespaces: {' '.join(new)}"]
        lines += [f"join the {kind} namespace {path}" for kind, path in self.join]
        return "\n".join([*lines, *(step.describe() for step in (*self.steps, *self.last))])


def build(config: dict[str, Any], group: Group, state: dict[str, Any] | None = None, *, pivot: bool = True) -> Plan:
    """The plan for a validated configuration; group: its control groups; state is what hooks are told; pivot:
    whether the root is changed by pivot_root(2)."""
    linux, work = config.get("linux") or {}, config["process"]
    create, cgroup_namespace, join = 0, False, {}
    for entry in linux.get("namespaces") or ():
        kind, path = entry["type"], entry.get("path")
        if path:
            join[kind] = path
        elif kind == "cgroup":
            cgroup_namespace = True
        else:
            create |= NAMESPACES[kind]
    mounts = mounting.mounts(config.get("mounts") or [], group)
    steps: list[Any] = []
    binds = [step for step in mounts if isinstance(step, mounting.Bind)]
    if binds:
        steps.append(mounting.OpenSources(binds))
    steps += [rootfs.Isolate(), *mounts, rootfs.Devices(linux.get("devices") or [])]
    if work.get("terminal"):
        steps.append(rootfs.Console())
    for_hooks = config.get("hooks") or {}
    if for_hooks.get("prestart") or for_hooks.get("createRuntime"):
        steps.append(hooks.InRuntime())
    if for_hooks.get("createContainer"):
        steps.append(hooks.Run("createContainer", for_hooks["createContainer"], state or {}))
    steps.append(rootfs.Pivot() if pivot else rootfs.ChangeRoot())
    if linux.get("sysctl"):
        steps.append(rootfs.Sysctl(linux["sysctl"]))
    steps.append(rootfs.MakeDirectory(work["cwd"]))
    if linux.get("readonlyPaths"):
        steps.append(rootfs.ReadOnly(linux["readonlyPaths"]))
    if linux.get("maskedPaths"):
        steps.append(rootfs.Mask(linux["maskedPaths"]))
    read_only = bool((config.get("root") or {}).get("readonly"))
    word = linux.get("rootfsPropagation") or ""
    propagation = PROPAGATION.get(word.removeprefix("r") if word not in PROPAGATION else word, 0)
    if read_only or propagation:
        recursive = word not in PROPAGATION
        steps.append(rootfs.SealRoot(read_only=read_only, propagation=propagation, recursive=recursive))
    last = []
    if for_hooks.get("startContainer"):
        last.append(hooks.Run("startContainer", for_hooks["startContainer"], state or {}))
    ordered = [(kind, join[kind]) for kind in _JOIN_ORDER if kind in join]
    return Plan(create, cgroup_namespace, ordered, steps, last)
