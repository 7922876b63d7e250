"""A layer is a dataset: an active one a clone of its parent's snapshot, a committed one a snapshot.

How they are called, and in which order a layer goes through these names, is told in names.py. A dataset changes its
state by rename, which ZFS does at once and durably; all of its calls return when what they did is on disk. Layers are
mounted by the engine (mount points are `legacy`), in private namespaces only, so nothing on the host keeps them busy;
the tree is the directory `root` in the dataset, so that the `.zfs` of its top is outside of it.
"""

from __future__ import annotations

import errno
import os
import stat
from time import monotonic

from cowshed.storage import api
from cowshed.storage.errors import (
    AlreadyExists,
    Damaged,
    InUse,
    LayerId,
    NoSpace,
    NotFound,
    SpaceKind,
    ToolFailed,
    Unsupported,
)
from cowshed_driver_zfs import health, names, programs
from cowshed_driver_zfs.removal import Removal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager
    from typing import BinaryIO, TypeVar

    from cowshed_driver_zfs.binding import Zfs
    from cowshed_driver_zfs.reading import Reader

    T = TypeVar("T")

NAME = "zfs"
FORMAT = "zfs-send"
_NO_MOUNT = 2  # canmount=noauto
_TOOL_TIMEOUT = 60.0
_TRIES = 8


def capabilities(*, durable: bool, exact: bool, idmapped: bool) -> api.Capabilities:
    """What a store can. durable: `sync` is not disabled. exact: no two files share blocks behind our back (dedup).
    idmapped: the module maps ids (OpenZFS 2.2)."""
    return api.Capabilities(
        granularity=api.Granularity.BLOCK,
        durability=api.Durability.COMMIT if durable else api.Durability.NONE,
        changes=True,
        quota=api.QuotaScope.OWN,
        live_snapshot=api.Consistency.CRASH,
        transfer_formats=(FORMAT,),
        idmapped_mounts=idmapped,
        usage_exact=exact,
    )


class ZfsDriver:
    """One open store (`cowshed.storage.api.Driver` with changes, quota, snapshots and transfer)."""

    def __init__(self, root: str, store: str, can: api.Capabilities, zfs: Zfs, reader: Reader, host: api.Host) -> None:
        self._root, self._store, self._can = root, store, can
        self._zfs, self._host = zfs, host
        self._reader, self._pool = reader, names.pool(store)

    @property
    def capabilities(self) -> api.Capabilities:
        return self._can

    def close(self) -> None:
        self._zfs.close()

    def health(self) -> api.Health:
        found = self._reader.properties(self._store, "used", "available")
        if found is None:
            raise NotFound(f"dataset {self._store} is not there", remedy="is its pool imported?")
        used, available = int(found["used"]), int(found["available"])
        return api.Health(used + available, available, None, None, health.reasons(self._pool))

    # ------------------------------------------------------------ what is there

    def scan(self) -> Iterator[api.StoredObject]:
        return _stored(self._reader.objects(self._store))

    def _name(self, layer: api.Layer) -> str:
        return f"{self._store}/{names.COMMITTED if layer.kind is api.Kind.COMMITTED else names.ACTIVE}.{layer.id}"

    def _snapshot(self, layer: api.Layer | None) -> str:
        """What a child of the layer is cloned from."""
        return f"{self._store}/{names.EMPTY}@c" if layer is None else f"{self._name(layer)}@c"

    def _missing(self, layer: api.Layer) -> NotFound:
        return NotFound(
            f"there is no {layer.kind.value} layer {layer.id} in {self._store}",
            layer=layer.id,
            remedy="cowshed system check tells what is missing",
        )

    def _call(self, name: str, layer: api.Layer, function: Callable[[], T]) -> T:
        """Change something; what ZFS says of space and of use is raised as what it means."""
        try:
            return self._host.call(f"zfs.{name}", function)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                what = SpaceKind.QUOTA if error.errno == errno.EDQUOT else SpaceKind.DATA
                remedy = "cowshed system prune, or make the pool or its quota larger"
                raise NoSpace(str(error.strerror), what=what, layer=layer.id, remedy=remedy) from None
            if error.errno == errno.EBUSY:
                raise InUse(str(error.strerror), layer=layer.id, remedy="unmount it") from None
            raise

    # ------------------------------------------------------------ making layers

    def prepare(self, new: api.Layer, options: api.LayerOptions) -> api.DriverData:
        if options.quota.inodes is not None:
            raise Unsupported("ZFS has no limit on the inodes of a dataset", layer=new.id, remedy="limit bytes only")
        name = self._name(new)
        if not self._prepared(new, name):
            if new.parent is None and (options.root_uid or options.root_gid):
                self._clone_owned(new, name, options)
            else:
                self._clone(new, name, options.quota)
        self._host.step("zfs.prepare.published")
        return {}

    def _prepared(self, new: api.Layer, name: str) -> bool:
        """Whether the layer is there, as it should be; what a power cut left half made is taken away."""
        # Rarely is there one: a program is asked only then.
        found = self._reader.properties(name, "cowshed:number", "cowshed:parent") if self._zfs.exists(name) else None
        if found is None:
            return False
        if found["cowshed:number"] == programs.NOTHING:
            self._call("destroy", new, lambda: self._zfs.destroy(name))
            return False
        if found != _identity(new):
            raise AlreadyExists(
                f"dataset {name} is a layer already, with number {found['cowshed:number']}", layer=new.id
            )
        return True

    def _clone(self, new: api.Layer, name: str, quota: api.Quota, origin: str = "") -> None:
        """Make a dataset of that name of the parent's snapshot, or of another one."""
        origin = origin or self._snapshot(new.parent)
        properties: dict[str, str | int] = {**_identity(new), "canmount": _NO_MOUNT}
        if quota.bytes is not None:
            properties["quota"] = quota.bytes
        try:
            self._call("clone", new, lambda: self._zfs.clone(name, origin, properties))
        except FileNotFoundError:
            if new.parent is None:
                raise Damaged(f"{origin} is missing, which every layer starts from", layer=new.id) from None
            raise self._missing(new.parent) from None

    def _clone_owned(self, new: api.Layer, name: str, options: api.LayerOptions) -> None:
        temporary = self._temporary(new)
        self._clone(new, temporary, options.quota)
        self._host.step("zfs.prepare.cloned")
        with self._host.mounted(api.MountPlan((api.FileSystem("zfs", temporary),))) as tree:
            os.chown(f"{tree.path}/root", options.root_uid, options.root_gid)
        self._call("rename", new, lambda: self._zfs.rename(temporary, name))

    def _temporary(self, new: api.Layer) -> str:
        """The name of a dataset for a call to build its result in; what a dead call left there is removed."""
        name = f"{self._store}/{names.TEMP}.{new.id}"
        if self._zfs.exists(name):
            self._call("destroy", new, lambda: self._removal().destroy(f"{names.TEMP}.{new.id}"))
        return name

    def commit(self, active: api.Layer, new: api.Layer, durability: api.Durability) -> api.DriverData:
        if new.parent != active.parent:
            raise Unsupported(
                f"layer {active.id} is a clone of the one below it and cannot be put on another parent",
                layer=active.id,
                remedy="prepare a layer on that parent and copy the changes",
            )
        source, target = self._name(active), self._name(new)
        try:
            self._freeze(source, new)
        except FileNotFoundError:
            if not self._zfs.exists(target):
                raise self._missing(active) from None
            return {}
        self._host.step("zfs.commit.snapshotted")
        self._call("rename", new, lambda: self._zfs.rename(source, target))
        self._host.step("zfs.commit.renamed")
        return {}

    def _freeze(self, name: str, new: api.Layer) -> None:
        """Make the snapshot that is the committed layer."""
        snapshot = f"{name}@c"
        try:
            self._call("snapshot", new, lambda: self._zfs.snapshot(snapshot, _identity(new)))
        except FileExistsError:  # of a commit that died: the layer may have been written to since
            self._call("destroy", new, lambda: self._zfs.destroy_snapshots([snapshot]))
            self._call("snapshot", new, lambda: self._zfs.snapshot(snapshot, _identity(new)))

    def snapshot(self, active: api.Layer, new: api.Layer, durability: api.Durability) -> api.DriverData:
        """All that was written by calls that had returned is in it; what was written to mapped memory only, may be.

        The copy takes the place of the layer: it is what the layer is a clone of from now on, so that the layer can be
        removed first, and counts as its own, and against its limit, only what is written later.
        """
        source, target = self._name(active), self._name(new)
        temporary, live = f"{self._store}/{names.TEMP}.{new.id}", f"{source}@live.{new.id}"
        if self._zfs.exists(target):
            return {}
        if not self._zfs.exists(temporary):
            try:
                self._call("snapshot", new, lambda: self._zfs.snapshot(live, {}))
            except FileExistsError:
                pass  # of a call that died
            except FileNotFoundError:
                raise self._missing(active) from None
            self._clone(new, temporary, api.Quota(), live)
        self._host.step("zfs.snapshot.cloned")
        self._freeze(temporary, new)
        found = self._reader.properties(temporary, "origin")
        if found is not None and found["origin"] == live:
            self._call("promote", new, lambda: self._zfs.promote(temporary))
        # The layer is its clone now: it goes when that has gone, or has been promoted in its turn.
        self._call("destroy", new, lambda: self._zfs.destroy_snapshots([f"{temporary}@live.{new.id}"]))
        self._host.step("zfs.snapshot.promoted")
        self._call("rename", new, lambda: self._zfs.rename(temporary, target))
        return {}

    # ------------------------------------------------------------ removing layers

    def remove(self, layer: api.Layer) -> None:
        source, target = self._name(layer), f"{self._store}/{names.TRASH}.{layer.id}"
        for again in range(1 << 16):
            name = f"{target}.{again}" if again else target
            try:
                self._call("rename", layer, lambda name=name: self._zfs.rename(source, name))  # type: ignore[misc]
            except FileNotFoundError:
                return
            except FileExistsError:
                continue
            self._host.step("zfs.remove.renamed")
            return
        raise Damaged(f"{target} exists 65536 times", layer=layer.id, remedy="cowshed system prune")

    def purge(self, claim: Callable[[LayerId], AbstractContextManager[bool]], budget: float) -> api.PurgeResult:
        # One listing for all, as each command that removes something comes here. What it shows of others' work may be
        # old: unfinished() looks again.
        objects = self._reader.objects(self._store)
        removal = self._removal()
        left = removal.trash(objects, monotonic() + budget)
        for found in _stored(objects):
            if found.kind is api.ObjectKind.TEMP and found.layer is not None:
                with claim(found.layer) as mine:
                    left += not (mine and removal.unfinished(found.name))
        pending = removal.done and self._freeing()
        return api.PurgeResult(left, space_pending=pending)

    def _removal(self) -> Removal:
        return Removal(self._zfs, self._reader, self._store, self._host)

    def _freeing(self) -> bool:
        """Whether the pool still gives space back of what was destroyed."""
        argv = ("zpool", "get", "-Hpo", "value", "freeing", self._pool)
        said = self._host.run(argv, timeout=_TOOL_TIMEOUT).stdout.strip()
        if not said.isdigit():
            raise ToolFailed(f"zpool get freeing printed what was not understood: {said[:200]!r}")
        return int(said) > 0

    # ------------------------------------------------------------ using layers

    def mounts(self, layer: api.Layer, request: api.MountRequest) -> api.MountPlan:
        if request.selinux_label:
            raise Unsupported(
                "a label of a whole mount is not supported on ZFS", layer=layer.id, remedy="use overlay for SELinux"
            )
        committed = layer.kind is api.Kind.COMMITTED
        name = self._snapshot(layer) if committed else self._name(layer)
        if not self._zfs.exists(name):
            raise self._missing(layer)
        # Mounts of one snapshot share a superblock, which is read-only: EBUSY for who does not ask for that. So does
        # everything in a pool that was imported read-only.
        options = (("ro", None), *request.options) if committed or self._reader.read_only else request.options
        step = api.FileSystem("zfs", name, read_only=committed or request.read_only, options=options)
        return api.MountPlan((step,), subpath="root")

    def usage(self, layer: api.Layer) -> api.Usage:
        if layer.kind is api.Kind.ACTIVE and not self._reader.read_only:
            self._zfs.sync(self._pool)  # the figures are those of the last group of transactions on disk
        found = self._reader.properties(self._name(layer), "used", "referenced")
        if found is None:
            raise self._missing(layer)
        own = int(found["used"])  # of a clone, what it does not share with its origin
        shared = max(0, int(found["referenced"]) - own)
        return api.Usage(own=own, shared=shared, inodes=None, exact=self._can.usage_exact)

    def set_quota(self, layer: api.Layer, quota: api.Quota) -> None:
        """`quota` and not `refquota`: of a clone the first counts its own bytes, the other all that it shows.

        ZFS refuses a limit below what is used; what is used is the limit then.
        """
        if quota.inodes is not None:
            raise Unsupported("ZFS has no limit on the inodes of a dataset", layer=layer.id, remedy="limit bytes only")
        name = self._name(layer)
        for _ in range(_TRIES):
            limit = "none"
            if quota.bytes is not None:
                self._zfs.sync(self._pool)
                found = self._reader.properties(name, "used")
                if found is None:
                    raise self._missing(layer)
                limit = str(max(quota.bytes, int(found["used"])))
            elif not self._zfs.exists(name):
                raise self._missing(layer)
            argv = ("zfs", "set", f"quota={limit}", name)
            done = self._host.run(argv, timeout=_TOOL_TIMEOUT, ok=(0, 1))
            if done.returncode == 0:
                return
            said = done.stderr.decode(errors="replace").strip().partition("\n")[0]
            if "size is less than current used" not in said:
                raise ToolFailed(f"zfs set quota={limit} {name}: {said}", layer=layer.id)
        raise InUse(f"layer {layer.id} grows faster than its limit can be set", layer=layer.id, remedy="stop it first")

    # ------------------------------------------------------------ changes

    def changes(self, lower: api.Layer | None, upper: api.Layer) -> Iterator[api.Change]:
        from cowshed_driver_zfs import diff

        for layer in (lower, upper):
            if layer is not None and not self._zfs.exists(self._name(layer)):
                raise self._missing(layer)
        committed = upper.kind is api.Kind.COMMITTED
        if (
            lower is None
            or lower.kind is not api.Kind.COMMITTED
            or lower not in list(upper.chain())[1:]
            or (self._reader.read_only and not committed)  # no snapshot can be taken
        ):
            yield diff.EVERYTHING
        elif committed:
            yield from self._between(lower, self._snapshot(upper), upper)
        else:
            with _Moment(self._zfs, f"{self._name(upper)}@live.{upper.id}") as snapshot:
                yield from self._between(lower, snapshot, upper)

    def _between(self, lower: api.Layer, snapshot: str, upper: api.Layer) -> Iterator[api.Change]:
        from io import BytesIO

        from cowshed.storage.kit import streams
        from cowshed_driver_zfs import diff

        origin, records = self._snapshot(lower), BytesIO()
        streams.to(records, lambda fd: self._zfs.changed(origin, snapshot, fd))
        changed = diff.Objects(records.getvalue())
        # An active layer's names are those that it has now. Its snapshot is not mounted: a process that is killed loses
        # its hold before its mounts, and the snapshot could not go then.
        before, now = (self.mounts(layer, api.MountRequest(read_only=True)) for layer in (lower, upper))
        with self._host.mounted(before) as lower_tree, self._host.mounted(now) as upper_tree:
            yield from diff.candidates(changed, lower_tree.fd, upper_tree.fd)

    # ------------------------------------------------------------ transfer

    def send(self, layer: api.Layer, base: api.Layer | None, fmt: str, out: BinaryIO) -> None:
        """The stream of zfs-send(8), without properties; base is any layer below. Who receives it must have the same
        base, made by receive() too or in this pool."""
        from cowshed.storage.kit import streams

        _check_format(layer, fmt)
        if layer.kind is not api.Kind.COMMITTED or not self._zfs.exists(self._snapshot(layer)):
            raise self._missing(layer)
        if base is not None and (base not in list(layer.chain())[1:] or not self._zfs.exists(self._snapshot(base))):
            raise self._missing(base)
        origin = self._snapshot(base) if base is not None else None
        streams.to(out, lambda fd: self._zfs.send(self._snapshot(layer), origin, fd))

    def receive(
        self, new: api.Layer, base: api.Layer | None, fmt: str, source: BinaryIO, durability: api.Durability
    ) -> api.DriverData:
        from cowshed.storage.kit import streams

        _check_format(new, fmt)
        if self._zfs.exists(self._name(new)):
            return {}
        if base is not None and not self._zfs.exists(self._snapshot(base)):
            raise self._missing(base)
        origin = self._snapshot(base) if base is not None else None
        temporary = self._temporary(new)
        snapshot = f"{temporary}@c"

        def take(fd: int) -> None:
            self._call("receive", new, lambda: self._zfs.receive(snapshot, origin, _identity(new), fd))

        try:
            try:
                streams.of(source, take)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    raise Unsupported(
                        "the stream does not continue the base that was named", layer=new.id, remedy="send all of it"
                    ) from None
                raise Damaged(f"the stream of layer {new.id} cannot be received: {error.strerror}") from None
            self._host.step("zfs.receive.received")
            self._check_received(new, snapshot)
        except BaseException:
            self._temporary(new)
            raise
        self._call("rename", new, lambda: self._zfs.rename(temporary, self._name(new)))
        return {}

    def _check_received(self, new: api.Layer, snapshot: str) -> None:
        plan = api.MountPlan((api.FileSystem("zfs", snapshot, read_only=True, options=(("ro", None),)),))
        with self._host.mounted(plan) as tree:
            if "root" not in os.listdir(tree.path) or not stat.S_ISDIR(os.lstat(f"{tree.path}/root").st_mode):
                raise Damaged(f"the stream of layer {new.id} is not that of a layer: it has no directory root")


def _stored(objects: Iterable[programs.Object]) -> Iterator[api.StoredObject]:
    """What the datasets of a store, and their snapshots, are to the engine."""
    for found in objects:
        parsed = names.parse(found.name)
        if parsed is None:
            if found.name != names.EMPTY:
                yield api.StoredObject(api.ObjectKind.AUXILIARY, found.name)
            continue
        where, id_ = parsed
        layer, parent = LayerId(id_), LayerId(found.parent) if found.parent else None
        kind = api.Kind.COMMITTED if where == names.COMMITTED else api.Kind.ACTIVE
        if where == names.TRASH:
            yield api.StoredObject(api.ObjectKind.TRASH, found.name, layer, found.number)
        elif where == names.TEMP or (where == names.ACTIVE and found.number is None):
            yield api.StoredObject(api.ObjectKind.TEMP, found.name, layer)
        else:
            yield api.StoredObject(api.ObjectKind.LAYER, found.name, layer, found.number, parent, kind)
        for snapshot, clones in found.snapshots.items():
            name, _, of = snapshot.partition(".")
            if where in (names.ACTIVE, names.COMMITTED) and name == "live" and not clones:
                yield api.StoredObject(api.ObjectKind.TEMP, f"{found.name}@{snapshot}", LayerId(of))


class _Moment:
    """A snapshot of an active layer for the time of a block: held, and marked to go with the hold, so that the kernel
    takes it away if this process is killed."""

    def __init__(self, zfs: Zfs, name: str) -> None:
        self._zfs, self._name, self._hold = zfs, name, -1

    def __enter__(self) -> str:
        for _ in range(_TRIES):
            if self._zfs.exists(self._name):  # of a call that was killed before it was marked
                self._zfs.destroy_snapshots([self._name])
            self._zfs.snapshot(self._name, {})
            try:
                self._hold = self._zfs.hold(self._name, "cowshed")
            except FileNotFoundError:
                continue  # purge() of another command took it for that of a dead call
            finally:
                self._zfs.destroy_snapshots([self._name])
            return self._name
        raise InUse(f"{self._name} is destroyed by others each time", remedy="try again")

    def __exit__(self, *_: object) -> None:
        os.close(self._hold)


def _identity(layer: api.Layer) -> dict[str, str]:
    """What is kept with the dataset, so that scan() needs nothing else."""
    return {"cowshed:number": str(layer.number), "cowshed:parent": layer.parent.id if layer.parent else "none"}


def _check_format(layer: api.Layer, fmt: str) -> None:
    if fmt != FORMAT:
        raise Unsupported(f"driver zfs sends and receives {FORMAT}, not {fmt}", layer=layer.id)
