"""create and run: a container from a bundle."""

from __future__ import annotations

import os
import sys

from cowshed_linux import process
from cowshed_runtime import launcher, plan, waiting
from cowshed_runtime.command import bundle, ending, handing, notify, state, waitfor
from cowshed_runtime.command.log import log
from cowshed_runtime.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed_runtime.command.parser import Values


def create(flags: Values, said: Values) -> int:
    return _start(flags, said, held=True)


def run(flags: Values, said: Values) -> int:
    return _start(flags, said, held=False)


def _start(flags: Values, said: Values, *, held: bool) -> int:
    name = said["operands"][0]
    state.check_id(name)
    given = bundle.read(said)
    config, folder = given.config, state.root(flags)
    work = config["process"]
    detached = held or bool(said.detach)
    handing.check_terminal(bool(work.get("terminal")), detached, said.console_socket)
    groups = bundle.group(flags, config, name)
    if said.dry_run:
        text = plan.build(config, groups, bundle=given.path, pivot=not said.no_pivot, own_root=True).describe()
        sys.stdout.write(text + "\n")
        return 0
    preserve = said.preserve_fds or 0
    inherits = handing.inherited(preserve)
    handing.activation(work, preserve)
    service = os.environ.get("NOTIFY_SOCKET", "")
    record = bundle.record(given, name, groups)
    if service:
        notify.prepare(config, folder, name)
        record["notifies"] = True
    console = handing.connect(said.console_socket) if said.console_socket else None
    watcher = handing.connect(said.pidfd_socket) if said.pidfd_socket else None
    container = state.create(folder, record, dumps(config).encode())
    hold = None
    if not detached:
        waitfor.own_size(work)
        waitfor.hold()
    try:
        if service:
            notify.make(container.fd)
        if held:
            hold = waiting.Hold(container.fd)
        listener = notify.bind(container.fd) if service and not held else None
        manner = launcher.Manner(
            sibling=False, checked=True, hold=hold, bundle=given.path, preserve=inherits, pivot=not said.no_pivot,
            keyring=not said.no_new_keyring,
            recorded=lambda pid: container.save(pid=pid, started=process.start_time(pid)),
        )  # fmt: skip
        made = launcher.launch(
            config, -1, (0, 1, 2), group=groups, cache=state.cache(folder), manner=manner
        )  # fmt: skip
        for warning in made.warnings:
            log.warning(warning)
        if console:
            handing.send(console, made.terminal, b"/dev/ptmx")
        if watcher:
            handing.send(watcher, os.pidfd_open(made.pid), b"pidfd")
        if said.pid_file:
            handing.write_pid(said.pid_file, made.pid)
        container.save(made=True)
    except BaseException:
        if hold:
            hold.close()
        undo(container, config)
        raise
    if hold:
        hold.close()
    log.debug(f"container {name}: process {made.pid}")
    if detached:
        if listener:
            notify.forward(listener, service, made.pid, made.pid)
        return 0
    if listener:
        notify.forward(listener, service, made.pid, os.getpid())
    container.unlock()
    return attend(container, config, made.pid, made.terminal, keep=bool(said.keep))


def attend(container: state.Container, config: dict[str, Any], pid: int, terminal: int, *, keep: bool = False) -> int:
    """Wait for a container's end and take it away; its exit status."""
    status = waitfor.wait(pid, terminal)
    if not keep:
        try:
            container.lock()
        except state.Unknown:
            return status  # another command has deleted it
        ending.destroy(container, config)
    return status


def undo(container: state.Container, config: dict[str, Any]) -> None:
    """A failed create leaves nothing; what went wrong first is what is told."""
    try:
        if container.pid:
            ending.kill(container)
            ending.destroy(container, config)
        else:
            container.remove()
    except Exception as error:
        log.warning(f"container {container.id} is not wholly removed: {error}")
