"""run, create, start, exec, attach."""

from __future__ import annotations

import os
import sys

from cowshed.container import lifecycle, state
from cowshed.errors import BadUsage, Conflict, CowshedError
from cowshed.monitor import relay
from cowshed.state import containers
from cowshed_runtime.fastjson import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.cli.parser import Values
    from cowshed.engine import Engine
    from cowshed.monitor.client import Session
    from cowshed.state.rows import ContainerRow, ImageRow

_KEPT = (
    "interactive tty rm name workdir user entrypoint volume mount tmpfs read_only hostname memory memory_swap cpus "
    "pids_limit shm_size storage_opt ulimit cap_add cap_drop security_opt privileged device stop_signal stop_timeout "
    "init restart platform"
).split()
_DETACH = "ctrl-p,ctrl-q"
_IN_HOSTNAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")
_LEAST_MEMORY = 6 << 20


def _asked(said: Values) -> dict[str, Any]:
    """What is kept with the container, checked as far as can be without an image."""
    asked: dict[str, Any] = {key: said[key] for key in _KEPT if key in said}
    asked["command"] = said["operands"][1:]
    asked["labels"] = said.label or {}
    network = said.network or "none"
    if network not in ("none", "host"):
        raise BadUsage(f"--network {network} cannot be had yet: networks come next", remedy="use none or host")
    asked["network"] = network
    policy, _, count = asked.get("restart", "no").partition(":")
    if policy not in ("no", "always", "unless-stopped", "on-failure") or (
        count and (policy != "on-failure" or not count.isdigit())
    ):
        raise BadUsage(f"--restart {asked['restart']}: write no, always, unless-stopped or on-failure[:N]")
    if asked.get("rm") and policy != "no":
        raise BadUsage("--rm and --restart exclude each other")
    hostname = asked.get("hostname")
    if hostname is not None and not (len(hostname) <= 63 and hostname[:1].isalnum() and {*hostname} <= _IN_HOSTNAME):
        raise BadUsage(f"--hostname {hostname!r}: letters, digits, - and . are what a host name has, 63 at most")
    for word in asked.get("tmpfs") or ():
        if not word.startswith("/"):
            raise BadUsage(f"--tmpfs {word}: the path must be absolute")
    if "cpus" in asked:
        try:
            if float(asked["cpus"]) <= 0:
                raise ValueError
        except ValueError:
            raise BadUsage(f"--cpus is a number above 0, not {asked['cpus']!r}") from None
    if 0 < asked.get("memory", _LEAST_MEMORY) < _LEAST_MEMORY:
        raise BadUsage("--memory: a container cannot start with less than 6 MiB", remedy="give 6m or more")
    if asked.get("memory_swap", -1) != -1 and asked["memory_swap"] < asked.get("memory", 0):
        raise BadUsage("--memory-swap counts memory and swap, so it cannot be less than --memory")
    if "stop_signal" in asked:
        from cowshed.container.signals import number

        number(asked["stop_signal"])
    if "storage_opt" in asked:
        asked["storage_opt"] = _limits(asked["storage_opt"])
    asked["env"] = _environment(said)
    return asked


def _limits(given: dict[str, str]) -> dict[str, int]:
    """--storage-opt as numbers."""
    from cowshed.cli.parser import size

    limits = {}
    for name, text in given.items():
        if name not in ("size", "inodes"):
            raise BadUsage(f"--storage-opt {name} is not known", remedy="size=SIZE, inodes=NUMBER")
        plain = int(text) if text.isascii() and text.isdigit() else 0
        limits[name] = size(text, "--storage-opt size") if name == "size" else plain
        if limits[name] < 1:
            raise BadUsage(f"--storage-opt {name}={text}: a number above 0 is wanted", remedy="without it: no limit")
    return limits


def _environment(said: Values) -> list[str]:
    entries: list[str] = []
    for path in said.env_file or ():
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as f:
                lines = [line.rstrip("\n").lstrip() for line in f]
        except OSError as error:
            raise BadUsage(f"--env-file {path}: {error.strerror}") from None
        for line in lines:
            if line and not line.startswith("#"):
                name = line.partition("=")[0]
                if name != name.rstrip() or not name:
                    raise BadUsage(
                        f"--env-file {path}: {name!r} is no name", remedy="write NAME=VALUE, no space before ="
                    )
                entries.append(line)
    entries += said.env or []
    result = []
    for entry in entries:
        if "=" in entry:
            result.append(entry)
        elif entry in os.environ:
            result.append(f"{entry}={os.environ[entry]}")
    return result


def _image(engine: Engine, text: str, said: Values) -> ImageRow:
    from cowshed.errors import NotFound

    policy = said.pull or "missing"
    if policy != "always":
        try:
            image = engine.image(text)
            if not said.platform or _runs_on(image, said.platform):
                return image
            raise NotFound(f"image {text} is here for {image.platform}, not {said.platform}", remedy="--pull missing")
        except NotFound:
            if policy == "never":
                raise
    from cowshed.cli.commands import images

    return images.fetch(engine, text, said, sys.stderr)


def _runs_on(image: ImageRow, wanted: str) -> bool:
    from cowshed.image import platform

    return platform.rank(platform.parse(image.platform), platform.parse(wanted)) is not None


def _id_file(path: str) -> int:
    """Made before the container, so that one that cannot be written stops all."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        raise BadUsage(f"--cidfile {path} exists already", remedy="remove it if no container needs it") from None
    except OSError as error:
        raise BadUsage(f"--cidfile {path}: {error.strerror}") from None


def _make(engine: Engine, said: Values, *, op: str) -> ContainerRow:
    runtime = lifecycle.runtime(engine)  # before an image is pulled
    asked = _asked(said)
    id_file = _id_file(said.cidfile) if said.cidfile else -1
    name = said["operands"][0]
    if "storage_opt" in asked:
        from cowshed.container import limits

        limits.require(engine.layers(), asked["storage_opt"])
    _ = engine.store  # for writing from the first, so that it is opened once
    try:
        row = lifecycle.create(engine, asked, _image(engine, name, said), name, runtime, op=op)
    except BaseException:
        if id_file >= 0:
            os.unlink(said.cidfile)
        raise
    if id_file >= 0:
        os.write(id_file, row.id.encode())
        os.close(id_file)
    return row


def create(engine: Engine, said: Values) -> int:
    row = _make(engine, said, op="prepare")
    lifecycle.release(engine, row)
    print(row.id)
    return 0


def run(engine: Engine, said: Values) -> int:
    detached = bool(said.detach)
    keys = relay.detach_sequence(_DETACH if said.detach_keys is None else said.detach_keys)
    if said.tty and not detached and said.interactive and not os.isatty(0):
        raise BadUsage("stdin is no terminal, which -t with -i needs", remedy="leave -t away")
    row = _make(engine, said, op="run")
    session = lifecycle.start(engine, row, attached=not detached, op="run")
    lifecycle.release(engine, row)
    if detached:
        print(row.id)
        return 0
    return _attached(engine, row, session, stdin=bool(said.interactive), keys=keys, proxy=said.sig_proxy is not False)


def _attached(engine: Engine, row: ContainerRow, session: Session, *, stdin: bool, keys: bytes, proxy: bool) -> int:
    engine.store.relax()
    status = relay.relay(session, stdin=stdin, detach=keys, proxy=proxy)
    if status == relay.DETACHED:
        return 0
    if row.config.get("rm"):
        lifecycle.remove(engine, row, force=True, with_volumes=True)
    else:
        lifecycle.ended(engine, row)
    return status


def start(engine: Engine, said: Values) -> int:
    names = said["operands"]
    attach_ = bool(said.attach or said.interactive)
    if attach_ and len(names) > 1:
        raise BadUsage("only one container can be attached to")
    keys = relay.detach_sequence(_DETACH if said.detach_keys is None else said.detach_keys)
    failed = 0
    for name in names:
        try:
            row = containers.find(engine.store, name)
            if said.restarted and not _restart_wanted(engine, row):
                return 0
            claimed = lifecycle.claim(engine, row)
            if claimed is None:
                raise lifecycle.removed(row)
            row = claimed
            if state.now(engine, row).state == "running":
                engine.store.locks.release("containers", row.number)
                print(name)
                continue
            restarts = row.restarts + 1 if said.restarted else 0
            session = lifecycle.start(engine, row, attached=attach_, restarted=restarts)
            lifecycle.release(engine, row)
            if attach_:
                stdin = bool(said.interactive) and bool(row.config.get("interactive"))
                return _attached(engine, row, session, stdin=stdin, keys=keys, proxy=True)
            print(name)
        except CowshedError as error:
            if len(names) == 1:
                raise
            failed = 1
            sys.stderr.write(f"cowshed: {error}\n")
    return failed


def _restart_wanted(engine: Engine, row: ContainerRow) -> bool:
    """The restart policy's answer, after the wait that it prescribes: 100 ms, doubled each time up to a minute."""
    import time

    lifecycle.ended(engine, row)
    found = state.now(engine, row)
    policy, _, count = (row.config.get("restart") or "no").partition(":")
    stopped = f"{engine.place(row)}/stopped"
    if policy == "on-failure" and (found.exit_code == 0 or (count and row.restarts >= int(count))):
        return False
    engine.store.relax()
    again = 0 if found.finished - (row.started or 0) > 10 * 10**9 else row.restarts
    until = time.monotonic() + min(0.1 * 2**again, 60)
    while True:
        if os.path.exists(stopped) or not engine.store.query("select 1 from containers where id = ?", row.id):
            return False
        left = until - time.monotonic()
        if left <= 0:
            return policy != "no"
        time.sleep(min(left, 0.1))


def attach(engine: Engine, said: Values) -> int:
    from cowshed.monitor import client

    row = containers.find(engine.reader, said["operands"][0])
    keys = relay.detach_sequence(_DETACH if said.detach_keys is None else said.detach_keys)
    session = client.attach(engine.place(row), terminal=bool(row.config.get("tty")))
    found = client.running(engine.place(row))
    session.pid = found[0] if found else 0
    lifecycle.direct_signals(engine, row, session)
    stdin = not said.no_stdin and bool(row.config.get("interactive"))
    status = relay.relay(session, stdin=stdin, detach=keys, proxy=said.sig_proxy is not False)
    if status == relay.DETACHED:
        return 0
    return status


def execute(engine: Engine, said: Values) -> int:
    name, *command = said["operands"]
    row = containers.find(engine.reader, name)
    config = lifecycle.config_of(engine, row)
    work = config["process"]
    work["args"], work["terminal"] = command, bool(said.tty)
    if said.tty and said.interactive and not said.detach and not os.isatty(0):
        raise BadUsage("stdin is no terminal, which -t with -i needs", remedy="leave -t away")
    given = dict(entry.split("=", 1) for entry in _environment(said))
    environment = {
        **dict(entry.split("=", 1) for entry in work["env"]),
        **({"TERM": "xterm"} if said.tty else {}),
        **given,
    }
    if said.user:
        home = _become(engine, row, said.user, work)
        if "HOME" not in given and not _names_home(engine, row):
            environment["HOME"] = home
    work["env"] = [f"{key}={value}" for key, value in environment.items()]
    if said.workdir:
        work["cwd"] = said.workdir
    if said.privileged:
        from cowshed_linux.capabilities import NUMBERS

        work["capabilities"] = {kind: list(NUMBERS) for kind in ("bounding", "effective", "permitted")}
    session = lifecycle.execute(engine, row, work, stdin=bool(said.interactive), attached=not said.detach)
    if said.detach:
        return 0
    keys = relay.detach_sequence(_DETACH if said.detach_keys is None else said.detach_keys)
    status = relay.relay(session, stdin=bool(said.interactive), detach=keys, proxy=False)
    return 0 if status == relay.DETACHED else status


def _names_home(engine: Engine, row: ContainerRow) -> bool:
    """Whether the caller or the image gave the container its HOME, which is then every user's."""
    from cowshed.state import images

    image = images.by_id(engine.reader, row.image_id) if row.image_id else None
    own = (loads(image.config).get("config") or {}).get("Env") or () if image else ()
    return any(entry.startswith("HOME=") for entry in (*own, *(row.config.get("env") or ())))


def _become(engine: Engine, row: ContainerRow, text: str, work: dict[str, Any]) -> str:
    """Make an OCI process one of the user, by the container's files; the user's home. Conflict if it does not run."""
    from cowshed.container import users
    from cowshed.monitor import client

    found = client.running(engine.place(row))
    try:
        if row.runtime["name"] == "native":
            root = os.open(f"/proc/{found[0] if found else 0}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        else:
            from cowshed.container import access

            root = access.root_of(engine, row)
    except FileNotFoundError:
        raise Conflict(f"container {row.name} is not running", remedy="cowshed start it") from None
    try:
        uid, gid, groups, home = users.resolve(root, text)
    finally:
        os.close(root)
    bounding = work["capabilities"]["bounding"]
    kinds = ("bounding", "effective", "permitted") if uid == 0 else ("bounding",)
    work["user"] = {"uid": uid, "gid": gid, "additionalGids": groups}
    work["capabilities"] = dict.fromkeys(kinds, bounding)
    return home
