"""One container's monitor: parent of its first process, owner of its streams, log and exit status.

Every feature of Python that is used for the first time after the fork costs 20 to 300 kB of private memory. So the
monitor itself does nothing but start a helper (starting.py), which shares its table of descriptors, and wait for the
first event. All that it has to know then stands in a file in memory, which it reads only when something happens.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` brings enum
import _socket
import mmap
import os
import select
from time import time_ns

from cowshed.monitor import frames, starting, wire
from cowshed_linux import process
from cowshed_runtime.cgroup.group import Group
from cowshed_runtime.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Private, so that each monitor has its own: it takes memory only as far as it has been used.
_buffer = mmap.mmap(-1, 1 << 18, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
_view = memoryview(_buffer)


def serve(connection: int) -> None:
    """Handle one request, in a fork of the zygote; does not return."""
    os.setsid()
    process.become_subreaper()
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    state, poll = os.memfd_create("monitor"), select.epoll()
    helper = process.fork_sharing_descriptors()
    if helper == 0:
        starting.start(connection, state, poll)
    if os.waitpid(helper, process.WALL)[1]:
        _failed(connection, state)
    events = poll.poll()  # where a monitor is while its container does nothing
    log, out, err = os.pread(state, starting.HEAD, 0)
    while log and _recorded(events, log, out, err):
        events = poll.poll()
    known = starting.told(state)
    if known["op"] == "run":
        _Monitor(known, poll).run(events)
    else:
        _executed(known, poll, events)
    os._exit(0)


def _recorded(events: list[tuple[int, int]], log: int, out: int, err: int) -> bool:
    """The monitor of a container that writes now and then, with a log and no client: whether this was all there was to
    do. It uses as little of Python as can be; the rest is done by _Monitor, which may read again what is said here."""
    for fd, _ in events:
        if fd != out and fd != err:
            return False
        try:
            count = os.readv(fd, (_buffer,))
        except OSError:
            return False
        if count == 0:
            return False
        header = frames.HEADER.pack(time_ns(), count, frames.STDOUT if fd == out else frames.STDERR)
        try:
            written = os.writev(log, (header, _view[:count]))
        except OSError:
            continue  # a full disk: see _Monitor.record
        if written < len(header) + count:
            os.ftruncate(log, os.fstat(log).st_size - written)
    return True


def _failed(connection: int, state: int) -> None:
    """The helper could not start what was asked for, or was killed: leave nothing, then say so."""
    with open("/proc/thread-self/children", "rb") as f:
        for pid in f.read().split():
            os.kill(int(pid), 9)
    try:
        while os.waitpid(-1, process.WALL)[0]:
            continue
    except ChildProcessError:
        pass
    known = starting.told(state)
    if "name" in known:
        if "runtime" in known:
            _end_foreign(known)
        Group(known["name"]).remove()
    if "error" in known:
        starting.refuse(_socket.socket(fileno=connection), known["error"])
    os._exit(1)


def _end_foreign(known: dict[str, Any]) -> None:
    """What another runtime keeps of a container goes by that runtime."""
    from cowshed.runtimes import helper

    helper.end(known["runtime"])


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
    def __init__(self, known: dict[str, Any], poll: select.epoll) -> None:
        self.known, self.poll = known, poll
        self.place, self.pid = known["place"], known["pid"]
        self.terminal, self.input, self.log = known["terminal"], known["input"], known["log"]
        self.sources: dict[int, int] = {fd: stream for fd, stream in known["sources"]}  # noqa: C416 - of lists
        self.listener = _socket.socket(fileno=known["listener"])
        self.starter = None
        self.clients: list[_Client] = []
        if known["ends"]:
            self.starter = _socket.socket(fileno=known["connection"])
            self.clients.append(_Client(self.starter, *known["ends"]))
        self.logged = os.fstat(self.log).st_size if self.log >= 0 else 0
        self.blocked = False

    def run(self, events: list[tuple[int, int]]) -> None:
        """Copy output to the log and to attached clients until the container has ended.

        A client that does not take what it was given stops the reading, and so in the end the container.
        """
        poll, listener, pidfd = self.poll, self.listener.fileno(), self.known["pidfd"]
        buffer = _buffer
        status = -1
        while True:
            arrived = False
            for fd, _ in events:
                if fd in self.sources:
                    if not self.blocked and self.copy(fd, buffer) is False:
                        self.done(fd)
                elif fd == listener:
                    arrived = True
                elif fd == pidfd:
                    status = _status(os.waitpid(self.known["child"], process.WALL)[1])
                    poll.unregister(pidfd)
                    os.close(pidfd)
                else:
                    self.ready(fd)
            if arrived:  # last: its descriptors must not be taken for closed ones that have events here
                self.accept()
            if status >= 0 and not self.blocked:
                self.rest(buffer)
                if not self.sources and not self.blocked:
                    break
            events = poll.poll()
        poll.close()
        self.end(status)

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
                    self.poll.register(fd, starting.GONE)
                    return
        except OSError:
            pass  # it has gone, or said nothing in time
        for end in descriptors:
            os.close(end)
        connection.close()

    def settle(self) -> bool:
        """Let a command do on the mount of the container's root what has to be done before it goes, and before anybody
        is told of the end; whether it could."""
        words, root = self.known["settle"], self.known["root"]
        os.set_inheritable(root, True)
        _, status = os.waitpid(os.posix_spawn(words[0], [*words, str(root)], {}), 0)
        os.close(root)
        return status == 0

    def end(self, status: int) -> None:
        """Leave the record, clean up, tell the clients; become the worker if it is to be."""
        known = self.known
        group = Group(known["name"])
        oom = group.oom_killed() or ("runtime" in known and os.path.exists(f"{known['runtime']['folder']}/oom"))
        record: dict[str, Any] = {"status": status, "finished": time_ns(), "oom": oom}
        if "settle" in known and not self.settle():
            record["error"] = "names of one changed file may have become several files"
        # Into the space kept for it: a run directory that is full does not lose the status.
        text = dumps(record).ljust(starting.RECORD)
        starting.write(f"{self.place}/exit.new", text, truncate=False)
        os.rename(f"{self.place}/exit.new", f"{self.place}/exit")
        if "runtime" in known:
            _end_foreign(known)
        group.remove()
        self.listener.close()
        for name in ("attach", "pid"):
            try:
                os.unlink(f"{self.place}/{name}")
            except FileNotFoundError:
                continue
        for fd in reversed(known["held"]):  # `monitors` last: who waits for it may use the layer at once
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
        worker = known.get("worker")
        if os.path.exists(f"{self.place}/restarting"):
            return  # by the command that has written this
        if worker and (known.get("worker_always") or not served):
            os.execve(worker[0], worker, known["environment"])  # noqa: S606


def _executed(known: dict[str, Any], poll: select.epoll, events: list[tuple[int, int]]) -> None:
    """Wait for the end of a process that was executed in a container; its streams are the client's own.

    A terminal is held until then, and read when its client does not any more, so that the process is neither hung up
    nor stopped by a client that detaches.
    """
    terminal, ended = known["terminal"], False
    while not ended:
        for fd, _ in events:
            if fd == known["pidfd"]:
                ended = True
            elif fd == terminal:
                try:
                    os.read(terminal, 1 << 16)
                except OSError:
                    poll.unregister(terminal)  # EIO: no slave is open
            else:
                poll.unregister(fd)
                poll.register(terminal, select.EPOLLIN)
        if not ended:
            events = poll.poll()
    status = _status(os.waitpid(known["child"], process.WALL)[1])
    try:
        wire.send(_socket.socket(fileno=known["connection"]), b"E%d" % status, [])
    except OSError:
        return  # detached
