"""The proof that a layer is mounted nowhere, which the engine owes its drivers before commit and remove (rule E2).

The kernel neither refuses nor notices the removal of a layer that runs in another mount namespace. So all of this must
hold, cheapest first:

    the layer's `mounts` byte is free   monitors hold it for life, whoever mounts for a moment holds it meanwhile
    the container's cgroup is empty     finds the processes of a container whose monitor was killed
    a trial mount succeeds              overlay only: with index=on the kernel refuses an upper directory that is in
                                        use, also by a detached mount that no namespace shows
    no mount namespace shows the layer  what was mounted by hand. This reads a table for each namespace, so it is left
                                        out where the trial has answered; after a refusal it names the holder
"""

from __future__ import annotations

import os

from cowshed.errors import Busy
from cowshed.layers.mounting import detached
from cowshed.storage import api
from cowshed.storage.errors import InUse, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.state.store import Store

_EBUSY = 16
PATIENCE = 0.5  # seconds in which the mounts of a container that has just ended go away


def prove(store: Store, layer: api.Layer, driver: api.Driver, wait: float | None = None) -> None:
    """Take the layer's `mounts` byte, which the caller releases, and prove that nobody has it mounted.

    Raises InUse, naming the holder, if it is still in use after `wait` seconds.
    """
    wait = PATIENCE if wait is None else wait
    try:
        store.locks.take("mounts", layer.number, wait=wait)
    except Busy:
        text = f"layer {layer.id[:12]} is mounted by a running command or container"
        raise InUse(text, layer=layer.id) from None
    try:
        until = 0.0
        while True:
            holder = _holder(store, layer, driver)
            if not holder:
                return
            from time import monotonic, sleep

            until = until or monotonic() + wait
            if monotonic() > until:
                break
            sleep(0.01)
        raise InUse(
            f"layer {layer.id[:12]} is still in use by {holder}", holders=[holder], layer=layer.id,
            remedy=f"end {holder}",
        )  # fmt: skip
    except BaseException:
        store.locks.release("mounts", layer.number)
        raise


def _holder(store: Store, layer: api.Layer, driver: api.Driver) -> str:
    rows = store.query("select id from containers where number = ?", layer.number)
    if rows:
        from cowshed_runtime import cgroup

        pids = cgroup.processes(rows[0][0])
        if pids:
            return f"process {pids[0]} of container {rows[0][0][:12]}"
    free = _trial(driver, layer) if layer.kind is api.Kind.ACTIVE else None
    if free:
        return ""
    pid = shown_to(layer.id)
    if pid:
        return f"process {pid}, whose namespace has it mounted"
    return "" if free is None else "a detached mount that some process holds open"


def _trial(driver: api.Driver, layer: api.Layer) -> bool | None:
    """Whether the kernel lets the layer's upper directory be used. None if it cannot be asked: it is not an overlay,
    the file system has no file handles, or the layer is half removed already."""
    try:
        plan = driver.mounts(layer, api.MountRequest(read_only=False))
    except NotFound:
        return None
    last = plan.steps[-1]
    if not isinstance(last, api.Overlay) or last.upper is None or ("userxattr", None) in last.options:
        return None
    lowers = last.lowers[:1]  # it is the upper directory that is tried; the top lower one is what index=on remembers
    needed = [last.upper, last.work or "", *[lower for lower in lowers if isinstance(lower, str)]]
    if not all(map(os.path.isdir, needed)):
        return None  # half removed: the kernel would only complain in its log
    options = [(key, value) for key, value in last.options if key != "index"]
    trial = api.Overlay(lowers, last.upper, last.work, options=(*options, ("index", "on")))
    try:
        os.close(detached(api.MountPlan((*plan.steps[:-1], trial))))
    except OSError as error:
        return False if error.errno == _EBUSY else None
    return True


def shown_to(layer: str) -> int:
    """The pid of a process whose mount table names the layer; 0 if there is none. Each namespace is read once."""
    mark = layer.encode()
    seen: set[str] = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            namespace = os.readlink(f"/proc/{entry}/ns/mnt")
            if namespace in seen:
                continue
            fd = os.open(f"/proc/{entry}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # gone meanwhile, or a kernel thread
        try:
            rest = b""
            while block := os.read(fd, 1 << 16):
                if mark in rest + block:
                    return int(entry)
                rest = block[-len(mark) :]
            seen.add(namespace)
        except OSError:
            continue  # a zombie has no mount table
        finally:
            os.close(fd)
    return 0
