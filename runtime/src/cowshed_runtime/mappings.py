"""Identities of user namespaces (user_namespaces(7); config-linux.md, User namespace mappings).

Maps are written from outside, by who started the process that is in the namespace and waits. What root may write
itself, newuidmap(1) and newgidmap(1) write for others, within what subuid(5) and subgid(5) grant.
"""

from __future__ import annotations

import os

from cowshed_linux import namespaces, process
from cowshed_runtime.errors import LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Extents = list[tuple[int, int, int]]

_TOOLS = ("/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin", "/sbin")


def extents(mappings: Sequence[dict[str, Any]]) -> Extents:
    """(containerID, hostID, size) of OCI mappings."""
    return [(entry["containerID"], entry["hostID"], entry["size"]) for entry in mappings]


def outside(mapped: Extents, identity: int) -> int:
    """The id of the host for one of the namespace, -1 if it has none."""
    for first, host, count in mapped:
        if first <= identity < first + count:
            return host + identity - first
    return -1


def write(pid: int, users: Extents, groups: Extents) -> None:
    """Give the user namespace of process pid its identities. LaunchError says what this user may not map."""
    try:
        if os.geteuid() == 0:
            namespaces.write_map(pid, "gid_map", groups)
            namespaces.write_map(pid, "uid_map", users)
            return
        # His own identities alone anybody may map.
        if _only(groups, os.getegid()):
            namespaces.deny_setgroups(pid)
            namespaces.write_map(pid, "gid_map", groups)
        else:
            _ask("newgidmap", pid, groups)
        if _only(users, os.geteuid()):
            namespaces.write_map(pid, "uid_map", users)
        else:
            _ask("newuidmap", pid, users)
    except OSError as error:
        text = f"the identities of the user namespace cannot be mapped: {error.strerror}"
        raise LaunchError("namespaces", error.errno or 0, text) from None


def _only(mapped: Extents, own: int) -> bool:
    return len(mapped) == 1 and mapped[0][1:] == (own, 1)


def _ask(tool: str, pid: int, mapped: Extents) -> None:
    path = next((f"{folder}/{tool}" for folder in _TOOLS if os.access(f"{folder}/{tool}", os.X_OK)), "")
    if not path:
        text = f"mapping more than one's own identity needs {tool}, which is not installed (Debian: uidmap)"
        raise LaunchError("namespaces", 2, text)
    words = [tool, str(pid), *(str(number) for extent in mapped for number in extent)]
    said = os.memfd_create("said", os.MFD_CLOEXEC)
    try:
        child = os.posix_spawn(path, words, {}, file_actions=[(os.POSIX_SPAWN_DUP2, said, 2)])
        if os.waitpid(child, 0)[1]:
            text = os.pread(said, 4096, 0).decode(errors="replace").strip() or f"{tool} failed"
            raise LaunchError("namespaces", 1, f"{text} (subuid(5) and subgid(5) say what a user may map)")
    finally:
        os.close(said)


class Inside:
    """What process pid (`self`: this one) may be in its user namespace: its identities, and whether setgroups(2) is
    allowed. To be read while /proc is the host's."""

    def __init__(self, pid: int | str) -> None:
        self.users, self.groups = namespaces.read_map(pid, "uid_map"), namespaces.read_map(pid, "gid_map")
        self.set_groups = namespaces.may_set_groups(pid)

    def become_root(self) -> None:
        """Become root of this process's user namespace, or its first identity if it has no root. LaunchError EPERM for
        a namespace without identities."""
        if not self.users or not self.groups:
            raise LaunchError("namespaces", 1, "the user namespace has no identities: nobody has written its maps")
        if self.set_groups:
            os.setgroups([])
        group = 0 if outside(self.groups, 0) >= 0 else self.groups[0][0]
        user = 0 if outside(self.users, 0) >= 0 else self.users[0][0]
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)


def namespace(users: Extents, groups: Extents) -> int:
    """The descriptor of a new user namespace with these identities, that nobody is in: for mounts (mount_setattr(2)
    MOUNT_ATTR_IDMAP)."""
    read_end, write_end = os.pipe()
    pid, _ = process.clone3(process.CLONE_NEWUSER, exit_signal=0)
    if pid == 0:
        try:
            os.close(write_end)
            os.read(read_end, 1)  # until the other end is closed
        finally:
            os._exit(0)
    try:
        write(pid, users, groups)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(read_end)
        os.close(write_end)
        os.waitpid(pid, process.WALL)
