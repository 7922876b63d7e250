"""From the words of create, run and restore to a configuration and the place of a container's state."""

from __future__ import annotations

import os

from cowshed_runtime import spec
from cowshed_runtime.cgroup.group import PARENT, Group
from cowshed_runtime.command.errors import CommandError
from cowshed_runtime.errors import SpecError
from cowshed_runtime.fastjson import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

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
    """The control groups that linux.cgroupsPath names: from the mount point of each hierarchy on, or below ours if it
    is relative."""
    if flags.systemd_cgroup or flags.cgroup_manager not in (None, "cgroupfs"):
        raise CommandError("this version makes control groups itself only (--cgroup-manager cgroupfs)")
    wanted = (config.get("linux") or {}).get("cgroupsPath") or ""
    parts = [part for part in wanted.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise CommandError(f"linux.cgroupsPath: must not contain `..`: {wanted}")
    return Group(name, "/".join(["" if wanted[:1] == "/" else PARENT, *parts]) if parts else "")


def record(bundle: Bundle, name: str, groups: Group) -> dict[str, Any]:
    """What is kept of a new container (state.Container)."""
    config = bundle.config
    return {
        "id": name,
        "bundle": bundle.path,
        "rootfs": bundle.rootfs,
        "ociVersion": config["ociVersion"],
        "annotations": config.get("annotations") or {},
        "group": groups.path,
        "notifies": False,
    }
