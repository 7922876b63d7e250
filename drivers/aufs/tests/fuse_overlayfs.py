"""Debian's fuse-overlayfs in place of the kernel's aufs, for the conformance suite:

    pytest --pyargs cowshed_conformance --driver aufs --stand-in drivers/aufs/tests/fuse_overlayfs.py:stand_in

It reads branches as aufs leaves them and, told so by its environment, writes them so: layers, whiteouts, opaque marks,
commits and differences are the real ones. What it cannot stand in for are batches, what sysfs says, numbers of inodes,
hard links between layers, and names: see drivers/aufs/tests/test_*.py, and the run in the guest.

The mount is made first, detached as every mount is, and its descriptor of /dev/fuse handed to the program. So nobody
sees a path, and the program ends when the last descriptor of the mount is closed, whoever dies.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from typing import Any

from cowshed.storage import api
from cowshed_conformance.standins import StandIn
from cowshed_linux import mount

PROGRAM = "fuse-overlayfs"
BRANCHES = 127  # as the kernel's would refuse more
OWN = "user.fuseoverlayfs."  # its own attributes
# It writes .wh. files, and not the devices of overlay that aufs does not know.
_ENVIRONMENT = {"FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT": "1", "PATH": os.environ.get("PATH", "")}


def mounted(step: api.Aufs) -> int:
    """As cowshed.layers.aufs.mounted."""
    if len(step.branches) > BRANCHES:
        raise OSError(errno.ENOSPC, f"mount aufs: {len(step.branches)} branches")
    with contextlib.ExitStack() as until:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        until.callback(os.close, device)
        options = {"fd": str(device), "rootmode": "40000", "user_id": "0", "group_id": "0", "allow_other": None}
        attributes = 0 if step.writable else mount.ATTR_RDONLY
        source = step.branches[0][-200:]  # the mount table must name the layer
        tree = mount.file_system("fuse", source, [*options.items(), ("default_permissions", None)], attributes)
        failed = until.enter_context(contextlib.ExitStack())
        failed.callback(os.close, tree)
        _serve(step, device)
        failed.pop_all()
        return tree


def _serve(step: api.Aufs, device: int) -> None:
    """Start the program; it answers from then on, in the background."""
    with contextlib.ExitStack() as until:
        names, fds = [], [device]
        for path in step.branches:  # by descriptor: in its options, colons, commas and backslashes mean something
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            until.callback(os.close, fd)
            fds.append(fd)
            names.append(f"/proc/self/fd/{fd}")
        said = [f"lowerdir={':'.join(names)}"]
        if step.writable:
            # It wants one beside the branch, on the same file system; it goes with the layer.
            work = f"{os.path.dirname(step.branches[0])}/stand-in"
            with contextlib.suppress(FileExistsError):
                os.mkdir(work, 0o700)
            fd = os.open(work, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            until.callback(os.close, fd)
            fds.append(fd)
            lowers = names[1:] or [_nothing(until, fds)]
            said = [f"lowerdir={':'.join(lowers)}", f"upperdir={names[0]}", f"workdir=/proc/self/fd/{fd}"]
        done = subprocess.run(
            [PROGRAM, "-o", ",".join([*said, "writeback=0"]), f"/dev/fd/{device}"], pass_fds=fds, env=_ENVIRONMENT,
            capture_output=True, stdin=subprocess.DEVNULL, text=True, cwd="/",
        )  # fmt: skip
    if done.returncode:
        raise OSError(errno.EINVAL, f"mount aufs: {PROGRAM} ended with {done.returncode}: {done.stderr.strip()}")


def _nothing(until: contextlib.ExitStack, fds: list[int]) -> str:
    """An empty directory: it wants one layer below at least."""
    fd = mount.file_system("tmpfs", "nothing", [("size", "4k")])
    until.callback(os.close, fd)
    fds.append(fd)
    return f"/proc/self/fd/{fd}"


class Differs:
    """What a layer is otherwise while it is mounted by this program."""

    @property
    def capabilities(self) -> Any:
        real = super().capabilities  # type: ignore[misc]
        instead = {
            "hard_links_survive_copy_up": False,
            "stale_reads_after_copy_up": False,
            "char_0_0_visible": False,
            "shared_page_cache": False,
            "sparse": False,
            "time_granularity": 1,
            "xattrs_removable": True,
            "name_max": 251,
            "lost_xattrs": (OWN, "trusted.overlay.", "user.overlay."),
        }  # fmt: skip
        names = [name for name in api.Capabilities.__annotations__ if not name.startswith("_")]
        return api.Capabilities(**{**{name: getattr(real, name) for name in names}, **instead})

    def diff_tree(self, layer: api.Layer) -> api.DiffTree:
        real = super().diff_tree(layer)  # type: ignore[misc]
        return api.DiffTree(real.directory, real.whiteout, OWN)


_LINKS = "takes the names of a file below for one file again after one of them was changed"
_FIFOS = "cannot change the owner or mode of a fifo, socket or device of a layer below"
CANNOT = {
    "test_A10_a_parent_that_is_not_named": "loses the set-group-id bit of a directory that it copies up",
    "test_C11_": "does not exchange a directory and a file",
    "test_C16_": "makes no fifo in a directory with a default access list",
    "test_C19_": _LINKS,
    "test_C21_special_files": _FIFOS,
    "test_C23_": "fills holes, which here is a gigabyte",
    "test_D13_hard_links[fuse-overlayfs-another name]": _LINKS,
    "test_D13_hard_links[fuse-overlayfs-written": _LINKS,
    "test_H07_what_a_container_changes": _LINKS,
    "test_I08_": _FIFOS,
    "test_I09_": _FIFOS,
    "test_L26_a_root_with_odd_characters_works_or_is_refused_at_once[fuse-overlayfs-:colon]": "splits paths at colons",
    "script device 0:0": "takes a device 0:0 for a whiteout of overlay",
    "script one of two names written to": _LINKS,
    "test_V01_a_chain_has_the_same": _LINKS,
    "test_V05_what_is_lost_was_known_before_from_the_capabilities[fuse-overlayfs-device 0:0": (
        "does not show a device 0:0 that it has made"
    ),
    "test_V07_": _LINKS,
    "test_V09_": _FIFOS,
    "test_X15_": _LINKS,
    "test_R02_": "names files by path, which may be too long",
}
stand_in = StandIn(PROGRAM, "aufs", api.Aufs, mounted, Differs, CANNOT, spares=("link", "fifo"), linger=5.0)
