"""The proof that a layer is mounted nowhere, which the engine owes its drivers before commit and remove (rule E2).

The kernel neither refuses nor notices the removal of a layer that runs in another mount namespace. So all of this must
hold, cheapest first:

    the layer's `mounts` byte is free   monitors hold it for life, whoever mounts for a moment holds it meanwhile
    the container's cgroup is empty     finds the processes of a container whose monitor was killed
    the kernel lets it be used          of overlay: with index=on it refuses an upper directory that is in use; of a
                                        device that the driver activates: it refuses to open it for one alone (O_EXCL,
                                        open(2)); of aufs a note tells which mount writes into the branch, and sysfs
                                        whether it lives. All see a detached mount, which no namespace shows
    no mount namespace shows the layer  what was mounted by hand. This reads a table for each namespace, so it is left
                                        out where the kernel has answered; after a refusal it names the holder
"""

from __future__ import annotations

import os
import stat

from cowshed.errors import Busy
from cowshed.layers.mounting import detached
from cowshed.storage import api
from cowshed.storage.errors import InUse, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.state.store import Store

_EBUSY = 16
PATIENCE = 0.5  # seconds in which the mounts of a container that has just ended go away


def prove(
    store: Store, layer: api.Layer, driver: api.Driver, wait: float | None = None, shown: Shown | None = None
) -> None:
    """Take the layer's `mounts` byte, which the caller releases, and prove that nobody has it mounted.

    shown: what the mount namespaces have shown since the caller holds the layer's byte; else they are looked at here.
    What a killed process left active of the layer is deactivated. Raises InUse, naming the holder, if it is still in
    use after `wait` seconds.
    """
    wait = PATIENCE if wait is None else wait
    try:
        store.locks.take("mounts", layer.number, wait=wait)
    except Busy:
        text = f"layer {layer.id[:12]} is mounted by a running command or container"
        raise InUse(text, layer=layer.id) from None
    try:
        if api.has_activation(driver):
            from cowshed.layers.activation import deactivate_left

            deactivate_left(store, driver, layer)
        until = 0.0
        while True:
            holder = _holder(store, layer, driver, shown)
            if not holder:
                return
            shown = None  # it may have gone since
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


def _holder(store: Store, layer: api.Layer, driver: api.Driver, shown: Shown | None) -> str:
    rows = store.query("select id from containers where number = ?", layer.number)
    if rows:
        from cowshed_runtime.cgroup import layout

        if layout.exist(rows[0][0]):
            from cowshed_runtime.cgroup.group import Group

            pids = Group(rows[0][0]).processes()
            if pids:
                return f"process {pids[0]} of container {rows[0][0][:12]}"
    marks = [layer.id.encode()]
    free = None
    if api.has_activation(driver):
        device = _device(driver, layer)
        try:
            number = _numbers(device) if device else b""
        except FileNotFoundError:
            number = b""  # gone since, with its last user
        if not number:
            return ""  # there is nothing that could be mounted
        free = _opens_alone(device)
        marks.append(number)
    else:
        free = _told(driver, layer)
    if free:
        return ""
    pid = (shown or Shown()).by(marks)
    if pid:
        return f"process {pid}, whose namespace has it mounted"
    return "" if free is None else "a detached mount that some process holds open"


def _plan(driver: api.Driver, layer: api.Layer) -> api.MountPlan | None:
    try:
        return driver.mounts(layer, api.MountRequest(read_only=layer.kind is api.Kind.COMMITTED))
    except NotFound:
        return None  # half removed already


def _told(driver: api.Driver, layer: api.Layer) -> bool | None:
    """What the kernel says: whether nothing has the layer mounted. None if it cannot be asked: it is neither an overlay
    nor aufs, the file system has no file handles, or the layer is half removed already."""
    plan = _plan(driver, layer)
    if plan is None:
        return None
    last = plan.steps[-1]
    if isinstance(last, api.Aufs):
        from cowshed.layers import aufs

        return False if aufs.in_use(last.branches[0]) else None  # of read-only mounts it does not know
    return _trial(plan, last) if layer.kind is api.Kind.ACTIVE else None


def _trial(plan: api.MountPlan, last: api.Mount) -> bool | None:
    """Whether the kernel lets the layer's upper directory be used."""
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


def _device(driver: api.Driver, layer: api.Layer) -> str:
    """The block device that a layer is mounted from, "" if it has none just now."""
    plan = _plan(driver, layer)
    for each in plan.steps if plan is not None else ():
        if isinstance(each, api.FileSystem) and each.source.startswith("/"):
            try:
                status = os.stat(each.source)
            except FileNotFoundError:
                continue
            if stat.S_ISBLK(status.st_mode) and _is_current(each.source, status.st_rdev):
                return each.source
    return ""


def _is_current(node: str, number: int) -> bool:
    """Whether a node is that of a living device. Where no udevd removes them, a mapped device that the kernel took away
    leaves its node behind, and another device may have the number by now."""
    place = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"
    try:
        with open(f"{place}/dm/name", encoding="utf-8") as file:
            return file.read().rstrip("\n") == os.path.basename(node) or not node.startswith("/dev/mapper/")
    except OSError:
        return os.path.exists(place)


def _opens_alone(device: str) -> bool | None:
    """Whether the kernel lets a device be opened by one alone, which it does not while it is mounted."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return False if error.errno == _EBUSY else None
    return True


def _numbers(device: str) -> bytes:
    """A device as the third field of a mount table (proc_pid_mountinfo(5)) names it."""
    number = os.stat(device).st_rdev
    return b" %d:%d " % (os.major(number), os.minor(number))


class Shown:
    """The mount tables of all namespaces at one moment, each read once. Every proof that needs them may use the same,
    if it was read after the layers were claimed."""

    def __init__(self) -> None:
        self._tables: list[tuple[int, bytes]] = []
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
                blocks = []
                while block := os.read(fd, 1 << 16):
                    blocks.append(block)
                self._tables.append((int(entry), b"".join(blocks)))
                seen.add(namespace)
            except OSError:
                continue  # a zombie has no mount table
            finally:
                os.close(fd)

    def by(self, marks: list[bytes]) -> int:
        """The pid of a process whose table has one of these marks; 0 if there is none."""
        for pid, table in self._tables:
            if any(mark in table for mark in marks):
                return pid
        return 0
