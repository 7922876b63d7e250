"""The boundary of runtimes: what a plug-in of the namespace `cowshed.runtimes` is asked.

A plug-in drives one kind of runtime. `start`, `execute` are called in a helper of a container's monitor, `signal` and
`end` by whoever needs them: all that they have to know is in the task. The monitor is a subreaper: what a runtime
leaves behind becomes its child.

`start` and `execute` give the pid of a child of that monitor (or of what will be one, when who forked it has ended)
that ends with the exit status of the container's process, 128 and the signal's number if one killed it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

API_VERSION = (1, 0)  # a plug-in of another first number, or a greater second one, is refused
ENTRY_POINT_GROUP = "cowshed.runtimes"


class Answers:
    """What a program said when it was asked what it is: its usage, its version, and its `features` (features.md of the
    runtime specification), None if it has no such command."""

    def __init__(self, usage: str, version: str, features: dict[str, Any] | None) -> None:
        self.usage, self.version, self.features = usage, version, features


class Task:
    """One container, as its runtime has to know it; all that it is made of can be said in JSON.

    folder: its own in the run directory, with the bundle and what the runtime keeps: made by start, removed by end.
    path: of the program, absolute; "" for a plug-in that drives none. options: words for the program, before its
    command. settings: a file that configures the runtime, "" for none. hidden: mount points that the program must not
    see. grouped: the engine makes the control groups, and starts the program in them.
    """

    def __init__(
        self,
        id: str,
        folder: str,
        path: str = "",
        options: list[str] | None = None,
        settings: str = "",
        hidden: list[str] | None = None,
        *,
        grouped: bool = False,
    ) -> None:
        self.id, self.folder, self.path, self.settings, self.grouped = id, folder, path, settings, grouped
        self.options, self.hidden = options or [], hidden or []
        self.doors: list[int] = []  # cgroup.procs of each group that the engine has made, open for writing


class Started:
    """What start and execute give.

    pid: the process that is told of as the container's (or the executed) one, as this host numbers it. child: the one
    that is waited for. terminal: the master of its terminal, or -1. since: the start time of pid (proc(5), in clock
    ticks), which another parent of it may have reaped already; 0: it is the child.
    """

    def __init__(self, pid: int, terminal: int, child: int = 0, since: int = 0) -> None:
        self.pid, self.terminal, self.child, self.since = pid, terminal, child or pid, since


if TYPE_CHECKING:

    class RuntimePlugin(Protocol):
        """The object that an entry point of the group names."""

        name: str  # of the entry point
        api: tuple[int, int]
        summary: str  # one line, for people
        programs: bool  # it drives programs; else it is a runtime by itself, that --runtime NAME takes

        def drives(self, answers: Answers) -> bool:
            """Whether a program that answers so is of its kind. Pure; of all plug-ins the first by name that says so
            gets the program."""
            ...

        def facts(self, answers: Answers) -> dict[str, str | bool]:
            """What such a program can do, for people, by name. Pure."""
            ...

        def start(self, task: Task, config: dict[str, Any], root: int, stdio: tuple[int, int, int]) -> Started:
            """Start a container from an OCI configuration, whose control groups are /cowshed/ID. root: a detached
            mount. stdio is not used with process.terminal. `end` was called before, and the folder made since.
            LaunchError: what is left then, `end` removes. This process may be in another mount namespace afterwards,
            in which the root is at FOLDER/ID/rootfs."""
            ...

        def execute(
            self, task: Task, work: dict[str, Any], linux: dict[str, Any], target: int, stdio: tuple[int, int, int]
        ) -> Started:
            """Start another process in the container. work: an OCI process; linux: that object of its configuration;
            target: Started.pid of the container. LaunchError."""
            ...

        def signal(self, task: Task, target: int, number: int) -> None:
            """Send a signal to the container's first process. LaunchError if the runtime refuses."""
            ...

        def end(self, task: Task) -> None:
            """End what is left of the container, and remove all that was made for it. Whatever was killed at whatever
            step: what is not there is no error. LaunchError if the runtime cannot remove what it keeps."""
            ...
