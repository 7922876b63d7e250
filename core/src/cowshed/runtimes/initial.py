"""`--init` with another runtime than ours: a small program of this host's as the container's process 1."""

from __future__ import annotations

import os
from _struct import unpack_from

from cowshed.errors import Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PLACE = "/run/cowshed-init"  # in the container
_FOLDERS = "/usr/local/bin /usr/bin /usr/sbin /usr/libexec/podman /usr/libexec/docker /usr/lib/podman".split()
_NAMES = ("catatonit", "tini-static", "docker-init")
_INTERPRETER = 3  # PT_INTERP: elf(5)


def give(config: dict[str, Any]) -> None:
    """Let an init execute what the configuration would. Unsupported if this host has none that can run anywhere."""
    source = next((path for name in _NAMES for at in _FOLDERS if is_static(path := f"{at}/{name}")), "")
    if not source:
        raise Unsupported(
            "--init: with another runtime than native it needs an init of this host, and none is installed",
            remedy="install catatonit, or tini (for tini-static)",
        )
    config.get("annotations", {}).pop("cowshed.init", None)
    config["process"]["args"] = [_PLACE, "--", *config["process"]["args"]]
    options = ["bind", "ro", "rprivate"]
    config["mounts"].append({"destination": _PLACE, "type": "bind", "source": source, "options": options})


def is_static(path: str) -> bool:
    """Whether a file is an ELF program that needs no interpreter: it runs whatever else is there."""
    try:
        with open(path, "rb") as f:
            head = f.read(4096)
    except OSError:
        return False
    if head[:5] != b"\x7fELF\x02" or not os.access(path, os.X_OK):
        return False
    at, (size, count) = unpack_from("<Q", head, 32)[0], unpack_from("<HH", head, 54)
    if at + size * count > len(head):
        return False
    return all(unpack_from("<I", head, at + size * n)[0] != _INTERPRETER for n in range(count))
