"""Starting containers and processes in them.

`launch` and `join` are called in a short-lived process with one thread, the launcher, a fork of a warm process in which
this module is imported. The container's first process is cloned as a sibling of the launcher (CLONE_PARENT), so the
launcher's parent, the monitor, is its parent and executes almost nothing itself.

After the change of root nothing is imported, loaded or looked up by name: an image could supply it (CVE-2019-14271).
"""

from __future__ import annotations

import _socket
import os
import sys

from cowshed_linux import loopback, mount, process
from cowshed_linux.procfs import handle
from cowshed_runtime import hooks, identity, labels, plan, rootfs, spec
from cowshed_runtime import seccomp as profiles
from cowshed_runtime.cgroup.group import Entrance
from cowshed_runtime.errors import LaunchError, SpecError
from cowshed_runtime.fastjson import dumps, loads
from cowshed_runtime.settings import Settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from cowshed_runtime import waiting
    from cowshed_runtime.cgroup.group import Group
    from cowshed_runtime.labels import Label
    from cowshed_runtime.notify import Agent

INIT_ANNOTATION = "cowshed.init"  # `--init`
_LONGEST = 8000  # characters of an error; as JSON each is six bytes at most, and a pipe holds 65536


class Manner:
    """How a container or process is started; the default is the engine's way.

    sibling: it becomes a child of this process's parent (CLONE_PARENT), else of this process, and dies with it until
    `recorded`, which is called with its pid at once, has returned and all is set up; poststop hooks are then the
    caller's to run if another hook fails. hold: it waits before it executes
    its program, and the launch ends there. checked: the configuration is known to be valid. bundle: what hooks are
    told. preserve: how many descriptors from 3 on it inherits. pivot, keyring: whether the root is changed by
    pivot_root(2), and whether it gets a session keyring.
    """

    def __init__(
        self,
        *,
        sibling: bool = True,
        recorded: Callable[[int], None] | None = None,
        hold: waiting.Hold | None = None,
        checked: bool = False,
        bundle: str = "",
        preserve: int = 0,
        pivot: bool = True,
        keyring: bool = True,
    ) -> None:
        self.sibling, self.recorded, self.hold = sibling, recorded, hold
        self.checked, self.bundle = checked, bundle
        self.preserve, self.pivot, self.keyring = preserve, pivot, keyring


ENGINE = Manner()


class Launched:
    """A container that runs: the pid of its first process, the master of its terminal or -1, and a line for each thing
    that it was not given although it was asked for (runtime.md, Warnings)."""

    def __init__(self, pid: int, terminal: int, warnings: list[str]) -> None:
        self.pid, self.terminal, self.warnings = pid, terminal, warnings


def launch(
    config: dict[str, Any],
    root: int,
    stdio: tuple[int, int, int],
    *,
    group: Group,
    cache: str,
    manner: Manner = ENGINE,
) -> Launched:
    """Start a container from an OCI configuration; returns when its program has been executed.

    root: the descriptor of a detached mount, or -1 for a bind of config.root.path. group: its control groups, which are
    made. cache: the folder where compiled seccomp filters are kept. With process.terminal stdio is not used:
    Launched.terminal is the master. LaunchError leaves nothing behind but the zombie, which is the parent's to reap.
    """
    try:
        if not manner.checked:
            spec.check(config)
    except SpecError as error:
        raise LaunchError("spec", 22, str(error)) from None
    work, linux, wanted = config["process"], config.get("linux") or {}, config.get("hooks") or {}
    annotations = config.get("annotations") or {}
    settings = _settings(work, linux, annotations, cache)
    confinement = labels.wanted(work, linux, keyring=manner.keyring)
    told = hooks.state(config, group.name, manner.bundle or str((config.get("root") or {}).get("path") or ""))
    made = plan.build(config, group, told, pivot=manner.pivot)
    own_root = -1
    if root < 0:
        root = own_root = _bind_root(config)
    try:
        group.create(linux.get("resources") or {})
    except OSError as error:
        if own_root >= 0:
            os.close(own_root)
        raise LaunchError("cgroup", error.errno or 0, str(error.strerror or error)) from None
    entrance = Entrance(group)
    agent = output = None

    def child(report: _Report) -> NoReturn:
        hold = manner.hold
        _keep(root, *report.descriptors(), *stdio, *entrance.tasks, *(hold.descriptors() if hold else ()),
              *(output.descriptors() if output else ()), preserve=manner.preserve)  # fmt: skip
        _enter_groups(entrance, report)
        report.stage = "namespaces"
        if made.cgroup_namespace:
            process.unshare(process.CLONE_NEWCGROUP)
        _join(made.join)
        if made.create & process.CLONE_NEWNET:
            loopback.up()
        if config.get("hostname"):
            process.set_hostname(config["hostname"])
        if config.get("domainname"):
            process.set_domainname(config["domainname"])
        _adjust_oom(work, report)
        if confinement:
            _open_labels(confinement, handle(), report)
        scene = plan.Scene(root)
        scene.ask, scene.output = report.ask, output
        if not agent:  # else the filter is in force before
            scene.confine = lambda: identity.confine(settings)
        for step in made.steps:
            report.stage = step.stage
            step.execute(scene)
        report.ready(scene.terminal, goes_on=agent is not None)

        def last() -> None:
            if hold:
                report.stage = "start"
                report.fd = hold.wait(report.fd)
            for step in made.last:
                report.stage = step.stage
                step.execute(scene)

        identity.become(
            settings, stdio, scene.terminal, confinement, init=bool(annotations.get(INIT_ANNOTATION)),
            preserve=manner.preserve, keyring=manner.keyring, listening=report.listening,
            last=last if hold or made.last else None,
        )  # fmt: skip

    def for_hooks(pid: int) -> None:
        for kind in ("prestart", "createRuntime"):
            hooks.run(kind, wanted.get(kind) or [], {**told, "status": "creating", "pid": pid})

    try:
        for kind, path in made.join:
            if kind == "pid":
                _set_namespace(kind, path)  # takes effect for what is cloned from here
        if wanted.get("startContainer"):
            output = hooks.Output(annotations)
        agent = _agent(settings)
        tell = _tell(agent, {**told, "status": "creating"}) if agent else None
        pid, terminal, warnings = _clone(made.create, entrance.born, child, for_hooks, tell, manner)
        if not manner.hold:
            try:
                hooks.run("poststart", wanted.get("poststart") or [], {**told, "status": "running", "pid": pid})
            except LaunchError:
                os.kill(pid, 9)
                raise
    except LaunchError as error:
        group.remove()
        if error.stage == "hooks" and not manner.recorded:  # runtime.md, Lifecycle: it goes on at step 12
            error.warnings = stopped(config, group.name, manner.bundle)
        raise
    except BaseException:
        group.remove()
        raise
    finally:
        entrance.close()
        if agent:
            agent.close()
        if output:
            output.close()
        if own_root >= 0:
            os.close(own_root)
    return Launched(pid, terminal, settings.warnings + warnings)


def join(
    work: dict[str, Any],
    linux: dict[str, Any],
    target: int,
    stdio: tuple[int, int, int],
    *,
    group: Group,
    cache: str,
    annotations: dict[str, str] | None = None,
    manner: Manner = ENGINE,
) -> Launched:
    """Start another process in the container whose first process is pid target; linux and annotations are those of its
    configuration.

    This process itself ends up in the container's namespaces and can do nothing else afterwards.
    """
    problems = spec.validate_process(work)
    if problems:
        raise LaunchError("spec", 22, "; ".join(map(str, problems)))
    settings = _settings(work, linux, annotations or {}, cache)
    confinement = labels.wanted(work, linux, keyring=manner.keyring)
    proc = handle() if confinement else -1
    try:
        pidfd = os.pidfd_open(target)
        entrance = Entrance(group)
    except (ProcessLookupError, FileNotFoundError):
        raise LaunchError("namespaces", 3, "the container is not running") from None
    kinds = 0
    for entry in linux.get("namespaces") or ():
        kinds |= plan.NAMESPACES[entry["type"]]

    def child(report: _Report) -> NoReturn:
        _keep(*report.descriptors(), *stdio, *entrance.tasks, proc, preserve=manner.preserve)
        _enter_groups(entrance, report)
        if settings.final:
            _set_affinity("final", settings.final)
        if confinement:
            _open_labels(confinement, proc, report)
        report.stage = "terminal"
        terminal = None
        if work.get("terminal"):
            terminal = rootfs.open_terminal(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        report.ready(terminal, goes_on=agent is not None)
        identity.become(settings, stdio, terminal, confinement, init=False, preserve=manner.preserve,
                        keyring=manner.keyring, listening=report.listening)  # fmt: skip

    agent = None
    try:
        agent = _agent(settings)
        if settings.initial:
            _set_affinity("initial", settings.initial)  # and of what is cloned
        # From here on names mean what the container says: nothing may be imported in this process either.
        _forget_imports()
        # The container's processes must not look into this one before its program runs (CVE-2016-9962).
        process.prctl(process.PR_SET_DUMPABLE, 0)
        # Here and not in the child: there, /proc would be the container's.
        adjusted = _adjust_oom(work, None)
        process.setns(pidfd, kinds)
        os.close(pidfd)
        told = hooks.state({"annotations": annotations}, group.name, manner.bundle)
        tell = _tell(agent, {**told, "status": "running", "pid": target}) if agent else None
        pid, terminal, warnings = _clone(0, entrance.born, child, None, tell, manner)
    except OSError as error:
        text = f"the container cannot be entered: {error.strerror}"
        raise LaunchError("namespaces", error.errno or 0, text) from None
    finally:
        entrance.close()
        if agent:
            agent.close()
    return Launched(pid, terminal, settings.warnings + adjusted + warnings)


def stopped(config: dict[str, Any], name: str, bundle: str = "") -> list[str]:
    """Run the poststop hooks of a container that has ended and is taken away, and give a warning for each that fails
    (runtime.md, Lifecycle, step 13)."""
    place = bundle or str((config.get("root") or {}).get("path") or "")
    told = {**hooks.state(config, name, place), "status": "stopped"}
    warnings = []
    for hook in (config.get("hooks") or {}).get("poststop") or ():
        try:
            hooks.run("poststop", [hook], told)
        except LaunchError as error:
            warnings.append(str(error))
    return warnings


def _settings(work: dict[str, Any], linux: dict[str, Any], annotations: dict[str, str], cache: str) -> Settings:
    settings = Settings(work, linux, annotations)
    try:
        settings.filter = profiles.wanted(linux, annotations, cache)
    except (OSError, KeyError, ValueError) as error:
        raise LaunchError("seccomp", 0, f"the seccomp profile cannot be compiled: {error}") from None
    return settings


def _agent(settings: Settings) -> Agent | None:
    """Who is to hear of notifications, if there can be some."""
    if not (settings.filter and settings.filter.notifies):
        return None
    from cowshed_runtime import notify

    return notify.Agent(settings.filter)


def _tell(agent: Agent, state: dict[str, Any]) -> Callable[[int, int], None]:
    """The container's first process is that of the state, unless it names one."""
    return lambda pid, number: agent.tell(pid, number, {"pid": pid, **state})


def _set_affinity(name: str, processors: list[int]) -> None:
    try:
        os.sched_setaffinity(0, processors)
    except OSError as error:
        text = f"execCPUAffinity.{name} cannot be set: {error.strerror}"
        raise LaunchError("affinity", error.errno or 0, text) from None


def _bind_root(config: dict[str, Any]) -> int:
    path = config["root"]["path"]
    try:
        return mount.clone(path, recursive=True)
    except OSError as error:
        raise LaunchError("mount", error.errno or 0, f"root {path}: {os.strerror(error.errno or 0)}") from None


def _forget_imports() -> None:
    """Whatever would be imported after a change of root could come from the image (CVE-2019-14271)."""
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()


def _keep(*fds: int, preserve: int = 0) -> None:
    """Close every descriptor but these, 0-2 and the next `preserve`: locks, sockets and roots of ours are not for the
    container, not even until it executes its program."""
    last = 2 + preserve
    for fd in sorted({fd for fd in fds if fd > last}):
        if fd > last + 1:
            process.close_range(last + 1, fd - 1)
        last = fd
    process.close_range(last + 1)


def _enter_groups(entrance: Entrance, report: _Report) -> None:
    report.stage = "cgroup"
    entrance.enter()
    for fd in entrance.tasks:
        os.close(fd)


def _set_namespace(kind: str, path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            process.setns(fd, plan.NAMESPACES[kind])
        finally:
            os.close(fd)
    except OSError as error:
        text = f"the {kind} namespace {path} cannot be joined: {os.strerror(error.errno or 0)}"
        raise LaunchError("namespaces", error.errno or 0, text) from None


def _join(wanted: list[tuple[str, str]]) -> None:
    for kind, path in wanted:
        if kind != "pid":
            _set_namespace(kind, path)


def _open_labels(confinement: list[Label], proc: int, report: _Report) -> None:
    """proc: the host's /proc, which is closed."""
    for label in confinement:
        report.stage = label.system.lower()
        label.open(proc)
    os.close(proc)


def _adjust_oom(work: dict[str, Any], report: _Report | None) -> list[str]:
    """While /proc is still the host's. Lowering the value needs CAP_SYS_RESOURCE, which not every host grants its root:
    then it stays as it is, and a warning says so."""
    value = work.get("oomScoreAdj")
    if value is None:
        return []
    if report:
        report.stage = "oom"
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
        return []
    except PermissionError:
        text = f"oomScoreAdj is not lowered to {value}: this runtime lacks CAP_SYS_RESOURCE, which that takes"
        if not report:
            return [text]
        report.warnings.append(text)
        return []
    finally:
        os.close(fd)


class _Report:
    """Where a child tells how far it is, and why it failed, before anything of the image runs."""

    def __init__(self, fd: int, socket: Any, *, tied: bool) -> None:
        """tied: this process dies with the launcher until that has recorded it."""
        self.fd, self.socket, self.stage, self.tied = fd, socket, "start", tied
        self.warnings: list[str] = []
        if tied:
            process.prctl(process.PR_SET_PDEATHSIG, 9)

    def descriptors(self) -> tuple[int, int]:
        return self.fd, self.socket.fileno()

    def ready(self, terminal: tuple[int, int] | None, *, goes_on: bool) -> None:
        """All is set up; hand the terminal's master over, and the warnings. Fails if the launcher is gone: nobody would
        know of us. goes_on: there will be a listener to tell of."""
        self.stage = "ready"
        passed = []
        if terminal:
            passed = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, terminal[0].to_bytes(4, sys.byteorder))]
        self.socket.sendmsg([b"r" + (dumps(self.warnings).encode() if self.warnings else b"")], passed)
        if self.tied:
            if self.socket.recv(1) != b"k":
                os._exit(125)
            process.prctl(process.PR_SET_PDEATHSIG, 0)
        if not goes_on:
            self.socket.close()
        if terminal:
            os.close(terminal[0])

    def ask(self) -> None:
        """Have the launcher run hooks, and wait."""
        self.socket.send(b"h")
        if self.socket.recv(1) != b"g":
            os._exit(125)

    def listening(self, fd: int) -> None:
        """Tell the launcher at which descriptor notifications arrive, and wait until the agent has it. By read(2) and
        write(2) alone, for the filter is in force."""
        socket = self.socket.fileno()
        os.write(socket, b"%d" % fd)
        if os.read(socket, 1) != b"k":
            os._exit(125)
        os.close(fd)

    def failed(self, error: BaseException) -> NoReturn:
        if isinstance(error, LaunchError):
            stage, number, text, status = error.stage, error.errno, str(error), error.status
        else:
            number = getattr(error, "errno", 0) or 0
            stage, status = self.stage, 125
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            name = getattr(error, "filename", None)
            text = f"{stage}: {name}: {text}" if name else f"{stage}: {text}"
        # Shorter than a pipe holds: nobody reads while this is written.
        if len(text) > _LONGEST:
            text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
        os.write(self.fd, dumps([stage, number, text, status]).encode("ascii", "replace"))
        os._exit(status)


def _clone(
    flags: int,
    group: int,
    child: Callable[[_Report], NoReturn],
    for_hooks: Callable[[int], None] | None,
    for_listener: Callable[[int, int], None] | None,
    manner: Manner,
) -> tuple[int, int, list[str]]:
    """Clone a process that runs child(report), and wait until it has executed its program, or holds before it; its pid,
    the master of its terminal or -1, and its warnings. for_hooks is called when it has its namespaces and asks,
    for_listener when its filter is in force."""
    read_end, write_end = os.pipe()
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    if manner.sibling:
        pid, _ = process.clone3(flags | process.CLONE_PARENT, exit_signal=0, cgroup=group)
    else:
        pid, _ = process.clone3(flags, cgroup=group)
    if pid == 0:
        try:
            _forget_imports()
            report = _Report(write_end, theirs, tied=not manner.sibling)
            try:
                child(report)
            except BaseException as error:
                report.failed(error)
        finally:
            os._exit(125)  # whatever happens: a second launcher must not go on, in a container at that
    os.close(write_end)
    theirs.close()
    terminal, said = -1, b""
    try:
        if manner.recorded:
            manner.recorded(pid)
        message, ancillary, _, _ = ours.recvmsg(_LONGEST, _socket.CMSG_SPACE(4))
        if message == b"h" and for_hooks:
            for_hooks(pid)
            ours.send(b"g")
            message, ancillary, _, _ = ours.recvmsg(_LONGEST, _socket.CMSG_SPACE(4))
        for _, _, data in ancillary:
            terminal = int.from_bytes(data[:4], sys.byteorder)
        ready = message[:1] == b"r"
        if ready and not manner.sibling:
            ours.send(b"k")
        if ready and for_listener and (number := ours.recv(16)):
            for_listener(pid, int(number))
            ours.send(b"k")
        while block := os.read(read_end, 1 << 16):
            said += block
    except BaseException:
        os.kill(pid, 9)
        if not manner.sibling:
            os.waitpid(pid, 0)
        raise
    finally:
        os.close(read_end)
        ours.close()
    if said or not ready:
        if terminal >= 0:
            os.close(terminal)
        if not manner.sibling:
            os.waitpid(pid, 0)
    if said:
        stage, number, text, status = loads(said)
        raise LaunchError(stage, number, text, status)
    if not ready:
        text = "the container was killed while it was being set up (is its memory limit too low?)"
        raise LaunchError("start", 0, text)
    return pid, terminal, loads(message[1:]) if message[1:] else []
