"""The command's end: asking the zygote for a container, and being attached to one."""

from __future__ import annotations

import _socket
import os
import sys

from cowshed import log
from cowshed.errors import LaunchFailed, NotFound
from cowshed.monitor import wire
from cowshed_linux import locks
from cowshed_runtime import fastjson
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_PIPE, _SET_PIPE_SIZE = 1 << 20, 1031
# Where all that a zygote imports lies, but for the errors
_FOLDERS = [os.path.dirname(os.path.abspath(module.__file__ or "")) for module in (wire, fastjson, locks)]


class Session:
    """A started container or process, seen from the command that started it or is attached to it.

    pid is that of its first process; input is the write end of its stdin, or the master of its terminal, or -1;
    outputs are the read ends of its stdout and stderr.
    """

    def __init__(self, connection: Any, pid: int, given: int, outputs: list[int], *, terminal: bool) -> None:
        self.connection, self.pid, self.input, self.outputs, self.terminal = connection, pid, given, outputs, terminal
        self.signal: Callable[[int], None] | None = None  # how its first process is sent one, if not by its pid

    def wait(self) -> int:
        """The exit status, when it has ended."""
        message, _ = wire.receive(self.connection)
        if message[:1] != b"E":
            raise LaunchFailed("the container's monitor was killed", remedy="cowshed ps -a tells what is left")
        return int(message[1:])

    def close(self) -> None:
        for fd in (self.input, *self.outputs):
            if fd >= 0:
                os.close(fd)
        self.connection.close()


def start(
    run: str,
    request: dict[str, Any],
    root: int,
    *,
    attached: bool,
    connection: Any = None,
    meanwhile: Callable[[], None] | None = None,
) -> Session:
    """Start a container; see starting.py for the request. LaunchFailed with the status to exit with.

    connection: of `call`, if that was made. meanwhile: what else to do while the container is being set up.
    """
    outputs, ends = _pipes() if attached else ([], [])
    try:
        connection = connection or call(run)
        size = _size() if request["terminal"] else None
        wire.send(connection, dumps({**request, "op": "run", "size": size}).encode(), [root, *ends])
    finally:
        for fd in ends:
            os.close(fd)
    if meanwhile:
        meanwhile()
    return _started(connection, outputs, terminal=request["terminal"])


def execute(
    run: str, request: dict[str, Any], *, stdin: bool, attached: bool = True, connection: Any = None
) -> Session:
    """Start a process in a running container. One that is not attached writes to /dev/null; close its session and do
    not wait. connection: of `call`, if that was made."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    outputs, ends = _pipes() if attached else ([], [null, os.dup(null)])
    given = -1
    stdin = stdin and attached
    if stdin and not request["process"].get("terminal"):
        feed, given = os.pipe()
    else:
        feed = os.dup(null)
    if attached:
        os.close(null)
    try:
        connection = connection or call(run)
        size = _size() if request["process"].get("terminal") else None
        if size:
            request = {**request, "process": {"consoleSize": size, **request["process"]}}
        wire.send(connection, dumps({**request, "op": "exec"}).encode(), [feed, *ends])
    finally:
        for fd in (feed, *ends):
            os.close(fd)
    session = _started(connection, outputs, terminal=bool(request["process"].get("terminal")))
    if session.terminal:
        for fd in outputs:
            os.close(fd)
        session.outputs = [os.dup(session.input)] if attached else []
    elif given >= 0:
        session.input = given
    return session


def attach(place: str, *, terminal: bool) -> Session:
    """Attach to a running container by its monitor's socket. NotFound if it does not run."""
    outputs, ends = _pipes()
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        folder = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{folder}/attach")
        finally:
            os.close(folder)
    except OSError:
        for fd in (*outputs, *ends):
            os.close(fd)
        connection.close()
        raise NotFound("the container is not running", remedy="start it: cowshed start") from None
    wire.send(connection, b"A", ends)
    for fd in ends:
        os.close(fd)
    return _started(connection, outputs, terminal=terminal)


def _started(connection: Any, outputs: list[int], *, terminal: bool) -> Session:
    message, descriptors = wire.receive(connection)
    if message[:1] == b"S":
        pid, bracket, warnings = message[1:].partition(b"[")
        for text in loads(bracket + warnings) if warnings else ():
            log.warn(text)
        return Session(connection, int(pid), descriptors[0] if descriptors else -1, outputs, terminal=terminal)
    for fd in outputs:
        os.close(fd)
    if message[:1] == b"X":
        text, status, _ = loads(message[1:])
        raise LaunchFailed(f"the container cannot be started: {text}", status=status)
    raise LaunchFailed("the process that starts containers was killed", remedy="try again")


def _size() -> dict[str, int] | None:
    """The size of this process's terminal as OCI's consoleSize, so that a program sees it from its first moment."""
    for fd in (0, 1, 2):
        try:
            size = os.get_terminal_size(fd)
        except OSError:
            continue  # no terminal
        return {"height": size.lines, "width": size.columns}
    return None


def _pipes() -> tuple[list[int], list[int]]:
    import fcntl

    out_r, out_w = os.pipe()
    err_r, err_w = os.pipe()
    for fd in (out_r, err_r):
        try:
            fcntl.fcntl(fd, _SET_PIPE_SIZE, _PIPE)
        except PermissionError:
            continue  # over the user's limit for pipes: the usual size does
    return [out_r, err_r], [out_w, err_w]


# ---------------------------------------------------------------- what a container leaves in its run directory


def exit_record(place: str) -> dict[str, Any] | None:
    """{"status", "finished", "oom", perhaps "error"} of a container that has ended and was not started again."""
    try:
        fd = os.open(f"{place}/exit", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        record: dict[str, Any] = loads(os.read(fd, 4096))
        return record
    finally:
        os.close(fd)


def running(place: str) -> tuple[int, int, int] | None:
    """(pid of the first process, its start time, pid of the monitor) as the monitor wrote them, or None."""
    try:
        fd = os.open(f"{place}/pid", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        pid, started, monitor = os.read(fd, 100).split()
        return int(pid), int(started), int(monitor)
    finally:
        os.close(fd)


# ---------------------------------------------------------------- the zygote


def call(run: str) -> Any:
    """A connection to the zygote of the store whose run directory is `run`, spawned if there is none.

    It forks a monitor at once, which waits for the request: called early, the fork costs the command nothing.
    """
    path = f"{run}/zygote-{_version():08x}"  # another version has another socket; the older one drains
    connection = _connect(path)
    if connection is not None:
        return connection
    lock = locks.open_file(f"{run}/zygote.lock")
    try:
        locks.lock_file(lock)
        connection = _connect(path)
        if connection is not None:
            return connection
        _spawn(path)
        connection = _connect(path)
        if connection is None:
            raise LaunchFailed(f"the process that starts containers does not answer at {path}", remedy="try again")
        return connection
    finally:
        os.close(lock)


def _version() -> int:
    """Another number after any change of the code that a zygote holds in memory."""
    total = 0
    for folder in _FOLDERS:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".py"):
                    status = entry.stat()
                    total += status.st_mtime_ns + status.st_size
    return total & 0xFFFFFFFF


def _connect(path: str) -> Any:
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
        return connection
    except OSError:
        connection.close()
        return None
    finally:
        os.close(folder)


def _spawn(path: str) -> None:
    ready, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    search = [folder for folder in sys.path if folder.startswith("/")]  # never what the working directory holds
    code = (
        f"import os, sys; sys.path[:0] = {search!r}\n"
        f"try:\n from cowshed_runtime import interpreter; interpreter.protect()\n"
        f" from cowshed.monitor import zygote; zygote.main({path!r}, {write_end})\n"
        f"except BaseException as error:\n os.write({write_end}, f'{{type(error).__name__}}: {{error}}'.encode())"
    )
    os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", "-c", code],
        {"PATH": os.environ.get("PATH", "/usr/bin:/bin")},
        file_actions=[(os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1, 2)],
    )
    os.close(write_end)
    os.close(null)
    said = os.read(ready, 4096)
    os.close(ready)
    if said != b"x":
        reason = said.decode(errors="replace") or "it was killed"
        raise LaunchFailed(f"the process that starts containers cannot be started: {reason}")
