"""Making, opening and destroying a store: a directory with its identity, and a dataset named after that.

The directory says which dataset it lies on, and that is where the store's own goes, unless the option names another.
So a store moves with its pool, whatever the pool is called next time, and two stores in one pool never meet.
"""

from __future__ import annotations

import os

from cowshed.storage.errors import BadOption, InUse, ToolFailed, WrongStore
from cowshed.storage.kit import directories
from cowshed_driver_zfs import names
from cowshed_driver_zfs.binding import Zfs
from cowshed_driver_zfs.driver import NAME, ZfsDriver, capabilities
from cowshed_driver_zfs.reading import Reader
from cowshed_driver_zfs.removal import Removal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.storage import api

    Options = api.Options

_TOOL_TIMEOUT = 120.0
# What containers expect of a file system, whatever the dataset above says; and what keeps others off the layers.
_PROPERTIES = {
    "mountpoint": "legacy",
    "canmount": "off",
    "casesensitivity": "sensitive",
    "normalization": "none",
    "utf8only": "off",
    "xattr": "sa",
    "acltype": "posixacl",
    "dnodesize": "auto",
    "readonly": "off",
    "devices": "on",
    "exec": "on",
    "setuid": "on",
    "snapdir": "hidden",
    "sharenfs": "off",
    "sharesmb": "off",
    "com.sun:auto-snapshot": "false",
}
_OFFERED = ("compression", "recordsize", "sync")  # options of the driver, if they are given


def properties(options: Options) -> dict[str, str]:
    """What the dataset of a store is made with; those of layers inherit it."""
    wanted = {**_PROPERTIES, "atime": "on" if options["atime"] else "off"}
    for name in _OFFERED:
        if options[name] is not None:
            wanted[name] = str(options[name])
    return wanted


def dataset_of(root: str, options: Options) -> str:
    """The dataset below which the store's own lies. Raises BadOption if there is none and none is named."""
    if options["dataset"] is not None:
        return names.check_dataset(str(options["dataset"]))
    place = os.path.abspath(root)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    device = os.stat(place).st_dev
    fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    with open(fd, encoding="utf-8", errors="surrogateescape") as file:
        found = names.mounted_dataset(file.read(), f"{os.major(device)}:{os.minor(device)}")
    if found is None or "@" in found:
        raise BadOption(
            f"{place} does not lie on a dataset of ZFS that can be written to",
            remedy="name one: --driver-option dataset=POOL/NAME, or put the store (--root) on one",
        )
    return names.check_dataset(found)


def init(root: str, options: Options, host: api.Host) -> api.StoreId:
    """Make the store, or finish one that was begun."""
    dataset = dataset_of(root, options)
    zfs = host.library("zfs", Zfs)
    try:
        if not zfs.exists(dataset):
            raise BadOption(f"there is no dataset {dataset}", remedy=f"zfs create {dataset}")
        identity = directories.init_store(root, NAME)
        store = names.store(dataset, identity)
        if not zfs.exists(store):
            host.step("zfs.init.begun")
            wanted = [f"-o{name}={value}" for name, value in properties(options).items()]
            host.run(("zfs", "create", "-u", *wanted, store), timeout=_TOOL_TIMEOUT)
        host.step("zfs.init.made")
        _make_empty(zfs, store, host)
        return identity
    finally:
        zfs.close()


def _make_empty(zfs: Zfs, store: str, host: api.Host) -> None:
    """What layers without parent are cloned from: a file system whose only content is the layer's root directory."""
    from cowshed.storage.api import FileSystem, MountPlan

    empty = f"{store}/{names.EMPTY}"
    if zfs.exists(f"{empty}@c"):
        return
    if not zfs.exists(empty):
        host.call("zfs.create", lambda: zfs.create(empty))
    with host.mounted(MountPlan((FileSystem("zfs", empty),))) as tree:
        root = f"{tree.path}/root"
        if not os.path.isdir(root):
            os.mkdir(root)
        os.chmod(root, 0o755)  # whatever the umask
    host.call("zfs.snapshot", lambda: zfs.snapshot(f"{empty}@c", {}))


def open_store(root: str, options: Options, host: api.Host, *, store: api.StoreId) -> ZfsDriver:
    """Raises WrongStore if the directory or the dataset is not that of the store."""
    directories.check_store(root, NAME, store)
    name = names.store(dataset_of(root, options), store)
    zfs = host.library("zfs", Zfs)
    try:
        reader = Reader(zfs, name, host)
        found = reader.properties(name, "sync", "dedup")
        if found is None or not zfs.exists(f"{name}/{names.EMPTY}@c"):
            raise WrongStore(f"there is no dataset {name} of the store at {root}", remedy="is its pool imported?")
        module = host.call("zfs.module_version", module_version, changes=False)
        can = capabilities(
            durable=found["sync"] != "disabled", exact=found["dedup"] == "off", idmapped=module >= (2, 2)
        )
        return ZfsDriver(root, name, can, zfs, reader, host)
    except OSError as error:
        zfs.close()
        raise WrongStore(f"the pool of {name} cannot be asked: {error.strerror}", remedy="is it imported?") from None
    except BaseException:
        zfs.close()
        raise


def destroy_store(root: str, options: Options, host: api.Host, *, store: api.StoreId) -> None:
    """Destroy the dataset with all layers, then the directory. Raises InUse if a layer is mounted."""
    if os.path.lexists(f"{root}/store"):
        directories.check_store(root, NAME, store)
        name = names.store(dataset_of(root, options), store)
        zfs = host.library("zfs", Zfs)
        try:
            if zfs.exists(name):
                left = Removal(zfs, Reader(zfs, name, host), name, host).everything()
                if left:
                    raise InUse(
                        f"{left} datasets below {name} are in use",
                        holders=names.holders(name),
                        remedy="unmount them, and release the holds of their snapshots",
                    )
                host.call("zfs.destroy", lambda: zfs.destroy(name))
        finally:
            zfs.close()
    directories.destroy_store(root, NAME, store)


def module_version() -> tuple[int, ...]:
    """Of the kernel's module: (2, 1, 11). Raises ToolFailed if it is not loaded."""
    try:
        fd = os.open("/sys/module/zfs/version", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ToolFailed("the kernel has not loaded its module of ZFS", remedy="modprobe zfs") from None
    try:
        return names.version(os.read(fd, 256).decode("ascii", "replace"))
    finally:
        os.close(fd)
