"""The life of a container: create, start, stop, kill, remove, wait, execute."""

from __future__ import annotations

import os
import time

from cowshed import log
from cowshed.container import state
from cowshed.errors import Conflict, LaunchFailed, NotFound
from cowshed.layers.faults import step
from cowshed.monitor import client
from cowshed.state import containers, volumes
from cowshed.state.rows import ContainerRow
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.container.mounts import Wanted
    from cowshed.engine import Engine
    from cowshed.layers.layers import Layers
    from cowshed.monitor.client import Session
    from cowshed.state.rows import ImageRow
    from cowshed.storage.api import Layer, LayerOptions

_PATIENCE = 15.0
_KEPT = ("PATH", "HOME", "XDG_CONFIG_HOME")  # of the environment: tools, and where configuration is looked for
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def create(
    engine: Engine,
    asked: dict[str, Any],
    image: ImageRow,
    reference: str,
    runtime: dict[str, Any],
    *,
    op: str = "prepare",
) -> ContainerRow:
    """Make a container: row, layer, configuration. With op "run" its journal row stays until `start` has started it.

    Its `containers` and `layers` bytes are held on return; `release` lets them go.
    """
    from cowshed.container import mounts, names, spec
    from cowshed.image import realise
    from cowshed.image.progress import Progress

    gate = engine.gate()
    if gate is not None:
        gate.using(engine.store, image, reference)
    name = asked.get("name") or names.random_name()
    if not set(name) <= _NAME or not name[0].isalnum() or len(name) < 2:
        from cowshed.errors import BadUsage

        raise BadUsage(f"{name!r} is no name for a container", remedy="two or more letters, digits, _ . -")
    own = loads(image.config).get("config") or {}
    wanted = mounts.name_volumes(mounts.parse(asked, own))
    argv = spec.arguments(asked, own)
    asked = {**asked, "argv": argv, "mounts": [[w.kind, w.source, w.target, list(w.options)] for w in wanted],
             "root": engine.settings.root}  # fmt: skip
    if op == "run":
        engine.called = client.call(engine.store.run_directory())
    layers = engine.layers()
    top = realise.top_layer(layers, image, engine.settings.durability, Progress())
    store = engine.store
    ident = os.urandom(32).hex()
    with store.transaction() as tx:
        if not tx.execute("select 1 from images where id = ?", image.id):
            raise NotFound(f"image {reference} was removed meanwhile")
        active = layers.reserve(tx, top, op, id_=ident[:32])
        if not store.locks.try_take("containers", active.number):
            raise Conflict(f"container number {active.number} is in use", remedy="cowshed system check")
        row = ContainerRow(
            active.number, ident, name, image.id, reference, layers.name, "creating", time.time_ns(), asked,
            labels={**(own.get("Labels") or {}), **(asked.get("labels") or {})}, runtime=runtime,
        )  # fmt: skip
        containers.insert(tx, row)
        mounts.write_volumes(tx, wanted, row.number)
    step("create.written")
    try:
        active = layers.prepare(active, _options(asked))
        _configure(engine, layers, active, row, own, wanted)
        step("create.configured")
        if op != "run":
            with store.transaction() as tx:
                layers.finish(tx, active)
                containers.update(tx, row.number, state="created")
    except BaseException:
        _undo(engine, layers, active, row)
        raise
    return row


def runtime(engine: Engine) -> dict[str, Any]:
    """What a new container keeps of its runtime. NotFound, Unsupported if the one that is asked for cannot run any."""
    if engine.settings.runtime == "native":
        return {"name": "native"}
    from cowshed.runtimes import choice

    return choice.chosen(engine)


def _options(asked: dict[str, Any]) -> LayerOptions | None:
    if "storage_opt" not in asked:
        return None
    from cowshed.container import limits

    return limits.options(asked["storage_opt"])


def _undo(engine: Engine, layers: Layers, layer: Layer, row: ContainerRow) -> None:
    layers.erase(layer)
    forget(engine, row)
    release(engine, row)


def release(engine: Engine, row: ContainerRow) -> None:
    engine.store.locks.release("layers", row.number)
    engine.store.locks.release("containers", row.number)


def _configure(
    engine: Engine, layers: Layers, active: Layer, row: ContainerRow, image: dict[str, Any], wanted: list[Wanted]
) -> None:
    from cowshed.container import mounts, spec, users

    folder = engine.folder(row)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    asked = row.config
    hostname = asked.get("hostname") or row.id[:12]
    text = asked.get("user") or image.get("User") or "0"
    if text == "0" and not any(w.kind == "volume" for w in wanted):
        user: tuple[int, int, list[int], str] = (0, 0, [], "/root")
    else:
        with layers.mounted(active, read_only=False) as root:
            user = users.resolve(root, text)
            mounts.fill_volumes(engine, wanted, root)
    network = asked.get("network", "none")
    _write(f"{folder}/hostname", f"{hostname}\n")
    _write(f"{folder}/hosts", f"127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n")
    _write(f"{folder}/resolv.conf", _host_file("/etc/resolv.conf") if network == "host" else "")
    config = spec.compose(asked, image, hostname=hostname, user=user, files=folder, mounts=mounts.oci(engine, wanted))
    if row.runtime["name"] != "native" and asked.get("init"):
        from cowshed.runtimes import initial

        initial.give(config)
    _write_record(engine, row, active)
    _write_config(engine, row, config)


def _write_record(engine: Engine, row: ContainerRow, layer: Layer) -> None:
    parent = layer.parent.id if layer.parent is not None else None
    _write(f"{engine.folder(row)}/record", dumps(containers.record_of(row, layer.id, parent)), mode=0o600)


def configure_again(engine: Engine, row: ContainerRow) -> None:
    """Make the files of a container again, from what was asked for when it was made. Conflict if it runs, or if its
    image is gone."""
    from cowshed.container.access import Held
    from cowshed.container.mounts import Wanted
    from cowshed.state import images

    with Held(engine, row) as held:
        image = images.exact(engine.store, row.image_id) if row.image_id is not None else None
        if held.running or image is None:
            why = "it runs" if held.running else "its image is gone"
            raise Conflict(f"container {row.name} cannot be configured again: {why}", remedy="remove it")
        layers = engine.layers(row.driver)
        wanted = [Wanted(kind, source, target, tuple(said)) for kind, source, target, said in row.config["mounts"]]
        own = loads(image.config).get("config") or {}
        _configure(engine, layers, layers.load(row.number), row, own, wanted)


def _write_config(engine: Engine, row: ContainerRow, config: dict[str, Any]) -> None:
    """Whoever reads it finds it whole or not at all."""
    path = f"{engine.folder(row)}/config.json"
    _write(f"{path}.new", dumps(config), mode=0o600)
    os.rename(f"{path}.new", path)


def _host_file(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return f.read()
    except OSError:
        return ""


def _write(path: str, text: str, mode: int = 0o644) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def config_of(engine: Engine, row: ContainerRow) -> dict[str, Any]:
    """The container's OCI configuration. Conflict if it has none yet, or no more."""
    try:
        with open(f"{engine.folder(row)}/config.json", "rb") as f:
            config: dict[str, Any] = loads(f.read())
    except FileNotFoundError:
        raise Conflict(f"container {row.name} is being made or removed", remedy="try again") from None
    return config


def removed(row: ContainerRow) -> NotFound:
    return NotFound(f"no such container: {row.name} was removed meanwhile", remedy="cowshed ps -a lists them")


def start(engine: Engine, row: ContainerRow, *, attached: bool, restarted: int = 0, op: str = "") -> Session:
    """Start a container whose `containers` byte is held. On an error a container that `run` made is undone."""
    if op != "run":
        current = containers.get(engine.store, row.number)
        if current is None or current.id != row.id or current.state == "removing":
            raise removed(row)
        bury(engine, row)
        _refuse_untrusted(engine, row)
        if row.config.get("root", engine.store.root) != engine.store.root:
            _follow(engine, row)
    connection, engine.called = engine.called or client.call(engine.store.run_directory()), None
    layers = engine.layers(row.driver)
    layer = layers.load(row.number)
    asked = row.config
    place = engine.make_place(row)
    for name in ("exit", "stopped", "restarting", "paused"):
        try:
            os.unlink(f"{place}/{name}")
        except FileNotFoundError:
            continue
    request = {
        "number": row.number, "config": f"{engine.folder(row)}/config.json", "place": place, "name": row.id,
        "log": f"{engine.folder(row)}/log", "cache": f"{engine.store.root}/cache",
        "locks": f"{engine.store.root}/locks",
        "stdin": bool(asked.get("interactive")), "terminal": bool(asked.get("tty")),
        **_worker(engine, row), **_foreign(engine, row),
    }  # fmt: skip
    try:
        root = layers.mount(layer, read_only=False)
        try:
            request.update(_settling(layers, layer))
            step("start.mounted")
            session = client.start(
                engine.store.run, request, root, attached=attached, connection=connection,
                meanwhile=_import_removal if attached and asked.get("rm") else None,
            )  # fmt: skip
        finally:
            os.close(root)
    except BaseException as error:
        if op == "run" and (asked.get("rm") or not isinstance(error, LaunchFailed)):
            _undo(engine, layers, layer, row)
        elif isinstance(error, LaunchFailed):
            with engine.store.transaction() as tx:
                layers.finish(tx, layer)
                containers.update(tx, row.number, state="created", exit_code=error.status, error=str(error))
        raise
    direct_signals(engine, row, session)
    step("start.running")
    with engine.store.transaction() as tx:
        tx.execute("delete from journal where number = ?", row.number)
        containers.update(
            tx, row.number, state="running", started=time.time_ns(), finished=None, pid=session.pid, exit_code=None,
            error="", wanted="running", restarts=restarted,
        )  # fmt: skip
    return session


def _refuse_untrusted(engine: Engine, row: ContainerRow) -> None:
    """Untrusted if the policy of today does not accept the image of a container that was made earlier. ConfigError."""
    gate = engine.gate()
    if gate is None:
        return
    from cowshed.state import images

    image = images.exact(engine.store, row.image_id) if row.image_id is not None else None
    if image is None:
        gate.without_image(f"container {row.name}")
    else:
        gate.using(engine.store, image, row.image_ref)


def _foreign(engine: Engine, row: ContainerRow) -> dict[str, Any]:
    """What the monitor's helper has to know of a runtime that is not ours."""
    if row.runtime["name"] == "native":
        return {}
    from cowshed.runtimes import choice

    return {"runtime": choice.task(engine, row)}


def direct_signals(engine: Engine, row: ContainerRow, session: Session) -> None:
    """Signals that an attached command passes on go the way of `signal`."""
    if row.runtime["name"] != "native":
        session.signal = lambda number: signal(engine, row, number)


def _python(statement: str, *words: str) -> list[str]:
    """The words of a command that runs a statement of ours."""
    import sys

    return [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {statement}", *words]


def _settling(layers: Layers, layer: Layer) -> dict[str, Any]:
    """What the monitor lets run on the root's mount when the container has ended, before the mount goes with it."""
    branch = layers.settled(layer)
    if not branch:
        return {}
    statement = "from cowshed.layers import aufs; aufs.settle(int(sys.argv[2]), sys.argv[1])"
    return {"settle": _python(statement, branch)}


def _worker(engine: Engine, row: ContainerRow) -> dict[str, Any]:
    """What the monitor becomes when the container has ended: the restart, or the removal that nobody else does."""
    base = _python(
        "from cowshed.cli.main import main; main()",
        "--root", engine.settings.root, "--run-root", engine.settings.run_root,
    )  # fmt: skip
    policy = row.config.get("restart") or "no"
    if policy != "no":  # under the same configuration: it may have a policy of images
        named = ["--config", engine.settings.named] if engine.settings.named else []
        words, always = [*base, *named, "start", "--restarted", row.id], True
    elif row.config.get("rm"):
        words, always = [*base, "rm", "-f", "-v", row.id], False
    else:
        return {}
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {"worker": words, "worker_always": always, "environment": kept}


def _follow(engine: Engine, row: ContainerRow) -> None:
    """The store was moved since the container was made: its own files and volumes are mounted from another path."""
    config, old, new = config_of(engine, row), row.config["root"], engine.store.root
    for mount in config.get("mounts") or ():
        if str(mount.get("source", "")).startswith(f"{old}/"):
            mount["source"] = new + mount["source"][len(old) :]
    _write_config(engine, row, config)
    with engine.store.transaction() as tx:
        containers.update(tx, row.number, config={**row.config, "root": new})


def ended(engine: Engine, row: ContainerRow) -> None:
    """Take over what the monitor wrote at the end of a container; or, if the monitor was killed, end what is left."""
    record = client.exit_record(engine.place(row))
    if record is None:
        bury(engine, row)
        return
    with engine.store.transaction() as tx:
        containers.update(
            tx, row.number, state="exited", finished=record["finished"], exit_code=record["status"], pid=None,
            oom=int(record["oom"]), error=record.get("error", ""),
        )  # fmt: skip


def bury(engine: Engine, row: ContainerRow) -> bool:
    """End what is left of a container whose monitor was killed: its processes and control groups, and its row says so.
    One that has a monitor, or whose monitor has ended as it should, or that is being started, is left alone: False."""
    locks = engine.store.locks
    mine = locks.mine("containers", row.number)
    if not mine and not locks.try_take("containers", row.number):
        return False
    try:
        current = containers.get(engine.store, row.number)
        if current is None or current.state != "running" or locks.held("monitors", row.number):
            return False
        if client.exit_record(engine.place(row)) is not None:
            return False
        clear(engine, row)
        with engine.store.transaction() as tx:
            containers.update(
                tx, row.number, state="exited", finished=time.time_ns(), exit_code=137, pid=None,
                error="its monitor was killed",
            )  # fmt: skip
        return True
    finally:
        if not mine:
            locks.release("containers", row.number)


def restart_later(engine: Engine, row: ContainerRow) -> None:
    """Start the command that a monitor would have become. OSError."""
    worker = _worker(engine, row)
    if worker.get("worker_always"):
        null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]
        words = worker["worker"]
        os.posix_spawn(words[0], words, worker["environment"], file_actions=null, setsid=True)


def clear(engine: Engine, row: ContainerRow) -> None:
    """End the processes of a container that has no monitor, and remove its control groups and what its runtime keeps.
    LaunchFailed if the runtime cannot."""
    from cowshed_runtime.cgroup import layout

    if row.runtime["name"] != "native":
        from cowshed.runtimes import choice

        choice.end(engine, row)
    if layout.exist(row.id):
        from cowshed_runtime.cgroup.group import Group

        Group(row.id).remove()


def wait(engine: Engine, row: ContainerRow) -> int:
    """Until the container does not run; its exit status."""
    monitors = engine.reader.locks.file("monitors")
    from cowshed_linux import locks

    while True:
        locks.lock_byte(monitors, row.number, shared=True)
        locks.unlock_byte(monitors, row.number)
        found = state.now(engine, row)
        if found.state != "running":
            return found.exit_code
        time.sleep(0.01)


def signal(engine: Engine, row: ContainerRow, number: int) -> None:
    """Send a signal to the container's first process. Conflict if it does not run."""
    found = client.running(engine.place(row))
    if found is None or not (engine.reader.locks.held("monitors", row.number) or state.alive(engine.place(row))):
        raise Conflict(f"container {row.name} is not running", remedy="cowshed start it")
    from cowshed_linux import process

    pid, started, _ = found
    stands = os.path.exists(f"{engine.place(row)}/paused")
    if row.runtime["name"] != "native":
        from cowshed.runtimes import choice

        if stands:
            _go_on(engine, row)  # what its runtime keeps in there has to answer
        choice.signal(engine, row, pid, number)
        return
    try:
        pidfd = os.pidfd_open(pid)
        try:
            if process.start_time(pid) == started:
                from _signal import pidfd_send_signal  # type: ignore[import-not-found]  # `signal` brings enum

                pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)
    except ProcessLookupError:
        return  # it has just ended
    if stands:
        _go_on(engine, row)  # to what it has been sent


def _go_on(engine: Engine, row: ContainerRow) -> None:
    from cowshed.container import pausing

    pausing.go_on(engine, row)


def stop(engine: Engine, row: ContainerRow, *, timeout: float | None, number: int) -> None:
    """Ask the container to end, then make it. One that does not run is left as it is."""
    try:
        with open(f"{engine.place(row)}/stopped", "w"):
            pass
    except FileNotFoundError:
        return  # it was never started in this boot, or is just being removed
    if state.now(engine, row).state != "running":
        return
    patience = 10.0 if timeout is None else timeout
    try:
        signal(engine, row, number)
    except Conflict:
        return
    except LaunchFailed as error:
        log.warn(f"{error}: it is killed")
        patience = 0
    if not _wait_for(engine, row, patience):
        try:
            signal(engine, row, 9)
        except Conflict:
            return
        _wait_for(engine, row, _PATIENCE)
    ended(engine, row)


def _wait_for(engine: Engine, row: ContainerRow, seconds: float) -> bool:
    """Whether the container's monitor has gone within that time. It is its process that is waited for; if it was
    killed, the container's first one."""
    found = client.running(engine.place(row))
    if found is not None:
        import select

        try:
            pidfd = os.pidfd_open(found[2] if engine.reader.locks.held("monitors", row.number) else found[0])
        except ProcessLookupError:
            pidfd = -1
        if pidfd >= 0:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll(seconds * 1000)
            os.close(pidfd)
    until = time.monotonic() + 1
    while engine.reader.locks.held("monitors", row.number) or state.alive(engine.place(row)):
        if time.monotonic() > until:
            return False
        time.sleep(0.002)
    return True


def remove(engine: Engine, row: ContainerRow, *, force: bool, with_volumes: bool) -> None:
    """Remove a container and its layer. Conflict if it runs and force is false."""
    store = engine.store
    if not force and state.now(engine, row).state == "running":
        raise Conflict(f"container {row.name} is running", remedy="stop it first, or remove it with -f")
    claimed = claim(engine, row)
    if claimed is None:
        return
    row = claimed
    try:
        # Only now is its state certain: another command may have been starting it.
        if state.now(engine, row).state == "running":
            _end(engine, row, force=force)
        bury(engine, row)
        store.locks.take("layers", row.number, wait=_PATIENCE, what=f"container {row.name}")
        layers = engine.layers(row.driver)
        layer = layers.load(row.number)
        with store.transaction() as tx:
            containers.update(tx, row.number, state="removing")
            layers.intend_removal(tx, row.number, with_volumes=with_volumes)
        step("remove.intended")
        layers.remove(layer)
        step("remove.removed")
        forget(engine, row, with_volumes=with_volumes)
        layers.purge(0.2)
    finally:
        release(engine, row)


def claim(engine: Engine, row: ContainerRow) -> ContainerRow | None:
    """Take the `containers` byte of a container, whose number a conversion may have switched since its row was read:
    its row, read again if that is so. None if it is gone. Busy."""
    while True:
        engine.store.locks.take("containers", row.number, wait=_PATIENCE, what=f"container {row.name}")
        now = containers.exact(engine.store, row.id)
        if now is not None and now.number == row.number:
            return row
        engine.store.locks.release("containers", row.number)
        if now is None:
            return None
        row = now


def _end(engine: Engine, row: ContainerRow, *, force: bool) -> None:
    """Kill a container that is about to be removed, and wait for its monitor."""
    if not force:
        raise Conflict(f"container {row.name} is running", remedy="stop it first, or remove it with -f")
    with open(f"{engine.make_place(row)}/stopped", "w"):
        pass
    try:
        signal(engine, row, 9)
    except Conflict:
        pass  # it has just ended
    engine.layers(row.driver)  # wanted next, and opened while the container ends
    _import_removal()
    _wait_for(engine, row, _PATIENCE)


def _import_removal() -> None:
    """What a removal needs, imported while the command would only wait."""
    from cowshed.layers import purge, unused
    from cowshed_runtime.cgroup import layout

    _ = purge, unused, layout


def forget(engine: Engine, row: ContainerRow, *, with_volumes: bool = True) -> None:
    """Delete files and rows of a container whose layer the driver has removed. The rows go last: whoever finds the
    journal's row repeats it all."""
    from cowshed.state import layers

    _remove_files(engine, row)
    step("forget.files")
    with engine.store.transaction() as tx:
        if with_volumes:
            volumes.delete_anonymous(tx, row.number)
        containers.delete(tx, row.number)
        layers.delete(tx, row.number)
    step("forget.written")
    if with_volumes:
        remove_loose_volumes(engine)


def remove_loose_volumes(engine: Engine) -> None:
    """Delete the directories of volumes that the database has forgotten."""
    store = engine.store
    names = volumes.loose(store)
    if not names:
        return
    from cowshed.storage.kit.trees import remove_tree

    for name in names:
        remove_tree(f"{store.root}/volumes/{name}")
    with store.transaction() as tx:
        volumes.gone(tx, names)


def _remove_files(engine: Engine, row: ContainerRow) -> None:
    if row.runtime["name"] != "native":
        from cowshed.runtimes import choice

        choice.end(engine, row)
    for folder in (engine.folder(row), engine.place(row)):
        try:
            for name in os.listdir(folder):
                os.unlink(f"{folder}/{name}")
            os.rmdir(folder)
        except FileNotFoundError:
            continue


def execute(engine: Engine, row: ContainerRow, work: dict[str, Any], *, stdin: bool, attached: bool = True) -> Session:
    """Start another process in a running container; work: an OCI process object."""
    found = client.running(engine.place(row))
    if found is None or not engine.reader.locks.held("monitors", row.number):
        raise Conflict(f"container {row.name} is not running", remedy="cowshed start it")
    if os.path.exists(f"{engine.place(row)}/paused"):
        raise Conflict(f"container {row.name} is paused", remedy="cowshed unpause it")
    config = config_of(engine, row)
    request = {
        "process": work, "linux": {k: config["linux"].get(k) for k in ("namespaces", "seccomp")}, "pid": found[0],
        "name": row.id, "cache": f"{engine.reader.root}/cache",
    }  # fmt: skip
    if row.runtime["name"] != "native":
        from cowshed.runtimes import choice

        request["runtime"] = choice.running(engine, row)
    return client.execute(engine.reader.run, request, stdin=stdin, attached=attached)
