"""exec: another process in a container."""

from __future__ import annotations

import _socket
import os
import sys

from cowshed_linux.capabilities import NUMBERS
from cowshed_runtime import launcher
from cowshed_runtime.cgroup import place
from cowshed_runtime.command import handing, state, waitfor
from cowshed_runtime.command.errors import CommandError, told
from cowshed_runtime.command.log import log
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed_runtime.cgroup.group import Group
    from cowshed_runtime.command.parser import Values

_FAILED = 255  # the status that says that exec itself failed, and not what it was to start
_INHERITED = ("capabilities", "rlimits", "apparmorProfile", "selinuxLabel")  # from the container, if not said


def exec(flags: Values, said: Values) -> int:
    try:
        return _exec(flags, said)
    except (CommandError, LaunchError, OSError) as error:
        raise CommandError(f"exec failed: {told(error)}", _FAILED) from None


def _exec(flags: Values, said: Values) -> int:
    name, *words = said["operands"]
    folder = state.root(flags)
    container = state.load(folder, name)
    status = container.status()
    if status == "stopped":
        raise CommandError("cannot exec in a stopped container: container not running")
    if status == "paused" and not said.ignore_paused:
        raise CommandError("cannot exec in a paused container (use --ignore-paused to override)")
    config = container.config()
    work = _process(said, words, config["process"])
    handing.check_terminal(bool(work.get("terminal")), bool(said.detach), said.console_socket)
    inherits = handing.inherited(said.preserve_fds or 0)
    pid_file = os.path.abspath(said.pid_file) if said.pid_file else ""
    console = handing.connect(said.console_socket) if said.console_socket else None
    watcher = handing.connect(said.pidfd_socket) if said.pidfd_socket else None
    group = _below(container.group, said.cgroup) if said.cgroup else container.group
    manner = launcher.Manner(bundle=container.record["bundle"], preserve=inherits)
    if not said.detach:
        waitfor.own_size(work)
        waitfor.hold()
    pid, terminal = _join(work, config, container, group, state.cache(folder), manner)
    try:
        if console:
            handing.send(console, terminal, b"/dev/ptmx")
        if watcher:
            handing.send(watcher, os.pidfd_open(pid), b"pidfd")
        if pid_file:
            handing.write_pid(pid_file, pid)
    except BaseException:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        raise
    return 0 if said.detach else waitfor.wait(pid, terminal)


def _join(
    work: dict[str, Any],
    config: dict[str, Any],
    container: state.Container,
    group: Group,
    cache: str,
    manner: launcher.Manner,
) -> tuple[int, int]:
    """Start it from a fork of this process, which is lost to the container's namespaces; it becomes this one's child:
    its pid, and the master of its terminal or -1."""
    if not container.lives():
        raise CommandError("cannot exec in a stopped container: container not running")
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    helper = os.fork()
    if helper == 0:
        try:
            made = launcher.join(
                work, config.get("linux") or {}, container.pid, (0, 1, 2), group=group, cache=cache,
                annotations=config.get("annotations"), manner=manner,
            )  # fmt: skip
            passed = []
            if made.terminal >= 0:
                passed = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, made.terminal.to_bytes(4, sys.byteorder))]
            theirs.sendmsg([dumps([made.pid, made.warnings]).encode()], passed)
        except LaunchError as error:
            theirs.send(dumps([error.stage, error.errno, str(error), error.status]).encode())
        except BaseException as error:
            theirs.send(dumps(["exec", 0, f"{type(error).__name__}: {error}", 125]).encode())
        finally:
            os._exit(0)
    theirs.close()
    answer, ancillary, _, _ = ours.recvmsg(1 << 16, _socket.CMSG_SPACE(4))
    ours.close()
    os.waitpid(helper, 0)
    if not answer:
        raise CommandError("the process that enters the container was killed")
    said = loads(answer)
    if len(said) > 2:
        stage, number, text, code = said
        raise LaunchError(stage, number, text, code)
    for text in said[1]:
        log.warning(text)
    for warning in said[1]:
        log.warning(warning)
    terminal = -1
    for _, _, data in ancillary:
        terminal = int.from_bytes(data[:4], sys.byteorder)
    return int(said[0]), terminal


def _process(said: Values, words: list[str], first: dict[str, Any]) -> dict[str, Any]:
    """The process object: that of --process, or the container's own with what the words change."""
    if said.process:
        try:
            with open(said.process, "rb") as file:
                work = loads(file.read())
        except ValueError as error:
            raise CommandError(f"{said.process}: {error}") from None
        if not isinstance(work, dict):
            raise CommandError(f"{said.process}: must be an object")
        for key in _INHERITED:
            if not work.get(key) and first.get(key):
                work[key] = first[key]
        return work
    if not words:
        raise CommandError("process args cannot be empty")
    work = {**first, "args": words, "terminal": bool(said.tty), "user": _user(said, first["user"])}
    work.pop("consoleSize", None)
    if said.cwd:
        work["cwd"] = said.cwd
    if said.env:
        work["env"] = [*(first.get("env") or []), *said.env]
    if said.cap:
        work["capabilities"] = _more(first.get("capabilities") or {}, said.cap)
    if said.process_label:
        work["selinuxLabel"] = said.process_label
    if said.apparmor:
        work["apparmorProfile"] = said.apparmor
    if "no_new_privs" in said:
        work["noNewPrivileges"] = said.no_new_privs
    return work


def _user(said: Values, first: dict[str, Any]) -> dict[str, Any]:
    """Strictly numbers: what is no number must not become user 0 (CVE-2026-30892)."""
    user = dict(first)
    if said.user:
        uid, colon, gid = said.user.partition(":")
        user = {**user, "uid": _id(uid, "--user"), "gid": _id(gid, "--user") if colon else 0}
    if said.additional_gids:
        user["additionalGids"] = [_id(gid, "--additional-gids") for gid in said.additional_gids]
    return user


def _id(text: str, option: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) > 2**32 - 2:
        raise CommandError(f"{option}: {text!r} is no user or group number")
    return int(text)


def _more(first: dict[str, Any], names: list[str]) -> dict[str, Any]:
    wanted = [name.upper() if name[:4].upper() == "CAP_" else f"CAP_{name.upper()}" for name in names]
    for name in wanted:
        if name not in NUMBERS:
            raise CommandError(f"--cap: {name} is no capability")
    return {
        **first,
        **{kind: sorted({*(first.get(kind) or ()), *wanted}) for kind in ("bounding", "effective", "permitted")},
    }


def _below(group: Group, path: str) -> Group:
    if ".." in path.split("/"):
        raise CommandError(f"--cgroup: must not contain `..`: {path}")
    below = place.restore({**group.record(), "path": f"{group.path}/{path.strip('/')}".rstrip("/")})
    for folder in below.directories():
        if not os.path.isdir(folder):
            raise CommandError(f"--cgroup: {folder} does not exist")
    return below
