"""A store made of directories, for drivers whose layers are directories.

    ROOT/format               the driver and the number of the layout; below, the map of ids that owners are told in
    ROOT/store                one line: the store's identity; written last, so that it says "complete"
    ROOT/temp/ID              of a call that is running, or died
    ROOT/active/ID  ROOT/committed/ID   the layers
    ROOT/trash/ID.WHERE       removed, waits for purge()
    ROOT/projects             of stores with quota: see projects.py

Publishing, committing and removing are one rename inside ROOT each, so a crash leaves the old state or the new one, and
at most an object that scan() calls TEMP or TRASH. What must outlive a power cut is synced before it is renamed, and the
rename by fsync of the directory. A removal is not synced: after a power cut the layer may be back, which scan() shows
and the engine removes again.
"""

from __future__ import annotations

import errno
import os
from time import monotonic

from cowshed.storage.api import Health, Kind, ObjectKind, PurgeResult, Quota, StoredObject, Usage
from cowshed.storage.errors import Damaged, LayerId, NotFound, Unsupported, WrongStore
from cowshed.storage.kit.trees import measure_tree, remove_tree
from cowshed_linux import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from cowshed.storage.api import Host, Layer, StoreId
    from cowshed.storage.kit.projects import Projects

# In the order in which a layer goes through them: a scan in this order may see a layer twice and never misses one.
FOLDERS = ("temp", "active", "committed", "trash")
_FORMAT = 1


def init_store(root: str, kind: str, folders: Sequence[str] = FOLDERS) -> StoreId:
    """Make a store for driver `kind`, or finish one that was begun; the identity of the one that is there.

    folders: those of FOLDERS that the driver uses.

    Raises WrongStore if another driver's data, or anything else, lies at root.
    """
    os.makedirs(root, mode=0o700, exist_ok=True)
    try:
        return check_store(root, kind, None)
    except FileNotFoundError:
        pass  # there is none, or one whose making was interrupted
    strangers = sorted({*os.listdir(root)} - {*FOLDERS, "format", "projects", "lost+found"})
    begun = [name for name in strangers if name.startswith(("format.", "store.")) and name.endswith(".new")]
    if len(begun) < len(strangers):
        other = next(name for name in strangers if name not in begun)
        raise WrongStore(f"{root} is not empty and holds no store: {other}", remedy="choose an empty directory")
    for name in begun:
        os.unlink(f"{root}/{name}")
    for folder in folders:
        try:
            os.mkdir(f"{root}/{folder}", 0o700)
        except FileExistsError:
            pass
        _drop_inherited_acl(f"{root}/{folder}")
    files.write_atomically(f"{root}/format", f"{kind} {_FORMAT}\n{_id_maps()}\n".encode())
    new = os.urandom(16).hex()
    files.write_atomically(f"{root}/store", f"{new}\n".encode())
    files.sync_directory(os.path.dirname(os.path.abspath(root)))
    return new  # type: ignore[return-value]


def _drop_inherited_acl(path: str) -> None:
    """A default ACL of the place would add an entry to every file of every layer."""
    for name in ("system.posix_acl_default", "system.posix_acl_access"):
        try:
            os.removexattr(path, name)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise


def check_store(root: str, kind: str, store: StoreId | None) -> StoreId:
    """The identity of the store at root, which must be `store` unless that is None; makes nothing.

    Raises FileNotFoundError if store is None and there is none, WrongStore for everything else that does not fit.
    """
    try:
        found, _ = _lines(f"{root}/store")
    except (FileNotFoundError, NotADirectoryError):
        if store is None:
            raise FileNotFoundError(errno.ENOENT, f"there is no store at {root}") from None
        raise WrongStore(f"there is no {kind} store at {root}", remedy="is its file system mounted?") from None
    try:
        first, ids = _lines(f"{root}/format")
    except FileNotFoundError:
        raise WrongStore(f"{root} does not say which driver it belongs to: {root}/format is missing") from None
    said = first.split()
    if said[:1] != [kind]:
        other = said[0] if said else "?"
        raise WrongStore(
            f"{root} belongs to driver {other}, not {kind}: its file `format` says so",
            remedy=f"mount or put back the store of {kind} there; or give this one to {other}: "
            f"mv {root} {os.path.dirname(root)}/{other}",
        )
    if len(said) != 2 or not said[1].isdigit() or int(said[1]) > _FORMAT:
        raise WrongStore(f"{root} has format {' '.join(said[1:])}, newer than {_FORMAT}", remedy="use a newer Cowshed")
    if ids and ids != (mine := _id_maps()):  # owners would be others, and what a driver keeps in user.* unseen
        raise WrongStore(
            f"{root} was made where ids are mapped as {ids}, not {mine}", remedy="use it as the user who made it"
        )
    if store is not None and found != store:
        raise WrongStore(f"{root} holds store {found}, not {store}", remedy="is the right file system mounted?")
    return found  # type: ignore[return-value]


def destroy_store(root: str, kind: str, store: StoreId, host: Host | None = None) -> None:
    """Take all away; repeatable: the identity goes last, so that a repeat still finds what it belongs to.

    host: of a driver that has quota, whose limits are lifted first.
    """
    if not os.path.lexists(f"{root}/store") and not os.path.lexists(f"{root}/format"):
        try:
            os.rmdir(root)
        except FileNotFoundError:
            pass
        except OSError as error:  # strangers' files, or a mount point: not ours to take
            if error.errno not in (errno.ENOTEMPTY, errno.EBUSY):
                raise
        return
    if os.path.lexists(f"{root}/store"):
        check_store(root, kind, store)
    if host is not None and os.path.lexists(f"{root}/projects"):
        _lift_limits(root, host)
    for name in (*FOLDERS, "projects", "store", "format"):
        remove_tree(f"{root}/{name}")
    destroy_store(root, kind, store, host)


def _lift_limits(root: str, host: Host) -> None:
    from cowshed.storage.kit import projects

    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not projects.obstacle(fd):
            projects.Projects(root, fd, host).lift_all()
    finally:
        os.close(fd)


def _lines(path: str) -> tuple[str, str]:
    """The first two lines, fit to be shown: the file may be damaged. One that is not there is empty."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        first, _, rest = os.read(fd, 1 << 15).decode("ascii", "backslashreplace").partition("\n")
    finally:
        os.close(fd)
    return first[:256].strip(), rest.partition("\n")[0].strip()


def _id_maps() -> str:
    """Ids of users and of groups in this user namespace and outside it: "inside:outside:count,… inside:…"."""
    maps = []
    for name in ("uid_map", "gid_map"):
        fd = os.open(f"/proc/self/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = b""
            while part := os.read(fd, 1 << 14):  # the kernel gives at most a page at once
                text += part
        finally:
            os.close(fd)
        maps.append(",".join(":".join(line.split()) for line in text.decode("ascii").splitlines()))
    return " ".join(maps)


class Directories:
    """The layers of one such store; each is a directory in which `content` holds the tree.

    committed: the name of what holds a COMMITTED layer, a directory or a file, where that is another one.
    quota: make each layer a project of its own, where the file system has quota by project.
    """

    def __init__(self, root: str, content: str, host: Host, *, committed: str = "", quota: bool = False) -> None:
        self.root, self._host = root, host
        self._contents = {Kind.ACTIVE: content, Kind.COMMITTED: committed or content}
        # Writeback errors are reported to descriptors that were open when they happened: so from the start.
        self._sync = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._projects = self._quota() if quota else None

    def _quota(self) -> Projects | None:
        from cowshed.storage.kit import projects

        return None if projects.obstacle(self._sync) else projects.Projects(self.root, self._sync, self._host)

    def close(self) -> None:
        """Close what is open; repeatable."""
        fd, self._sync = self._sync, -1
        if fd >= 0:
            os.close(fd)

    @property
    def durable(self) -> bool:
        """Whether the file system below survives a power cut at all."""
        from cowshed.storage.kit import places

        return places.file_system_name(self.root) not in places.IN_MEMORY

    @property
    def has_quota(self) -> bool:
        """Whether layers made from now on are projects."""
        return self._projects is not None

    @property
    def usage_exact(self) -> bool:
        """Whether what the quota counts is what comes back: not where copies may share extents with what is below."""
        from cowshed.storage.kit import places

        return self.has_quota and places.file_system_name(self.root) not in places.SHARING

    def health(self) -> Health:
        """What statvfs(3) says of the file system below."""
        status = os.statvfs(self.root)
        return Health(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize, None, None)

    # ------------------------------------------------------------ where things are

    def layer(self, layer: Layer) -> str:
        """The path of a layer's directory, whether it is there or not."""
        return f"{self.root}/{'committed' if layer.kind is Kind.COMMITTED else 'active'}/{layer.id}"

    def content(self, layer: Layer) -> str:
        """The path of what holds the layer's tree."""
        return f"{self.layer(layer)}/{self._contents[layer.kind]}"

    def exists(self, layer: Layer) -> bool:
        """Whether the layer is there, with its content."""
        return os.path.exists(self.content(layer))

    def require(self, layer: Layer) -> str:
        """`content`, of a layer that is there. Raises NotFound."""
        path = self.content(layer)
        if not os.path.exists(path):
            raise NotFound(
                f"there is no {layer.kind.value} layer {layer.id} in {self.root}",
                layer=layer.id,
                remedy="cowshed system check tells what is missing",
            )
        return path

    # ------------------------------------------------------------ changing

    def temporary(self, layer: Layer) -> str:
        """A fresh directory for a call to build its result in; what a dead call left there is removed."""
        path = f"{self.root}/temp/{layer.id}"
        remove_tree(path)
        os.mkdir(path, 0o700)
        if self._projects is not None:
            self._projects.give(path, layer)
        return path

    def require_quota(self, layer: Layer) -> Projects:
        """Raises Unsupported where layers are no projects."""
        if self._projects is None:
            raise Unsupported(
                "this store has no size limits",
                layer=layer.id,
                remedy="leave the limit out; cowshed driver why tells what they need",
            )
        return self._projects

    def limit(self, layer: Layer, quota: Quota, path: str = "") -> None:
        """Limit all that lies in the layer's directory, or in its temporary one at path. Raises Unsupported."""
        folder = path or os.path.dirname(self.require(layer))
        self.require_quota(layer).limit(folder, layer, quota)

    def sync(self) -> None:
        """Write back the whole file system that the store lies on."""
        self._host.sync(self._sync)

    def publish(self, temporary: str, layer: Layer, *, durable: bool = True) -> None:
        """Rename a temporary directory to the layer's place, and make the rename durable if asked. Raises Damaged."""
        if durable:
            files.sync_directory(temporary)
        try:
            os.rename(temporary, self.layer(layer))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise Damaged(
                f"{self.layer(layer)} is in the way: a layer without {self._contents[layer.kind]}",
                layer=layer.id,
                remedy="remove it by hand if nothing in it is wanted",
            ) from None
        if durable:
            files.sync_directory(os.path.dirname(self.layer(layer)))

    def commit(self, active: Layer, new: Layer, *, durable: bool, name: str) -> None:
        """Rename the active layer's directory to the committed one's place; steps are called NAME.commit.…"""
        if not self.exists(new):
            self.require(active)
            if durable:
                self.sync()
            self._host.step(f"{name}.commit.synced")
            os.rename(self.layer(active), self.layer(new))
            self._host.step(f"{name}.commit.renamed")
        if durable:
            files.sync_directory(f"{self.root}/committed")
            files.sync_directory(f"{self.root}/active")

    def discard(self, layer: Layer) -> None:
        """Rename to trash; absent is success."""
        source = self.layer(layer)
        folder = os.path.basename(os.path.dirname(source))
        target = f"{self.root}/trash/{layer.id}.{folder}"
        for again in range(1 << 16):
            try:
                os.rename(source, f"{target}.{again}" if again else target)
                return
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise  # else a layer of this name is there already: whoever broke rule E3, nothing is lost
        raise Damaged(f"{target} exists 65536 times", layer=layer.id, remedy="cowshed system prune")

    # ------------------------------------------------------------ what is there

    def usage(self, layer: Layer, *, beside: Iterable[str] = ()) -> Usage:
        """What the layer's directory holds: what the quota counts, if it is a project, else the content by a walk.

        beside: other directories in it than the content; their inodes are not the layer's. xfs takes a moment until
        what was deleted counts no more.
        """
        content = self.require(layer)
        folder = os.path.dirname(content)
        counted = self._projects.used(folder) if self._projects is not None else None
        if not os.path.isdir(content):
            return Usage(own=os.stat(content).st_blocks * 512, shared=None, inodes=None, exact=False)
        if counted is None:
            size, inodes = measure_tree(os.path.realpath(content))  # it may be a link to one beside it
            return Usage(own=size, shared=None, inodes=inodes, exact=False)
        size, inodes = counted
        others = 1 + sum(_inodes_of_its_own(f"{folder}/{name}") for name in beside)
        return Usage(own=size, shared=None, inodes=max(inodes - others, 0), exact=self.usage_exact)

    def scan(self, folders: Iterable[str] = FOLDERS) -> Iterator[StoredObject]:
        """Every object, in the order of FOLDERS; then limits."""
        kinds = {"active": Kind.ACTIVE, "committed": Kind.COMMITTED}
        others = {"temp": ObjectKind.TEMP, "trash": ObjectKind.TRASH}
        for folder in folders:
            for name in sorted(os.listdir(f"{self.root}/{folder}")):
                yield StoredObject(
                    others.get(folder, ObjectKind.LAYER),
                    f"{folder}/{name}",
                    LayerId(name.partition(".")[0]),
                    layer_kind=kinds.get(folder),
                )
        if folders is FOLDERS and self._projects is not None:
            yield from self._projects.scan()

    def lost_limits(self) -> Iterator[StoredObject]:
        """Limits of projects that no directory of a layer is any more. A limit is set after its directory was made, and
        lifted before that goes."""
        if self._projects is None:
            return
        limits = {found.number: found for found in self._projects.scan()}
        for found in list(self.scan(list(FOLDERS))) if limits else ():
            limits.pop(self._projects.number(f"{self.root}/{found.name}"), None)
        still = {found.number for found in self._projects.scan()} if limits else set()
        yield from (found for number, found in limits.items() if number in still)

    def lift_lost(self, number: int) -> None:
        """Lift a limit that `lost_limits` tells of, if it is one still."""
        if self._projects is not None and any(found.number == number for found in self.lost_limits()):
            self._projects.lift_number(number)

    def adopt(self, path: str) -> None:
        """Make a directory in a layer's directory part of its project, if that is one."""
        if self._projects is not None:
            self._projects.adopt(path)

    def purge(self, claim: Callable[[LayerId], AbstractContextManager[bool]], budget: float) -> PurgeResult:
        """See `cowshed.storage.api.Driver.purge`. One object that cannot be removed does not keep the others: the first
        such error is raised when all have been tried."""
        until = monotonic() + budget
        left = 0
        problem: OSError | None = None
        for found in list(self.scan(("temp", "trash"))):  # not the layers: a removal must not cost more among many
            if found.layer is None:
                continue
            path = f"{self.root}/{found.name}"
            try:
                if monotonic() > until:
                    left += 1
                elif found.kind is ObjectKind.TRASH:
                    left += not self._delete(path, until)
                else:
                    with claim(found.layer) as mine:
                        # The path is of temp/: if the layer was published since the scan, nothing is there now.
                        left += not (mine and self._delete(path, until))
            except OSError as error:
                left += 1
                problem = problem or error
        if problem is not None:
            raise problem
        return PurgeResult(left)

    def _delete(self, path: str, until: float) -> bool:
        if self._projects is not None:
            self._projects.lift(path)
        return remove_tree(path, until=until)


def _inodes_of_its_own(path: str) -> int:
    """How many inodes have their only name in a small tree: those with another one are part of the content too."""
    count = 0
    for where, _, names in os.walk(path):
        count += 1
        for name in names:
            try:
                count += os.lstat(f"{where}/{name}").st_nlink == 1
            except FileNotFoundError:  # the kernel is at work there
                continue
    return count
