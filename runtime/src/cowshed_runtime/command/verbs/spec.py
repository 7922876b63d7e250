"""spec: a config.json to begin with."""

from __future__ import annotations

import os

from cowshed_runtime import defaults
from cowshed_runtime.command.errors import CommandError
from cowshed_runtime.fastjson import pretty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed_runtime.command.parser import Values

_KEPT = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")


def spec(flags: Values, said: Values) -> int:
    config = defaults.config()
    config["root"]["readonly"] = True
    config["process"].update(
        terminal=True,
        args=["sh"],
        env=[f"PATH={defaults.PATH}", "TERM=xterm"],
        noNewPrivileges=True,
        capabilities={kind: list(_KEPT) for kind in ("bounding", "effective", "permitted")},
        rlimits=[{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
    )
    config["hostname"] = "cowshed"
    if said.rootless:
        _for_plain_user(config)
    path = os.path.join(said.bundle or ".", "config.json")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise CommandError(f"file {path} exists; remove it first") from None
    try:
        os.write(fd, (pretty(config) + "\n").encode())
    finally:
        os.close(fd)
    return 0


def _for_plain_user(config: dict[str, object]) -> None:
    """A user namespace that maps the caller to root; no network namespace, no limits, the host's /sys by bind."""
    linux, mounts = config["linux"], config["mounts"]
    assert isinstance(linux, dict)
    assert isinstance(mounts, list)
    kinds = [entry for entry in linux["namespaces"] if entry["type"] != "network"]
    linux["namespaces"] = [*kinds, {"type": "user"}]
    for key, number in (("uidMappings", os.geteuid()), ("gidMappings", os.getegid())):
        linux[key] = [{"containerID": 0, "hostID": number, "size": 1}]
    linux.pop("resources")
    for mount in mounts:
        if mount["type"] == "devpts":
            mount["options"] = [option for option in mount["options"] if not option.startswith("gid=")]
        elif mount["type"] == "sysfs":
            mount.update(type="none", source="/sys", options=["rbind", "nosuid", "noexec", "nodev", "ro"])
