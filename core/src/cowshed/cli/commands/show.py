"""ps, inspect, logs."""

from __future__ import annotations

from cowshed.cli import output
from cowshed.container import state
from cowshed.errors import BadUsage, NotFound
from cowshed.state import containers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.cli.parser import Values
    from cowshed.container.state import Now
    from cowshed.engine import Engine
    from cowshed.state.rows import ContainerRow


_HEADINGS = {"ID": "CONTAINER ID", "RUNNINGFOR": "CREATED"}


def _status(row: ContainerRow, now: Now) -> str:
    if now.state == "running":
        return f"Up {output.ago(row.started or row.created)}"
    if now.state == "exited":
        return f"Exited ({now.exit_code}) {output.ago(now.finished or row.created)} ago"
    return now.state.capitalize()


def ps(engine: Engine, said: Values) -> int:
    filters = said.filter or {}
    for key in filters:
        if key not in ("name", "status", "label"):
            raise BadUsage(f"--filter {key} is not known", remedy="name=, status=, label=")
    rows = []
    for row in containers.list_all(engine.reader):
        now = state.now(engine, row)
        if not (said.all or "status" in filters or now.state == "running"):
            continue
        if filters.get("name", "") not in row.name or filters.get("status", now.state) != now.state:
            continue
        label, _, value = filters.get("label", "").partition("=")
        if label and (label not in row.labels or (value and row.labels[label] != value)):
            continue
        id_ = row.id if said.no_trunc else row.id[:12]
        if said.quiet:
            print(id_)
            continue
        command = " ".join(row.config.get("command") or ()) or "-"
        rows.append(
            {
                "ID": id_,
                "Image": row.image_ref,
                "Command": command if said.no_trunc else command[:30],
                "CreatedAt": output.rfc3339(row.created),
                "RunningFor": f"{output.ago(row.created)} ago",
                "Status": _status(row, now),
                "State": now.state,
                "Names": row.name,
                "Driver": row.driver,
                "Labels": ",".join(f"{k}={v}" for k, v in row.labels.items()),
                "Label": lambda name, labels=row.labels: labels.get(name, ""),
            }
        )
    if not said.quiet:
        columns = ("ID", "Image", "Command", "RunningFor", "Status", "Names")
        output.listing(rows, columns, said.format, what="ps", headings=_HEADINGS)
    return 0


def _document(engine: Engine, row: ContainerRow) -> dict[str, Any]:
    now = state.now(engine, row)
    asked = row.config
    return {
        "Id": row.id,
        "Created": output.rfc3339(row.created),
        "Name": f"/{row.name}",
        "Image": row.image_id,
        "Driver": row.driver,
        "RestartCount": row.restarts,
        "LogPath": f"{engine.folder(row)}/log",
        "State": {
            "Status": now.state,
            "Running": now.state == "running",
            "Paused": False,
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
            "User": asked.get("user") or "",
            "Tty": bool(asked.get("tty")),
            "OpenStdin": bool(asked.get("interactive")),
            "Env": asked.get("env") or [],
            "Cmd": asked.get("command") or [],
            "Image": row.image_ref,
            "WorkingDir": asked.get("workdir") or "",
            "Labels": row.labels,
            "Entrypoint": [asked["entrypoint"]] if asked.get("entrypoint") else None,
        },
        "HostConfig": {
            "AutoRemove": bool(asked.get("rm")),
            "Privileged": bool(asked.get("privileged")),
            "ReadonlyRootfs": bool(asked.get("read_only")),
            "Memory": asked.get("memory") or 0,
            "PidsLimit": asked.get("pids_limit"),
            "NetworkMode": asked.get("network", "none"),
            "Binds": asked.get("volume") or [],
            "CapAdd": asked.get("cap_add"),
            "CapDrop": asked.get("cap_drop"),
            "RestartPolicy": {"Name": asked.get("restart") or "no"},
            "Init": bool(asked.get("init")),
        },
    }


def inspect(engine: Engine, said: Values) -> int:
    from cowshed.cli.commands import images

    documents = []
    for name in said["operands"]:
        try:
            documents.append(_document(engine, containers.find(engine.reader, name)))
        except NotFound:
            try:
                documents.append(images.document(engine, engine.image(name)))
            except NotFound:
                raise NotFound(f"no such container or image: {name}") from None
    output.document(documents, said.format)
    return 0


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
