"""The thin pool of a store: made by init, set up again by open after a reboot, taken away by destroy only.

    loop     ROOT/pool/data, ROOT/pool/metadata on loop devices, which the kernel frees with the pool (autoclear)
    devices  made on two block devices that the user names; only this store uses it
    given    a pool that is there: any number of stores, and others' thin devices beside them

Thin ids. A store of its own pool has ids 0 … RANGE-1; stores of a given pool have each a slot of RANGE ids from RANGE
on, low ids being what LVM and others take. The first id of a slot is the base. Whoever creates that one has the slot:
the kernel lets only one do so. The base's file system has the store's identity, so that a pool that was put in the
place of another is noticed.
"""

from __future__ import annotations

import errno
import fcntl
import os
from time import monotonic, sleep

from cowshed.storage.errors import Damaged, InUse, NoSpace, SpaceKind, Unsupported, WrongStore
from cowshed_driver_devicemapper import blockdevices, filesystems, record, tables
from cowshed_driver_devicemapper.libdevmapper import Target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cowshed.storage import api
    from cowshed_driver_devicemapper.libdevmapper import Info
    from cowshed_driver_devicemapper.mapper import Mapper
    from cowshed_driver_devicemapper.record import PoolRecord

RANGE = 1 << 20
_PATIENCE = 3.0  # seconds in which the users of a device that has just been unmounted go away
_REMOVAL = 30.0  # seconds for a removal that the kernel has begun


class Lock:
    """flock(2) on a directory of the store: gone with the process, and possible where nothing can be written."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        self.take()

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(self, *, wait: bool = True) -> bool:
        """False if another holds it and wait is false."""
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(fd)
            return False
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return True

    def release(self) -> None:
        os.close(self._fd)


class Pool:
    """The pool of one store."""

    def __init__(self, root: str, known: PoolRecord, mapper: Mapper, host: api.Host) -> None:
        self.root, self.known, self._mapper, self._host = root, known, mapper, host
        self.name = known.name or loop_name(root, known.uuid)
        # Devices of two stores on one pool must not meet: a layer's id is unique in its store only.
        self.prefix = f"{self.name}-" if known.base == 0 else f"{self.name}-{known.base // RANGE}-"
        self.read_only = bool(os.statvfs(root).f_flag & os.ST_RDONLY)

    def lock(self) -> Lock:
        return Lock(f"{self.root}/pool")

    # ------------------------------------------------------------ setting up

    def up(self) -> None:
        """Set the pool up if it is not. Raises WrongStore, Damaged, OSError."""
        if self._is_up():
            return
        with self.lock():
            if self._is_up():
                return
            if self.known.kind == record.GIVEN:
                raise WrongStore(f"there is no thin pool {self.name}", remedy="set it up: vgchange -ay, dmsetup create")
            if self.read_only:  # the kernel takes no pool in a read-only table, and so opens both devices for writing
                raise Unsupported(
                    f"the thin pool of {self.root} cannot be set up where nothing can be written",
                    remedy="mount its file system for writing",
                )
            self._host.step("devicemapper.pool.up")
            self._create()
            try:
                self._compare()
            except BaseException:
                self._remove(self.name)  # the base may be on its way out still
                raise

    def _is_up(self) -> bool:
        if self._mapper.info(self.name) is None:
            return False
        table = self._mapper.table(self.name)
        if not table and self.known.kind != record.GIVEN:
            self._mapper.remove(self.name)  # of a process that died between making it and giving it a table
            return False
        if [line.kind for line in table] != ["thin-pool"]:
            raise WrongStore(f"device {self.name} is no thin pool", remedy="name another one: option pool")
        return True

    def _create(self) -> None:
        opened: list[int] = []
        try:
            if self.known.kind == record.LOOP:
                opened += (blockdevices.attach_loop(f"{self.root}/pool/{name}") for name in ("metadata", "data"))
                found = [blockdevices.described(fd) for fd in opened]
            else:
                paths = self.known.metadata, self.known.data
                found = [self._host.call("device", blockdevices.describe, path, changes=False) for path in paths]
            (metadata, _), (data, size) = found
            sectors = size // tables.SECTOR // tables.BLOCK * tables.BLOCK
            target = Target(0, sectors, "thin-pool", tables.pool_parameters(metadata, data))
            self._host.call("pool", lambda: self._mapper.create(self.name, target))
        finally:
            for fd in opened:
                os.close(fd)

    def _compare(self) -> None:
        """Hold the pool's transaction and base against the store's, and raise both transactions: from now on older
        metadata, put back by hand or by a disk that forgot what it had promised, is told from the present one."""
        status = self.status()
        found, seen = status.transaction, self.known.transaction
        if found not in (seen, seen - 1):  # less by one: a crash came between the two
            raise WrongStore(
                f"the pool of {self.root} is at transaction {found}, the store has seen {seen}: one of them is of "
                "another time",
                remedy="put back the pool's devices that belong to the store",
            )
        if self.known.ready:  # else there is no base yet
            self._identify()
        if status.mode == "ro":  # all in it can be read, and nothing will be written that older metadata would lack
            return
        self.known.transaction = found + 1
        record.save(self.root, self.known)
        self._host.step("devicemapper.pool.transaction")
        self._host.call("transaction", lambda: self.message(f"set_transaction_id {found} {found + 1}"))

    def identify(self) -> None:
        """Whether a pool that others look after is still the one: by the base, whose file system has the store's
        identity. Raises WrongStore."""
        with self.lock():
            self._identify()

    def _identify(self) -> None:
        """Of devices too, whose names may be those of other disks after a boot: nothing may be discarded on those."""
        name = f"{self.prefix}base"
        found = None
        try:
            self.activate(name, self.known.base, self.known.sectors, frozen=True)
            try:
                found = self.superblock(name)
            finally:
                self.deactivate(name)
        except Damaged:
            pass  # there is no such device
        if found is None or found.uuid != self.known.uuid:
            given = self.known.kind == record.GIVEN
            raise WrongStore(
                f"thin pool {self.name} is another one than the store of {self.root} was made on",
                remedy="set the right one up under this name" if given else "put back the pool's own data and metadata",
            )

    def down(self) -> None:
        """Take the store's devices away, and the pool if it is its own. Raises InUse."""
        for name in [self.name, *self._mapper.names()]:
            if name.startswith(self.prefix):
                self._remove(name)
        for name in self._nodes():
            self.drop_node(name)
        if self.known.kind != record.GIVEN:
            self._remove(self.name)

    def _remove(self, name: str) -> None:
        self._unused("remove", f"device {name}", lambda: self._mapper.remove(name))
        self.drop_node(name)

    def _unused(self, call: str, what: str, do: Callable[[], None]) -> None:
        """Do what the kernel refuses while a device is in use, which may be for the moment of its removal. InUse."""
        until = 0.0
        while True:
            try:
                return self._host.call(call, do)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
            until = until or monotonic() + _PATIENCE
            if monotonic() > until:
                raise InUse(f"{what} is in use", remedy="stop what runs on it, unmount it")
            sleep(0.02)

    # ------------------------------------------------------------ the pool itself

    def message(self, text: str) -> None:
        self._mapper.message(self.name, text)

    def status(self) -> tables.PoolStatus:
        lines = self._mapper.status(self.name)
        return tables.parse_pool_status(lines[0].parameters if lines else "")

    def table(self) -> tables.PoolTable:
        lines = self._mapper.table(self.name)
        return tables.parse_pool_table(lines[0].parameters if lines else "")

    def devices(self) -> dict[int, int]:
        """Thin ids of this store and how many blocks each has mapped; the base is none of them."""
        first = self.known.base
        found = self._mapper.thin_devices(self.name)
        return {thin: mapped for thin, mapped in found.items() if first < thin < first + RANGE}

    def difference(self, old: int, new: int) -> list[tuple[int, int]]:
        """Ranges of bytes (start, length) in which two thin devices differ, in blocks of the pool."""
        block = self.table().block * tables.SECTOR
        return [(at * block, count * block) for at, count in self._mapper.thin_difference(self.name, old, new)]

    def require_space(self, percent: int) -> None:
        """Raises NoSpace if less than so many percent of the data, or a tenth of the metadata, are free."""
        status = self.status()
        if status.mode == "ro":
            raise self._read_only(status)
        free = status.data_total - status.data_used
        if status.mode != "rw" or free * 100 < status.data_total * percent:
            raise NoSpace(
                f"thin pool {self.name} has {free} of {status.data_total} blocks free; {percent} % are kept",
                what=SpaceKind.DATA, remedy="remove what is not needed (cowshed system prune), or extend the pool",
            )  # fmt: skip
        free = status.metadata_total - status.metadata_used
        if free * 10 < status.metadata_total:
            raise NoSpace(
                f"thin pool {self.name} has {free} of {status.metadata_total} blocks of metadata free",
                what=SpaceKind.METADATA, remedy="remove what is not needed, or extend the pool's metadata",
            )  # fmt: skip
        if self.known.kind == record.LOOP:  # others write to the disk below too
            below = os.statvfs(self.root)
            free, promised = below.f_bavail * below.f_frsize, status.data_total * tables.BLOCK * tables.SECTOR
            if free * 100 < promised * percent:
                raise NoSpace(
                    f"{free} bytes are free below {self.root}, whose pool may need {promised}; {percent} % are kept",
                    what=SpaceKind.DATA, remedy="make room there",
                )  # fmt: skip

    def _read_only(self, status: tables.PoolStatus) -> NoSpace:
        """The error of whoever would change a pool of which the metadata could not be written."""
        return NoSpace(
            f"thin pool {self.name} is read-only{': its metadata needs a check' if status.needs_check else ''}",
            what=SpaceKind.METADATA, remedy="thin_check(8), thin_repair(8) on its metadata while it is not in use",
        )  # fmt: skip

    # ------------------------------------------------------------ its devices

    def create_thin(self, thin: int) -> bool:
        """False if the id is taken."""
        return self._new(f"create_thin {thin}")

    def snapshot(self, thin: int, origin: int, device: str) -> bool:
        """A copy of a thin device; False if the id is taken. `device`: the origin's name while it is active. The kernel
        does not refuse to copy an origin in use, but the copy is whole only if the origin stands still, as what cannot
        be written does."""
        info = self._mapper.info(device)
        active = info is not None and not info.read_only
        if active:
            self._host.step("devicemapper.suspend")
            active = self._host.call("suspend", lambda: self._unless_gone(self._mapper.suspend, device))
        try:
            return self._new(f"create_snap {thin} {origin}")
        finally:
            if active:
                self._unless_gone(self._mapper.resume, device)

    def _unless_gone(self, do: Callable[[str], None], device: str) -> bool:
        """Whether the device was there: a removal that waited for its last user comes to pass a moment after that."""
        try:
            do(device)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return False
        return True

    def _new(self, text: str) -> bool:
        try:
            self._host.call("thin", lambda: self.message(text))
        except OSError as error:
            if error.errno == errno.EEXIST:
                return False
            if error.errno == errno.ENOSPC:
                raise NoSpace(f"thin pool {self.name}: {text}: no metadata space", what=SpaceKind.METADATA) from None
            if error.errno == errno.EOPNOTSUPP:
                raise self._read_only(self.status()) from None
            raise
        return True

    def delete(self, thin: int) -> None:
        """Absent is success. Raises InUse for one that is active, NoSpace if the pool is read-only. One whose deferred
        removal has just begun has no name any more, and is active for another moment."""
        try:
            self._unused("delete", f"thin device {thin} of pool {self.name}", lambda: self.message(f"delete {thin}"))
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise self._read_only(self.status()) from None
            if error.errno != errno.ENODATA:
                raise

    def activate(self, name: str, thin: int, sectors: int, *, frozen: bool) -> None:
        """Make the device NAME, or keep the one that is there, with its node in /dev/mapper. A removal that waits for
        the last user is called off; one that has begun is waited for."""
        until = monotonic() + _REMOVAL
        info = None
        while info is None:
            try:
                info = self._kept(name, frozen=frozen) or self._made(name, thin, sectors, frozen=frozen)
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENXIO) or monotonic() > until:
                    raise
                sleep(0.01)
        self._drop_stale(name, info.number)
        self._host.call("node", blockdevices.make_node, self.node(name), info.number)

    def _kept(self, name: str, *, frozen: bool) -> Info | None:
        info = self._mapper.info(name)
        if info is None:
            return None
        if not self._mapper.table(name) or (info.read_only and not frozen and not self.read_only):
            self._remove(name)  # half made, or from before
            return None
        if info.suspended:
            self._mapper.resume(name)  # of a process that died while it took a snapshot
        if info.deferred:
            self._mapper.message(name, "@cancel_deferred_remove")  # EBUSY: it has begun; ENXIO: it is done
        return info

    def _made(self, name: str, thin: int, sectors: int, *, frozen: bool) -> Info:
        pool = self._mapper.info(self.name)
        if pool is None:
            raise WrongStore(f"thin pool {self.name} is gone", remedy="set it up again")
        target = Target(0, sectors, "thin", tables.thin_parameters(pool.number, thin))
        try:
            return self._host.call(
                "activate", lambda: self._mapper.create(name, target, read_only=frozen or self.read_only)
            )
        except OSError as error:
            if error.errno == errno.ENODATA:
                raise Damaged(f"thin pool {self.name} has no device {thin} for {name}") from None
            raise

    def extend(self, name: str, thin: int, sectors: int) -> None:
        """Let an active device be at least as large; it may be mounted. It goes on being without what it lacked."""
        pool, lines = self._mapper.info(self.name), self._mapper.table(name)
        if pool is None or not lines:
            raise WrongStore(f"thin pool {self.name} is gone", remedy="set it up again")
        if lines[0].length < sectors:
            target = Target(0, sectors, "thin", tables.thin_parameters(pool.number, thin))
            self._host.call("extend", lambda: self._mapper.load(name, target))

    def deactivate(self, name: str) -> None:
        """From now on only its users hold the device. As long as it has any, its node tells which it is."""
        self._mapper.remove(name, deferred=True)
        info = self._mapper.info(name)
        if info is None:
            self.drop_node(name)
            return
        self._host.call("node", blockdevices.make_node, self.node(name), info.number)  # libdevmapper has taken it away
        if self.known.filesystem == "xfs":
            filesystems.end_retries(info.minor)

    def _drop_stale(self, name: str, number: str) -> None:
        """Take away the nodes of devices that have gone with their last user, and whose number NAME has now. One whose
        layer is being activated has its own number in a moment, and is left."""
        for other, has in self._nodes().items():
            if other == name or has != number:
                continue
            lock = self._lock_of(other.removeprefix(self.prefix))
            try:
                if lock is None or not lock.take(wait=False):
                    continue
            except FileNotFoundError:
                continue  # the layer has just moved on
            try:
                if self._nodes().get(other) == number:
                    self.drop_node(other)
            finally:
                lock.release()

    def _lock_of(self, layer: str) -> Lock | None:
        """The lock under which a published layer is activated; others are their callers' alone."""
        folders = (f"{self.root}/{kind}/{layer}/thin" for kind in ("active", "committed"))
        return next((Lock(path) for path in folders if os.path.isdir(path)), None)

    def node(self, name: str) -> str:
        return f"{self._mapper.nodes}/{name}"

    def drop_node(self, name: str) -> None:
        try:
            os.unlink(self.node(name))
        except FileNotFoundError:
            pass

    def _nodes(self) -> dict[str, str]:
        """The nodes of the store's devices, and the numbers of these."""
        return self._host.call("nodes", blockdevices.nodes, self._mapper.nodes, self.prefix, changes=False)

    def removed(self, name: str) -> None:
        """Take a device away at once. Raises InUse."""
        self._remove(name)

    def resume_suspended(self) -> None:
        """Let devices go on that a process held when it died. Those of living processes are held under the lock."""
        held = [name for name in self._mapper.names() if name.startswith(self.prefix) and self._suspended(name)]
        lock = self.lock()
        if held and lock.take(wait=False):
            try:
                for name in held:
                    if self._suspended(name):
                        self._unless_gone(self._mapper.resume, name)
            finally:
                lock.release()

    def _suspended(self, name: str) -> bool:
        info = self._mapper.info(name)
        return info is not None and info.suspended

    def superblock(self, name: str) -> filesystems.Superblock | None:
        return self._host.call("superblock", filesystems.superblock_on, self.node(name), changes=False)

    def flush(self, name: str) -> None:
        """Data and the mappings of a device survive a power cut from now on."""
        self._host.call("flush", blockdevices.flush, self.node(name))

    def discard(self, name: str) -> None:
        self._host.call("discard", blockdevices.discard_all, self.node(name))


def loop_name(root: str, store: str) -> str:
    """The name of a pool on loop files: of the place too, as a copy of the store may be in use beside it."""
    status = os.stat(root)
    return f"cowshed-{store[:8]}-{status.st_dev:x}-{status.st_ino:x}"
