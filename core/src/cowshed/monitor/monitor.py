"""One container's monitor: parent of its first process, owner of its streams, log and exit status.

It forks a launcher at once, which sets the container up and clones it as the monitor's child, then relays. Every
feature of Python that is used for the first time after the fork costs 50 to 300 kB of private memory, so what runs for
the life of a container is plain and does little.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` brings enum
import _socket
import os
import select

from cowshed.monitor import frames, wire
from cowshed_linux import locks, process
from cowshed_runtime import cgroup, launcher
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PIPE = 1 << 20
_SET_PIPE_SIZE = 1031
_BUFFER = 1 << 18


def serve(connection: Any) -> None:
    """Handle one request; does not return."""
    message, descriptors = wire.receive(connection)
    if not message:
        os._exit(0)
    request = loads(message)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    os.setsid()
    if request["op"] == "run":
        _Monitor(request, connection, descriptors).run()
    else:
        _execute(request, connection, descriptors)
    os._exit(0)


def refuse(connection: Any, error: BaseException) -> None:
    """Tell the client why; the first word of the answer is X."""
    if isinstance(error, LaunchError):
        said = [str(error), error.status, error.stage]
    else:
        said = [f"{type(error).__name__}: {error}", 125, "monitor"]
    try:
        wire.send(connection, b"X" + dumps(said).encode(), [])
    except OSError:
        return  # nobody is left to be told


def _launched(work: Any) -> tuple[int, int]:
    """Run work() -> Launched in a launcher; the pid of the new child of this process, and its terminal or -1."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    helper = os.fork()
    if helper == 0:
        try:
            made = work()
            wire.send(theirs, dumps([made.pid]).encode(), [made.terminal] if made.terminal >= 0 else [])
        except BaseException as error:
            refuse(theirs, error)
        finally:
            os._exit(0)
    theirs.close()
    message, descriptors = wire.receive(ours)
    ours.close()
    os.waitpid(helper, 0)
    if message[:1] == b"X":
        text, status, stage = loads(message[1:])
        _reap()
        raise LaunchError(stage, 0, text, status)
    if not message:
        _reap()
        raise LaunchError("launcher", 0, "the launcher was killed")
    return loads(message)[0], descriptors[0] if descriptors else -1


def _reap() -> None:
    try:
        while os.waitpid(-1, process.WALL)[0]:
            continue
    except ChildProcessError:
        return


def _status(raw: int) -> int:
    return 128 + (raw & 127) if raw & 127 else raw >> 8


class _Monitor:
    def __init__(self, request: dict[str, Any], connection: Any, descriptors: list[int]) -> None:
        self.request, self.client = request, connection
        self.root = descriptors[0]
        self.place = request["place"]
        # Attached clients: [socket, pipe for stdout, pipe for stderr, bytes not yet taken for each].
        self.clients: list[list[Any]] = []
        if len(descriptors) > 2:
            self.add(connection, descriptors[1], descriptors[2])
        self.input = self.terminal = -1
        self.sources: dict[int, int] = {}
        self.locks: list[int] = []

    def add(self, connection: Any, out: int, err: int) -> None:
        os.set_blocking(out, False)
        os.set_blocking(err, False)
        self.clients.append([connection, out, err, b"", b""])

    # ------------------------------------------------------------ the life of a container

    def run(self) -> None:
        request = self.request
        process.prctl(process.PR_SET_CHILD_SUBREAPER, 1)
        for name in ("monitors", "mounts"):
            fd = locks.open_file(f"{request['locks']}/{name}")
            if not locks.lock_byte(fd, request["number"], wait=False):
                raise LaunchError("lock", 0, "the container is being used by another command")
            self.locks.append(fd)
        with open(request["config"], "rb") as f:
            config = loads(f.read())
        pid = self.start(config)
        self.listen()
        self.write("pid", f"{pid} {process.start_time(pid)} {os.getpid()}")
        given = self.terminal if self.terminal >= 0 else self.input
        wire.send(self.client, b"S%d" % pid, [given] if given >= 0 else [])
        log = -1
        if request["log"]:
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if not self.clients:
            self.client.close()
        null = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        os.close(null)
        del config, self.request
        status = self.relay(pid, log)
        self.request = request
        self.end(status)

    def start(self, config: dict[str, Any]) -> int:
        request = self.request
        ends: list[int] = []
        if config["process"].get("terminal"):
            stdio = (0, 1, 2)
        else:
            if request["stdin"]:
                feed, self.input = os.pipe()
            else:
                feed = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            out_r, out_w = os.pipe()
            err_r, err_w = os.pipe()
            import fcntl

            for pipe in (out_r, err_r):
                try:
                    fcntl.fcntl(pipe, _SET_PIPE_SIZE, _PIPE)
                except PermissionError:
                    continue  # over the user's limit for pipes: the usual size does
            stdio = (feed, out_w, err_w)
            ends = [feed, out_w, err_w]
            self.sources = {out_r: frames.STDOUT, err_r: frames.STDERR}
        name, cache, root = request["name"], request["cache"], self.root
        pid, self.terminal = _launched(lambda: launcher.launch(config, root, stdio, name=name, cache=cache))
        for fd in ends:
            os.close(fd)
        if self.terminal >= 0:
            self.sources = {self.terminal: frames.STDOUT}
        for fd in self.sources:
            os.set_blocking(fd, False)
        return pid

    def listen(self) -> None:
        path = f"{self.place}/attach"
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        self.listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        # The path may be longer than a socket address holds: it is named by its directory's descriptor.
        folder = os.open(self.place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        old = os.umask(0o177)
        self.listener.bind(f"/proc/self/fd/{folder}/attach")
        os.umask(old)
        os.close(folder)
        self.listener.listen(16)

    def relay(self, pid: int, log: int) -> int:
        """Copy output to the log and to attached clients until the container has ended; its status."""
        poll = select.epoll()
        pidfd = os.pidfd_open(pid)
        listener = self.listener.fileno()
        for fd in (pidfd, listener, *self.sources):
            poll.register(fd, select.EPOLLIN)
        buffer = bytearray(_BUFFER)
        status = -1
        while status < 0 or self.sources:
            # A client that does not take what it was given stops the reading, and so in the end the container.
            waiting = False
            for client in self.clients:
                if client[3] or client[4]:
                    waiting = True
            if waiting:
                self.flush()
                poll.poll(0.01) if status < 0 else None
            for fd, _ in poll.poll(0 if waiting else (-1 if status < 0 else 0.05)):
                if fd == listener:
                    self.accept()
                elif fd == pidfd:
                    status = _status(os.waitpid(pid, process.WALL)[1])
                    poll.unregister(pidfd)
                    os.close(pidfd)
                elif not waiting and not self.copy(fd, buffer, log):
                    poll.unregister(fd)
                    del self.sources[fd]
                    os.close(fd)
            if status >= 0 and not waiting:
                # Something that was left in the container's streams is still wanted; a process that outlives it is not.
                for fd in list(self.sources):
                    while self.copy(fd, buffer, log) is True:
                        continue
                    poll.unregister(fd)
                    del self.sources[fd]
                    if fd != self.terminal:
                        os.close(fd)
        for _ in range(3000):
            if not any(client[3] or client[4] for client in self.clients):
                break
            self.flush()
            select.select([], [], [], 0.01)
        return status

    def copy(self, fd: int, buffer: bytearray, log: int) -> bool | None:
        """Move what is there; False at the end of the stream, None if nothing is there now."""
        try:
            count = os.readv(fd, [buffer])
        except BlockingIOError:
            return None
        except OSError:
            return False  # EIO: the last slave of a terminal is closed
        if count == 0:
            return False
        stream = self.sources[fd]
        data = memoryview(buffer)[:count]
        if log >= 0:
            from time import time_ns

            try:
                os.writev(log, [frames.HEADER.pack(time_ns(), count, stream), data])
            except OSError:
                log = -1  # a full disk ends the log, not the container
        for client in list(self.clients):
            self.give(client, stream, data)
        return True

    def give(self, client: list[Any], stream: int, data: Any) -> None:
        try:
            done = os.write(client[stream], data) if not client[stream + 2] else 0
        except BlockingIOError:
            done = 0
        except OSError:
            self.drop(client)
            return
        if done < len(data):
            client[stream + 2] += bytes(data[done:])

    def flush(self) -> None:
        for client in list(self.clients):
            for stream in (1, 2):
                pending = client[stream + 2]
                if pending:
                    client[stream + 2] = b""
                    self.give(client, stream, pending)

    def drop(self, client: list[Any]) -> None:
        if client in self.clients:
            self.clients.remove(client)
            os.close(client[1])
            os.close(client[2])
            client[0].close()

    def accept(self) -> None:
        fd, _ = self.listener._accept()  # type: ignore[attr-defined]  # of _socket
        connection = _socket.socket(fileno=fd)
        message, descriptors = wire.receive(connection)
        if message != b"A" or len(descriptors) != 2 or wire.peer(connection) not in (0, os.getuid()):
            connection.close()
            return
        given = self.terminal if self.terminal >= 0 else self.input
        wire.send(connection, b"S0", [given] if given >= 0 else [])
        self.add(connection, descriptors[0], descriptors[1])

    def end(self, status: int) -> None:
        from time import time_ns

        request = self.request
        oom = cgroup.oom_killed(request["name"])
        self.write("exit", dumps({"status": status, "finished": time_ns(), "oom": oom}))
        os.close(self.root)
        cgroup.remove(request["name"])
        self.listener.close()
        for name in ("attach", "pid"):
            try:
                os.unlink(f"{self.place}/{name}")
            except FileNotFoundError:
                continue
        for fd in self.locks:
            os.close(fd)
        served = False
        for client in list(self.clients):
            os.close(client[1])
            os.close(client[2])
            try:
                wire.send(client[0], b"E%d" % status, [])
                served = True
            except OSError:
                continue  # gone without a word
        worker = request.get("worker")
        if worker and not (served and not request.get("worker_always")):
            os.execve(worker[0], worker, request["environment"])  # noqa: S606

    def write(self, name: str, text: str) -> None:
        path = f"{self.place}/{name}"
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.write(fd, text.encode())
        os.close(fd)
        os.rename(f"{path}.new", path)


def _execute(request: dict[str, Any], connection: Any, descriptors: list[int]) -> None:
    """Another process in a running container: its streams are the client's own pipes; this one waits for its end."""
    work = request["process"]
    stdio = (descriptors[0], descriptors[1], descriptors[2])
    name, cache, target = request["name"], request["cache"], request["pid"]
    pid, terminal = _launched(lambda: launcher.join(work, request["linux"], target, stdio, name=name, cache=cache))
    wire.send(connection, b"S%d" % pid, [terminal] if terminal >= 0 else [])
    for fd in descriptors:
        os.close(fd)
    if terminal >= 0:
        os.close(terminal)
    status = _status(os.waitpid(pid, process.WALL)[1])
    try:
        wire.send(connection, b"E%d" % status, [])
    except OSError:
        return  # detached
