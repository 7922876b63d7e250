"""A layer is a subvolume, a snapshot of the one below it; the tree of a layer is the directory `root` in it.

    active/ID      writable
    committed/ID   immutable, and sealed by the read-only flag, which is never taken off again
    …/ID.trash     removed, waits for purge(): a read-only subvolume can be renamed only within its directory
    temp/ID…       of a call that is running, or died

A commit is the rename from active/ to committed/. The flag follows it, because nothing that is read-only can be moved;
a commit that died between the two is finished when it is repeated, or when the flag is needed.

The tree is not the subvolume's top, because systemd-tmpfiles makes subvolumes in a container whose root is one.
"""

from __future__ import annotations

import errno
import os
from time import monotonic, sleep

from cowshed.storage import api
from cowshed.storage.errors import Damaged, LayerId, NoSpace, SpaceKind, Unsupported, WrongStore
from cowshed.storage.kit import directories
from cowshed_driver_btrfs import ioctls, quota, subvolumes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import BinaryIO

    from cowshed_driver_btrfs.transfer import Receiver

NAME, CONTENT, TRASH = "btrfs", "root", ".trash"
MAGIC = 0x9123683E
NO_COW = 0x800000  # FS_NOCOW_FL
FOLDERS = ("temp", "active", "committed")
_KINDS = {"active": api.Kind.ACTIVE, "committed": api.Kind.COMMITTED}
_PATIENT = 1.0  # seconds: with a budget of so much, purge() wakes the cleaner, and waits for it where groups count
_BALANCE = "btrfs balance start -dusage=20 turns half-empty data chunks into room for metadata"


def capabilities(mode: str, options: api.Options) -> api.Capabilities:
    """What a store can where the file system has quotas in this mode (quota.state)."""
    limits = mode == quota.SIMPLE or (mode == quota.FULL and options["quota"] == quota.FULL)
    limits = limits and options["quota"] != quota.OFF
    return api.Capabilities(
        granularity=api.Granularity.EXTENT,
        durability=api.Durability.COMMIT,
        changes=mode != quota.UNKNOWN,  # send is root's
        quota=api.QuotaScope.OWN if limits else api.QuotaScope.NONE,
        live_snapshot=api.Consistency.CRASH,
        transfer_formats=("btrfs-send",) if mode != quota.UNKNOWN else (),
        self_check=True,
        nested_subvolumes=True,
        idmapped_mounts=True,
        rootless=options["quota"] in ("auto", quota.OFF),  # the others are for root
        usage_exact=limits and mode == quota.SIMPLE,
    )


class BtrfsDriver:
    """One open store: `Driver`, `ChangesDriver`, `QuotaDriver`, `SnapshotDriver`, `TransferDriver`, `SelfCheckDriver`
    of the interface."""

    def __init__(self, root: str, options: api.Options, host: api.Host, store: api.StoreId) -> None:
        self._at, self._host, self._options = directories.Directories(root, CONTENT, host), host, options
        self._fd = ioctls.directory(root)
        self._mode, self._charged_from = quota.state(self._fd)
        self.capabilities = capabilities(self._mode, options)
        limits = self.capabilities.quota is not api.QuotaScope.NONE
        self._groups = quota.Groups(self._fd, store, host) if limits and self._mode == quota.SIMPLE else None

    def close(self) -> None:
        self._at.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def health(self) -> api.Health:
        from cowshed_driver_btrfs.health import health

        return health(self._fd)

    # ------------------------------------------------------------ what is there

    def scan(self) -> Iterator[api.StoredObject]:
        yield from self._objects(FOLDERS)
        if self._groups is not None:
            for group in self._groups.unused():
                yield self._group(group, group - self._groups.store)
            for one in self._groups.dead():
                yield self._group(one, None)

    def _group(self, group: int, number: int | None) -> api.StoredObject:
        name = f"qgroup {group >> 48}/{group & (1 << 48) - 1}"
        return api.StoredObject(api.ObjectKind.AUXILIARY, name, number=number)

    def _objects(self, folders: tuple[str, ...]) -> Iterator[api.StoredObject]:
        """In the order in which a layer goes through them: one that moves may be seen twice and is never missed."""
        for folder in folders:
            for name in sorted(os.listdir(f"{self._at.root}/{folder}")):
                id_, dot, _ = name.partition(".")
                kind = api.ObjectKind.TEMP if folder == "temp" else api.ObjectKind.LAYER
                if dot and folder != "temp":
                    kind = api.ObjectKind.TRASH
                yield api.StoredObject(kind, f"{folder}/{name}", LayerId(id_), layer_kind=_KINDS.get(folder))

    # ------------------------------------------------------------ changing

    def prepare(self, new: api.Layer, options: api.LayerOptions) -> api.DriverData:
        limit = self._limit(new, options.quota)
        if self._at.exists(new):
            return {}
        parent = ""
        if new.parent is not None:
            self._at.require(new.parent)
            parent = self._at.layer(new.parent)
        place = self._at.layer(new)
        if parent and limit is None:
            if os.path.lexists(place):
                raise Damaged(f"{place} is in the way: a layer without {CONTENT}", layer=new.id)
            self._make(new.id, place, parent)
        else:
            self._build(new, place, parent, limit, options)
        self._host.step("btrfs.prepare.published")
        return {}

    def _build(
        self, new: api.Layer, place: str, parent: str, limit: int | None, options: api.LayerOptions
    ) -> None:  # fmt: skip
        """Make in temp/ what is not whole at once, and publish it by a rename."""
        temporary = f"{self._at.root}/temp/{new.id}"
        self._destroy(temporary)
        self._make(new.id, temporary, parent)
        if not parent:
            self._fill(temporary, options)
        self._host.step("btrfs.prepare.made")
        if limit is not None:
            self._set_limit(new.number, temporary, limit)
        self._at.publish(temporary, new, durable=False)
        if options.durable:
            from cowshed_linux import files

            files.sync_directory(f"{self._at.root}/active")  # of a subvolume's new name: commits the transaction

    def _make(self, new: LayerId, place: str, parent: str, *, read_only: bool = False) -> None:
        """A subvolume at place: a snapshot of the subvolume parent, or an empty one if that is "". Raises NoSpace."""

        def make() -> None:
            groups = [self._groups.store] if self._groups is not None else []
            if parent:
                subvolumes.snapshot(parent, place, groups, read_only=read_only)
            else:
                subvolumes.create(place, groups)

        name = "btrfs.snapshot" if parent else "btrfs.create"
        try:
            try:
                self._host.call(name, make)
            except OSError as error:
                if self._groups is None or error.errno not in (errno.ENOENT, errno.EINVAL):
                    raise
                self._groups.make()  # quotas were switched on after the store was made, or off and on again
                self._host.call(name, make)
        except OSError as error:
            self._told(error, new)
            raise

    def _fill(self, subvolume: str, options: api.LayerOptions) -> None:
        from cowshed_linux import files

        top = f"{subvolume}/{CONTENT}"
        os.mkdir(top)
        os.chmod(top, 0o755)  # whatever the umask
        os.chown(top, options.root_uid, options.root_gid)
        if self._options["compression"] != "none":
            os.setxattr(top, "btrfs.compression", str(self._options["compression"]).encode())
        if self._options["nodatacow"] == "on":
            fd = ioctls.directory(top)
            try:
                files.set_inode_flags(fd, files.inode_flags(fd) | NO_COW)
            finally:
                os.close(fd)

    def commit(self, active: api.Layer, new: api.Layer, durability: api.Durability) -> api.DriverData:
        self._same_parent(active, new)
        durable = durability > api.Durability.NONE
        place = self._at.layer(new)
        if not self._at.exists(new):
            self._at.require(active)
            self._refuse_nested(active)
            if durable:
                self._at.sync()
            self._host.step("btrfs.commit.synced")
            os.rename(self._at.layer(active), place)
            self._host.step("btrfs.commit.renamed")
        self._seal(place)  # which commits the transaction
        if self._groups is not None:
            self._groups.unlimit(active.number)
        return {}

    def snapshot(self, active: api.Layer, new: api.Layer, durability: api.Durability) -> api.DriverData:
        """As after a power cut at one moment, with all that had been written before the call. Durable in any case."""
        self._same_parent(active, new)
        if not self._at.exists(new):
            self._at.require(active)
            self._refuse_nested(active)
            self._make(new.id, self._at.layer(new), self._at.layer(active), read_only=True)
            self._host.step("btrfs.snapshot.made")
        return {}

    def _same_parent(self, active: api.Layer, new: api.Layer) -> None:
        if new.parent != active.parent:
            raise Unsupported(
                f"layer {active.id} is a snapshot of the one below it and cannot be put on another",
                layer=active.id,
                remedy="prepare a layer on that parent and apply the changes",
            )

    def _refuse_nested(self, active: api.Layer) -> None:
        """A subvolume in a layer would be an empty directory in every snapshot of it."""
        inside = subvolumes.nested(self._at.layer(active))
        if inside:
            names = ", ".join(sorted(_below(path) for path, _ in inside)[:5])
            raise Unsupported(
                f"layer {active.id} has subvolumes in it, which no snapshot holds: {names}",
                layer=active.id,
                remedy="put a directory in its place: cp -a --reflink=always OLD NEW, btrfs subvolume delete OLD",
            )

    def _seal(self, place: str) -> None:
        if not subvolumes.read_only(place):
            self._host.call("btrfs.seal", lambda: subvolumes.set_read_only(place, value=True))

    def remove(self, layer: api.Layer) -> None:
        source = self._at.layer(layer)
        target = f"{source}{TRASH}"
        for again in range(1 << 16):
            try:
                os.rename(source, f"{target}.{again}" if again else target)
                break
            except FileNotFoundError:
                break
            except OSError as error:
                if error.errno == errno.ENOSPC:  # no room for the new name: the kernel keeps some for removals
                    self._destroy(source)
                    break
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
        else:
            raise Damaged(f"{target} exists 65536 times", layer=layer.id, remedy="cowshed system prune")
        self._host.step("btrfs.remove.renamed")

    # ------------------------------------------------------------ deleting

    def purge(self, claim: Callable[[LayerId], AbstractContextManager[bool]], budget: float) -> api.PurgeResult:
        until = monotonic() + budget
        left, gone = 0, False
        waits = self._groups is not None and budget >= _PATIENT
        others = subvolumes.being_cleaned(self._fd) if waits else set()
        problem: OSError | None = None
        for found in list(self._objects(FOLDERS)):
            if found.kind is api.ObjectKind.LAYER or found.layer is None:
                continue
            path = f"{self._at.root}/{found.name}"
            try:
                if monotonic() > until:
                    left += 1
                elif found.kind is api.ObjectKind.TRASH:
                    done = self._destroy(path, until)
                    left, gone = left + (not done), gone or done
                else:
                    with claim(found.layer) as mine:
                        # The path is of temp/: if the layer was published since the scan, nothing is there now.
                        done = mine and self._destroy(path, until)
                    left, gone = left + (not done), gone or done
            except OSError as error:
                left += 1
                problem = problem or error
        if gone and budget >= _PATIENT and self._mode != quota.UNKNOWN:
            ioctls.sync(self._fd)  # else it may be half a minute until the cleaner begins
        while gone and waits and monotonic() < until and subvolumes.being_cleaned(self._fd) - others:
            sleep(0.01)
        if self._groups is not None:
            self._groups.purge()
        # A plain user, who may not ask, has removed entry by entry, and the space is back.
        pending = self._mode != quota.UNKNOWN and bool(subvolumes.being_cleaned(self._fd))
        if problem is not None:
            raise problem
        return api.PurgeResult(left, space_pending=pending)

    def _destroy(self, path: str, until: float | None = None) -> bool:
        """Absent is success; False if the time ran out."""
        if not os.path.lexists(path):
            return True
        quota.release(self._fd, self._mode, path, self._host)
        return self._host.call("btrfs.destroy", lambda: subvolumes.remove(path, until=until))

    # ------------------------------------------------------------ looking

    def mounts(self, layer: api.Layer, request: api.MountRequest) -> api.MountPlan:
        own = self._at.require(layer)
        if request.selinux_label:
            raise Unsupported(
                "all mounts of a btrfs share one superblock, which has the label of the first: a layer cannot have one",
                layer=layer.id,
                remedy="use overlay",
            )
        if request.options:
            raise Unsupported("a layer of btrfs takes no mount options of its own", layer=layer.id)
        read_only = request.read_only or layer.kind is api.Kind.COMMITTED
        return api.MountPlan((api.Bind(own, read_only),))

    def usage(self, layer: api.Layer) -> api.Usage:
        from cowshed_driver_btrfs import usage

        content, place = self._at.require(layer), self._at.layer(layer)
        if self._mode == quota.UNKNOWN:
            return api.Usage(usage.unshared(content), None, None, exact=False)
        if self._groups is not None and subvolumes.made_in(place) >= self._charged_from:
            ioctls.sync(self._fd)  # groups are counted at the end of a transaction
            ids = [subvolumes.identity(place), *(id_ for _, id_ in subvolumes.nested(place))]
            counted = [self._groups.own(id_) for id_ in ids]
            if None not in counted:
                return api.Usage(sum(size or 0 for size in counted), None, None, exact=True)
        return api.Usage(usage.written(place), None, None, exact=False)

    def changes(self, lower: api.Layer | None, upper: api.Layer) -> Iterator[api.Change]:
        from cowshed_driver_btrfs import changes

        self._at.require(upper)
        if lower is None or lower not in list(upper.chain())[1:]:
            yield changes.EVERYTHING
            return
        self._at.require(lower)
        below, own = self._at.layer(lower), self._at.layer(upper)
        try:
            self._seal(below)
            if upper.kind is api.Kind.COMMITTED:
                self._seal(own)
                found = list(changes.changes(below, own, CONTENT))
            else:
                found = self._changes_of_active(below, own, upper)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            found = [changes.EVERYTHING]  # a file system that is read-only takes no snapshot
        yield from found

    def _changes_of_active(self, below: str, own: str, upper: api.Layer) -> list[api.Change]:
        from cowshed_driver_btrfs import changes

        temporary = f"{self._at.root}/temp/{upper.id}.{os.urandom(6).hex()}"
        self._make(upper.id, temporary, own, read_only=True)
        try:
            found = list(changes.changes(below, temporary, CONTENT))
        finally:
            self._destroy(temporary)
        for path, _ in subvolumes.nested(own):  # empty in the snapshot
            found.append(api.Change(os.fsencode(_below(path)), api.ChangeKind.CANDIDATE, subtree=True))
        return found

    # ------------------------------------------------------------ streams

    def send(self, layer: api.Layer, base: api.Layer | None, fmt: str, out: BinaryIO) -> None:
        from cowshed.storage.kit import streams

        self._check_format(layer, fmt)
        known = layer.kind is api.Kind.COMMITTED and (base is None or base in list(layer.chain())[1:])
        if not known:
            raise Unsupported(
                "a stream is of a committed layer, and continues one below it", layer=layer.id, remedy="commit it first"
            )
        parent = 0
        for one in (layer, base) if base is not None else (layer,):
            self._at.require(one)
            self._seal(self._at.layer(one))
        if base is not None:
            parent = subvolumes.identity(self._at.layer(base))
        subvolume = ioctls.directory(self._at.layer(layer))
        try:
            streams.to(out, lambda to: ioctls.send(subvolume, parent, to, data=True))
        finally:
            os.close(subvolume)

    def receive(
        self, new: api.Layer, base: api.Layer | None, fmt: str, source: BinaryIO, durability: api.Durability
    ) -> api.DriverData:
        from cowshed_driver_btrfs import transfer
        from cowshed_driver_btrfs.sendstream import BadStream

        self._check_format(new, fmt)
        place, temporary = self._at.layer(new), f"{self._at.root}/temp/{new.id}"
        if not self._at.exists(new):
            if base is not None:
                self._at.require(base)
            self._destroy(temporary)
            try:
                self._take_in(new, base, temporary, transfer.Receiver(source))
                if durability > api.Durability.NONE:
                    self._at.sync()
                self._host.step("btrfs.receive.received")
                os.rename(temporary, place)
            except BadStream as error:
                self._destroy(temporary)
                raise Damaged(f"the stream of layer {new.id} cannot be received: {error}", layer=new.id) from None
            except BaseException:
                self._destroy(temporary)
                raise
        self._seal(place)
        return {}

    def _take_in(self, new: api.Layer, base: api.Layer | None, place: str, receiver: Receiver) -> None:
        header = receiver.header()
        below = self._at.layer(base) if base is not None else ""
        if header.base not in (subvolumes.identities(below) if below else (b"",)):
            raise Unsupported(
                f"the stream does not continue {'the layer that was named' if below else 'nothing'}",
                layer=new.id,
                remedy="send it without a base, or receive it on that base",
            )
        self._make(new.id, place, below)
        top = ioctls.directory(place)
        try:
            receiver.into(top, lambda: self._host.progress("receiving", 0, None))
            if not os.path.isdir(f"{place}/{CONTENT}"):
                raise Damaged(f"the stream is not that of a layer: it has no directory {CONTENT}", layer=new.id)
            self._host.call("btrfs.received", lambda: ioctls.set_received(top, header.uuid, header.transaction))
        finally:
            os.close(top)

    def _check_format(self, layer: api.Layer, fmt: str) -> None:
        if fmt not in self.capabilities.transfer_formats:
            raise Unsupported(f"streams of format {fmt} are unknown here", layer=layer.id, remedy="use an archive")

    # ------------------------------------------------------------ limits

    def set_quota(self, layer: api.Layer, quota: api.Quota) -> None:
        limit = self._limit(layer, quota)
        if self.capabilities.quota is not api.QuotaScope.OWN:
            return
        self._at.require(layer)
        self._set_limit(layer.number, self._at.layer(layer), limit)

    def _limit(self, layer: api.Layer, wanted: api.Quota) -> int | None:
        """The wish in bytes. Raises Unsupported."""
        if wanted.inodes is not None:
            raise Unsupported(
                "btrfs does not count inodes", layer=layer.id, remedy="leave the limit of inodes out; or use overlay"
            )
        if wanted.bytes is not None and self.capabilities.quota is api.QuotaScope.NONE:
            raise Unsupported(
                f"this store has no size limits: quotas of its file system are {self._mode}",
                layer=layer.id,
                remedy="make a store with --driver-option quota=simple (Linux 6.7), or leave the size limit out",
            )
        return wanted.bytes

    def _set_limit(self, number: int, place: str, limit: int | None) -> None:
        identity = subvolumes.identity(place)
        if self._groups is None:
            self._host.call("btrfs.limit", lambda: ioctls.limit_group(self._fd, identity, exclusive=limit))
        elif limit is None:
            self._groups.unlimit(number)
        else:
            self._groups.limit(number, [identity, *(id_ for _, id_ in subvolumes.nested(place))], limit)

    # ------------------------------------------------------------ checking

    def check(self, layers: Sequence[api.Layer], *, deep: bool) -> Iterator[api.Finding]:
        from cowshed_driver_btrfs import check

        return check.findings(self._at, layers, self._host)

    def repair(self, finding: api.Finding) -> None:
        from cowshed_driver_btrfs import check

        check.repair(self._at, finding, self._host)

    def _told(self, error: OSError, layer: LayerId) -> None:
        if error.errno == errno.ENOSPC:
            text = f"no room for a subvolume in {self._at.root}: {error.strerror}"
            raise NoSpace(
                text, what=SpaceKind.METADATA, layer=layer, remedy=f"remove something; or {_BALANCE}"
            ) from None
        if error.errno == errno.EDQUOT:
            text = f"a quota of the host's, on what {self._at.root} lies in, is used up"
            raise NoSpace(text, what=SpaceKind.QUOTA, layer=layer, remedy="raise it: btrfs qgroup limit") from None


def _below(path: str) -> str:
    """A path from a subvolume's top as one from the layer's root."""
    return path.removeprefix(f"{CONTENT}/")


def open_store(root: str, options: api.Options, host: api.Host, *, store: api.StoreId) -> BtrfsDriver:
    directories.check_store(root, NAME, store)
    require_btrfs(root)
    return BtrfsDriver(root, options, host, store)


def require_btrfs(root: str) -> None:
    """Raises WrongStore."""
    from cowshed_linux import files

    fd = ioctls.directory(root)
    try:
        magic = files.file_system_magic(fd)
    finally:
        os.close(fd)
    if magic != MAGIC:
        raise WrongStore(f"{root} is not on btrfs", remedy="is its file system mounted?")
