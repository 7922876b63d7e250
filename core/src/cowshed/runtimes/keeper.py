"""The process beside a container of a shim: the monitor waits for it in place of the container's first process, whose
parent is the shim, and it ends with that one's status.

It holds what a monitor of such a container would need more than another: the connection to the shim, the socket for
the shim's events and the pipe for its log, what feeds stdin, and the terminal, of which the shim sees two pipes only.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` brings enum
import _socket
import fcntl
import os
import select
import stat
from _struct import pack, unpack

from cowshed.runtimes import place, program, ttrpc
from cowshed.runtimes.api import Started
from cowshed_linux import process
from cowshed_runtime.cgroup.group import Group
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.fastjson import dumps, loads
from cowshed_runtime.protobuf import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from cowshed.runtimes.api import Task
    from cowshed.runtimes.ttrpc import Client

NAMESPACE = "cowshed"
_PROCESS = "types.containerd.io/opencontainers/runtime-spec/1/Process"
_OPTIONS = "runtimeoptions.v1.Options"
_SERVICE = "containerd.task.v{}.Task"
_TAKE_TERMINAL, _GET_SIZE, _SET_SIZE = 0x540E, 0x5413, 0x5414  # ioctl_tty(2)
_BLOCK = 1 << 16
_OOM = b"/tasks/oom"  # the topic of an event
_LOST = 137  # the status of a container whose shim was killed


def begin(task: Task, work: dict[str, Any], stdio: tuple[int, int, int], name: str = "") -> Started:
    """Fork a keeper that starts the container, or, with a name, a process of it; its pid, and the terminal's master.
    LaunchError: it has ended."""
    master = slave = -1
    if work.get("terminal"):
        master, slave = os.openpty()
        size = work.get("consoleSize")
        if size:
            fcntl.ioctl(master, _SET_SIZE, pack("HHHH", size["height"], size["width"], 0, 0))
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        _main(task, work, stdio, name, slave, write_end)
    os.close(write_end)
    if slave >= 0:
        os.close(slave)
    said = b""
    while block := os.read(read_end, _BLOCK):
        said += block
    os.close(read_end)
    if not said:
        said = dumps({"error": ["runtime", 0, "the process beside the shim was killed", 125]}).encode()
    answer = loads(said)
    if "error" in answer:
        os.waitpid(pid, 0)
        if master >= 0:
            os.close(master)
        stage, number, text, status = answer["error"]
        raise LaunchError(stage, number, text, status)
    return Started(answer["pid"], master, pid, answer["since"])


def _main(
    task: Task, work: dict[str, Any], stdio: tuple[int, int, int], name: str, slave: int, report: int
) -> NoReturn:
    status = 125
    try:
        # The locks and sockets of the monitor must not live on in here.
        _keep_only(report, slave, *stdio, *task.doors)
        _signal.signal(_signal.SIGHUP, _signal.SIG_IGN)
        keeper = _Keeper(task, work, stdio, name, slave)
        pid = keeper.start()
        os.write(report, dumps({"pid": pid, "since": keeper.since}).encode())
        os.close(report)
        report = -1
        status = keeper.run()
    except LaunchError as error:
        status = _LOST
        if report >= 0:
            failed = program.failure(task, "exec" if name else "create", str(error), work)
            os.write(report, dumps({"error": [error.stage, error.errno, str(failed), failed.status]}).encode())
    except BaseException as error:
        if report >= 0:
            text = f"{type(error).__name__}: {error}"
            os.write(report, dumps({"error": ["runtime", 0, text, 125]}).encode())
    finally:
        os._exit(status)


def _keep_only(*fds: int) -> None:
    last = 2
    for fd in sorted({fd for fd in fds if fd > 2}):
        if fd > last + 1:
            process.close_range(last + 1, fd - 1)
        last = fd
    process.close_range(last + 1)


class _Copy:
    """What is read from one descriptor and written to another, neither of which may be waited for."""

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target, self.pending, self.ended = source, target, b"", False
        os.set_blocking(source, False)
        os.set_blocking(target, False)

    def move(self) -> bool:
        """As much as there is and is taken; whether it has ended: the source, or who takes it."""
        try:
            while not self.ended:
                if not self.pending:
                    self.pending = os.read(self.source, _BLOCK)
                    self.ended = not self.pending
                if self.pending:
                    self.pending = self.pending[os.write(self.target, self.pending) :]
        except BlockingIOError:
            return False
        except OSError:
            self.ended = True  # EIO: the other end of the terminal is closed; EPIPE
        return True

    def waits_for(self) -> tuple[int, int]:
        return (self.target, select.POLLOUT) if self.pending else (self.source, select.POLLIN)


class _Keeper:
    def __init__(self, task: Task, work: dict[str, Any], stdio: tuple[int, int, int], name: str, slave: int) -> None:
        self.task, self.work, self.stdio, self.name, self.slave = task, work, stdio, name, slave
        self.events: dict[int, tuple[Any, bytes]] = {}  # connections of the shim, and what is not answered yet
        self.listener: Any = None
        self.log = self.wake = -1
        self.since = 0  # when the container's first process was started: see Started
        self.input: _Copy | None = None
        self.output: _Copy | None = None
        self.opened: set[int] = set()  # for the shim, until it has opened them
        self.client: Client

    # ------------------------------------------------------------ the start

    def start(self) -> int:
        """The pid of the container's, or the executed, process. LaunchError."""
        os.setsid()
        paths = self.terminal() if self.slave >= 0 else self.streams()
        if self.name:
            self.client = connected(self.task)
            body = {1: self.task.id, 2: self.name, 3: int(self.slave >= 0), 4: paths[0], 5: paths[1], 6: paths[2],
                    7: ttrpc.any_of(_PROCESS, dumps(self.work).encode())}  # fmt: skip
            self.client.call("Exec", body)
        else:
            self.serve()
            body = {1: self.task.id, 2: place.bundle_of(self.task), 4: int(self.slave >= 0), 5: paths[0],
                    6: paths[1], 7: paths[2]}  # fmt: skip
            if self.task.settings:
                options = encode({1: _OPTIONS, 2: self.task.settings})
                body[10] = ttrpc.any_of(_OPTIONS, options)
            created = self.client.call("Create", body)
            first = int(created.get(1, [0])[0])
            place.confined(self.task, first)
            self.since = process.start_time(first)
            place.shut(self.task)
        try:
            started = self.client.call("Start", {1: self.task.id, 2: self.name})
        except LaunchError:
            if self.name:
                self.client.call("Delete", {1: self.task.id, 2: self.name})
            raise
        for fd in self.opened:
            os.close(fd)
        return int(started.get(1, [0])[0])

    def serve(self) -> None:
        """Start the shim: what it wants from containerd is a socket for events, and a pipe for its log."""
        task, bundle = self.task, place.bundle_of(self.task)
        folder = os.open(task.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        address = f"/proc/{os.getpid()}/fd/{folder}/events"
        self.listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        self.listener.bind(address)
        self.listener.listen(8)
        os.mkfifo(f"{bundle}/log", 0o600)
        self.log = os.open(f"{bundle}/log", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        # `end` finds what it has to clear up, from now on
        write(f"{task.folder}/shim", dumps({"address": "", "version": 2}))
        said = command(task, address, "start")
        try:
            answer = loads(said) if said.startswith("{") else {"address": said}
            version, found = int(answer.get("version", 2)), str(answer["address"])
        except (ValueError, KeyError):
            raise LaunchError("runtime", 0, "the shim does not tell its address") from None
        if answer.get("protocol", "ttrpc") != "ttrpc":
            raise LaunchError("runtime", 0, f"the shim speaks {answer['protocol']}, not ttrpc")
        write(f"{task.folder}/shim", dumps({"address": found, "version": version}))
        self.client = connected(task)

    def streams(self) -> list[str]:
        """The paths by which the shim opens stdin, stdout and stderr: our descriptors of pipes. What is no pipe is
        /dev/null, for which it needs none."""
        paths = ["", "", ""]
        for n in (1, 2):
            if stat.S_ISFIFO(os.fstat(self.stdio[n]).st_mode):
                paths[n] = _path(self.stdio[n])
            self.opened.add(self.stdio[n])
        if stat.S_ISFIFO(os.fstat(self.stdio[0]).st_mode):
            # The shim keeps its stdin open for writing, so that only we see the end of ours, and tell it.
            read_end, write_end = os.pipe()
            self.input = _Copy(self.stdio[0], write_end)
            self.opened.add(read_end)
            paths[0] = _path(read_end)
        else:
            self.opened.add(self.stdio[0])
        return paths

    def terminal(self) -> list[str]:
        """A terminal of ours, whose other end the monitor has, before the one that the shim keeps to itself."""
        import termios

        for fd in {*self.stdio}:
            if fd > 2:
                os.close(fd)
        mode = termios.tcgetattr(self.slave)
        mode[0] = mode[1] = mode[3] = 0
        mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        termios.tcsetattr(self.slave, termios.TCSANOW, mode)
        fcntl.ioctl(self.slave, _TAKE_TERMINAL, 0)  # so that a change of its size is a signal to this process
        self.wake, end = os.pipe()
        for fd in (self.wake, end):
            os.set_blocking(fd, False)
        _signal.signal(_signal.SIGWINCH, lambda number, frame: None)
        _signal.set_wakeup_fd(end, warn_on_full_buffer=False)
        in_r, in_w = os.pipe()
        out_r, out_w = os.pipe()
        self.input, self.output = _Copy(self.slave, in_w), _Copy(out_r, self.slave)
        self.opened |= {in_r, out_w}
        return [_path(in_r), _path(out_w), ""]

    # ------------------------------------------------------------ the life

    def run(self) -> int:
        """Until the process has ended and its output is written; its status."""
        waited, deleted, status = self.client.send("Wait", {1: self.task.id, 2: self.name}), 0, 0
        if self.slave >= 0:
            self.resize()
        while True:
            for fd in self.ready():
                if fd == self.client.fileno():
                    self.client.read()
                elif self.listener is not None and fd == self.listener.fileno():
                    self.accept()
                elif fd in self.events:
                    self.answer(fd)
                elif fd == self.log:
                    os.read(fd, _BLOCK)
                elif fd == self.wake:
                    os.read(fd, _BLOCK)
                    self.resize()
            self.copy()
            if not deleted:
                ended = self.client.arrived(waited)
                if ended is not None:
                    self.look_for_oom(told=False)  # the shim may remove the groups next
                    status = int(ended.get(1, [0])[0])
                    deleted = self.client.send("Delete", {1: self.task.id, 2: self.name})
            elif self.client.arrived(deleted) is not None:
                break
        self.copy()
        if not self.name:
            self.shut()
        return status & 0xFF

    def ready(self) -> list[int]:
        poll = select.poll()
        poll.register(self.client.fileno(), select.POLLIN)
        for fd in (self.log, self.wake, *self.events):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        if self.listener is not None:
            poll.register(self.listener.fileno(), select.POLLIN)
        wanted: dict[int, int] = {}
        for copy in (self.input, self.output):
            if copy is not None and not copy.ended:
                fd, event = copy.waits_for()
                wanted[fd] = wanted.get(fd, 0) | event
        for fd, event in wanted.items():
            poll.register(fd, event)
        return [fd for fd, _ in poll.poll()]

    def copy(self) -> None:
        if self.output is not None and not self.output.ended:
            self.output.move()
        if self.input is not None and not self.input.ended and self.input.move():
            os.close(self.input.target)
            self.client.send("CloseIO", {1: self.task.id, 2: self.name, 3: 1})

    def accept(self) -> None:
        fd, _ = self.listener._accept()
        self.events[fd] = (_socket.socket(fileno=fd), b"")

    def answer(self, fd: int) -> None:
        """The shim waits for an answer to each event; one alone is of use here."""
        connection, rest = self.events.pop(fd)
        try:
            block = connection.recv(_BLOCK)
            self.look_for_oom(told=_OOM in rest + block)
            answers, rest = ttrpc.answer_all(rest + block)
            connection.sendall(answers)
        except OSError:
            block = b""
        if block:
            self.events[fd] = (connection, rest)
        else:
            connection.close()

    def look_for_oom(self, *, told: bool) -> None:
        """Leave a note for the monitor if memory has run out."""
        if not self.name and (told or Group(self.task.id).oom_killed()):
            write(f"{self.task.folder}/oom", "")

    def resize(self) -> None:
        height, width, _, _ = unpack("HHHH", fcntl.ioctl(self.slave, _GET_SIZE, bytes(8)))
        if height and width:
            self.client.send("ResizePty", {1: self.task.id, 2: self.name, 3: width, 4: height})

    def shut(self) -> None:
        try:
            self.client.call("Shutdown", {1: self.task.id, 2: 1})
        except LaunchError:
            pass  # it may end before it has answered
        os.unlink(f"{self.task.folder}/shim")  # nothing is left to be cleared up


def _path(fd: int) -> str:
    return f"/proc/{os.getpid()}/fd/{fd}"


def write(path: str, text: str) -> None:
    """Whoever reads it finds it whole."""
    with open(f"{path}.new", "w", encoding="utf-8") as f:
        f.write(text)
    os.rename(f"{path}.new", path)


def connected(task: Task) -> Client:
    """A connection to the shim of a container. LaunchError."""
    try:
        with open(f"{task.folder}/shim", "rb") as f:
            found = loads(f.read())
    except FileNotFoundError:
        raise LaunchError("runtime", 0, "the container is not running") from None
    return ttrpc.Client(ttrpc.connect(found["address"] or _left(task)), _SERVICE.format(found["version"]))


def _left(task: Task) -> str:
    """The address of a shim whose keeper was killed before it knew it: shims write it down."""
    try:
        with open(f"{place.bundle_of(task)}/address", encoding="utf-8") as f:
            return f.read().strip()
    except FileNotFoundError:
        raise LaunchError("runtime", 0, "the shim was never started") from None


def forget(task: Task) -> None:
    """The socket of a shim that was killed."""
    try:
        with open(f"{task.folder}/shim", "rb") as f:
            address = str(loads(f.read())["address"] or _left(task))
        os.unlink(address.removeprefix("unix://"))
    except (FileNotFoundError, LaunchError):
        return


def command(task: Task, address: str, verb: str) -> str:
    """Run the shim's program with a verb, in the bundle; what it prints. LaunchError."""
    bundle = place.bundle_of(task)
    said, null = os.memfd_create("said"), os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        words = [task.path, *task.options, "-namespace", NAMESPACE, "-id", task.id, "-address", address,
                 "-publish-binary", "/bin/true", "-bundle", bundle, verb]  # fmt: skip
        environment = {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "TTRPC_ADDRESS": address,
                       "MAX_SHIM_VERSION": "2", "GOMAXPROCS": "2"}  # fmt: skip
        errors = os.memfd_create("errors")
        try:
            status = program.run(
                words, (null, said, errors), folder=bundle, environment=environment,
                hidden=() if verb == "start" else task.hidden,
                doors=task.doors,
            )  # fmt: skip
            text = os.pread(said, _BLOCK, 0).decode(errors="replace").strip()
            if status:
                lines = os.pread(errors, _BLOCK, 0).decode(errors="replace").splitlines() or text.splitlines()
                raise LaunchError("runtime", 0, lines[-1] if lines else f"it ended with status {status}")
            return text
        finally:
            os.close(errors)
    finally:
        os.close(said)
        os.close(null)
