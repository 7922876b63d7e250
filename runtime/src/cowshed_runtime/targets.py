"""Places inside a container's root, found and made by descriptor.

The image may be hostile: every name is resolved beneath the root's descriptor by the kernel (openat2(2)
RESOLVE_IN_ROOT), never by a path string that could mean something else a moment later (CVE-2019-19921, CVE-2021-30465).
"""

from __future__ import annotations

import os

from cowshed_linux.paths import RESOLVE_NO_SYMLINKS, open_in_root

_DIRECTORY = os.O_PATH | os.O_DIRECTORY


def place(root: int, path: str, *, directory: bool, plain: bool = False, link: bool = False) -> int:
    """A descriptor (O_PATH) of path inside the root; missing parts are made, the last as a directory or an empty file.

    plain: no symbolic link may be on the way (OSError ELOOP). link: the last part itself, if it is a symbolic link.
    """
    resolve = RESOLVE_NO_SYMLINKS if plain else 0
    try:
        return open_in_root(root, path, os.O_PATH | (os.O_NOFOLLOW if link else 0), resolve=resolve)
    except FileNotFoundError:
        pass
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    at = open_in_root(root, "/", _DIRECTORY)
    try:
        for depth, part in enumerate(parts, 1):
            so_far = "/".join(parts[:depth])
            try:
                below = open_in_root(root, so_far, os.O_PATH, resolve=resolve)
            except FileNotFoundError:
                # A dangling link of the image is a FileExistsError here: nothing is made where it leads.
                if depth == len(parts) and not directory:
                    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=at))
                else:
                    os.mkdir(part, 0o755, dir_fd=at)
                below = open_in_root(at, part, os.O_PATH, resolve=RESOLVE_NO_SYMLINKS)
            os.close(at)
            at = below
        return os.dup(at)
    finally:
        os.close(at)


def open_if_there(root: int, path: str) -> int:
    """A descriptor (O_PATH) of path inside the root, -1 if there is none."""
    try:
        return open_in_root(root, path, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return -1
