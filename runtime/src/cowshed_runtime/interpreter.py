"""The interpreter, out of reach of containers: /proc/self/exe of a process that is about to be a container's leads to
it, and who can write to that, writes to the host's (CVE-2019-5736).

It is run from a read-only clone of its mount. A clone that stays mounted saves the command its second start.
"""

from __future__ import annotations

import fcntl
import os
import sys

from cowshed_linux import mount

_COPY = "cowshed-runtime"
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
KEPT = "/run/cowshed-runtime/.interpreter"


def kept(real: str) -> str:
    """Where the clone of an interpreter stays mounted: what the command's launcher starts, if it is there."""
    return f"{KEPT}/{real.strip('/').replace('/', '-')}"


def protect(*, keep: bool = False) -> None:
    """Go on from a read-only clone of the interpreter: this process is executed anew, unless it is from one already.
    keep: let the clone stay mounted for later commands, if this user may."""
    path = "/proc/self/exe"
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    read_only = os.fstatvfs(fd).f_flag & os.ST_RDONLY
    gone = os.fstat(fd).st_nlink == 0  # an upgrade has replaced it
    os.close(fd)
    if read_only and not gone:
        return
    if gone and _is_sealed(path):
        return
    real = _real() if gone else os.readlink(path)
    try:
        tree = mount.clone(real)
    except PermissionError:  # a plain user, whose containers have no more rights over files than he has
        there = os.stat(real)
        if there.st_uid != os.geteuid() and not os.access(real, os.W_OK):
            return
        os.execve(_sealed(real), [sys.executable, *sys.orig_argv[1:]], dict(os.environ))  # noqa: S606
    mount.set_attributes(tree, mount.ATTR_RDONLY)
    if keep and os.geteuid() == 0:
        try:
            _keep(tree, real)
        except OSError:
            pass  # a root of a user namespace, or a file system that is read-only: it is cloned each time
    os.execve(tree, [sys.executable, *sys.orig_argv[1:]], dict(os.environ))  # noqa: S606


def _sealed(real: str) -> int:
    """A copy in memory that nobody can change (memfd_create(2), F_ADD_SEALS)."""
    copy = os.memfd_create(_COPY, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    source = os.open(real, os.O_RDONLY | os.O_CLOEXEC)
    while os.sendfile(copy, source, None, 1 << 24):
        continue
    os.close(source)
    fcntl.fcntl(copy, fcntl.F_ADD_SEALS, _SEALS)
    return copy


def _is_sealed(path: str) -> bool:
    if not os.readlink(path).startswith(f"/memfd:{_COPY}"):
        return False
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    finally:
        os.close(fd)


def _real() -> str:
    """The file of the interpreter by name, also for one that was started from a clone."""
    link = os.readlink("/proc/self/exe").removesuffix(" (deleted)")
    if not link.startswith(KEPT):
        return link
    with open(f"{os.path.dirname(os.path.dirname(link))}/pyvenv.cfg") as file:
        return f"{file.readline().partition('=')[2].strip()}/{os.path.basename(link)}"


def _keep(tree: int, real: str) -> None:
    folder = kept(real)
    os.makedirs(f"{folder}/bin", 0o700, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        target = f"{folder}/bin/{os.path.basename(real)}"
        if os.path.exists(target) and os.stat(target).st_nlink == 0:
            mount.unmount(target, mount.MNT_DETACH)
        os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        if os.stat(target).st_ino == os.fstat(tree).st_ino:
            return  # another command was faster
        with open(f"{folder}/pyvenv.cfg", "w") as file:  # where its standard library is
            file.write(f"home = {os.path.dirname(real)}\n")
        mount.attach(tree, target)
    finally:
        os.close(lock)
