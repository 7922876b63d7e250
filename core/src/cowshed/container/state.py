"""What state a container is in now: the database as corrected by what its monitor left in the run directory.

A monitor that lives holds its byte; the exit file wins over the database.
"""

from __future__ import annotations

from cowshed.monitor import client
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.engine import Engine
    from cowshed.state.rows import ContainerRow


@record(frozen=True)
class Now:
    state: str  # creating, created, running, exited, removing
    pid: int
    exit_code: int
    finished: int  # ns, 0 if never
    oom: bool
    started: int


def now(engine: Engine, row: ContainerRow) -> Now:
    place = engine.place(row)
    finished, code, oom, started = row.finished or 0, row.exit_code or 0, row.oom, row.started or 0
    if engine.reader.locks.held("monitors", row.number):
        running = client.running(place)
        if running is not None:
            return Now("running", running[0], 0, finished, False, started)
    record_ = client.exit_record(place)
    if record_ is not None and record_["finished"] >= started:
        return Now("exited", 0, record_["status"], record_["finished"], record_["oom"], started)
    state = row.state
    if state == "running":  # no monitor and no record: both were killed, or the host went down
        pid = alive(place)
        if pid:
            return Now("running", pid, 0, finished, False, started)
        state, code = "exited", 255 if row.exit_code is None else code
    return Now(state, 0, code, finished, oom, started)


def alive(place: str) -> int:
    """The pid of the container's first process, 0 if it has ended. It may live on when its monitor was killed."""
    from cowshed_linux import process

    running = client.running(place)
    return running[0] if running is not None and process.lives(running[0], running[1]) else 0
