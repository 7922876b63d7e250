"""To whom a container's group of version 2 is given (config-linux.md, Cgroup ownership; cgroups(7), Delegation)."""

from __future__ import annotations

from cowshed_runtime.cgroup.files import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DELEGATE = "run.oci.delegate-cgroup"  # crun(1)


def owner(config: dict[str, Any]) -> int | None:
    """The user of the host that the container's group is given to, by the rules of Cgroup ownership: with a cgroup
    namespace of its own and a writable mount, that of process.user.uid; None: it stays the runtime's."""
    linux = config.get("linux") or {}
    kinds = {entry["type"]: entry.get("path") for entry in linux.get("namespaces") or ()}
    if kinds.get("cgroup", "none"):
        return None
    mounts = (mount for mount in config.get("mounts") or () if mount.get("source") == "cgroup")
    if not any(m["destination"] == "/sys/fs/cgroup" and "ro" not in (m.get("options") or ()) for m in mounts):
        return None
    uid = int(((config.get("process") or {}).get("user") or {}).get("uid") or 0)
    if "user" not in kinds:
        return uid
    for extent in linux.get("uidMappings") or ():
        if extent["containerID"] <= uid < extent["containerID"] + extent["size"]:
            return int(uid - extent["containerID"] + extent["hostID"])
    return None


def files() -> list[str]:
    """What of a group its owner may write."""
    try:
        return read("/sys/kernel/cgroup/delegate").split()
    except FileNotFoundError:
        return ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"]
