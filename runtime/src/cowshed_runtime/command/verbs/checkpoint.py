"""checkpoint and restore: a container's state, to a directory and back (criu)."""

from __future__ import annotations

import os

from cowshed_linux import process
from cowshed_runtime import criu
from cowshed_runtime.command import bundle, ending, handing, state, waitfor
from cowshed_runtime.command.errors import CommandError
from cowshed_runtime.command.verbs import create
from cowshed_runtime.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed_runtime.command.parser import Values


def checkpoint(flags: Values, said: Values) -> int:
    wanted = _wanted(said)
    container = state.load(state.root(flags), said["operands"][0], lock=True)
    status = container.status(mine=True)
    if status not in ("running", "paused"):
        raise CommandError(f"container cannot be checkpointed in {status} state")
    config = container.config()
    criu.dump(
        config, container.pid, container.group,
        rootfs=container.record["rootfs"], image=wanted["image"], work=wanted["work"], said=wanted,
    )  # fmt: skip
    if not said.leave_running:
        ending.destroy(container, config)
    return 0


def restore(flags: Values, said: Values) -> int:
    name = said["operands"][0]
    state.check_id(name)
    wanted = _wanted(said)
    given = bundle.read(said)
    config, folder = given.config, state.root(flags)
    detached = bool(said.detach)
    handing.check_terminal(bool(config["process"].get("terminal")), detached, said.console_socket)
    groups = bundle.group(flags, config, name)
    groups.adopt(config)
    console = handing.connect(said.console_socket) if said.console_socket else None
    container = state.create(folder, bundle.record(given, name, groups), dumps(config).encode())
    if not detached:
        waitfor.hold()
    made = None
    try:
        made = criu.restore(
            config, groups, bundle=given.path, rootfs=given.rootfs, image=wanted["image"], work=wanted["work"],
            said=wanted,
        )  # fmt: skip
        container.save(pid=made.pid, started=process.start_time(made.pid))
        if console:
            handing.send(console, made.terminal, b"/dev/ptmx")
        if said.pid_file:
            handing.write_pid(said.pid_file, made.pid)
        container.save(made=True)
    except BaseException:
        if made:
            os.kill(made.pid, 9)
        create.undo(container, config)
        raise
    if detached:
        return 0
    container.unlock()
    return create.attend(container, config, made.pid, made.terminal)


def _wanted(said: Values) -> dict[str, Any]:
    image = said.image_path or "checkpoint"
    mode = said.manage_cgroups_mode or "soft"
    if mode not in criu.CGROUPS:
        raise CommandError(f"--manage-cgroups-mode is one of {', '.join(criu.CGROUPS)}, not {mode!r}")
    for kind in said.empty_ns or ():
        if kind != "network":
            raise CommandError(f"--empty-ns: namespace {kind!r} is not supported, only network is")
    paths = {"image": os.path.abspath(image), "work": os.path.abspath(said.work_path) if said.work_path else ""}
    return {**said, **paths, "cgroups": mode}
