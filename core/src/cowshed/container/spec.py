"""The OCI runtime configuration of a container, from its image and from what the caller asked (image-spec
conversion.md, runtime-spec config.md). Pure but for looking at the devices of the host."""

from __future__ import annotations

import os
import stat

from cowshed.errors import BadUsage, Unsupported
from cowshed_linux import capabilities as linux_capabilities
from cowshed_linux.capabilities import NUMBERS
from cowshed_runtime import defaults

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_OWN = frozenset(f"/dev/{name}" for name in "pts shm mqueue fd null zero full random urandom tty ptmx console".split())
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def arguments(asked: dict[str, Any], image: dict[str, Any]) -> list[str]:
    """What is executed: an entry point given on the command line drops the image's command too."""
    command = list(asked.get("command") or ())
    if asked.get("entrypoint") is not None:
        return [*([asked["entrypoint"]] if asked["entrypoint"] else []), *command]
    entrypoint = list(image.get("Entrypoint") or ())
    return [*entrypoint, *(command or image.get("Cmd") or ())]


def environment(asked: dict[str, Any], image: dict[str, Any], hostname: str, home: str) -> list[str]:
    """Later ones win; each name once; an image's entry without `=` is dropped (CVE-2026-57231)."""
    found: dict[str, str] = {}
    own = [_PATH, f"HOSTNAME={hostname}", *(["TERM=xterm"] if asked.get("tty") else [])]
    for entry in [*own, *(image.get("Env") or ()), *(asked.get("env") or ())]:
        name, equals, value = entry.partition("=")
        if name and equals:
            found[name] = value
    found.setdefault("HOME", home)
    return [f"{name}={value}" for name, value in found.items()]


def capabilities(asked: dict[str, Any]) -> list[str]:
    """Names for all five sets; "all" is all that the engine has itself, which need not be all that there are."""
    if asked.get("privileged"):
        return linux_capabilities.names(linux_capabilities.permitted())

    def names(words: list[str]) -> list[str]:
        result = []
        for word in words:
            name = word.upper()
            if name == "ALL":
                return linux_capabilities.names(linux_capabilities.permitted())
            name = name if name.startswith("CAP_") else f"CAP_{name}"
            if name not in NUMBERS:
                raise BadUsage(f"there is no capability {word}", remedy="capabilities(7) lists them")
            result.append(name)
        return result

    added, dropped = names(asked.get("cap_add") or []), set(names(asked.get("cap_drop") or []))
    if any(word.upper() == "ALL" for word in asked.get("cap_drop") or ()):
        return list(added)
    return [name for name in dict.fromkeys([*defaults.CAPABILITIES, *added]) if name not in dropped]


def compose(
    asked: dict[str, Any],
    image: dict[str, Any],
    *,
    hostname: str,
    user: tuple[int, int, list[int], str],
    files: str,
    mounts: list[dict[str, Any]],
) -> dict[str, Any]:
    """asked: what the caller said (ContainerRow.config); image: the `config` object of its configuration; user: as
    resolved; files: the folder of hosts, hostname and resolv.conf; mounts: volumes and binds, resolved."""
    privileged = bool(asked.get("privileged"))
    config = defaults.config(shm_size=asked.get("shm_size") or 64 << 20, privileged=privileged)
    process, linux = config["process"], config["linux"]
    process["args"] = arguments(asked, image)
    if not process["args"]:
        raise BadUsage("there is no command: neither the image nor the command line names one")
    uid, gid, groups, home = user
    process["user"] = {"uid": uid, "gid": gid, "additionalGids": groups}
    process["env"] = environment(asked, image, hostname, home)
    process["cwd"] = asked.get("workdir") or image.get("WorkingDir") or "/"
    if not process["cwd"].startswith("/"):
        raise BadUsage(f"the working directory {process['cwd']!r} is not absolute")
    process["terminal"] = bool(asked.get("tty"))
    held = capabilities(asked)
    kinds = ("bounding", "effective", "permitted") if uid == 0 else ("bounding",)
    process["capabilities"] = dict.fromkeys(kinds, held)
    process["rlimits"] = [_limit(word) for word in asked.get("ulimit") or ()]
    config["hostname"] = hostname
    config["root"]["readonly"] = bool(asked.get("read_only"))
    _security(asked, config, held)
    _network(asked, config, files)
    resources = linux["resources"]
    if asked.get("memory"):
        resources["memory"] = {"limit": asked["memory"], "swap": asked.get("memory_swap") or asked["memory"] * 2}
    if asked.get("cpus"):
        resources["cpu"] = {"period": 100_000, "quota": int(float(asked["cpus"]) * 100_000)}
    if asked.get("pids_limit"):
        resources["pids"] = {"limit": asked["pids_limit"]}
    if privileged:
        linux["devices"] += _host_devices()
    for word in asked.get("device") or ():
        node, rule = _device(word)
        linux["devices"].append(node)
        resources["devices"].append(rule)
    for word in asked.get("tmpfs") or ():
        path, _, options = word.partition(":")
        config["mounts"].append(
            {"destination": path, "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "nodev", "noexec", "mode=1777", *(o for o in options.split(",") if o)]}
        )  # fmt: skip
    config["mounts"] += mounts
    if asked.get("init"):
        config["annotations"] = {"cowshed.init": "true"}
    return config


def _security(asked: dict[str, Any], config: dict[str, Any], held: list[str]) -> None:
    confined = not asked.get("privileged")
    for word in asked.get("security_opt") or ():
        key, _, value = word.replace(":", "=", 1).partition("=")
        if key == "no-new-privileges":
            if value not in ("", "true", "false"):
                raise BadUsage(f"--security-opt {word}: no-new-privileges is true or false")
            config["process"]["noNewPrivileges"] = value != "false"
        elif key == "seccomp":
            if value == "builtin":
                continue
            if value != "unconfined":
                from cowshed.container import profile

                config["linux"]["seccomp"] = profile.read(value, held)
            confined = False
        elif (key, value) in (("apparmor", "unconfined"), ("label", "disable"), ("systempaths", "unconfined")):
            if key == "systempaths":
                config["linux"]["maskedPaths"], config["linux"]["readonlyPaths"] = [], []
        elif key == "apparmor" and value:
            from cowshed_runtime import labels

            if not labels.apparmor():
                raise Unsupported(
                    f"--security-opt {word}: this kernel runs no AppArmor, and a container must not be thought to be "
                    "confined by it", remedy="leave it away, or boot a kernel with lsm=…,apparmor",
                )  # fmt: skip
            config["process"]["apparmorProfile"] = value
        elif key == "label":
            raise BadUsage(
                f"--security-opt {word}: SELinux labels are not applied, and a container must not be thought to be "
                "confined by one", remedy="leave it away, or give label=disable",
            )  # fmt: skip
        else:
            known = "no-new-privileges, seccomp=FILE|unconfined, apparmor=PROFILE|unconfined"
            raise BadUsage(f"--security-opt {word} is not known", remedy=known)
    if confined:
        from cowshed_runtime import seccomp

        config["linux"]["seccomp"] = seccomp.default_profile(held, keep_projects="storage_opt" in asked)


def _network(asked: dict[str, Any], config: dict[str, Any], files: str) -> None:
    if asked.get("network", "none") == "host":
        namespaces = config["linux"]["namespaces"]
        config["linux"]["namespaces"] = [n for n in namespaces if n["type"] != "network"]
    for name in ("hosts", "hostname", "resolv.conf"):
        config["mounts"].append(
            {
                "destination": f"/etc/{name}",
                "type": "bind",
                "source": f"{files}/{name}",
                "options": ["bind", "rprivate"],
            }
        )


def _limit(word: str) -> dict[str, Any]:
    name, _, values = word.partition("=")
    soft, _, hard = values.partition(":")
    known = (
        "as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack"
    ).split()
    if name not in known or not soft.lstrip("-").isdigit() or (hard and not hard.lstrip("-").isdigit()):
        raise BadUsage(f"--ulimit {word}: write NAME=SOFT[:HARD]", remedy=f"names: {', '.join(known)}")

    def number(text: str) -> int:
        return 2**64 - 1 if text == "-1" else int(text)

    return {"type": f"RLIMIT_{name.upper()}", "soft": number(soft), "hard": number(hard or soft)}


def _host_devices() -> list[dict[str, Any]]:
    """Every device node of the host's /dev, bar what a container has of its own."""
    found, folders = [], ["/dev"]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.path in _OWN:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if _kind(status):
                    found.append(_node(entry.path, status))
    return found


def _kind(status: os.stat_result) -> str:
    return "b" if stat.S_ISBLK(status.st_mode) else "c" if stat.S_ISCHR(status.st_mode) else ""


def _node(path: str, status: os.stat_result) -> dict[str, Any]:
    return {"path": path, "type": _kind(status), "major": os.major(status.st_rdev), "minor": os.minor(status.st_rdev),
            "fileMode": stat.S_IMODE(status.st_mode), "uid": status.st_uid, "gid": status.st_gid}  # fmt: skip


def _device(word: str) -> tuple[dict[str, Any], dict[str, Any]]:
    parts = word.split(":")
    source, target = parts[0], parts[1] if len(parts) > 1 and parts[1].startswith("/") else parts[0]
    access = parts[-1] if len(parts) > 1 and not parts[-1].startswith("/") else "rwm"
    try:
        status = os.stat(source)
    except OSError as error:
        raise BadUsage(f"--device {source}: {error.strerror}") from None
    kind = _kind(status)
    if not kind or not set(access) <= set("rwm"):
        raise BadUsage(f"--device {word}: write a device [:PATH_INSIDE][:rwm]")
    node = _node(target, status)
    return node, {"allow": True, "type": kind, "major": node["major"], "minor": node["minor"], "access": access}
