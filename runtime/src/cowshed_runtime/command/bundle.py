"""From the words of create, run and restore to a configuration and the place of a container's state."""

from __future__ import annotations

import os

from cowshed_runtime import spec
from cowshed_runtime.cgroup import place
from cowshed_runtime.command.errors import CommandError
from cowshed_runtime.command.log import log
from cowshed_runtime.command.state import plain
from cowshed_runtime.errors import SpecError
from cowshed_runtime.fastjson import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed_runtime.cgroup.group import Group
    from cowshed_runtime.command.parser import Values


class Bundle:
    """path: absolute, and the working directory from now on; config: valid."""

    def __init__(self, path: str, config: dict[str, Any]) -> None:
        self.path, self.config = path, config

    @property
    def rootfs(self) -> str:
        return os.path.normpath(os.path.join(self.path, self.config["root"]["path"]))


def read(said: Values) -> Bundle:
    """The bundle of --bundle. Paths that the words name are made absolute before the directory is changed."""
    for key in ("pid_file", "console_socket", "pidfd_socket", "config", "image_path", "work_path"):
        if said.get(key):
            said[key] = os.path.abspath(said[key])
    path = os.path.abspath(said.bundle or ".")
    try:
        os.chdir(path)
        with open(said.config or f"{path}/config.json", "rb") as file:
            text = file.read()
    except FileNotFoundError:
        raise CommandError(f"JSON specification file config.json not found in the bundle {path}") from None
    try:
        config = loads(text)
        spec.check(config)
    except ValueError as error:
        raise CommandError(f"{path}/config.json: {error}") from None
    except SpecError as error:
        raise CommandError(str(error)) from None
    return Bundle(path, config)


def group(flags: Values, config: dict[str, Any], name: str) -> Group:
    """The control groups that linux.cgroupsPath names (place.locate), by the manager that the words name."""
    manager = flags.cgroup_manager or ("systemd" if flags.systemd_cgroup else "cgroupfs")
    if manager == "disabled":
        if ((config.get("linux") or {}).get("resources") or {}).get("devices"):
            log.warning("without control groups the container's device rules are not in force")
        return place.nowhere(name)
    if manager not in ("cgroupfs", "systemd"):
        raise CommandError(f"--cgroup-manager is cgroupfs, systemd or disabled, not {manager!r}")
    found = place.locate(config, name, systemd=manager == "systemd", rootless=_rootless(flags.rootless or "auto"))
    if not any(found.directories()):
        log.warning(
            "no control group has been delegated to this user: what the container uses is not limited or counted"
        )
    return found


def _rootless(word: str) -> bool:
    """Whether this process can only have what was delegated to it."""
    if word not in ("true", "false", "auto"):
        raise CommandError(f"--rootless is true, false or auto, not {word!r}")
    return plain() if word == "auto" else word == "true"


def record(bundle: Bundle, name: str, groups: Group) -> dict[str, Any]:
    """What is kept of a new container (state.Container)."""
    config = bundle.config
    return {
        "id": name,
        "bundle": bundle.path,
        "rootfs": bundle.rootfs,
        "ociVersion": config["ociVersion"],
        "annotations": config.get("annotations") or {},
        "group": groups.record(),
        "notifies": False,
    }
