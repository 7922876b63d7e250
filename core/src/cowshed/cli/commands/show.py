"""ps, inspect, logs."""

from __future__ import annotations

import sys

from cowshed import log
from cowshed.cli import output
from cowshed.container import pausing, state
from cowshed.errors import BadUsage, CowshedError, NotFound
from cowshed.state import containers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.cli.parser import Values
    from cowshed.container.state import Now
    from cowshed.engine import Engine
    from cowshed.state.rows import ContainerRow


_HEADINGS = {"ID": "CONTAINER ID", "RUNNINGFOR": "CREATED"}


def _status(row: ContainerRow, now: Now, *, paused: bool) -> str:
    if now.state == "running":
        return f"Up {output.ago(row.started or row.created)}{' (Paused)' if paused else ''}"
    if now.state == "exited":
        return f"Exited ({now.exit_code}) {output.ago(now.finished or row.created)} ago"
    return now.state.capitalize()


def ps(engine: Engine, said: Values) -> int:
    fits, every = None, bool(said.all)
    if said.filter:
        from cowshed.container import listing
        from cowshed.filters import grouped

        filters = grouped(said.filter, listing.FILTERS)
        fits = listing.fitting(engine, filters, moment=None)
        every = every or "status" in filters or "exited" in filters
    newest = 1 if said.latest else said.last or 0
    found = []
    for row in containers.list_all(engine.reader):
        now = state.now(engine, row)
        if not (every or newest or now.state == "running") or (fits and not fits(row, now)):
            continue
        found.append((row, now))
        if len(found) == newest:
            break
    if said.quiet:
        for row, _ in found:
            print(row.id if said.no_trunc else row.id[:12])
        return 0
    whole, size = bool(said.no_trunc), bool(said.size)
    rows = [_line(engine, row, now, whole=whole, size=size) for row, now in found]
    columns = ["ID", "Image", "Command", "RunningFor", "Status", "Names", *(["Size"] if said.size else [])]
    output.listing(rows, tuple(columns), said.format, what="ps", headings=_HEADINGS)
    return 0


def _line(engine: Engine, row: ContainerRow, now: Now, *, whole: bool, size: bool) -> dict[str, Any]:
    argv = row.config.get("argv") or row.config.get("command") or ()
    command = " ".join(argv)
    mounts = row.config.get("mounts") or ()
    names = [source for kind, source, _, _ in mounts if kind != "tmpfs"]
    paused = now.state == "running" and pausing.paused(engine, row)
    return {
        "ID": row.id if whole else row.id[:12],
        "Image": row.image_ref,
        "Command": f'"{command if whole or len(command) <= 20 else command[:19] + "…"}"',
        "CreatedAt": output.rfc3339(row.created),
        "RunningFor": f"{output.ago(row.created)} ago",
        "Ports": "",
        "Status": _status(row, now, paused=paused),
        "State": "paused" if paused else now.state,
        "Names": row.name,
        "Networks": row.config.get("network", "none"),
        "Mounts": ",".join(name if whole or len(name) <= 15 else f"{name[:14]}…" for name in names),
        "LocalVolumes": sum(kind == "volume" for kind, _, _, _ in mounts),
        "Size": _size_told(engine, row) if size else "0B",
        "Driver": row.driver,
        "Labels": ",".join(f"{k}={v}" for k, v in row.labels.items()),
        "Label": lambda name, labels=row.labels: labels.get(name, ""),
    }


def _size_told(engine: Engine, row: ContainerRow) -> str:
    """For a listing, which one driver that is gone must not stop."""
    from cowshed.cli import output
    from cowshed.storage.errors import StorageError

    try:
        return output.size(_size(engine, row))
    except StorageError as error:
        log.warn(f"the size of container {row.name} is not known: {error}")
        return "?"


def _size(engine: Engine, row: ContainerRow) -> int:
    from cowshed.cli.pruning import own_size

    return own_size(engine, row.driver, row.number)


def _document(engine: Engine, row: ContainerRow, *, size: bool) -> dict[str, Any]:
    now = state.now(engine, row)
    paused = now.state == "running" and pausing.paused(engine, row)
    asked = row.config
    image = _image_config(engine, row)
    process = _process(engine, row)
    argv = asked.get("argv") or asked.get("command") or [""]
    policy, _, count = (asked.get("restart") or "no").partition(":")
    mounts = [_mount(engine, *each) for each in asked.get("mounts") or ()]
    folder = engine.folder(row)
    layer = engine.reader.query("select id from layers where number = ?", row.number)
    told = {
        "Id": row.id,
        "Created": output.rfc3339(row.created),
        "Path": argv[0],
        "Args": argv[1:],
        "Name": f"/{row.name}",
        "Image": row.image_id,
        "Driver": row.driver,
        "AppArmorProfile": process.get("apparmorProfile") or "",
        "Platform": "linux",
        "RestartCount": row.restarts,
        "LogPath": f"{folder}/log",
        "HostnamePath": f"{folder}/hostname",
        "HostsPath": f"{folder}/hosts",
        "ResolvConfPath": f"{folder}/resolv.conf",
        "OCIConfigPath": f"{folder}/config.json",
        "GraphDriver": {
            "Name": row.driver,
            "Data": {"Layer": layer[0][0] if layer else "", "Number": str(row.number),
                     "Root": f"{engine.reader.root}/drivers/{row.driver}"},
        },
        "Mounts": mounts,
        "State": {
            "Status": "paused" if paused else now.state,
            "Running": now.state == "running",
            "Paused": paused,
            "Restarting": False,
            "OOMKilled": now.oom,
            "Dead": False,
            "Pid": now.pid,
            "ExitCode": now.exit_code,
            "Error": row.error,
            "StartedAt": output.rfc3339(row.started or 0),
            "FinishedAt": output.rfc3339(now.finished),
        },
        "Config": {
            "Hostname": asked.get("hostname") or row.id[:12],
            "User": asked.get("user") or image.get("User") or "",
            "Tty": bool(asked.get("tty")),
            "OpenStdin": bool(asked.get("interactive")),
            "Env": process.get("env") or asked.get("env") or [],
            "Cmd": asked.get("command") or image.get("Cmd"),
            "Image": row.image_ref,
            "WorkingDir": process.get("cwd") or "",
            "Labels": row.labels,
            "Entrypoint": [asked["entrypoint"]] if asked.get("entrypoint") else image.get("Entrypoint"),
            "Volumes": {target: {} for kind, _, target, _ in asked.get("mounts") or () if kind == "volume"} or None,
            "StopSignal": asked.get("stop_signal") or image.get("StopSignal") or "SIGTERM",
            "StopTimeout": asked.get("stop_timeout"),
        },
        "HostConfig": {
            "AutoRemove": bool(asked.get("rm")),
            "Privileged": bool(asked.get("privileged")),
            "ReadonlyRootfs": bool(asked.get("read_only")),
            "Memory": asked.get("memory") or 0,
            "MemorySwap": asked.get("memory_swap") or (asked.get("memory") or 0) * 2,
            "NanoCpus": int(float(asked.get("cpus") or 0) * 10**9),
            "PidsLimit": asked.get("pids_limit"),
            "StorageOpt": {name: str(most) for name, most in (asked.get("storage_opt") or {}).items()} or None,
            "ShmSize": asked.get("shm_size") or 64 << 20,
            "NetworkMode": asked.get("network", "none"),
            "Binds": asked.get("volume"),
            "Tmpfs": dict(word.partition(":")[::2] for word in asked.get("tmpfs") or ()) or None,
            "CapAdd": asked.get("cap_add"),
            "CapDrop": asked.get("cap_drop"),
            "SecurityOpt": asked.get("security_opt"),
            "Ulimits": asked.get("ulimit"),
            "RestartPolicy": {"Name": policy, "MaximumRetryCount": int(count or 0)},
            "Init": bool(asked.get("init")), "Runtime": row.runtime["name"],
            "LogConfig": {"Type": "cowshed", "Config": {}},
        },
        "NetworkSettings": {
            "Ports": {}, "IPAddress": "", "Gateway": "", "MacAddress": "",
            "Networks": {asked.get("network", "none"): {"IPAddress": "", "Gateway": "", "MacAddress": ""}},
        },
    }  # fmt: skip
    if size:
        told["SizeRw"] = _size(engine, row)
    return told


def _image_config(engine: Engine, row: ContainerRow) -> dict[str, Any]:
    from cowshed_runtime.fastjson import loads

    rows = engine.reader.query("select config from images where id = ?", row.image_id) if row.image_id else ()
    return (loads(rows[0][0]).get("config") or {}) if rows else {}


def _process(engine: Engine, row: ContainerRow) -> dict[str, Any]:
    """The OCI process of a container, {} while it is being created or removed."""
    from cowshed.container import lifecycle

    try:
        return dict(lifecycle.config_of(engine, row)["process"])
    except FileNotFoundError:
        return {}


def _mount(engine: Engine, kind: str, source: str, target: str, options: list[str]) -> dict[str, Any]:
    told: dict[str, Any] = {"Type": kind}
    if kind == "volume":
        told.update(Name=source, Source=f"{engine.reader.root}/volumes/{source}/_data", Driver="local")
    elif kind == "bind":
        told["Source"] = source
    told.update(Destination=target, Mode=",".join(o for o in options if o != "anonymous"), RW="ro" not in options)
    told["Propagation"] = next((o for o in options if o.lstrip("r") in ("private", "slave", "shared")), "rprivate")
    return told


def _found(engine: Engine, name: str, kind: str | None, *, size: bool) -> dict[str, Any]:
    """What is called name: a container, else an image, else a volume; only of one kind if that is asked. NotFound."""
    if kind in (None, "container"):
        try:
            return _document(engine, containers.find(engine.reader, name), size=size)
        except NotFound:
            if kind:
                raise
    if kind in (None, "image"):
        from cowshed.cli.commands import images

        try:
            return images.document(engine, engine.image(name))
        except NotFound:
            if kind:
                raise
    from cowshed.cli.commands import volumes
    from cowshed.state import volumes as rows

    try:
        return volumes.document(engine, rows.find(engine.reader, name))
    except NotFound:
        if kind:
            raise
    raise NotFound(f"no such container, image or volume: {name}", remedy="cowshed ps -a, images, volume ls list them")


def inspect(engine: Engine, said: Values) -> int:
    documents, status = [], 0
    for name in said["operands"]:
        try:
            documents.append(_found(engine, name, said.type, size=bool(said.size)))
        except CowshedError as error:
            if len(said["operands"]) == 1:
                raise
            remedy = f": {error.remedy}" if error.remedy else ""
            sys.stderr.write(f"cowshed: {error}{remedy}\n")
            status = 1
    output.document(documents, said.format)
    return status


def logs(engine: Engine, said: Values) -> int:
    from cowshed.monitor import logs as rendering

    row = containers.find(engine.reader, said["operands"][0])
    tail = None
    if said.tail is not None and said.tail != "all":
        if not said.tail.isdigit():
            raise BadUsage(f"--tail is a number or all, not {said.tail!r}")
        tail = int(said.tail)
    rendering.render(
        f"{engine.folder(row)}/log",
        tail=tail,
        since=output.moment(said.since),
        until=output.moment(said.until),
        timestamps=bool(said.timestamps),
        follow=(lambda: engine.reader.locks.held("monitors", row.number)) if said.follow else None,
    )
    return 0
