"""Starting containers and processes in them.

`launch` and `join` are called in a short-lived process with one thread, the launcher, a fork of a warm process in which
this module is imported. The container's first process is cloned as a sibling of the launcher (CLONE_PARENT), so the
launcher's parent, the monitor, is its parent and executes almost nothing itself.

After the change of root nothing is imported, loaded or looked up by name: an image could supply it (CVE-2019-14271).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` brings enum
import _socket
import fcntl
import os
import resource
import sys

from cowshed_linux import capabilities, loopback, process, seccomp
from cowshed_runtime import cgroup, rootfs
from cowshed_runtime import seccomp as profiles
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

NAMESPACES = {
    "mount": process.CLONE_NEWNS, "uts": process.CLONE_NEWUTS, "ipc": process.CLONE_NEWIPC,
    "pid": process.CLONE_NEWPID, "network": process.CLONE_NEWNET, "cgroup": process.CLONE_NEWCGROUP,
}  # fmt: skip
_LAST_CAPABILITY = capabilities.last()
_PERMITTED = capabilities.permitted()
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CONTROLLING_TERMINAL = 0x540E  # TIOCSCTTY
_SIGNALS = [n for n in range(1, 65) if n not in (9, 19, 32, 33)]
_FORWARDED = [n for n in _SIGNALS if n not in (17, 21, 22)]


class Launched:
    """A container that runs: the pid of its first process, and the master of its terminal or -1."""

    def __init__(self, pid: int, terminal: int) -> None:
        self.pid, self.terminal = pid, terminal


def launch(config: dict[str, Any], root: int, stdio: tuple[int, int, int], *, name: str, cache: str) -> Launched:
    """Start a container from an OCI configuration; root is a detached mount; name is that of its cgroups.

    With process.terminal stdio is not used: Launched.terminal is the master. LaunchError leaves nothing behind.
    """
    process_, linux = config["process"], config.get("linux") or {}
    program = _program(linux.get("seccomp"), cache)
    try:
        cgroup.create(name, linux.get("resources") or {})
    except OSError as error:
        raise LaunchError("cgroup", error.errno or 0, str(error.strerror or error)) from None
    kinds = {n["type"]: n.get("path") for n in linux.get("namespaces") or ()}
    flags = 0
    for kind, path in kinds.items():
        if kind != "cgroup" and not path:
            flags |= NAMESPACES[kind]

    def child(report: _Report) -> NoReturn:
        report.stage = "cgroup"
        cgroup.join(name)
        if "cgroup" in kinds:
            process.unshare(process.CLONE_NEWCGROUP)
        report.stage = "namespaces"
        for kind, path in kinds.items():
            if path:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                process.setns(fd, NAMESPACES[kind])
                os.close(fd)
        if flags & process.CLONE_NEWNET:
            loopback.up()
        if flags & process.CLONE_NEWUTS and config.get("hostname"):
            process.set_hostname(config["hostname"])
        report.stage = "mount"
        terminal: list[int] = []
        rootfs.enter(root, config, terminal)
        report.stage = "sysctl"
        for key, value in (linux.get("sysctl") or {}).items():
            fd = os.open("/proc/sys/" + key.replace(".", "/"), os.O_WRONLY | os.O_CLOEXEC)
            os.write(fd, str(value).encode())
            os.close(fd)
        _become(
            process_, stdio, terminal, program, report, init=bool(config.get("annotations", {}).get("cowshed.init"))
        )

    try:
        pid, terminal = _clone(flags, child)
    except BaseException:
        cgroup.remove(name)
        raise
    return Launched(pid, terminal)


def join(
    process_: dict[str, Any], linux: dict[str, Any], target: int, stdio: tuple[int, int, int], *, name: str, cache: str
) -> Launched:
    """Start another process in the container whose first process is pid target."""
    program = _program(linux.get("seccomp"), cache)
    try:
        pidfd = os.pidfd_open(target)
    except ProcessLookupError:
        raise LaunchError("namespaces", 3, "the container is not running") from None
    kinds = 0
    for entry in linux.get("namespaces") or ():
        kinds |= NAMESPACES[entry["type"]]

    def child(report: _Report) -> NoReturn:
        # Now in the container's pid namespace: its processes must not look into this one (CVE-2016-9962).
        report.stage = "namespaces"
        terminal: list[int] = []
        if process_.get("terminal"):
            root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            terminal += rootfs.open_terminal(root)
        _become(process_, stdio, terminal, program, report, init=False)

    process.prctl(process.PR_SET_DUMPABLE, 0)
    try:
        cgroup.join(name)
        process.setns(pidfd, kinds)
    except OSError as error:
        raise LaunchError(
            "namespaces", error.errno or 0, f"the container cannot be entered: {error.strerror}"
        ) from None
    os.close(pidfd)
    pid, terminal = _clone(0, child)
    return Launched(pid, terminal)


def _program(profile: dict[str, Any] | None, cache: str) -> bytes:
    if not profile:
        return b""
    try:
        return profiles.program(profile, cache)
    except (OSError, KeyError) as error:
        raise LaunchError("seccomp", 0, f"the seccomp profile cannot be compiled: {error}") from None


class _Report:
    """Where a child tells why it failed, before anything of the image runs."""

    def __init__(self, fd: int, terminals: Any) -> None:
        self.fd, self.terminals, self.stage = fd, terminals, "start"

    def failed(self, error: BaseException) -> NoReturn:
        if isinstance(error, LaunchError):
            stage, number, text, status = error.stage, error.errno, str(error), error.status
        else:
            number = getattr(error, "errno", 0) or 0
            stage, status = self.stage, 125
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            name = getattr(error, "filename", None)
            text = f"{stage}: {name}: {text}" if name else f"{stage}: {text}"
        os.write(self.fd, dumps([stage, number, text, status]).encode("ascii", "replace"))
        os._exit(status)


def _clone(flags: int, child: Any) -> tuple[int, int]:
    """Clone a sibling that runs child(report), and wait until it has executed its program."""
    read_end, write_end = os.pipe()
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    pid, _ = process.clone3(flags | process.CLONE_PARENT, exit_signal=0)
    if pid == 0:
        report = _Report(write_end, theirs)
        try:
            # Whatever would be imported from here on could come from the image.
            sys.path.clear()
            sys.meta_path.clear()
            sys.path_hooks.clear()
            child(report)
        except BaseException as error:
            report.failed(error)
    os.close(write_end)
    theirs.close()
    terminal = -1
    message = ours.recvmsg(1, _socket.CMSG_SPACE(4))
    for _, _, data in message[1]:
        terminal = int.from_bytes(data[:4], sys.byteorder)
    said = b""
    while block := os.read(read_end, 1 << 16):
        said += block
    os.close(read_end)
    ours.close()
    if said:
        stage, number, text, status = loads(said)
        raise LaunchError(stage, number, text, status)
    return pid, terminal


def _become(
    process_: dict[str, Any],
    stdio: tuple[int, int, int],
    terminal: list[int],
    program: bytes,
    report: _Report,
    *,
    init: bool,
) -> NoReturn:
    """The last stretch of a child: identity, confinement, program."""
    report.stage = "terminal"
    os.setsid()
    if terminal:
        master, slave = terminal
        report.terminals.sendmsg([b"t"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, master.to_bytes(4, sys.byteorder))])
        size = process_.get("consoleSize")
        if size:
            _resize(slave, size["height"], size["width"])
        os.fchown(slave, process_.get("user", {}).get("uid", 0), -1)
        stdio = (slave, slave, slave)
        fcntl.ioctl(slave, _CONTROLLING_TERMINAL, 0)
    else:
        report.terminals.send(b"n")
    # Away from 0-2 first, so that none is overwritten before it is used.
    moved = [os.dup(fd) for fd in stdio]
    for number, fd in enumerate(moved):
        os.dup2(fd, number, inheritable=True)
    process.close_range(3, on_exec=True)

    report.stage = "limits"
    for limit in process_.get("rlimits") or ():
        kind = getattr(resource, limit["type"])
        hard = min(limit["hard"], resource.getrlimit(kind)[1] & (2**64 - 1))
        resource.setrlimit(kind, (min(limit["soft"], hard), hard))
    if process_.get("oomScoreAdj") is not None:
        try:
            fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
            os.write(fd, str(process_["oomScoreAdj"]).encode())
            os.close(fd)
        except PermissionError:
            pass  # lowering needs CAP_SYS_RESOURCE, which not every host grants its root

    report.stage = "working directory"
    _change_directory(process_["cwd"])
    for number in _SIGNALS:
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])

    report.stage = "identity"
    user = process_.get("user") or {}
    wanted = process_.get("capabilities") or {}
    sets = {kind: capabilities.bits(names) & _PERMITTED for kind, names in wanted.items()}
    environment = dict(entry.split("=", 1) for entry in process_.get("env") or ())
    arguments = process_["args"]
    if init:
        _reap_for_child(report)
    report.stage = "exec"
    path = _find(arguments[0], environment)
    report.stage = "identity"
    if program and not process_.get("noNewPrivileges"):
        seccomp.load(program)
    capabilities.drop_bounding(sets.get("bounding", 0), _LAST_CAPABILITY)
    os.umask(user.get("umask", 0o022))
    os.setgroups(user.get("additionalGids") or [])
    os.setresgid(user["gid"], user["gid"], user["gid"])
    process.prctl(process.PR_SET_KEEPCAPS, 1)
    os.setresuid(user["uid"], user["uid"], user["uid"])
    # As after execve(2): a user other than root keeps nothing but what is ambient.
    capabilities.set_all(
        sets.get("effective", 0) | sets.get("ambient", 0),
        sets.get("permitted", 0) | sets.get("ambient", 0),
        sets.get("inheritable", 0) | sets.get("ambient", 0),
        sets.get("ambient", 0),
    )
    process.prctl(process.PR_SET_KEEPCAPS, 0)
    if process_.get("noNewPrivileges"):
        seccomp.no_new_privileges()
        if program:
            seccomp.load(program)
    report.stage = "exec"
    try:
        os.execve(path, arguments, environment)  # noqa: S606 - no shell is the point
    except OSError as error:
        raise LaunchError("exec", error.errno or 0, f"{arguments[0]}: {error.strerror}", _exec_status(error)) from None


def _change_directory(path: str) -> None:
    """The working directory, made if the image lacks it; a path through a descriptor of ours is refused by what it
    leads to (CVE-2024-21626)."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        fd = rootfs.place(root, path, directory=True)
        os.fchdir(fd)
        os.close(fd)
    except NotADirectoryError:
        raise LaunchError("cwd", 20, f"the working directory {path} is not a directory", 126) from None
    finally:
        os.close(root)
    if not os.getcwd().startswith("/"):
        raise LaunchError("cwd", 0, f"the working directory {path} is outside the container")


def _find(name: str, environment: dict[str, str]) -> str:
    """The program to execute, by the container's own PATH (execvp(3))."""
    if "/" in name:
        return name
    refused = False
    for folder in environment.get("PATH", _DEFAULT_PATH).split(":"):
        path = f"{folder or '.'}/{name}"
        if os.path.isfile(path):
            if os.access(path, os.X_OK):
                return path
            refused = True
    if refused:
        raise LaunchError("exec", 13, f"{name}: found in PATH, but not executable", 126)
    raise LaunchError("exec", 2, f"{name}: not found in PATH", 127)


def _exec_status(error: OSError) -> int:
    return 127 if error.errno == 2 else 126


def _resize(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, 0x5414, b"".join(n.to_bytes(2, sys.byteorder) for n in (rows, columns, 0, 0)))  # TIOCSWINSZ


def _reap_for_child(report: _Report) -> None:
    """`--init`: return in a child; this process stays as process 1, forwards signals, reaps, and ends as it does."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        return
    os.close(report.fd)
    report.terminals.close()

    def forward(number: int, frame: object) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return

    for number in _FORWARDED:
        _signal.signal(number, forward)
    while True:
        try:
            dead, status = os.waitpid(-1, 0)
        except ChildProcessError:
            os._exit(125)
        if dead == pid:
            code = os.waitstatus_to_exitcode(status)
            os._exit(128 - code if code < 0 else code)
