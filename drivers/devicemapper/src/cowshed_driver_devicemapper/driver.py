"""A layer is a thin device with a file system of its own; a child is a snapshot of its parent's device.

    ROOT/active/ID/thin/device   ROOT/committed/ID/thin/device
        "THIN SECTORS [limited]": which device of the pool, how large, and whether it may have a limit
    ROOT/pool                    see pool.py

The directories are those of `cowshed.storage.kit.directories`; what is in them says which thin device belongs to which
layer, and is on disk before the device is made. So a crash between store and pool leaves a TEMP or TRASH object that
knows its device, and nothing in the pool that nobody knows.
"""

from __future__ import annotations

import _thread
import errno
import os
from time import monotonic

from cowshed.storage import api
from cowshed.storage.errors import Damaged, InUse, LayerId, NoSpace, StorageError, ToolFailed, Unsupported, WrongStore
from cowshed.storage.kit import directories
from cowshed.storage.kit.trees import measure_tree, remove_tree
from cowshed_driver_devicemapper import blockdevices, filesystems, record, tables
from cowshed_driver_devicemapper.pool import RANGE, Lock, Pool
from cowshed_linux import files, projects

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from cowshed_driver_devicemapper.mapper import Mapper

NAME = "devicemapper"
_CONTENT = "thin"
_TRIES = 1000
_MEND_TIMEOUT = 3600.0  # seconds for the check of one file system


def capabilities(*, filesystem: str, durable: bool = True, quota: bool = True) -> api.Capabilities:
    """What a store can. durable: the place of the store, and of a pool on loop files, survives a power cut."""
    return api.Capabilities(
        granularity=api.Granularity.BLOCK,
        durability=api.Durability.COMMIT if durable else api.Durability.NONE,
        changes=filesystem == "ext4",  # of xfs nobody but the kernel can say which inodes lie in a block
        activation=True,
        quota=api.QuotaScope.OWN if quota else api.QuotaScope.NONE,
        quota_inodes=quota,
        self_check=True,
        live_snapshot=api.Consistency.FILE_SYSTEM,
        idmapped_mounts=True,
        selinux=True,
    )


class Device:
    """Which thin device a layer is: its id in the pool, its size in sectors, and whether it may have a limit."""

    __slots__ = ("limited", "sectors", "thin")

    def __init__(self, thin: int, sectors: int, *, limited: bool = False) -> None:
        self.thin, self.sectors, self.limited = thin, sectors, limited


def read_device(folder: str) -> Device | None:
    """What a layer's directory says; None if nothing was made for it yet. Raises Damaged."""
    path = f"{folder}/{_CONTENT}/device"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        words = os.read(fd, 64).split()
    finally:
        os.close(fd)
    if (
        len(words) not in (2, 3)
        or not words[0].isdigit()
        or not words[1].isdigit()
        or words[2:] not in ([], [b"limited"])
    ):
        raise Damaged(f"{path} is damaged", remedy="remove the layer")
    return Device(int(words[0]), int(words[1]), limited=len(words) == 3)


class DeviceMapperDriver:
    """One open store (`cowshed.storage.api.Driver`, `ActivationDriver`, `ChangesDriver`, `QuotaDriver`,
    `SnapshotDriver`, `SelfCheckDriver`)."""

    def __init__(self, root: str, options: api.Options, host: api.Host, pool: Pool) -> None:
        self._at, self.host, self.pool = directories.Directories(root, _CONTENT, host), host, pool
        self._reserve, self._discards = int(options["reserve"] or 0), bool(options["discard"])
        self._held: dict[str, tuple[Lock, int]] = {}  # device name → its layer's lock, how often it is activated here
        self._guard = _thread.allocate_lock()

    @property
    def capabilities(self) -> api.Capabilities:
        known = self.pool.known
        return capabilities(filesystem=known.filesystem, durable=self._at.durable, quota=known.quota)

    def close(self) -> None:
        self._at.close()

    def health(self) -> api.Health:
        status, table = self.pool.status(), self.pool.table()
        block = table.block * tables.SECTOR
        free = (status.data_total - status.data_used) * block
        reasons = []
        if self.pool.known.kind == record.LOOP:
            below = os.statvfs(self._at.root)
            free = min(free, below.f_bavail * below.f_frsize)
            reasons.append(LOOP_IS_POOR)
        if not status.errors_when_full:
            text = f"a full pool {self.pool.name} holds every writer for a minute: it lacks error_if_no_space"
            reasons.append(api.Reason("devicemapper.queues-when-full", text, "lvchange --errorwhenfull y"))
        if status.mode != "rw" or status.needs_check:
            text = f"thin pool {self.pool.name} is {status.mode}{', it needs a check' if status.needs_check else ''}"
            reasons.append(api.Reason("devicemapper.pool-mode", text, "thin_check(8)", api.Verdict.POOR))
        return api.Health(
            status.data_total * block,
            free,
            status.metadata_total * tables.METADATA_BLOCK,
            (status.metadata_total - status.metadata_used) * tables.METADATA_BLOCK,
            tuple(reasons),
        )

    def scan(self) -> Iterator[api.StoredObject]:
        # Devices first: one that belongs to a layer has been told by a directory before it was made.
        devices = self.pool.devices()
        known: set[int] = set()
        unclear = False  # whether something has a device and does not tell which
        for found in self._at.scan():
            try:
                device = read_device(f"{self._at.root}/{found.name}")
            except Damaged:
                device, unclear = None, True
            if device is not None:
                known.add(device.thin)
            yield found
        lost = devices.keys() - known
        if lost:  # or removed since
            for thin in sorted(lost & self.pool.devices().keys()):
                name = f"device {thin} of pool {self.pool.name}"
                yield api.StoredObject(api.ObjectKind.AUXILIARY, name, data={"thin": thin, "unclear": unclear})

    @staticmethod
    def _device_of(folder: str) -> Device | None:
        try:
            return read_device(folder)
        except Damaged:
            return None

    # ------------------------------------------------------------ changing

    def prepare(self, new: api.Layer, options: api.LayerOptions) -> api.DriverData:
        limited = options.quota != api.Quota()
        if limited and not self.pool.known.quota:
            raise Unsupported("this store has no quota", layer=new.id, remedy="leave the size limit out")
        if self._at.exists(new):
            return {}
        parent = new.parent
        self.pool.require_space(self._reserve)
        if parent is not None:
            origin, name = self.device(parent), self._name(parent)
        else:
            origin, name = Device(self.pool.known.base, self.pool.known.sectors), f"{self.pool.prefix}base"
        temporary = self._make(new, origin, name, limited=limited, durable=options.durable)
        owned = parent is None and (options.root_uid or options.root_gid)
        if owned or limited:
            with self._mounted(new.id, self._read(temporary), frozen=False) as root:
                if owned:
                    os.chown(root, options.root_uid, options.root_gid)
                if limited:
                    with blockdevices.opened(root) as fd:
                        below = self._used(fd) if parent is not None else (0, 0)
                        self._grow(temporary, new.id, fd, below[0] + (options.quota.bytes or 0))
                        self._limit(fd, below, options.quota)
            self.host.step("devicemapper.prepare.changed")
        self._at.publish(temporary, new, durable=options.durable)
        self.host.step("devicemapper.prepare.published")
        return {}

    def _make(self, new: api.Layer, origin: Device, device: str, *, limited: bool, durable: bool) -> str:
        """A temporary directory that tells of a new snapshot of origin, and the snapshot. device: origin's name."""
        temporary = f"{self._at.root}/temp/{new.id}"
        self._forget(temporary)  # of a call that died
        temporary = self._at.temporary(new)
        self._snap(temporary, new.number, origin, device, limited=limited, durable=durable)
        return temporary

    def _snap(
        self, temporary: str, number: int, origin: Device, device: str, *, limited: bool, durable: bool
    ) -> Device:
        """A snapshot of origin, of which the temporary directory tells. number: its thin id, if that is free."""
        folder = f"{temporary}/{_CONTENT}"
        os.mkdir(folder, 0o700)
        self.host.step("devicemapper.made")
        known = self.pool.known
        with self.pool.lock():
            deleted = self._in_trash()
            for n in range(_TRIES):
                # If something has it, one in the half of the range that the numbers of layers reach late.
                thin = known.base + (number if 0 < number < RANGE and n == 0 else _any_id())
                if thin in deleted:
                    continue
                new = Device(thin, origin.sectors, limited=limited)
                self._write(folder, new, durable=durable)
                if self.pool.snapshot(thin, origin.thin, device):
                    self.host.step("devicemapper.snapped")
                    return new
        raise Damaged(f"thin pool {self.pool.name} has no free id", remedy="cowshed system prune")

    def _in_trash(self) -> set[int]:
        """Thin ids that a purge will delete, once more if it died when it had: they must not be others' by then."""
        names = os.listdir(f"{self._at.root}/trash")
        return {it.thin for name in names if (it := self._device_of(f"{self._at.root}/trash/{name}")) is not None}

    def _write(self, folder: str, device: Device, *, durable: bool) -> None:
        text = f"{device.thin} {device.sectors}{' limited' if device.limited else ''}\n".encode()
        files.write_atomically(f"{folder}/device", text, durable=durable)
        if durable:
            for path in (os.path.dirname(folder), f"{self._at.root}/temp"):
                files.sync_directory(path)

    def commit(self, active: api.Layer, new: api.Layer, durability: api.Durability) -> api.DriverData:
        if new.parent != active.parent:
            raise Unsupported(
                f"layer {active.id} is a snapshot of what lies below it and cannot be put on another parent",
                layer=active.id,
                remedy="prepare a layer on that parent and copy the changes",
            )
        durable = durability > api.Durability.NONE
        if not self._at.exists(new):
            device = self.device(active)
            with self._layer_lock(active):
                self._close(active.id, device, durable=durable)
        self._at.commit(active, new, durable=durable, name=NAME)
        return {}

    def _close(self, id_: LayerId, device: Device, *, durable: bool) -> None:
        """Leave a device that nobody has mounted with a file system that can be mounted without writing to it."""
        name = self.device_name(id_)
        self.pool.removed(name)
        self.pool.activate(name, device.thin, device.sectors, frozen=False)
        try:
            dirty = self._superblock(name, id_).dirty
        except BaseException:
            self.pool.removed(name)
            raise
        if dirty or device.limited:
            with self._mounted(id_, device, frozen=False) as root:  # this replays the journal
                if device.limited:  # a child would have the limit too
                    with blockdevices.opened(root) as fd:
                        self._limit(fd, (0, 0), api.Quota())
            self.host.step("devicemapper.replayed")
            self.pool.activate(name, device.thin, device.sectors, frozen=False)
        try:
            if self._superblock(name, id_).failed:
                self._mend(name, id_)
            if durable:
                self.pool.flush(name)
        finally:
            self.pool.removed(name)
        self.host.step("devicemapper.closed")

    def _mend(self, name: str, id_: LayerId) -> None:
        """Of a file system that met an error, as in a full pool, not all of what it keeps may have been written."""
        try:
            self.host.run(("e2fsck", "-fp", self.pool.node(name)), timeout=_MEND_TIMEOUT, ok=(0, 1))
        except ToolFailed as error:
            raise Damaged(
                f"the file system of layer {id_} has errors: {error}",
                layer=id_,
                remedy="copy what is wanted out of it (cowshed cp), and remove it",
            ) from None
        self.host.step("devicemapper.mended")

    def _superblock(self, name: str, id_: LayerId) -> filesystems.Superblock:
        known = self.pool.known
        found = self.pool.superblock(name)
        return filesystems.must_be(found, known.filesystem, known.uuid, f"the device of layer {id_}")

    def remove(self, layer: api.Layer) -> None:
        self._at.discard(layer)
        self.host.step("devicemapper.remove.renamed")

    def purge(self, claim: Callable[[LayerId], AbstractContextManager[bool]], budget: float) -> api.PurgeResult:
        until = monotonic() + budget
        left = 0
        problem: StorageError | OSError | None = None
        for found in list(self._at.scan(("temp", "trash"))):
            assert found.layer is not None
            path = f"{self._at.root}/{found.name}"
            try:
                if monotonic() > until:
                    left += 1
                elif found.kind is api.ObjectKind.TRASH:
                    self._empty(path, found.layer)
                else:
                    with claim(found.layer) as mine:
                        if mine:
                            self._forget(path)
                        else:
                            left += 1
            except InUse:
                left += 1  # mounted still: the next call comes by it again
            except (StorageError, OSError) as error:
                left += 1
                problem = problem or error
        if problem is not None:
            raise problem
        return api.PurgeResult(left)

    def _empty(self, path: str, id_: LayerId) -> None:
        """Of two that purge, the second must not delete by an id that the first has set free for others."""
        lock = Lock(f"{path}/{_CONTENT}")
        try:
            lock.take()
        except FileNotFoundError:
            remove_tree(path)  # there is no device, or it is deleted
            return
        try:
            if os.path.lexists(path):
                device = self._read_or_none(path)
                if device is not None:
                    self._put_out_of_use(path, id_, device)
                with self.pool.lock():
                    self._delete(path, device)
        finally:
            lock.release()

    def _forget(self, temporary: str, *, discards: bool = True) -> None:
        """Take away what a dead call has left. It may have died before the pool told it that its id is another's."""
        if not os.path.lexists(temporary):
            return
        device = self._read_or_none(temporary)
        if device is None:
            remove_tree(temporary)
            return
        with self.pool.lock():
            others = (f"{self._at.root}/{x.name}" for x in self._at.scan())
            if any((it := self._device_of(path)) and it.thin == device.thin for path in others if path != temporary):
                device = None
            if device is not None:
                self._put_out_of_use(temporary, LayerId(os.path.basename(temporary)), device, discards=discards)
            self._delete(temporary, device)

    def _put_out_of_use(self, path: str, id_: LayerId, device: Device, *, discards: bool = True) -> None:
        if not self._known_elsewhere(id_, path):
            self.pool.removed(self.device_name(id_))
        if discards and self._discards and self.pool.status().discards:
            self._give_back(f"{self.pool.prefix}trash-{device.thin}", device)

    def _delete(self, path: str, device: Device | None) -> None:
        """Under the pool's lock: see `_in_trash`."""
        if device is not None:
            self.pool.delete(device.thin)
            self.host.step("devicemapper.deleted")
        remove_tree(path)

    def _known_elsewhere(self, id_: LayerId, path: str) -> bool:
        """Whether the id has a living layer beside what is taken away, whose device has the same name."""
        return any(
            os.path.isdir(other) and other != path
            for other in (f"{self._at.root}/{folder}/{id_}" for folder in ("active", "committed"))
        )

    def _give_back(self, name: str, device: Device) -> None:
        """Discard what only this device has: deleting it would free blocks of the pool and not of what is below."""
        try:
            self.pool.activate(name, device.thin, device.sectors, frozen=False)
        except Damaged:
            return  # a call that died has deleted it
        try:
            self.pool.discard(name)
        finally:
            self.pool.removed(name)

    # ------------------------------------------------------------ mounting

    def activate(self, layer: api.Layer, *, read_only: bool) -> None:
        """Holds the layer's lock until `deactivate`: of two processes, one comes after the other's mount.

        read_only is no property of an active layer's device: the kernel mounts a device in one way at a time."""
        device = self.device(layer)
        name = self._name(layer)
        with self._guard:
            held = self._held.get(name)
            if held is not None:
                self._held[name] = held[0], held[1] + 1
                return
        lock = self._layer_lock(layer)
        lock.take()
        try:
            self.pool.activate(name, device.thin, device.sectors, frozen=layer.kind is api.Kind.COMMITTED)
        except BaseException:
            lock.release()
            raise
        with self._guard:
            self._held[name] = lock, 1

    def deactivate(self, layer: api.Layer) -> None:
        name = self._name(layer)
        with self._guard:
            lock, times = self._held.get(name, (None, 0))
            if times > 1 and lock is not None:
                self._held[name] = lock, times - 1
                return
            self._held.pop(name, None)
        try:
            self.pool.deactivate(name)
        finally:
            if lock is not None:
                lock.release()

    def mounts(self, layer: api.Layer, request: api.MountRequest) -> api.MountPlan:
        self._at.require(layer)
        options = list(request.options)
        if request.selinux_label:
            options.append(("context", request.selinux_label))
        return filesystems.plan(
            self.pool.known.filesystem,
            self.pool.node(self._name(layer)),
            frozen=layer.kind is api.Kind.COMMITTED or self.pool.read_only,
            read_only=request.read_only,
            quota=self.pool.known.quota,
            options=tuple(options),
        )

    def usage(self, layer: api.Layer) -> api.Usage:
        below = self.device(layer.parent).thin if layer.parent is not None else self.pool.known.base
        own = sum(count for _, count in self.pool.difference(below, self.device(layer).thin))
        return api.Usage(own=own, shared=None, inodes=None, exact=False)

    def set_quota(self, layer: api.Layer, quota: api.Quota) -> None:
        """The kernel limits what the whole tree uses: what lies below is added to the limit."""
        if not self.pool.known.quota:
            raise Unsupported("this store has no quota", layer=layer.id, remedy="leave the size limit out")
        device, below = self.device(layer), (0, 0)
        if not device.limited:
            device.limited = True
            self._write(f"{self._at.layer(layer)}/{_CONTENT}", device, durable=True)
        if layer.parent is not None and quota != api.Quota():
            with self._layer_lock(layer.parent):
                mounted = self._mounted(layer.parent.id, self.device(layer.parent), frozen=True)
                with mounted as root:
                    below = measure_tree(f"{root}/.")  # the path is a link of /proc, which is not followed as such
        mounted = self._mounted(layer.id, device, frozen=False)
        with self._layer_lock(layer), mounted as root, blockdevices.opened(root) as fd:
            self._grow(self._at.layer(layer), layer.id, fd, below[0] + (quota.bytes or 0))
            self._limit(fd, below, quota)

    def _grow(self, folder: str, id_: LayerId, fd: int, content: int) -> None:
        """Give a mounted layer, of which fd is the root and `folder` tells, room for so many bytes: the limit that was
        asked for may be more than what layers hold, and users expect to get it. Not more than the pool has."""
        known, device = self.pool.known, self._read(folder)
        most = self.pool.status().data_total * self.pool.table().block
        wanted = -(-filesystems.device_size(content) // tables.SECTOR // tables.BLOCK) * tables.BLOCK
        wanted = max(min(wanted, most // tables.BLOCK * tables.BLOCK), device.sectors)
        if wanted <= known.sectors:
            return
        if wanted > device.sectors:
            device.sectors = wanted
            self._write(f"{folder}/{_CONTENT}", device, durable=True)
        self.pool.extend(self.device_name(id_), device.thin, wanted)
        self.host.call("grow", lambda: filesystems.grow(fd, known.filesystem, wanted * tables.SECTOR))
        self.host.step("devicemapper.grown")

    def _used(self, fd: int) -> tuple[int, int]:
        """Bytes and inodes of the tree that fd is the root of."""
        return self.host.call("used", lambda: projects.used(fd, filesystems.PROJECT), changes=False)

    def _limit(self, fd: int, below: tuple[int, int], quota: api.Quota) -> None:
        """Limit the tree that fd is the root of; below: what of it (bytes, inodes) does not count."""
        size = max(below[0] + quota.bytes, 1) if quota.bytes is not None else 0
        inodes = max(below[1] + quota.inodes, 1) if quota.inodes is not None else 0
        self.host.call("limit", lambda: projects.set_limits(fd, filesystems.PROJECT, size, inodes))

    def snapshot(self, active: api.Layer, new: api.Layer, durability: api.Durability) -> api.DriverData:
        """A frozen file system is snapped; a device that is not mounted needs no freezing."""
        durable = durability > api.Durability.NONE
        if not self._at.exists(new):
            self.pool.require_space(self._reserve)
            origin = self.device(active)
            with self._layer_lock(active):
                name = self._name(active)
                temporary = self._make(new, origin, name, limited=origin.limited, durable=durable)
            self._close(new.id, self._read(temporary), durable=durable)
            os.rename(temporary, self._at.layer(new))
            self.host.step("devicemapper.snapshot.published")
        if durable:
            files.sync_directory(f"{self._at.root}/committed")
        return {}

    # ------------------------------------------------------------ comparing

    def changes(self, lower: api.Layer | None, upper: api.Layer) -> Iterator[api.Change]:
        """Of a layer that may be written, its state at this moment."""
        from cowshed_driver_devicemapper import changes

        self._at.require(upper)
        if lower is None or lower.kind is api.Kind.ACTIVE:
            return iter((changes.EVERYTHING,))
        if upper.kind is api.Kind.ACTIVE:
            return iter(self._changes_of_active(lower, upper))
        name, device = self._name(upper), self.device(upper)
        self.activate(upper, read_only=True)
        try:
            return iter(self._compared(lower, upper.id, name, device))
        finally:
            self.deactivate(upper)

    def _changes_of_active(self, lower: api.Layer, upper: api.Layer) -> list[api.Change]:
        """By a snapshot, whose file system is at rest."""
        from cowshed_driver_devicemapper import changes

        id_ = LayerId(f"{upper.id}.{os.urandom(6).hex()}")
        temporary, name = f"{self._at.root}/temp/{id_}", self.device_name(id_)
        try:
            os.mkdir(temporary, 0o700)
            device = self._snap(temporary, 0, self.device(upper), self._name(upper), limited=False, durable=True)
            self.pool.activate(name, device.thin, device.sectors, frozen=True)
            return self._compared(lower, id_, name, device)
        except (NoSpace, OSError) as error:
            if not isinstance(error, NoSpace) and error.errno not in (errno.EROFS, errno.ENOSPC):
                raise
            return [changes.EVERYTHING]  # a full pool takes no snapshot, and what cannot be written holds none
        finally:
            self._forget(temporary, discards=False)  # nothing was written to it

    def _compared(self, lower: api.Layer, id_: LayerId, name: str, device: Device) -> list[api.Change]:
        """Candidates of what differs between a layer and the device of this name, which is active and at rest."""
        from cowshed_driver_devicemapper import changes, ext4

        self.pool.flush(name)  # what the pool says of its devices is as of its last commit
        old = self.device(lower)
        ranges = self.pool.difference(old.thin, device.thin)
        if not ranges:
            return []
        self.activate(lower, read_only=True)
        try:
            try:
                here, there = (self.pool.node(each) for each in (self._name(lower), name))
                with blockdevices.opened(here) as one, blockdevices.opened(there) as other:
                    inodes = ext4.differing(ext4.FileSystem(one), ext4.FileSystem(other), ranges)
            except ext4.Unclear:
                return [changes.EVERYTHING]
            if not inodes:
                return []
            with self._mounted(lower.id, old, frozen=True) as below, self._mounted(id_, device, frozen=True) as now:
                return changes.named(below, now, inodes)
        finally:
            self.deactivate(lower)

    # ------------------------------------------------------------ checking

    def check(self, layers: Sequence[api.Layer], *, deep: bool) -> Iterator[api.Finding]:
        from cowshed_driver_devicemapper import check

        return check.findings(self, layers, deep=deep)

    def repair(self, finding: api.Finding) -> None:
        from cowshed_driver_devicemapper import check

        check.repair(self, finding)

    # ------------------------------------------------------------ names and what lies under them

    def _name(self, layer: api.Layer) -> str:
        return self.device_name(layer.id)

    def device_name(self, id_: LayerId) -> str:
        return f"{self.pool.prefix}{id_}"

    def device(self, layer: api.Layer) -> Device:
        self._at.require(layer)
        return self._read(self._at.layer(layer))

    def _read(self, folder: str) -> Device:
        device = read_device(folder)
        if device is None:
            raise Damaged(f"{folder} does not say which thin device it has", remedy="remove the layer")
        return device

    @staticmethod
    def _read_or_none(folder: str) -> Device | None:
        return DeviceMapperDriver._device_of(folder)

    def _layer_lock(self, layer: api.Layer) -> Lock:
        return Lock(f"{self._at.layer(layer)}/{_CONTENT}")

    def _mounted(self, id_: LayerId, device: Device, *, frozen: bool) -> _Mounted:
        name = self.device_name(id_)
        known = self.pool.known
        plan = filesystems.plan(
            known.filesystem, self.pool.node(name), frozen=frozen, read_only=frozen, quota=known.quota
        )
        return _Mounted(self.pool, self.host, name, device, plan, frozen=frozen)


class _Mounted:
    """A layer's tree, mounted for this process; its device is gone with the mount."""

    def __init__(
        self, pool: Pool, host: api.Host, name: str, device: Device, plan: api.MountPlan, *, frozen: bool
    ) -> None:
        self.pool, self.host, self._name, self._device, self._plan = pool, host, name, device, plan
        self._frozen = frozen

    def __enter__(self) -> str:
        self.pool.activate(self._name, self._device.thin, self._device.sectors, frozen=self._frozen)
        try:
            self._mount = self.host.mounted(self._plan)
            return self._mount.__enter__().path
        finally:
            self.pool.deactivate(self._name)

    def __exit__(self, *_: object) -> None:
        self._mount.__exit__(None, None, None)


def _any_id() -> int:
    return RANGE // 2 + int.from_bytes(os.urandom(3), "little") % (RANGE // 2)


LOOP_IS_POOR = api.Reason(
    "devicemapper.loop",
    "the pool lies on loop files: good for trying out, slow, and full without a warning when the disk below is",
    "give it a thin pool (option pool) or two devices (data_device, metadata_device)",
    api.Verdict.POOR,
)


def init(root: str, options: api.Options, host: api.Host, *, mapper: Callable[[], Mapper]) -> api.StoreId:
    from cowshed_driver_devicemapper.making import make  # the first command of a store only

    store = directories.init_store(root, NAME)
    make(root, options, host, host.library("dm", mapper), store)
    return store


def open_store(
    root: str, options: api.Options, host: api.Host, *, store: api.StoreId, mapper: Callable[[], Mapper]
) -> DeviceMapperDriver:
    directories.check_store(root, NAME, store)
    known = record.load(root)
    if known is None or not known.ready:
        raise WrongStore(f"{root} has no pool: its making was not finished", remedy="make the store again")
    if known.uuid != store:
        raise WrongStore(f"{root}/pool belongs to store {known.uuid}, not {store}", remedy="put the right one back")
    pool = Pool(root, known, host.library("dm", mapper), host)
    pool.up()
    if known.kind == record.GIVEN:
        pool.identify()
    pool.resume_suspended()
    return DeviceMapperDriver(root, options, host, pool)


def destroy_store(
    root: str, options: api.Options, host: api.Host, *, store: api.StoreId, mapper: Callable[[], Mapper]
) -> None:
    from cowshed_driver_devicemapper.making import unmake

    if os.path.lexists(f"{root}/store"):
        directories.check_store(root, NAME, store)
        if os.path.lexists(f"{root}/pool"):
            unmake(root, host.library("dm", mapper), host)
            remove_tree(f"{root}/pool")
    directories.destroy_store(root, NAME, store)
