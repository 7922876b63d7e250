"""AppArmor and SELinux: what a container's program is confined by from its execve(2) on (apparmor(7), selinux(8); what
is written where: Documentation/admin-guide/LSM/apparmor.rst, security/apparmor/lsm.c and security/selinux/hooks.c).

The files to write to are opened in the host's /proc, before the change of root: an image or a volume can put anything
in the place of the container's own (CVE-2019-16884).
"""

from __future__ import annotations

import errno
import os

from cowshed_linux import procfs
from cowshed_runtime.errors import LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_APPARMOR, _SELINUX = "/sys/module/apparmor/parameters/enabled", "/sys/fs/selinux/enforce"
_UNCONFINED = b"unconfined"


class Label:
    """A line for one file below /proc/self/attr, and what an error says of it."""

    def __init__(self, system: str, name: str, file: str, line: str) -> None:
        self.system, self.name, self.file, self.line = system, name, file, line
        self.fd = -1

    def open(self, proc: int) -> None:
        """proc: the host's /proc. This process alone can write to what is opened, whatever happens to its root."""
        self.fd = procfs.open_beneath(proc, f"self/attr/{self.file}", os.O_WRONLY)

    def write(self) -> None:
        """With the next execve(2), or from the next keyring on, of this process or of one that it forks. LaunchError:
        there is no such profile or label, or it may not be entered."""
        try:
            os.write(self.fd, self.line.encode())
        except OSError as error:
            why = error.strerror
            if self.system == "AppArmor" and error.errno == errno.ENOENT:
                why = "it is not loaded (apparmor_parser -a FILE loads one)"
            if self.system == "SELinux" and error.errno == errno.EINVAL:
                why = "the policy does not know it"
            text = f"the {self.system} {_WORDS[self.system]} {self.name}: {why}"
            raise LaunchError(self.system.lower(), error.errno or 0, text) from None
        finally:
            os.close(self.fd)


_WORDS = {"AppArmor": "profile", "SELinux": "label"}


def apparmor() -> bool:
    """Whether this kernel runs AppArmor."""
    try:
        with open(_APPARMOR, "rb") as file:
            return file.read(1) == b"Y"
    except FileNotFoundError:
        return False


def selinux() -> bool:
    """Whether this kernel runs SELinux, and has a policy to judge by."""
    return os.path.exists(_SELINUX)


def wanted(work: dict[str, Any], linux: dict[str, Any], *, keyring: bool) -> list[Label]:
    """What an OCI process is to be under; keyring: it gets one, which the label of SELinux is for as well. LaunchError
    if this kernel does not run what is asked for."""
    found = []
    profile, label = work.get("apparmorProfile") or "", work.get("selinuxLabel") or ""
    for system, name, runs in (
        ("AppArmor", profile, apparmor),
        ("SELinux", label, selinux),
        ("SELinux", linux.get("mountLabel") or "", selinux),
    ):
        if name and not runs():
            text = (
                f"the container is to run under the {system} {_WORDS[system]} {name}, and this kernel runs no {system}"
            )
            raise LaunchError(system.lower(), errno.ENOTSUP, text)
    if profile:
        # Whoever is confined may add to what confines him, not leave it.
        word = "exec" if _current() == _UNCONFINED else "stack"
        found.append(Label("AppArmor", profile, "apparmor/exec", f"{word} {profile}"))
    if label:
        found.append(Label("SELinux", label, "exec", label))
        if keyring:
            found.append(Label("SELinux", label, "keycreate", label))
    return found


def _current() -> bytes:
    """The profile that this process is under, without its mode."""
    with open("/proc/self/attr/apparmor/current", "rb") as file:
        return file.read().rstrip(b"\0\n").partition(b" ")[0]
