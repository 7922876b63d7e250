"""One container's monitor: parent of its first process, owner of its streams, log and exit status.

It forks a launcher at once, which sets the container up and clones it as the monitor's child, then relays. Every
feature of Python that is used for the first time after the fork costs 50 to 300 kB of private memory, so what runs for
the life of a container is plain and does little.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` brings enum
import _socket
import fcntl
import mmap
import os
import select
from time import time_ns

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
_GONE = select.EPOLLIN | select.EPOLLRDHUP  # a client says nothing more: what is seen of its socket is its end
_RECORD = 256  # bytes kept in the run directory for the exit record, so that it can be written when that is full


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


def _launch(request: dict[str, Any], root: int, stdio: tuple[int, int, int]) -> launcher.Launched:
    """In the launcher: the configuration is read there, so that it takes no memory of the monitor."""
    with open(request["config"], "rb") as f:
        config = loads(f.read())
    if request.get("size"):
        config["process"]["consoleSize"] = request["size"]
    return launcher.launch(config, root, stdio, name=request["name"], cache=request["cache"])


def _reap() -> None:
    try:
        while os.waitpid(-1, process.WALL)[0]:
            continue
    except ChildProcessError:
        return


def _status(raw: int) -> int:
    return 128 + (raw & 127) if raw & 127 else raw >> 8


class _Client:
    """An attached command: its socket, the write ends of its two pipes, and what it has not taken yet of each."""

    def __init__(self, connection: Any, out: int, err: int) -> None:
        os.set_blocking(out, False)
        os.set_blocking(err, False)
        self.connection = connection
        self.ends = [-1, out, err]
        self.pending = [b"", b"", b""]


class _Monitor:
    def __init__(self, request: dict[str, Any], connection: Any, descriptors: list[int]) -> None:
        self.request, self.starter = request, connection
        self.root = descriptors[0]
        self.place = request["place"]
        self.clients: list[_Client] = []
        if len(descriptors) > 2:
            self.clients.append(_Client(connection, descriptors[1], descriptors[2]))
        self.input = self.terminal = self.log = -1
        self.pid = self.logged = 0
        self.sources: dict[int, int] = {}
        self.locks: list[int] = []
        self.blocked = False

    # ------------------------------------------------------------ the life of a container

    def run(self) -> None:
        request = self.request
        process.prctl(process.PR_SET_CHILD_SUBREAPER, 1)
        for name in ("monitors", "mounts"):
            fd = locks.open_file(f"{request['locks']}/{name}")
            if not locks.lock_byte(fd, request["number"], wait=False):
                raise LaunchError("lock", 0, "the container is being used by another command")
            self.locks.append(fd)
        if request["log"]:
            self.log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self.logged = os.fstat(self.log).st_size
        self.pid = pid = self.start()
        try:
            self.listen()
            self.write("exit.new", " " * _RECORD)
            self.write("pid.new", f"{pid} {process.start_time(pid)} {os.getpid()}")
            os.rename(f"{self.place}/pid.new", f"{self.place}/pid")
        except BaseException:
            os.kill(pid, 9)
            os.waitpid(pid, process.WALL)
            cgroup.remove(request["name"])
            raise
        self.answer()
        null = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        os.close(null)
        del self.request
        status = self.relay()
        self.request = request
        self.end(status)

    def answer(self) -> None:
        """Tell the command that started the container; one that has been killed meanwhile is no reason to end it."""
        given = self.terminal if self.terminal >= 0 else self.input
        try:
            wire.send(self.starter, b"S%d" % self.pid, [given] if given >= 0 else [])
        except OSError:
            self.clients.clear()
        if not self.clients:
            self.starter.close()
        elif self.input >= 0:
            # The attached command alone holds the other end of stdin now: when it closes it, the container's stdin
            # has ended.
            os.close(self.input)
            self.input = -1

    def start(self) -> int:
        request = self.request
        ends: list[int] = []
        if request["terminal"]:
            stdio = (0, 1, 2)
        else:
            if request["stdin"]:
                feed, self.input = os.pipe()
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
            self.sources = {out_r: frames.STDOUT, err_r: frames.STDERR}
        pid, self.terminal = _launched(lambda: _launch(request, self.root, stdio))
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

    def relay(self) -> int:
        """Copy output to the log and to attached clients until the container has ended; its status.

        A client that does not take what it was given stops the reading, and so in the end the container.
        """
        self.poll = poll = select.epoll()
        pid, listener, pidfd = self.pid, self.listener.fileno(), os.pidfd_open(self.pid)
        for fd in (pidfd, listener, *self.sources):
            poll.register(fd, select.EPOLLIN)
        for client in self.clients:
            poll.register(client.connection.fileno(), _GONE)
        buffer = mmap.mmap(-1, _BUFFER)  # takes memory only as far as it has been used, unlike a bytearray
        status = -1
        while True:
            if status >= 0 and not self.blocked:
                self.rest(buffer)
                if not self.sources and not self.blocked:
                    break
            arrived = False
            for fd, _ in poll.poll():
                if fd in self.sources:
                    if not self.blocked and self.copy(fd, buffer) is False:
                        self.done(fd)
                elif fd == listener:
                    arrived = True
                elif fd == pidfd:
                    status = _status(os.waitpid(pid, process.WALL)[1])
                    poll.unregister(pidfd)
                    os.close(pidfd)
                else:
                    self.ready(fd)
            if arrived:  # last: its descriptors must not be taken for closed ones that have events here
                self.accept()
        poll.close()
        return status

    def rest(self, buffer: mmap.mmap) -> None:
        """What is left in the streams of a container that has ended. Whatever still holds them is not waited for."""
        for fd in list(self.sources):
            while self.copy(fd, buffer):
                if self.blocked:
                    return
            self.done(fd)

    def done(self, fd: int) -> None:
        """A stream has ended."""
        if not self.blocked:
            self.poll.unregister(fd)
        del self.sources[fd]
        if fd != self.terminal:
            os.close(fd)

    def copy(self, fd: int, buffer: mmap.mmap) -> bool | None:
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
        if self.log >= 0:
            self.record(stream, data)
        for client in list(self.clients):
            self.give(client, stream, data)
        return True

    def record(self, stream: int, data: memoryview) -> None:
        """Append a frame to the log, whole or not at all: a full disk makes a hole in it and does not end the
        container."""
        size = frames.HEADER.size + len(data)
        try:
            if os.writev(self.log, [frames.HEADER.pack(time_ns(), len(data), stream), data]) == size:
                self.logged += size
                return
        except OSError:
            pass  # as after a short write
        os.ftruncate(self.log, self.logged)

    def give(self, client: _Client, stream: int, data: memoryview | bytes) -> None:
        end = client.ends[stream]
        if end < 0:
            return
        try:
            done = os.write(end, data)
        except BlockingIOError:
            done = 0
        except OSError:
            self.drop(client)
            return
        if done < len(data):
            client.pending[stream] = bytes(data[done:])
            self.poll.register(end, select.EPOLLOUT)
            if not self.blocked:
                self.blocked = True
                for fd in self.sources:
                    self.poll.unregister(fd)

    def ready(self, fd: int) -> None:
        """A client has gone (its socket says so), or takes more of what it was given."""
        for client in self.clients:
            if client.connection.fileno() == fd:
                self.drop(client)
                return
            for stream in (frames.STDOUT, frames.STDERR):
                if client.ends[stream] == fd:
                    pending, client.pending[stream] = client.pending[stream], b""
                    self.poll.unregister(fd)
                    self.give(client, stream, pending)
                    self.unblock()
                    return

    def unblock(self) -> None:
        """Read the container's streams again if all clients have taken everything."""
        if not self.blocked:
            return
        for client in self.clients:
            if client.pending[1] or client.pending[2]:
                return
        self.blocked = False
        for fd in self.sources:
            self.poll.register(fd, select.EPOLLIN)

    def drop(self, client: _Client) -> None:
        self.clients.remove(client)
        self.poll.unregister(client.connection.fileno())
        client.connection.close()
        for stream in (frames.STDOUT, frames.STDERR):
            if client.pending[stream]:
                client.pending[stream] = b""
                self.poll.unregister(client.ends[stream])
            os.close(client.ends[stream])
        self.unblock()

    def accept(self) -> None:
        fd, _ = self.listener._accept()  # type: ignore[attr-defined]  # of _socket
        connection = _socket.socket(fileno=fd)
        descriptors: list[int] = []
        try:
            if wire.peer(connection) in (0, os.getuid()):
                connection.settimeout(1)  # who connects and says nothing must not stop the relay
                message, descriptors = wire.receive(connection)
                connection.settimeout(None)
                if message == b"A" and len(descriptors) == 2:
                    given = self.terminal if self.terminal >= 0 else self.input
                    wire.send(connection, b"S%d" % self.pid, [given] if given >= 0 else [])
                    self.clients.append(_Client(connection, descriptors[0], descriptors[1]))
                    self.poll.register(fd, _GONE)
                    return
        except OSError:
            pass  # it has gone, or said nothing in time
        for end in descriptors:
            os.close(end)
        connection.close()

    def end(self, status: int) -> None:
        """Leave the record, clean up, tell the clients; become the worker if it is to be."""
        request = self.request
        oom = cgroup.oom_killed(request["name"])
        # Into the space kept for it: a run directory that is full does not lose the status.
        record = dumps({"status": status, "finished": time_ns(), "oom": oom})
        self.write("exit.new", record.ljust(_RECORD), truncate=False)
        os.rename(f"{self.place}/exit.new", f"{self.place}/exit")
        os.close(self.root)
        cgroup.remove(request["name"])
        self.listener.close()
        for name in ("attach", "pid"):
            try:
                os.unlink(f"{self.place}/{name}")
            except FileNotFoundError:
                continue
        for fd in reversed(self.locks):  # `monitors` last: who waits for it may use the layer at once
            os.close(fd)
        served = False
        for client in self.clients:
            os.close(client.ends[frames.STDOUT])
            os.close(client.ends[frames.STDERR])
            try:
                wire.send(client.connection, b"E%d" % status, [])
            except OSError:
                continue  # gone without a word
            # Only the command that started the container cleans up after it.
            served = served or client.connection is self.starter
        worker = request.get("worker")
        if worker and (request.get("worker_always") or not served):
            os.execve(worker[0], worker, request["environment"])  # noqa: S606

    def write(self, name: str, text: str, *, truncate: bool = True) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if truncate else 0)
        fd = os.open(f"{self.place}/{name}", flags, 0o600)
        os.write(fd, text.encode())
        os.close(fd)


def _execute(request: dict[str, Any], connection: Any, descriptors: list[int]) -> None:
    """Another process in a running container: its streams are the client's own; this one waits for its end."""
    work = request["process"]
    stdio = (descriptors[0], descriptors[1], descriptors[2])
    name, cache, target = request["name"], request["cache"], request["pid"]
    pid, terminal = _launched(lambda: launcher.join(work, request["linux"], target, stdio, name=name, cache=cache))
    for fd in descriptors:
        os.close(fd)
    try:
        wire.send(connection, b"S%d" % pid, [terminal] if terminal >= 0 else [])
    except OSError:
        pass  # seen below: a client that has gone
    if terminal >= 0:
        _keep_terminal(connection, pid, terminal)
    status = _status(os.waitpid(pid, process.WALL)[1])
    try:
        wire.send(connection, b"E%d" % status, [])
    except OSError:
        return  # detached


def _keep_terminal(connection: Any, pid: int, terminal: int) -> None:
    """Hold a terminal until its process has ended; read it when its client does not any more, so that the process is
    neither hung up nor stopped by a client that detaches."""
    poll = select.poll()
    pidfd = os.pidfd_open(pid)
    poll.register(pidfd, select.POLLIN)
    poll.register(connection.fileno(), select.POLLIN | select.POLLRDHUP)
    while True:
        for fd, _ in poll.poll():
            if fd == pidfd:
                os.close(pidfd)
                return
            if fd == terminal:
                try:
                    os.read(terminal, 1 << 16)
                except OSError:
                    poll.unregister(terminal)  # EIO: no slave is open
            else:
                poll.unregister(fd)
                poll.register(terminal, select.POLLIN)
