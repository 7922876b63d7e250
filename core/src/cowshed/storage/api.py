"""The storage driver interface, version 1.1.

Vocabulary.  A *layer* is a file-system tree that a driver holds: ACTIVE (writable) or COMMITTED (immutable, may be a
parent).  A *view* is not an object: it is ``mounts(committed, MountRequest(read_only=True))``.  The engine owns names,
parents, leases and "is it in use"; a driver owns physical objects under engine-made ids, and cannot know who has
mounted them.

Rules a driver may rely on (the engine keeps them, across processes):
  E1  calls on one layer never overlap; all ancestors of that layer stay in place during the call;
  E2  commit and remove are called only when no mount of the layer is alive anywhere;
  E3  an id is never used again, a number only after purge() has said that nothing of its last owner is left;
  E4  init, open and destroy of one store never overlap; close() of one process says nothing about the others.
Rules a driver keeps: every changing call may be repeated with the same arguments by another process after a crash
at any instruction, and then returns the same DriverData.
"""

from __future__ import annotations

from cowshed.storage.errors import LayerId  # noqa: TC001 - part of the interface
from cowshed.storage.record import Enum, IntEnum, field, record

# Every `run` imports this: no dataclasses, enum, typing, pathlib, contextlib at run time (32 ms with them, 2 without).
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from typing import Any, BinaryIO, NewType, Protocol, TypeGuard, TypeVar

    T = TypeVar("T")
    Path = str  # as the file system gives it, decoded with surrogateescape
else:

    class Protocol: ...

    def NewType(name, kind):
        return kind


API_VERSION = (1, 1)
ENTRY_POINT_GROUP = "cowshed.storage_drivers"

StoreId = NewType("StoreId", str)  # made by init(), kept on the back end and in the engine's database
if TYPE_CHECKING:
    DriverData = Mapping[str, str | int]  # small; the driver must be able to find it again from id and number


# ---------------------------------------------------------------- values


class Kind(Enum):
    """Whether a layer can still be written to."""

    ACTIVE = "active"
    COMMITTED = "committed"


@record(frozen=True, slots=True, eq=False)
class Layer:
    """A layer and all below it. Compared by id, so that chains of hundreds cost nothing to hash, print or pickle."""

    id: LayerId
    number: int  # 1 … 2**24-1, unique in the store: thin device id, project id, qgroup id
    kind: Kind
    parent: Layer | None = field(default=None, repr=False)
    data: DriverData = field(default_factory=dict, repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layer) and other.id == self.id and other.kind is self.kind

    def __hash__(self) -> int:
        return hash(self.id)

    def chain(self) -> Iterator[Layer]:
        """This layer, then its parent, … down to the base."""
        layer: Layer | None = self
        while layer is not None:
            yield layer
            layer = layer.parent

    def __reduce__(self) -> tuple[Callable[..., Layer], tuple[Any, ...]]:
        return _rebuild, ([(x.id, x.number, x.kind, dict(x.data)) for x in self.chain()],)


def _rebuild(rows: Sequence[tuple[LayerId, int, Kind, DriverData]]) -> Layer:
    layer: Layer | None = None
    for id_, number, kind, data in reversed(rows):
        layer = Layer(id_, number, kind, layer, data)
    assert layer is not None
    return layer


class QuotaScope(Enum):
    """What a size limit counts."""

    NONE = "none"
    OWN = "own"  # bytes this layer added (wanted everywhere)
    TOTAL = "total"  # this layer plus what it shares with its parents


class Durability(IntEnum):
    NONE = 0  # may be lost by a power cut, never silently wrong
    COMMIT = 1  # a committed layer survives one once commit() has returned


class Whiteout(Enum):
    """How a diff tree says "deleted"."""

    CHAR = "char"  # character device 0:0
    XATTR = "xattr"  # PREFIX.whiteout on an empty file, PREFIX.opaque=x on its directory
    AUFS = "aufs"  # .wh.NAME, .wh..wh..opq


class Granularity(Enum):
    """What the first write to shared data copies."""

    FILE = "file"
    EXTENT = "extent"
    BLOCK = "block"
    TREE = "tree"  # nothing is shared: prepare() has copied all


class Consistency(Enum):
    NONE = "none"  # no snapshot of a mounted layer
    CRASH = "crash"  # as after a power cut
    FILE_SYSTEM = "file-system"  # frozen first


@record(frozen=True, slots=True)
class Quota:
    """The most that a layer may hold; None: no limit."""

    bytes: int | None = None
    inodes: int | None = None


@record(frozen=True, slots=True)
class LayerOptions:
    """Wishes for a new layer. A driver raises Unsupported for one that it cannot meet."""

    quota: Quota = Quota()
    root_uid: int = 0  # owner of the root directory of a layer without parent, as on disk
    root_gid: int = 0
    durable: bool = True  # False: it need not survive a power cut, or the engine syncs the whole file system itself


@record(frozen=True, slots=True)
class Usage:
    """What a layer takes, in bytes as the back end allocates them."""

    own: int  # bytes that come back on removal
    shared: int | None
    inodes: int | None  # None = unknown; never -1
    exact: bool


# ---------------------------------------------------------------- mounts: descriptions only


@record(frozen=True, slots=True)
class Step:
    """What an earlier step of the same plan has mounted (a path inside it)."""

    index: int
    subpath: str = ""


if TYPE_CHECKING:
    Source = Path | Step


@record(frozen=True, slots=True)
class Bind:
    """A directory as it is, and nothing that is mounted in it (open_tree(2), OPEN_TREE_CLONE)."""

    source: Source
    read_only: bool = False


@record(frozen=True, slots=True)
class Overlay:
    """overlay(5), Documentation/filesystems/overlayfs.rst. Paths may be of any length; the engine finds short names."""

    lowers: tuple[Source, ...]  # top first
    upper: Path | None = None  # None = read-only
    work: Path | None = None
    read_only: bool = False  # of a mount that has an upper
    data_lowers: tuple[Source, ...] = ()  # data-only, kernel 6.8 (composefs)
    options: tuple[tuple[str, str | None], ...] = ()


@record(frozen=True, slots=True)
class Aufs:
    """aufs(5), where the kernel has it."""

    branches: tuple[Path, ...]  # top first; the engine appends those that do not fit in one page
    writable: bool
    options: tuple[tuple[str, str | None], ...] = ()


@record(frozen=True, slots=True)
class FileSystem:
    """A file system of its own, as mount(8) would mount it. An image file needs a file system that mounts files itself,
    such as erofs since Linux 6.12; for others the driver sets up a loop device (`ActivationDriver`)."""

    fstype: str
    source: str  # what mount(8) calls the device: /dev/…, pool/dataset, an image file
    read_only: bool = False
    options: tuple[tuple[str, str | None], ...] = ()


if TYPE_CHECKING:
    Mount = Bind | Overlay | Aufs | FileSystem


@record(frozen=True, slots=True)
class MountPlan:
    """Steps in order; the last one is the tree. Id maps are the engine's: on Bind and FileSystem, and on each lower of
    an Overlay (the kernel refuses them on the overlay itself)."""

    steps: tuple[Mount, ...]
    subpath: str = ""  # where the root is inside the last mount
    exclusive: bool = False  # one live mount at a time; further users get a clone of that mount


@record(frozen=True, slots=True)
class MountRequest:
    """How a layer is to be mounted. Unsupported for a wish that the driver cannot meet."""

    read_only: bool
    selinux_label: str | None = None
    volatile: bool = False  # contents may be lost, speed matters
    options: tuple[tuple[str, str | None], ...] = ()  # checked against the driver's schema before


@record(frozen=True, slots=True)
class DiffTree:
    """A directory that holds exactly what one layer changed. ACTIVE: the engine may extract into it while the layer is
    not mounted. COMMITTED: read only. It must copy attributes of parent directories, and targets of hard links, from
    the layers below itself."""

    directory: Path
    whiteout: Whiteout
    xattr_prefix: str = ""  # "trusted.overlay." or "user.overlay.": private, never in an archive


# ---------------------------------------------------------------- changes


class ChangeKind(Enum):
    """What has happened to a path, as `cowshed diff` prints it."""

    ADDED = "A"
    MODIFIED = "C"
    DELETED = "D"
    CANDIDATE = "?"  # the engine compares this path itself


@record(frozen=True, slots=True)
class Change:
    """One path that differs between two layers."""

    path: bytes  # relative, no leading slash; names need not be UTF-8
    kind: ChangeKind
    subtree: bool = False  # also everything below (renamed or opaque directory)


# ---------------------------------------------------------------- capabilities


@record(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Facts about one opened store, not about a class: the same driver may have quota on one disk and not on another.
    The engine and the suite look here only. Names of fields are the gates of the conformance cases."""

    granularity: Granularity
    max_depth: int | None = None  # of committed layers in a chain; an active one may stand on the last
    durability: Durability = Durability.NONE  # the best it can do
    # abilities: each switches on one of the Protocols below
    diff_tree: bool = False
    changes: bool = False
    changes_exact: bool = False  # rewriting identical bytes is not reported
    activation: bool = False
    quota: QuotaScope = QuotaScope.NONE
    quota_inodes: bool = False
    live_snapshot: Consistency = Consistency.NONE
    rebase: bool = False
    transfer_formats: tuple[str, ...] = ()
    self_check: bool = False
    # what users see
    rename_lower_directory: bool = True  # False: EXDEV
    hard_links_survive_copy_up: bool = True
    parent_times_survive_copy_up: bool = True  # False: the directories above a lower file get the time of its change
    time_granularity: int = 1  # ns: times that are set are cut to a multiple of it
    inodes_stable: bool = True
    stale_reads_after_copy_up: bool = False  # what was opened or mapped before the first write shows old bytes
    char_0_0_visible: bool = True
    nested_subvolumes: bool = False
    shared_page_cache: bool = False
    idmapped_mounts: bool = False
    selinux: bool = False
    rootless: bool = False  # also in a user namespace; a store made under one map of ids is WrongStore under another
    acl: bool = True
    acl_before_copy_up: bool = True  # False: EOPNOTSUPP for a file of a lower layer until something else of it changed
    sparse: bool = True
    lost_xattrs: tuple[str, ...] = ()
    xattrs_removable: bool = True  # False: one that is removed stays, empty, and empty ones are not copied up
    name_max: int = 255  # bytes; longer names are ENAMETOOLONG
    reserved_names: tuple[str, ...] = ()  # beginnings of names that nobody can make or see
    usage_exact: bool = False


# ---------------------------------------------------------------- probing and looking


class Verdict(Enum):
    """How a driver would serve at a place."""

    GOOD = "good"
    POOR = "poor"  # works; never chosen silently
    UNUSABLE = "unusable"


@record(frozen=True, slots=True)
class Reason:
    """Why a probe or a health report says what it says, for people; `code` is for programs."""

    code: str  # stable, e.g. "overlay.no-d-type"
    text: str
    remedy: str = ""
    verdict: Verdict = Verdict.GOOD  # the worst of all is the report's


@record(frozen=True, slots=True)
class ProbeReport:
    """What a probe found out: facts, and what follows from them."""

    capabilities: Capabilities | None  # None only if unusable
    facts: Mapping[str, str | int | bool] = field(default_factory=dict)
    reasons: tuple[Reason, ...] = ()

    @property
    def verdict(self) -> Verdict:
        order = (Verdict.UNUSABLE, Verdict.POOR)
        return next((v for v in order if any(r.verdict is v for r in self.reasons)), Verdict.GOOD)


@record(frozen=True, slots=True)
class Health:
    """Room in the back end, in bytes (None where it cannot be told), and what endangers the store.

    A reason whose code ends in `.data-low` or `.metadata-low` stands in place of what `cowshed doctor` would say of the
    figures."""

    data_total: int | None
    data_free: int | None
    metadata_total: int | None
    metadata_free: int | None
    reasons: tuple[Reason, ...] = ()


class ObjectKind(Enum):
    """What a physical object is to the driver that finds it."""

    LAYER = "layer"
    TEMP = "temp"  # of a call that is running or has died
    TRASH = "trash"  # removed, waits for purge()
    AUXILIARY = "auxiliary"  # qgroup, project id, device node, …


@record(frozen=True, slots=True)
class StoredObject:
    """One physical object that the driver finds on the back end, known to the engine or not."""

    kind: ObjectKind
    name: str
    layer: LayerId | None = None
    number: int | None = None
    parent: LayerId | None = None
    layer_kind: Kind | None = None
    data: DriverData = field(default_factory=dict)


@record(frozen=True, slots=True)
class PurgeResult:
    """What `Driver.purge` could not delete within its budget."""

    objects_left: int  # 0 = nothing to delete
    space_pending: bool = False  # deleted, but the back end has not given the space back yet


@record(frozen=True, slots=True)
class Finding:
    """Something that a self-check found wrong."""

    code: str
    text: str
    layer: LayerId | None = None
    found: StoredObject | None = None
    repair: str = ""  # what repair() would do; empty = it cannot


# ---------------------------------------------------------------- the world, handed in


@record(frozen=True, slots=True)
class CompletedRun:
    """A tool that has ended, with all that it printed."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes


@record(frozen=True, slots=True)
class MountedTree:
    """A mounted plan, for as long as the context of `Host.mounted` lasts."""

    fd: int  # a detached mount; gone when the context ends or the process dies
    path: Path  # /proc/self/fd/N: this process only


class Host(Protocol):
    """All that a driver does outside its own root goes through here: traced, timed, faked in tests."""

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        ok: Collection[int] = (0,),
        mounts: Sequence[tuple[MountPlan, Path]] = (),
    ) -> CompletedRun:
        """Run a tool with LC_ALL=C, in a private mount namespace with these plans mounted if there are any.

        timeout is in seconds. Raises ToolFailed if the tool is missing, takes longer, or ends with a status that is not
        in ok."""

    def call(self, name: str, function: Callable[..., T], *arguments: object, changes: bool = True) -> T:
        """Do function(*arguments), one ioctl or library call (libdevmapper, libzfs_core); a trace has its arguments.

        One that changes something is a kill and fault point; changes=False is for those that only look."""

    def library(self, name: str, load: Callable[[], T]) -> T:
        """What load() gives, a binding whose methods are calls of a library: a trace has each of them, and where one is
        played back, load() is not called and the library need not be there."""

    def mounted(self, plan: MountPlan) -> AbstractContextManager[MountedTree]:
        """Mount a plan for this process alone, until the context ends: `with host.mounted(plan) as tree:`. OSError."""

    def sync(self, fd: int) -> None:
        """syncfs(2). Open fd before the first write that matters, else an earlier writeback error goes unseen."""

    def step(self, name: str) -> None:
        """A point of a changing call at which tests kill the process or inject an error, and where a call can be
        cancelled: raises Cancelled, which the driver lets pass."""

    def progress(self, text: str, done: int, total: int | None) -> None:
        """Tell how far a long call is; total is None if nobody knows. Raises Cancelled, as step does."""


# ---------------------------------------------------------------- the driver


class Driver(Protocol):
    """One open store. Safe to call from several threads and processes for different layers."""

    @property
    def capabilities(self) -> Capabilities:
        """What this store can: the same for as long as it is open."""

    def close(self) -> None:
        """Give up what the object holds open. Layers and mounts stay; a second call is harmless."""

    def health(self) -> Health:
        """How much room there is, and what endangers the store. OSError."""

    def scan(self) -> Iterator[StoredObject]:
        """Every object, including those of calls that are running in other processes."""

    def prepare(self, new: Layer, options: LayerOptions) -> DriverData:
        """Make an ACTIVE layer: empty, or equal to new.parent (COMMITTED).

        Raises NotFound if the parent is not there, Unsupported for a wish that cannot be met, NoSpace, OSError; then
        nothing is left but what scan() calls TEMP."""

    def commit(self, active: Layer, new: Layer, durability: Durability) -> DriverData:
        """Turn active into the COMMITTED layer new. On return active is gone. new.parent is active.parent unless
        capabilities.rebase. With Durability.COMMIT it survives a power cut from the return on.

        Raises NotFound, TooDeep, Unsupported for another parent, NoSpace, OSError; then active is still there."""

    def remove(self, layer: Layer) -> None:
        """Cheap: afterwards scan() shows it as TRASH or not at all. Absent is success. Raises InUse if the back end
        itself refuses."""

    def purge(self, claim: Callable[[LayerId], AbstractContextManager[bool]], budget: float) -> PurgeResult:
        """Delete TRASH, and TEMP that no running call owns, for about budget seconds. Resumable.

        For TEMP: see the object, then enter claim(id) (the engine takes the layer's lock without waiting) and delete
        only inside it and only if it is true. A list of running ids would be old by the time of the deletion: another
        process's prepare may have published that very object meanwhile."""

    def mounts(self, layer: Layer, request: MountRequest) -> MountPlan:
        """How the layer is mounted. Pure: changes nothing, and may be called any number of times. A COMMITTED layer is
        always read-only. Raises NotFound, Unsupported."""

    def usage(self, layer: Layer) -> Usage:
        """What the layer takes now; it may be mounted and written to meanwhile. Raises NotFound."""


class DiffTreeDriver(Driver, Protocol):
    """capabilities.diff_tree: what a layer changed lies in a directory of its own."""

    def diff_tree(self, layer: Layer) -> DiffTree:
        """Where, and how it says "deleted". Raises NotFound."""


class ChangesDriver(Driver, Protocol):
    """capabilities.changes: the back end knows what changed without a walk through both trees, as the engine does it
    for drivers that do not claim it."""

    def changes(self, lower: Layer | None, upper: Layer) -> Iterator[Change]:
        """What upper has that lower (None: the empty tree) has not, and the other way round. May report too much,
        never too little. Raises NotFound."""


class ActivationDriver(Driver, Protocol):
    """The engine calls activate, mounts, and at once deactivate: from then on the mount alone holds the device, and
    the kernel drops it with the last mount, whoever dies (dm deferred remove, loop autoclear). It may do so while the
    layer is mounted, and calls deactivate again for a process that died in between.

    No two processes of the engine do it to one layer at once, nor call usage() meanwhile. A driver that has its own
    layers mounted (Host.mounted, Host.run) activates and deactivates them itself around that."""

    def activate(self, layer: Layer, *, read_only: bool) -> None: ...
    def deactivate(self, layer: Layer) -> None: ...


class QuotaDriver(Driver, Protocol):
    """capabilities.quota: layers can be held to a size."""

    def set_quota(self, layer: Layer, quota: Quota) -> None:
        """Set, change or (Quota()) lift the limit of an ACTIVE layer, mounted or not. Raises NotFound, Unsupported."""


class SnapshotDriver(Driver, Protocol):
    """capabilities.live_snapshot: a layer can be copied while it is written to."""

    def snapshot(self, active: Layer, new: Layer, durability: Durability) -> DriverData:
        """A COMMITTED copy of an ACTIVE layer that stays, mounted or not."""


class TransferDriver(Driver, Protocol):
    """capabilities.transfer_formats: layers travel between stores in the back end's own format."""

    def send(self, layer: Layer, base: Layer | None, fmt: str, out: BinaryIO) -> None:
        """Write a COMMITTED layer, or what it has beyond base, to out. Raises NotFound, Unsupported for the format."""

    def receive(self, new: Layer, base: Layer | None, fmt: str, source: BinaryIO, durability: Durability) -> DriverData:
        """Make the COMMITTED layer new of what send() wrote. Raises NoSpace, and another StorageError for a stream that
        is not whole; then there is no layer."""


class SelfCheckDriver(Driver, Protocol):
    """capabilities.self_check: the back end can be held against what the engine knows."""

    def check(self, layers: Sequence[Layer], *, deep: bool) -> Iterator[Finding]:
        """What is wrong, given all layers that there should be; changes nothing. deep: whatever time it takes."""

    def repair(self, finding: Finding) -> None:
        """Do what finding.repair says; repeatable."""


def has_diff_tree(driver: Driver) -> TypeGuard[DiffTreeDriver]:
    return driver.capabilities.diff_tree


def has_changes(driver: Driver) -> TypeGuard[ChangesDriver]:
    return driver.capabilities.changes


def has_activation(driver: Driver) -> TypeGuard[ActivationDriver]:
    return driver.capabilities.activation


def has_quota(driver: Driver) -> TypeGuard[QuotaDriver]:
    return driver.capabilities.quota is not QuotaScope.NONE


def has_live_snapshot(driver: Driver) -> TypeGuard[SnapshotDriver]:
    return driver.capabilities.live_snapshot is not Consistency.NONE


def has_transfer(driver: Driver) -> TypeGuard[TransferDriver]:
    return bool(driver.capabilities.transfer_formats)


def has_self_check(driver: Driver) -> TypeGuard[SelfCheckDriver]:
    return driver.capabilities.self_check


# ---------------------------------------------------------------- what an entry point names


@record(frozen=True, slots=True)
class Option:
    """One driver option, as the configuration names it."""

    name: str
    kind: type[str] | type[int] | type[bool]
    default: str | int | bool | None
    doc: str
    choices: tuple[str, ...] = ()
    creation_only: bool = False  # fixed by init(); another value later is BadOption
    outside: bool = False  # its value names an object of the host that is not below root: a device, a pool


if TYPE_CHECKING:
    Options = Mapping[str, str | int | bool | None]  # validated and completed by the engine


class OpenStore(Protocol):
    """How a store is opened: see `DriverPlugin.open`."""

    def __call__(self, root: Path, options: Options, host: Host, *, store: StoreId) -> Driver: ...


class DestroyStore(Protocol):
    """How a store is taken away: see `DriverPlugin.destroy`."""

    def __call__(self, root: Path, options: Options, host: Host, *, store: StoreId) -> None: ...


@record(frozen=True, slots=True)
class DriverPlugin:
    """An object, not a class, so nothing runs on load. The entry point's name is the driver's name."""

    name: str
    api: tuple[int, int]
    summary: str
    options: tuple[Option, ...]
    probe: Callable[[Path, Options, Host], ProbeReport]  # never raises, leaves nothing
    init: Callable[[Path, Options, Host], StoreId]  # the only call that makes a store; repeatable
    open: OpenStore  # WrongStore if store is not what lies there; makes nothing
    destroy: DestroyStore  # takes away all that init() and layers made outside root too
    priority: int = 0  # 0 = never chosen automatically
    homepage: str = ""
