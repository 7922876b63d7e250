"""AppArmor: the profile that a container's program is under from its execve(2) on (apparmor(7); what is written where:
Documentation/admin-guide/LSM/apparmor.rst, security/apparmor/lsm.c of Linux).

The file to write to is opened in the host's /proc, before the change of root: an image or a volume can put anything in
the place of the container's own (CVE-2019-16884).
"""

from __future__ import annotations

import errno
import os

from cowshed_linux import procfs
from cowshed_runtime.errors import LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ENABLED = "/sys/module/apparmor/parameters/enabled"


def enabled() -> bool:
    """Whether this kernel runs AppArmor."""
    try:
        with open(_ENABLED, "rb") as file:
            return file.read(1) == b"Y"
    except FileNotFoundError:
        return False


def wanted(work: dict[str, Any]) -> str:
    """The profile that an OCI process names, "" for none. LaunchError if this kernel has none at all."""
    profile = str(work.get("apparmorProfile") or "")
    if profile and not enabled():
        text = f"the container is to run under the AppArmor profile {profile}, and this kernel runs no AppArmor"
        raise LaunchError("apparmor", errno.ENOTSUP, text)
    return profile


def host() -> int:
    """The host's /proc, as a descriptor that is good beyond a change of root."""
    return procfs.handle()


def attribute(proc: int) -> int:
    """Where this process says what its next program is to be under; only it can write there."""
    return procfs.open_beneath(proc, "self/attr/apparmor/exec", os.O_WRONLY)


def enter(fd: int, profile: str) -> None:
    """With the next execve(2), of this process or of one that it forks. LaunchError: there is no such profile."""
    try:
        os.write(fd, f"exec {profile}".encode())
    except OSError as error:
        why = error.strerror
        if error.errno == errno.ENOENT:
            why = "it is not loaded (apparmor_parser -a FILE loads one)"
        raise LaunchError("apparmor", error.errno or 0, f"the AppArmor profile {profile}: {why}") from None
