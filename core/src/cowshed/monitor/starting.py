"""What a monitor's helper does: it starts a container, or a process in one, and exits.

It shares its table of descriptors with the monitor: what is open when it exits is the monitor's, under the same
numbers. It writes what the monitor has to know into the file `state`, registers what the monitor is to wait for, and
exits with 0. If it exits otherwise, the monitor cleans up and tells the client the error that it finds there.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import select

from cowshed.monitor import frames, wire
from cowshed_linux import locks, process
from cowshed_runtime import launcher
from cowshed_runtime.cgroup.group import Group
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_PIPE = 1 << 20
_SET_PIPE_SIZE = 1031
GONE = select.EPOLLIN | select.EPOLLRDHUP  # a client says nothing more: what is seen of its socket is its end
HEAD = 3
RECORD = 256  # bytes kept in the run directory for the exit record, so that it can be written when that is full


def start(fd: int, state: int, poll: select.epoll) -> NoReturn:
    """Start what the request at the socket fd asks for."""
    known: dict[str, Any] = {}
    try:
        connection = _socket.socket(fileno=fd)
        if wire.peer(connection) not in (0, os.getuid()):
            os._exit(1)
        message, descriptors = wire.receive(connection)
        if not message:
            os._exit(1)
        known = loads(message)
        known["connection"] = fd
        if known["op"] == "run":
            _container(known, connection, descriptors, state, poll)
        else:
            _process(known, connection, descriptors, poll)
        _leave(state, known)
        os._exit(0)
    except BaseException as error:
        left = {"error": said(error)}
        if "held" in known:
            left.update({key: known[key] for key in ("name", "runtime") if key in known})
        _leave(state, left)
    finally:
        os._exit(1)


def _leave(state: int, known: dict[str, Any]) -> None:
    """Write what the monitor has to know: HEAD bytes, then JSON. The former are the descriptors of log, stdout and
    stderr if output has only to be written to the log, else zeros."""
    plain = [0, 0, 0]
    if known.get("log", -1) > 0 and not known["ends"] and len(known["sources"]) == 2:
        plain = [known["log"], *[fd for fd, _ in known["sources"]]]
    os.ftruncate(state, 0)
    os.pwrite(state, bytes(plain if max(plain) < 256 else [0, 0, 0]) + dumps(known).encode(), 0)


def told(state: int) -> dict[str, Any]:
    """What the helper left for the monitor, {} if it was killed before it came to that."""
    text = os.pread(state, 1 << 20, HEAD)
    return dict(loads(text)) if text else {}


def said(error: BaseException) -> list[Any]:
    """An error as a client is told it: text, status, stage."""
    if isinstance(error, LaunchError):
        return [str(error), error.status, error.stage]
    return [f"{type(error).__name__}: {error}", 125, "monitor"]


def refuse(connection: Any, error: list[Any]) -> None:
    """Tell the client why; the first letter of the answer is X."""
    try:
        wire.send(connection, b"X" + dumps(error).encode(), [])
    except OSError:
        return  # nobody is left to be told


def _container(known: dict[str, Any], connection: Any, descriptors: list[int], state: int, poll: select.epoll) -> None:
    held = []
    for name in ("monitors", "mounts"):
        lock = locks.open_file(f"{known['locks']}/{name}")
        if not locks.lock_byte(lock, known["number"], wait=False):
            raise LaunchError("lock", 0, "the container is being used by another command")
        held.append(lock)
    known["held"] = held
    _leave(
        state, {key: known[key] for key in ("name", "runtime") if key in known}
    )  # from here on it is this monitor's to clean up
    root, place = descriptors[0], known["place"]
    log, known["log"], known["ends"] = known["log"], -1, descriptors[1:]
    if log:
        known["log"] = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    _streams(known, root)
    if "settle" in known:
        known["root"] = root  # the mount outlives the container by that much
    else:
        os.close(root)
    pid = known["pid"]
    known["pidfd"], known["listener"] = os.pidfd_open(known["child"]), _listen(place)
    write(f"{place}/exit.new", " " * RECORD)
    write(f"{place}/pid.new", f"{pid} {known['since'] or process.start_time(pid)} {os.getppid()}")
    os.rename(f"{place}/pid.new", f"{place}/pid")
    _answer(known, connection)
    for fd in (known["pidfd"], known["listener"], *[fd for fd, _ in known["sources"]]):
        poll.register(fd, select.EPOLLIN)
    if known["ends"]:
        poll.register(known["connection"], GONE)


def _streams(known: dict[str, Any], root: int) -> None:
    """Start the container with pipes or a terminal of this process."""
    known["input"] = -1
    ends: list[int] = []
    stdio, sources = (0, 1, 2), []
    if not known["terminal"]:
        if known["stdin"]:
            feed, known["input"] = os.pipe()
        else:
            feed = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        out_r, out_w = os.pipe()
        err_r, err_w = os.pipe()
        for pipe in (out_r, err_r):
            try:
                fcntl.fcntl(pipe, _SET_PIPE_SIZE, _PIPE)
            except PermissionError:
                continue  # over the user's limit for pipes: the usual size does
        stdio = (feed, out_w, err_w)
        ends = [feed, out_w, err_w]
        sources = [[out_r, frames.STDOUT], [err_r, frames.STDERR]]
    with open(known["config"], "rb") as f:
        config = loads(f.read())
    if known.get("size"):
        config["process"]["consoleSize"] = known["size"]
    made: Any
    if "runtime" in known:
        from cowshed.runtimes import helper

        made = helper.start(known, config, root, stdio)
    else:
        made = launcher.launch(config, root, stdio, group=Group(known["name"]), cache=known["cache"])
    for fd in ends:
        os.close(fd)
    known["pid"], known["terminal"], known["warnings"] = made.pid, made.terminal, getattr(made, "warnings", [])
    known["child"], known["since"] = getattr(made, "child", made.pid), getattr(made, "since", 0)
    known["sources"] = [[made.terminal, frames.STDOUT]] if made.terminal >= 0 else sources
    for fd, _ in known["sources"]:
        os.set_blocking(fd, False)


def _answer(known: dict[str, Any], connection: Any) -> None:
    """Tell the command that started the container its pid, and what it was not given; one that has been killed
    meanwhile is no reason to end it."""
    given = known["terminal"] if known["terminal"] >= 0 else known["input"]
    try:
        wire.send(connection, _started(known["pid"], known.pop("warnings")), [given] if given >= 0 else [])
    except OSError:
        for fd in known["ends"]:
            os.close(fd)
        known["ends"] = []
    if not known["ends"]:
        os.close(known["connection"])
    elif known["input"] >= 0:
        # The attached command alone holds the other end of stdin now: when it closes it, the container's stdin has
        # ended.
        os.close(known["input"])
        known["input"] = -1


def _started(pid: int, warnings: list[str]) -> bytes:
    return b"S%d" % pid + (dumps(warnings).encode() if warnings else b"")


def _listen(place: str) -> int:
    path = f"{place}/attach"
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    # The path may be longer than a socket address holds: it is named by its directory's descriptor.
    folder = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    old = os.umask(0o177)
    listener.bind(f"/proc/self/fd/{folder}/attach")
    os.umask(old)
    os.close(folder)
    listener.listen(16)
    return int(listener.detach())


def write(path: str, text: str, *, truncate: bool = True) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if truncate else 0)
    fd = os.open(path, flags, 0o600)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _process(known: dict[str, Any], connection: Any, descriptors: list[int], poll: select.epoll) -> None:
    """Another process in a running container: its streams are the client's own."""
    stdio = (descriptors[0], descriptors[1], descriptors[2])
    work, linux, pid = known.pop("process"), known.pop("linux"), known["pid"]
    made: Any
    if "runtime" in known:
        from cowshed.runtimes import helper

        made = helper.execute(known, work, linux, pid, stdio)
    else:
        made = launcher.join(work, linux, pid, stdio, group=Group(known["name"]), cache=known["cache"])
    for fd in descriptors:
        os.close(fd)
    child = getattr(made, "child", made.pid)
    known.update(pid=made.pid, child=child, terminal=made.terminal, pidfd=os.pidfd_open(child))
    try:
        warnings = getattr(made, "warnings", [])
        wire.send(connection, _started(made.pid, warnings), [made.terminal] if made.terminal >= 0 else [])
    except OSError:
        pass  # the monitor sees below that the client has gone
    poll.register(known["pidfd"], select.EPOLLIN)
    if made.terminal >= 0:
        poll.register(known["connection"], GONE)
