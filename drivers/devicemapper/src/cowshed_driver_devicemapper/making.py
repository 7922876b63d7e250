"""Makes the pool of a store, or its place in one that is there, and takes it away: what only init and destroy need."""

from __future__ import annotations

import os

from cowshed.storage.errors import BadOption, Damaged, NoSpace, SpaceKind, StorageError, Unsupported, WrongStore
from cowshed_driver_devicemapper import blockdevices, filesystems, record, tables
from cowshed_driver_devicemapper.pool import RANGE, Lock, Pool
from cowshed_linux import files, projects

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.storage import api
    from cowshed_driver_devicemapper.mapper import Mapper
    from cowshed_driver_devicemapper.record import PoolRecord

_MKFS_TIMEOUT = 600.0


def make(root: str, options: api.Options, host: api.Host, mapper: Mapper, store: str) -> None:
    """Make the pool of a store, or finish one that was begun. Raises BadOption, NoSpace, InUse, OSError."""
    known = record.load(root)
    if known is not None and known.ready:
        return
    begun = known is not None
    if known is None:
        known = plan(root, options, mapper, store, host)
        os.makedirs(f"{root}/pool", mode=0o700, exist_ok=True)
        record.save(root, known)
        host.step("devicemapper.init.recorded")
    if known.kind == record.LOOP:
        _files(root, options)
        host.step("devicemapper.init.files")
    pool = Pool(root, known, mapper, host)
    pool.up()
    if known.kind == record.GIVEN:
        node = blockdevices.node_of(_number(mapper, known.name))
        with Lock(node):  # of all stores, so that what another has not finished is not taken for a leftover of ours
            pool = _slot(pool, mapper, host, begun=begun)
            _base(pool, options, host)
    else:
        pool.removed(f"{pool.prefix}base")  # of a call that died
        pool.delete(known.base)
        if not pool.create_thin(known.base):
            raise Damaged(f"thin pool {pool.name} keeps device {known.base}")
        _base(pool, options, host)
    known.ready = True
    record.save(root, known)


def _number(mapper: Mapper, name: str) -> str:
    info = mapper.info(name)
    if info is None:
        raise WrongStore(f"there is no thin pool {name}", remedy="set it up first")
    return info.number


def plan(root: str, options: api.Options, mapper: Mapper, store: str, host: api.Host) -> PoolRecord:
    """What is to be made, from the options; nothing is."""
    kind, name, data, metadata = record.LOOP, "", str(options["data_device"]), str(options["metadata_device"])
    if options["pool"]:
        if data or metadata:
            raise BadOption("option pool of driver devicemapper excludes data_device and metadata_device")
        kind, name = record.GIVEN, pool_name(str(options["pool"]))
        table = mapper.table(name) if mapper.info(name) is not None else []
        if [line.kind for line in table] != ["thin-pool"]:
            raise BadOption(f"option pool of driver devicemapper: {name} is no thin pool", remedy="see dmsetup table")
        capacity = table[0].length
    elif data or metadata:
        kind, name = record.DEVICES, f"cowshed-{store[:16]}"
        sizes = [
            host.call("blank", _blank, path, option, changes=False)
            for option, path in (("data_device", data), ("metadata_device", metadata))
        ]
        capacity = sizes[0] // tables.SECTOR
    else:
        status = os.statvfs(root)
        capacity = _loop_sizes(status.f_bavail * status.f_frsize, options)[0] // tables.SECTOR
    filesystem = str(options["filesystem"])
    wanted = size_option(options, "layer_size") // tables.SECTOR
    quota = options["quota"] == "on"
    sectors = min(wanted, capacity) // tables.BLOCK * tables.BLOCK
    least = filesystems.LEAST[filesystem]
    if wanted * tables.SECTOR < least:
        raise BadOption(
            f"layers of {wanted * tables.SECTOR} bytes are too small for {filesystem}, which needs {least}",
            remedy="a larger layer_size, or filesystem=ext4",
        )
    sectors = max(sectors, -(-least // tables.SECTOR // tables.BLOCK) * tables.BLOCK)
    return record.PoolRecord(
        kind=kind, name=name, data=data, metadata=metadata, filesystem=filesystem, uuid=store, sectors=sectors,
        base=0, transaction=0, quota=quota, ready=False,
    )  # fmt: skip


def size_option(options: api.Options, name: str) -> int:
    try:
        return tables.parse_size(str(options[name]))
    except ValueError:
        raise BadOption(f"option {name} of driver devicemapper is a size such as 10G, not {options[name]!r}") from None


def pool_name(given: str) -> str:
    """The device-mapper name of what option `pool` names: itself, or the node of a device."""
    if not given.startswith("/"):
        return given
    try:
        with open(f"/sys/dev/block/{blockdevices.number_of(given)}/dm/name", encoding="utf-8") as file:
            return file.read().strip()
    except OSError as error:
        raise BadOption(
            f"option pool of driver devicemapper: {given}: {error.strerror}", remedy="name a thin pool"
        ) from None


def _blank(path: str, option: str) -> int:
    """Bytes of a device on which a pool may be made. Raises BadOption for one that holds anything."""
    if not path:
        raise BadOption("options data_device and metadata_device of driver devicemapper are needed both")
    try:
        blockdevices.number_of(path)
        with blockdevices.opened(path, os.O_RDONLY | os.O_EXCL) as fd:
            blockdevices.forget_cached(fd)
            if any(os.pread(fd, 1 << 20, 0)):
                raise BadOption(
                    f"option {option} of driver devicemapper: {path} holds data",
                    remedy=f"if it is not wanted: dd if=/dev/zero of={path} bs=1M count=1",
                )
            return blockdevices.size(fd)
    except OSError as error:
        raise BadOption(
            f"option {option} of driver devicemapper: {path}: {error.strerror}",
            remedy="name a device that is not in use",
        ) from None


def _loop_sizes(free: int, options: api.Options) -> tuple[int, int]:
    data, metadata = tables.loop_sizes(free)
    if options["loop_size"]:
        data = size_option(options, "loop_size") >> 16 << 16
        metadata = max(2 << 20, min(data // 64, max(16 << 20, data // 400))) >> 16 << 16
    if data < 4 << 20:
        raise NoSpace(f"{free} bytes are free, too few for a thin pool", remedy="choose another --root")
    return data, metadata


def _files(root: str, options: api.Options) -> None:
    folder = f"{root}/pool"
    status = os.statvfs(folder)
    data, metadata = _loop_sizes(status.f_bavail * status.f_frsize, options)
    for name, size in (("metadata", metadata), ("data", data)):
        fd = os.open(f"{folder}/{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size:
                continue  # made by an earlier call
            if name == "metadata":
                os.posix_fallocate(fd, 0, size)
            else:
                os.truncate(fd, size)
            os.fsync(fd)
        finally:
            os.close(fd)
    files.sync_directory(folder)


def _slot(pool: Pool, mapper: Mapper, host: api.Host, *, begun: bool) -> Pool:
    """The store's share of a given pool's ids: the first whose base this call creates."""
    known = pool.known
    first = known.base if begun and known.base else RANGE
    for base in range(first, tables.MAX_ID, RANGE):
        mine = begun and base == known.base
        known.base = base
        record.save(pool.root, known)
        host.step("devicemapper.init.slot")
        here = Pool(pool.root, known, mapper, host)
        if here.create_thin(base):
            return here
        if mine and _is_leftover(here):
            here.delete(base)
            if here.create_thin(base):
                return here
    raise NoSpace(f"thin pool {pool.name} has {tables.MAX_ID // RANGE} stores already", what=SpaceKind.METADATA)


def _is_leftover(pool: Pool) -> bool:
    """Whether a base, which our record says this store has tried to make, is not another store's."""
    name = f"{pool.prefix}base"
    pool.activate(name, pool.known.base, pool.known.sectors, frozen=True)
    try:
        found = pool.superblock(name)
    finally:
        pool.deactivate(name)
    return found is None or found.uuid == pool.known.uuid


def _base(pool: Pool, options: api.Options, host: api.Host) -> None:
    """The file system that all layers begin with, on a thin device that was made just now."""
    known, name = pool.known, f"{pool.prefix}base"
    pool.activate(name, known.base, known.sectors, frozen=False)
    try:
        node = pool.node(name)
        size, zeroed = known.sectors * tables.SECTOR, "skip_block_zeroing" not in pool.table().features
        command = filesystems.mkfs(known.filesystem, node, known.uuid, size, quota=known.quota, zeroed=zeroed)
        host.run(command, timeout=_MKFS_TIMEOUT)
        plan = filesystems.plan(known.filesystem, node, frozen=False, read_only=False, quota=known.quota, subpath="")
        try:
            with host.mounted(plan) as tree:
                path = f"{tree.path}/{filesystems.ROOT}"
                host.call("root", lambda: _root(path, quota=known.quota))
        except OSError as error:
            if not known.quota:
                raise
            raise Unsupported(
                f"{known.filesystem} with quota cannot be mounted here: {error}",
                remedy="a kernel with project quota, or the option quota=off",
            ) from None
        host.step("devicemapper.init.base")
        pool.flush(name)
    finally:
        pool.deactivate(name)


def _root(path: str, *, quota: bool) -> None:
    os.mkdir(path, 0o755)
    os.chmod(path, 0o755)  # whatever the umask
    if quota:
        with blockdevices.opened(path) as fd:
            projects.set_project(fd, filesystems.PROJECT, inherit=True)


def unmake(root: str, mapper: Mapper, host: api.Host) -> None:
    """Take the pool away, or what the store has in a given one. Repeatable. Raises InUse."""
    known = record.load(root)
    if known is None:
        return
    pool = Pool(root, known, mapper, host)
    try:
        if known.kind == record.GIVEN and known.base:
            _empty(pool)
        pool.down()
        if known.kind == record.DEVICES:
            for path in (known.data, known.metadata):
                host.call("wipe", _wipe, path)
    except FileNotFoundError:
        pass  # not made yet, or gone with its devices
    for name in ("data", "metadata", "record"):
        try:
            os.unlink(f"{root}/pool/{name}")
        except FileNotFoundError:
            pass


def _empty(pool: Pool) -> None:
    if pool._mapper.info(pool.name) is None:
        raise WrongStore(f"there is no thin pool {pool.name}", remedy="set it up, so that the store can be taken away")
    for name in [*pool._mapper.names()]:
        if name.startswith(pool.prefix):
            pool.removed(name)
    for thin in pool.devices():
        pool.delete(thin)
    if pool.known.ready or _is_leftover_base(pool):
        pool.delete(pool.known.base)


def _is_leftover_base(pool: Pool) -> bool:
    try:
        return _is_leftover(pool)
    except StorageError:  # there is none
        return False


def _wipe(path: str) -> None:
    """Let a device count as blank: see `_blank`."""
    with blockdevices.opened(path, os.O_RDWR) as fd:
        os.pwrite(fd, bytes(1 << 20), 0)
        os.fsync(fd)
