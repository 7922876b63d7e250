"""How many branches one mount takes: fixed when the kernel was built, and told by it in two places only."""

from __future__ import annotations

import re

LEAST = 127  # the smallest that aufs can be built with (AUFS_BRANCH_MAX_* of its Kconfig)
MOST = 1023  # it can be built with 32767, with which nobody should make a chain of layers
_SAID = re.compile(r"^CONFIG_AUFS_BRANCH_MAX_(\d+)=y$", re.MULTILINE)
# of a module, and of a kernel that keeps its configuration
_MODULE, _KERNEL = "/sys/fs/aufs/config", "/proc/config.gz"


def branch_limit() -> int:
    """What this kernel says, or the least there is if it does not."""
    for path in (_MODULE, _KERNEL):
        try:
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            continue
        if path == _KERNEL:
            import gzip

            data = gzip.decompress(data)
        found = said(data.decode("ascii", "replace"))
        if found:
            return found
    return LEAST


def said(text: str) -> int:
    """The limit that a kernel configuration names, as far as it is used here; 0 if it names none."""
    found = _SAID.search(text)
    return min(max(int(found[1]), LEAST), MOST) if found else 0
