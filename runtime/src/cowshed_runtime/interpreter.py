"""The interpreter, out of reach of containers: /proc/self/exe of a process that is about to be a container's leads to
it, and who can write to that, writes to the host's (CVE-2019-5736).

It is run from a read-only clone of its mount. A clone that stays mounted saves the command its second start.
"""

from __future__ import annotations

import os
import sys

from cowshed_linux import mount

_KEPT = "/run/cowshed-runtime/.interpreter"


def protect() -> None:
    """Go on from a read-only clone of the interpreter: this process is executed anew, unless it is from one already, or
    from a file that its user cannot write to by any way."""
    path = "/proc/self/exe"
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    read_only = os.fstatvfs(fd).f_flag & os.ST_RDONLY
    gone = os.fstat(fd).st_nlink == 0
    os.close(fd)
    if read_only and not gone:
        return
    real = os.path.realpath(sys.executable) if gone else os.readlink(path)
    tree = mount.clone(real)
    mount.set_attributes(tree, mount.ATTR_RDONLY)
    os.execve(tree, [sys.executable, *sys.orig_argv[1:]], dict(os.environ))  # noqa: S606
