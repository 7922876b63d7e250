"""Checkpoint and restore by criu(8), through its own protocol: `criu swrk` answers at a socket that it inherits
(criu.org/RPC, images/rpc.proto of its repository). Numbers of fields are that file's.

What belongs to the host is told to criu by names that both sides know: bind mounts by their destination, namespaces of
others by their kind, streams by what /proc/PID/fd calls them, which a file beside the images keeps (that of runc).
"""

from __future__ import annotations

import _socket
import fcntl
import os
import sys

from cowshed_linux import loopback, process
from cowshed_linux.paths import open_in_root
from cowshed_runtime import defaults, hooks, mounting
from cowshed_runtime.cgroup.group import Entrance
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.fastjson import dumps, loads
from cowshed_runtime.protobuf import decode, encode
from cowshed_runtime.targets import place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

    from cowshed_runtime.cgroup.group import Group

    Answer = dict[int, list[Any]]

CONFIG_ANNOTATION = "org.criu.config"
_CONFIG = "/etc/criu/runc.conf"  # where podman and runc put criu's settings; a missing one is ignored
_STREAMS = "descriptors.json"
# types of requests and answers
_DUMP, _RESTORE, _NOTIFY = 1, 2, 6
# fields of criu_opts that the words of a command name
FLAGS = {
    "leave_running": 3, "ext_unix_sk": 4, "tcp_established": 5, "shell_job": 7, "file_locks": 8, "auto_dedup": 16,
    "link_remap": 18, "tcp_skip_in_flight": 46, "tcp_close": 52,
}  # fmt: skip
_TEXTS = {"lsm_profile": 53, "lsm_mount_context": 63}
CGROUPS = {"ignore": 0, "soft": 3, "full": 4, "strict": 5}  # criu_cg_mode
# Namespaces of others: what criu calls those that it leaves alone; the rest it joins by path.
_EXTERNAL = {"network": ("net", "extRootNetNS"), "pid": ("pid", "extRootPidNS")}
_JOINED = {"ipc": "ipc", "uts": "uts", "time": "time"}
_LOG_LEVEL = 4
_MESSAGE = 1 << 16  # bytes
_FIRST = 4  # descriptors that criu inherits: 0-2, the socket, then ours
_STANDARD = ("null", "zero", "full", "random", "urandom", "tty")


class Restored:
    """The first process of a restored container, a child of this process, and the master of its terminal or -1."""

    def __init__(self, pid: int, terminal: int) -> None:
        self.pid, self.terminal = pid, terminal


def dump(
    config: dict[str, Any], pid: int, group: Group, *, rootfs: str, image: str, work: str, said: Mapping[str, Any]
) -> None:
    """Write the state of a container whose first process is pid into the directory image, which is made; it ends
    unless said has leave_running. work: the directory for criu's log. said: FLAGS, and cgroups, a word of CGROUPS.
    LaunchError with criu's own words; the container goes on then.
    """
    streams = [os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)]
    os.makedirs(image, 0o700, exist_ok=True)
    with _Work(image, work, "dump.log") as at:
        options = _options(config, said, at)
        options |= {2: pid, 13: rootfs, 23: [encode({1: point, 2: name}) for name, point in _points(config, pid)]}
        options[37] = []
        for kind, (word, key) in _EXTERNAL.items():
            path = _path(config, kind)
            if path:
                options[37].append(f"{word}[{os.stat(path).st_ino}]:{key}")
        freezer = group.find("freezer") or (group.layout.v2 and group.layout.v2 + group.path)
        if freezer and os.path.exists(freezer):
            options[44] = freezer
        fd = os.open(_STREAMS, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=at.image)
        try:
            os.write(fd, dumps(streams).encode())
        finally:
            os.close(fd)
        with _Criu(at) as criu:
            criu.ask(_DUMP, options, lambda script, number: None)


def restore(
    config: dict[str, Any], group: Group, *, bundle: str, rootfs: str, image: str, work: str, said: Mapping[str, Any]
) -> Restored:
    """Make the container whose state is in the directory image, in control groups that are made. Its streams are this
    process's where they were pipes. prestart and createRuntime hooks run when its namespaces are there. LaunchError
    leaves nothing behind.
    """
    told = hooks.state(config, group.name, bundle)
    wanted = config.get("hooks") or {}

    def answer(script: str, pid: int) -> None:
        if script == "setup-namespaces":
            if any(entry["type"] == "network" and not entry.get("path") for entry in _namespaces(config)):
                _loopback_up(pid)
            for kind in ("prestart", "createRuntime"):
                hooks.run(kind, wanted.get(kind) or [], {**told, "status": "creating", "pid": pid})

    with _Work(image, work, "restore.log") as at:
        options = _options(config, said, at)
        inherited: list[int] = []
        try:
            _make_points(config, rootfs)
            options |= {6: 1, 13: rootfs, 26: 1}  # evasive_devices, root, rst_sibling
            options |= {number: str(said[key]) for key, number in _TEXTS.items() if said.get(key)}
            options[23] = [encode({1: name, 2: source}) for name, source in _sources(config, bundle).items()]
            options[27] = [encode({1: key, 2: [number]}) for number, key in enumerate(at.streams()) if "pipe:" in key]
            for kind, (_, key) in _EXTERNAL.items():
                path = _path(config, kind)
                if path:
                    options[27].append(encode({1: key, 2: [_FIRST + len(inherited)]}))
                    inherited.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            options[39] = [
                encode({1: word, 2: path}) for kind, word in _JOINED.items() if (path := _path(config, kind))
            ]
            group.create((config.get("linux") or {}).get("resources") or {})
            try:
                scene = _Scene(group, inherited)
                with _Criu(at, scene) as criu:
                    options[25] = [encode({1: name, 2: path}) for name, path in _memberships(criu.pid)]
                    pid = decode(criu.ask(_RESTORE, options, answer)[4][0])[1][0]
                    _hold_to_groups(pid, group)
                    return Restored(pid, criu.terminal)
            except BaseException:
                group.remove()
                raise
        except OSError as error:
            raise LaunchError("criu", error.errno or 0, f"{error.filename or 'restore'}: {error.strerror}") from None
        finally:
            for fd in inherited:
                os.close(fd)


def _options(config: dict[str, Any], said: Mapping[str, Any], at: _Work) -> dict[int, Any]:
    """What dump and restore have in common. A network namespace of the container's own is empty, as who makes such a
    namespace for it fills it by a hook."""
    options: dict[int, Any] = {number: 1 for key, number in FLAGS.items() if said.get(key)}
    options |= {1: [at.image], 9: _LOG_LEVEL, 10: at.log, 12: 1, 17: [at.work], 38: process.CLONE_NEWNET, 50: 1}
    options |= {24: 1, 34: [CGROUPS[said.get("cgroups") or "soft"]]}
    file = (config.get("annotations") or {}).get(CONFIG_ANNOTATION, _CONFIG)
    return options | {51: file}


def _path(config: dict[str, Any], kind: str) -> str:
    return next((entry.get("path") or "" for entry in _namespaces(config) if entry["type"] == kind), "")


def _namespaces(config: dict[str, Any]) -> list[dict[str, Any]]:
    return (config.get("linux") or {}).get("namespaces") or []


def _loopback_up(pid: int) -> None:
    """In the network namespace of a process, which a child of this one enters. LaunchError."""
    child = os.fork()
    if child == 0:
        try:
            process.setns(os.pidfd_open(pid), process.CLONE_NEWNET)
            loopback.up()
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise LaunchError("namespaces", 0, "lo cannot be brought up in the network namespace")


def _sources(config: dict[str, Any], bundle: str) -> dict[str, str]:
    """What is bound from the host: destination, source."""
    found = {
        str(entry["destination"]): mounting.joined(bundle, str(entry.get("source") or ""))
        for entry in config.get("mounts") or ()
        if entry.get("type") in ("bind", None, "") or {"bind", "rbind"} & set(entry.get("options") or ())
    }
    if any(entry["type"] == "user" for entry in _namespaces(config)):  # where no device can be made
        devices = [entry["path"] for entry in config["linux"].get("devices") or ()]
        paths = [f"/dev/{name}" for name in _STANDARD] + devices
        found |= {path: path for path in paths}
    return found


def _points(config: dict[str, Any], pid: int) -> list[tuple[str, str]]:
    """Of the bind mounts that a running container has, the destination and where that is: its root may have symbolic
    links on the way. By the numbers of mounts."""
    mounted = {}
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        for line in file:
            words = line.split()
            mounted[int(words[0])] = os.fsdecode(words[4].decode("unicode_escape").encode("latin-1"))
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    found = []
    try:
        for name in _sources(config, ""):
            try:
                fd = open_in_root(root, name, os.O_PATH)
            except OSError:
                continue  # it was unmounted, or is hidden by another mount
            with open(f"/proc/self/fdinfo/{fd}") as file:
                number = next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))
            os.close(fd)
            if mounted.get(number, "/") != "/":
                found.append((name, mounted[number]))
    finally:
        os.close(root)
    return found


def _make_points(config: dict[str, Any], rootfs: str) -> None:
    """Mount points that a root file system lacks: criu makes none. What is in another mount comes with that."""
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    above: list[str] = []
    try:
        for entry in config.get("mounts") or ():
            name, kind = str(entry["destination"]), entry.get("type")
            if not any(name.startswith(f"{other.rstrip('/')}/") for other in above):
                source = entry.get("source") or ""
                bound = kind == "bind" or {"bind", "rbind"} & set(entry.get("options") or ())
                os.close(place(root, name, directory=not bound or os.path.isdir(source)))
            above.append(name)
    finally:
        os.close(root)


def _memberships(pid: int) -> list[tuple[str, str]]:
    """The control groups of a process: controllers, path."""
    with open(f"/proc/{pid}/cgroup") as file:
        rows = [line.rstrip("\n").split(":", 2) for line in file]
    return [(name.removeprefix("name="), path) for _, name, path in rows]


def _hold_to_groups(pid: int, group: Group) -> None:
    """LaunchError, and its end, if the images have made criu put it elsewhere."""
    inside = [path for _, path in _memberships(pid) if path == group.path or path.startswith(f"{group.path}/")]
    if len(inside) < len(list(group.directories())):
        os.kill(pid, 9)
        raise LaunchError("cgroup", 0, "criu has not restored the container in its control groups")


class _Work:
    """Directories of images and of the log, open."""

    def __init__(self, image: str, work: str, log: str) -> None:
        self.folder, self.log = work or image, log
        os.makedirs(self.folder, 0o700, exist_ok=True)
        self.image = os.open(image, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.work = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> _Work:
        return self

    def __exit__(self, *unused: object) -> None:
        os.close(self.image)
        os.close(self.work)

    def streams(self) -> list[str]:
        """What standard streams were when the container was dumped. LaunchError if these are no images of one."""
        try:
            with open(f"/proc/self/fd/{self.image}/{_STREAMS}", "rb") as file:
                streams = loads(file.read())
        except FileNotFoundError:
            raise LaunchError("criu", 2, f"there is no {_STREAMS} in the directory of images") from None
        except ValueError as error:
            raise LaunchError("criu", 22, f"{_STREAMS}: {error}") from None
        return [str(stream) for stream in streams[:3]]

    def reason(self) -> str:
        """The last error of the log but the one that says that all has failed: those before need not be the reason."""
        path, found = f"{self.folder}/{self.log}", "it failed, and its log does not say why"
        try:
            with open(path, errors="replace") as file:
                for line in file:
                    if "Error (" in line and "FAILED" not in line:
                        found = line.partition("): ")[2].strip()
        except FileNotFoundError:
            found = "it does not work here"  # it did not come so far
        return f"criu: {found} ({path})"


class _Scene:
    """Where criu restores: in the container's groups. inherited: descriptors that it has from _FIRST on."""

    def __init__(self, group: Group, inherited: list[int]) -> None:
        self.inherited, self.group, self.entrance = inherited, group, Entrance(group)

    def enter(self, socket: Any) -> None:
        if self.group.foreign and socket.recv(1) != b"g":
            os._exit(125)
        self.entrance.enter()
        self.entrance.descend()
        socket.send(b"e")

    def settle(self, socket: Any, pid: int) -> None:
        """The other end: criu is in the groups. LaunchError."""
        if self.group.foreign:
            self.group.attach(pid)
            socket.send(b"g")
        if not socket.recv(1):
            raise LaunchError("criu", 0, "criu cannot be put into the container's control groups")


class _Criu:
    """A criu that works for this process, and is gone when the `with` ends; what it restores stays."""

    def __init__(self, at: _Work, scene: _Scene | None = None) -> None:
        """LaunchError if there is no criu."""
        self.at, self.terminal = at, -1
        program = _program()
        self._socket, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self.pid, _ = process.clone3(0, cgroup=scene.entrance.born if scene else -1)
        if self.pid == 0:
            self._become(program, theirs, scene)
        theirs.close()
        if scene:
            scene.settle(self._socket, self.pid)

    def _become(self, program: str, socket: Any, scene: _Scene | None) -> NoReturn:
        try:
            if scene:
                scene.enter(socket)
            wanted = [socket.fileno(), *(scene.inherited if scene else ())]
            # Away from their places first, so that none is overwritten before it is used.
            moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, _FIRST + len(wanted)) for fd in wanted]
            for number, fd in enumerate(moved, _FIRST - 1):
                os.dup2(fd, number, inheritable=True)
            process.close_range(_FIRST - 1 + len(wanted), on_exec=True)
            os.execve(program, ["criu", "swrk", str(_FIRST - 1)], dict(os.environ))  # noqa: S606
        finally:
            os._exit(127)

    def __enter__(self) -> _Criu:
        return self

    def __exit__(self, *unused: object) -> None:
        self._socket.close()
        os.waitpid(self.pid, process.WALL)

    def ask(self, kind: int, options: dict[int, Any], answer: Callable[[str, int], None]) -> Answer:
        """Its answer to a request. answer is called with what it tells meanwhile, and may stop it by an exception.
        LaunchError with the error that it wrote into its log."""
        self._socket.send(encode({1: kind, 2: encode(options)}))
        while True:
            data, ancillary, _, _ = self._socket.recvmsg(_MESSAGE, _socket.CMSG_SPACE(4))
            for _, _, passed in ancillary:
                self.terminal = int.from_bytes(passed[:4], sys.byteorder)
            said = decode(data) if data else {}
            if not said.get(2, [0])[0]:
                raise LaunchError("criu", said.get(7, [0])[0], self.at.reason())
            if said[1][0] != _NOTIFY:
                return said
            told = decode(said[5][0])
            answer(told[1][0].decode(), told.get(2, [0])[0])
            self._socket.send(encode({1: _NOTIFY, 3: 1}))


def _program() -> str:
    for folder in os.environ.get("PATH", defaults.PATH).split(":"):
        path = f"{folder or '.'}/criu"
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    raise LaunchError("criu", 2, "there is no criu in PATH, which checkpoint and restore need (Debian: criu)")
