"""Starting containers and processes in them.

`launch` and `join` are called in a short-lived process with one thread, the launcher, a fork of a warm process in which
this module is imported. The container's first process is cloned as a sibling of the launcher (CLONE_PARENT), so the
launcher's parent, the monitor, is its parent and executes almost nothing itself.

After the change of root nothing is imported, loaded or looked up by name: an image could supply it (CVE-2019-14271).
"""

from __future__ import annotations

import os

from cowshed_linux import loopback, namespaces, process
from cowshed_linux.procfs import handle
from cowshed_runtime import cloning, hooks, identity, joining, labels, mappings, plan, rootfs, spec
from cowshed_runtime import seccomp as profiles
from cowshed_runtime.cgroup.group import Entrance
from cowshed_runtime.errors import LaunchError, SpecError
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


class Manner:
    """How a container or process is started; the default is the engine's way.

    sibling: it becomes a child of this process's parent (CLONE_PARENT), else of this process, and dies with it until
    `recorded`, which is called with its pid at once, has returned and all is set up; poststop hooks are then the
    caller's to run if another hook fails. hold: it waits before it executes
    its program, and the launch ends there. checked: the configuration is known to be valid. bundle: what hooks are
    told, and what relative paths are relative to. preserve: how many descriptors from 3 on it inherits. pivot, keyring:
    whether the root is changed by pivot_root(2), and whether it gets a session keyring.
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

    A first process that joins a pid or user namespace is this process's child first, and its parent's when this one has
    ended: that must be a subreaper (prctl(2)).
    """
    try:
        if not manner.checked:
            spec.check(config)
        group.adopt(config)
    except SpecError as error:
        raise LaunchError("spec", 22, str(error)) from None
    work, linux, wanted = config["process"], config.get("linux") or {}, config.get("hooks") or {}
    annotations = config.get("annotations") or {}
    settings = _settings(work, linux, annotations, cache)
    confinement = labels.wanted(work, linux, keyring=manner.keyring)
    told = hooks.state(config, group.name, manner.bundle or str((config.get("root") or {}).get("path") or ""))
    made = plan.build(config, group, told, bundle=manner.bundle, pivot=manner.pivot, own_root=root < 0)
    joined = joining.Joined(made)
    scene = plan.Scene(root, isolated_users=made.user_namespace)
    # Root opens what the container is made of while he has his rights; others get theirs with the user namespace.
    here = os.geteuid() == 0 and (made.early or made.user_namespace or not made.create & process.CLONE_NEWNS)
    if joined.mount >= 0:
        here = False  # all names are those of the namespace that is joined
    try:
        if made.early and not here:
            text = (
                "mounts of devices, and with shifted identities, take root of the host, in a mount namespace of its own"
            )
            raise LaunchError("mount", 1, text)
        if joined.mount >= 0 and root >= 0:
            raise LaunchError("mount", 22, "in a mount namespace of others the root is found by its path there")
        for step in made.sources if here else ():
            step.execute(scene)
        try:
            group.create(linux.get("resources") or {})
        except OSError as error:
            raise LaunchError("cgroup", error.errno or 0, str(error.strerror or error)) from None
    except BaseException:
        scene.close(root)
        joined.close()
        raise
    entrance = Entrance(group)
    agent = output = None

    def child(report: cloning.Report) -> NoReturn:
        hold = manner.hold
        held = [*stdio, *entrance.descriptors(), *joined.descriptors(), *scene.trees.values()]
        for kept in (hold, output):
            held += kept.descriptors() if kept else ()
        _keep(scene.root, *report.descriptors(), *held, preserve=manner.preserve)
        _enter_groups(entrance, report)
        report.stage = "namespaces"
        if not _settle(config, made, joined, report) and not settings.groups:
            settings.groups = None
        entrance.descend()
        if not made.user_namespace:
            _adjust_oom(work, report)
        if confinement:
            _open_labels(confinement, handle(), report)
        if joined.mount >= 0:
            report.stage = "namespaces"
            joining.enter("mount", joined.mount)
        scene.ask, scene.output = lambda: report.ask(b"h"), output
        if not agent:  # else the filter is in force before
            scene.confine = lambda: identity.confine(settings)
        for step in made.steps if here else (*made.sources, *made.steps):
            report.stage = step.stage
            step.execute(scene)
        # Until it executes its program others of its pid namespace do not look into it (CVE-2016-9962), nor into the
        # process 1 of `--init` ever: what is here is ours. Not earlier: /proc is root's of the host from here on.
        process.prctl(process.PR_SET_DUMPABLE, 0)
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

    def for_identities(pid: int) -> None:
        if made.users:
            mappings.write(pid, made.users, made.groups)
        if os.geteuid() == 0:
            settings.warnings += _adjust_oom(work, None, pid)
            identity.raise_limits(pid, settings.limits)
            identity.own_streams(stdio, mappings.outside(mappings.Inside(pid).users, settings.uid))

    def for_devices(pid: int) -> None:
        from cowshed_runtime import netdevices  # few containers have any

        netdevices.move(made.devices, pid)

    def for_hooks(pid: int) -> None:
        for kind in ("prestart", "createRuntime"):
            hooks.run(kind, wanted.get(kind) or [], {**told, "status": "creating", "pid": pid})

    try:
        if wanted.get("startContainer"):
            output = hooks.Output(annotations)
        agent = _agent(settings)
        tell = _tell(agent, {**told, "status": "creating"}) if agent else None
        answers: dict[bytes, Callable[[int], None]] = {
            b"a": group.attach, b"u": for_identities, b"n": for_devices, b"h": for_hooks,
        }  # fmt: skip
        pid, terminal, warnings = cloning.clone(
            made.create, entrance.born, child, answers, tell, joined.early,
            sibling=manner.sibling, recorded=manner.recorded,
        )  # fmt: skip
        if not manner.hold:
            try:
                hooks.run("poststart", wanted.get("poststart") or [], {**told, "status": "running", "pid": pid})
            except LaunchError:
                os.kill(pid, 9)
                raise
    except LaunchError as error:
        group.remove()
        if error.stage == "hooks" and not manner.recorded:  # runtime.md, Lifecycle: it goes on at step 12
            error.warnings = hooks.stopped(config, group.name, manner.bundle)
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
        scene.close(root)
        joined.close()
    return Launched(pid, terminal, settings.warnings + warnings)


def _settle(config: dict[str, Any], made: plan.Plan, joined: joining.Joined, report: cloning.Report) -> bool:
    """The child makes itself at home in its namespaces, while /proc is still the host's; whether setgroups(2) is
    allowed there."""
    set_groups = True
    if made.user_namespace:
        report.ask(b"u")
    if made.late & process.CLONE_NEWTIME:
        namespaces.offset_clocks(made.clocks)
    if made.user_namespace:
        inside = mappings.Inside("self")
        inside.become_root()
        set_groups = inside.set_groups
        report.tie()  # which the kernel undoes when identities change
    if made.late & process.CLONE_NEWCGROUP:
        process.unshare(process.CLONE_NEWCGROUP)  # not with the clone: its root is to be the container's group
    for kind, fd in joined.late:
        joining.enter(kind, fd)
    if made.create & process.CLONE_NEWNET:
        loopback.up()
    if made.devices:
        report.ask(b"n")
    if config.get("hostname"):
        process.set_hostname(config["hostname"])
    if config.get("domainname"):
        process.set_domainname(config["domainname"])
    return set_groups


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
        entrance = Entrance(group, target)
    except (ProcessLookupError, FileNotFoundError):
        raise LaunchError("namespaces", 3, "the container is not running") from None
    kinds = 0
    for entry in linux.get("namespaces") or ():
        kinds |= plan.NAMESPACES[entry["type"]]
    inside = mappings.Inside(target) if kinds & process.CLONE_NEWUSER else None
    own = any(entry["type"] == "mount" and not entry.get("path") for entry in linux.get("namespaces") or ())
    root = -1 if own else os.open(f"/proc/{target}/root", os.O_PATH | os.O_CLOEXEC)

    def child(report: cloning.Report) -> NoReturn:
        _keep(*report.descriptors(), *stdio, *entrance.descriptors(), proc, root, preserve=manner.preserve)
        _enter_groups(entrance, report)
        if inside:
            report.stage = "namespaces"
            inside.become_root()
            report.tie()
            if not inside.set_groups and not settings.groups:
                settings.groups = None
        if root >= 0:
            rootfs.enter(root)
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
        cloning.forget_imports()
        # The container's processes must not look into this one before its program runs (CVE-2016-9962).
        process.prctl(process.PR_SET_DUMPABLE, 0)
        # Here and not in the child: there, /proc would be the container's.
        adjusted = _adjust_oom(work, None)
        if inside and os.geteuid() == 0:
            identity.raise_limits(0, settings.limits)
            identity.own_streams(stdio, mappings.outside(inside.users, settings.uid))
        process.setns(pidfd, kinds)
        os.close(pidfd)
        told = hooks.state({"annotations": annotations}, group.name, manner.bundle)
        tell = _tell(agent, {**told, "status": "running", "pid": target}) if agent else None
        pid, terminal, warnings = cloning.clone(
            0, entrance.born, child, {b"a": group.attach}, tell, sibling=manner.sibling, recorded=manner.recorded
        )
    except OSError as error:
        text = f"the container cannot be entered: {error.strerror}"
        raise LaunchError("namespaces", error.errno or 0, text) from None
    finally:
        entrance.close()
        if agent:
            agent.close()
    return Launched(pid, terminal, settings.warnings + adjusted + warnings)


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


def _keep(*fds: int, preserve: int = 0) -> None:
    """Close every descriptor but these, 0-2 and the next `preserve`: locks, sockets and roots of ours are not for the
    container, not even until it executes its program."""
    last = 2 + preserve
    for fd in sorted({fd for fd in fds if fd > last}):
        if fd > last + 1:
            process.close_range(last + 1, fd - 1)
        last = fd
    process.close_range(last + 1)


def _enter_groups(entrance: Entrance, report: cloning.Report) -> None:
    report.stage = "cgroup"
    if entrance.group.foreign:
        report.ask(b"a")
    entrance.enter()


def _open_labels(confinement: list[Label], proc: int, report: cloning.Report) -> None:
    """proc: the host's /proc, which is closed."""
    for label in confinement:
        report.stage = label.system.lower()
        label.open(proc)
    os.close(proc)


def _adjust_oom(work: dict[str, Any], report: cloning.Report | None, pid: int | str = "self") -> list[str]:
    """While /proc is still the host's. Lowering the value needs CAP_SYS_RESOURCE, which not every host grants its root:
    then it stays as it is, and a warning says so."""
    value = work.get("oomScoreAdj")
    if value is None:
        return []
    if report:
        report.stage = "oom"
    fd = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
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
