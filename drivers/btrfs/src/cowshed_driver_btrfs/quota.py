"""Limits and exact usage from the file system's quota groups.

Simple quotas (Linux 6.7) charge an extent to the subvolume that wrote it, for as long as it exists; that is what a
layer added, and it costs next to nothing. The older full accounting (qgroups) follows who shares what, which makes
snapshots and removals slower by orders of magnitude; it is used only where the option asks for it.

With simple quotas a store has groups of its own, in levels that nobody else uses:

    LEVEL/TAG<<24            of the store; all of its subvolumes are members, so that what died is found
    LEVEL/TAG<<24|NUMBER     of a layer that has a limit: the limit is on this one, because the kernel puts subvolumes
                             that are made inside the layer into it too, and a container cannot get out of it
    0xBFFF/0                 says that quota was switched on for a store: with the last store it is switched off again

The mark lies in the quota tree itself: whoever switches quota off and on again takes it away, and then the state is
theirs.
"""

from __future__ import annotations

import errno
import os
from time import monotonic, sleep

from cowshed.storage.errors import BadOption, Unsupported
from cowshed_driver_btrfs import ioctls, subvolumes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cowshed.storage.api import Host, StoreId

OFF, SIMPLE, FULL, UNKNOWN = "off", "simple", "full", "unknown"
_MARK = 0xBFFF << 48
_OURS = 0xC000 << 48  # and above
_NUMBERS = 1 << 24
_TRIES = 8
_MOMENT = 0.2  # seconds


def state(fd: int) -> tuple[str, int]:
    """Which accounting is on in the file system of fd, and the transaction from which on simple quotas charge.

    UNKNOWN to plain users, who could use none of it.
    """
    try:
        for item in ioctls.search(fd, ioctls.QUOTA_TREE, (0, ioctls.QGROUP_STATUS, 0), (0, ioctls.QGROUP_STATUS, 0)):
            words = item.words()
            if not words[2] & 1:
                return OFF, 0
            return (SIMPLE, words[4]) if words[2] & 8 else (FULL, 0)
    except FileNotFoundError:
        return OFF, 0
    except PermissionError:
        return UNKNOWN, 0
    return OFF, 0


def kernel_has_simple() -> bool:
    return os.path.exists("/sys/fs/btrfs/features/simple_quota")


class Groups:
    """The quota groups of one store, whose file system has simple quotas on."""

    def __init__(self, fd: int, store: StoreId, host: Host) -> None:
        tag = int(store[:10], 16) & (1 << 38) - 1
        self._fd, self._host = fd, host
        self.store = _OURS | tag << 24

    def of_layer(self, number: int) -> int:
        return self.store | number

    def make(self) -> None:
        self._host.call("btrfs.make-group", lambda: _made(self._fd, self.store))

    # ------------------------------------------------------------ looking

    def own(self, subvolume: int) -> int | None:
        """Bytes charged to a subvolume, as of the last transaction; None if it has no group."""
        key = 0, ioctls.QGROUP_INFO, subvolume
        return next((item.words()[1] for item in _items(self._fd, key, key)), None)

    def limits(self) -> list[int]:
        """The groups of layers."""
        return _groups(self._fd, self.store + 1, self.store + _NUMBERS - 1)

    def members(self, group: int) -> list[int]:
        return _relations(self._fd, group)

    def dead(self) -> list[int]:
        """Subvolumes of the store that are gone, and whose own groups are not: those of kernels before 6.11, and those
        that are charged for what a snapshot still holds.

        Newer kernels take an empty group away a moment after its subvolume, when a transaction has ended: so what is
        found is looked at again.
        """
        found = self._dead()
        if found:
            ioctls.sync(self._fd)
        until = monotonic() + _MOMENT
        while found and monotonic() < until:
            sleep(_MOMENT / 20)
            there = set(self.members(self.store))
            found = [one for one in found if one in there]
        return found

    def _dead(self) -> list[int]:
        return [one for one in self.members(self.store) if not _exists(self._fd, one)]

    def unused(self) -> list[int]:
        """Groups of layers in which no subvolume lives."""
        limits = self.limits()
        if not limits:
            return []
        dying = subvolumes.being_cleaned(self._fd)
        return [g for g in limits if not any(m not in dying and _exists(self._fd, m) for m in self.members(g))]

    # ------------------------------------------------------------ changing

    def limit(self, number: int, members: Iterable[int], size: int) -> None:
        """Let these subvolumes, and those that are made in them from now on, have size bytes together."""
        group, ids = self.of_layer(number), list(members)

        def do() -> None:
            for attempt in range(_TRIES):
                try:
                    _made(self._fd, group)
                    ioctls.limit_group(self._fd, group, referenced=size)
                    for one in ids:
                        _assigned(self._fd, one, group)
                    return
                except FileNotFoundError:  # a purge took it for a leftover before it had a member
                    if attempt + 1 == _TRIES:
                        raise

        self._host.call("btrfs.limit", do)

    def unlimit(self, number: int) -> None:
        """Take the limit of a layer away; absent is success."""
        self._drop(self.of_layer(number))

    def purge(self) -> None:
        """Remove what is left of subvolumes that are gone."""
        for group in self.unused():
            self._drop(group)
        empty = [one for one in self._dead() if not self.own(one)]

        def forget() -> None:
            for one in empty:
                _unassigned(self._fd, one, self.store)
                removed(self._fd, one)

        if empty:
            self._host.call("btrfs.remove-group", forget)

    def destroy(self) -> None:
        """All of the store's groups, when its subvolumes are gone."""
        for group in [*self.limits(), self.store]:
            self._drop(group)

    def _drop(self, group: int) -> None:
        members = self.members(group)
        self._host.call("btrfs.remove-group", lambda: self._empty(group, members))

    def _empty(self, group: int, members: list[int]) -> None:
        for one in members:
            _unassigned(self._fd, one, group)
        removed(self._fd, group)


def release(fd: int, mode: str, path: str, host: Host) -> None:
    """Take limits from a subvolume that is to be destroyed, which fails with EDQUOT where one is reached."""
    if mode not in (SIMPLE, FULL):
        return
    try:
        if not subvolumes.is_subvolume(path):
            return
        identity = subvolumes.identity(path)
    except FileNotFoundError:
        return
    limits = [identity] if mode == FULL else [group for group in _relations(fd, identity) if group > _OURS]

    def lift() -> None:
        for group in limits:
            _lifted(fd, group)

    if limits:
        host.call("btrfs.lift-limit", lift)


# ---------------------------------------------------------------- the state of the file system


def switch_on(fd: int, root: str, wanted: str, host: Host) -> None:
    """Let the file system account as wanted, SIMPLE or FULL, unless it does; write down that it was for this store.

    Raises BadOption if it accounts otherwise, Unsupported if the kernel cannot.
    """
    found, _ = state(fd)
    if found == UNKNOWN:
        raise Unsupported("quota needs root outside user namespaces", remedy="leave --driver-option quota out")
    if found not in (OFF, wanted):
        raise BadOption(
            f"option quota of driver btrfs is {wanted}, and the file system has {found} quotas on",
            remedy=f"set quota to {found} or auto; or, if nothing else needs them, btrfs quota disable {root}",
        )
    if found == OFF and wanted == SIMPLE and not kernel_has_simple():
        raise Unsupported("this kernel has no simple quotas", remedy="use Linux 6.7 or newer, or leave quota out")
    record = f"{root}/quota"
    if found == OFF:
        from cowshed_linux.files import sync_directory

        os.close(os.open(record, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        sync_directory(root)
        command = ioctls.QUOTA_ENABLE_SIMPLE if wanted == SIMPLE else ioctls.QUOTA_ENABLE
        host.call("btrfs.quota-on", lambda: ioctls.quota_ctl(fd, command))
    if os.path.exists(record) and not any(True for _ in _groups(fd, _MARK, ioctls.MOST)):
        # Nobody's groups are there: it was switched on just now, or by a call that was interrupted here.
        host.call("btrfs.quota-mark", lambda: _made(fd, _MARK))


def switch_off(fd: int, host: Host) -> None:
    """Take back what `switch_on` did, if no store and nobody else uses it."""
    found, _ = state(fd)
    if found not in (SIMPLE, FULL):
        return
    groups = set(_groups(fd, 1 << 48, ioctls.MOST))
    if _MARK not in groups:
        return
    if groups == {_MARK} and not _limited(fd):
        host.call("btrfs.quota-off", lambda: ioctls.quota_ctl(fd, ioctls.QUOTA_DISABLE))


def _limited(fd: int) -> bool:
    """Whether some group has a limit."""
    first, last = (0, ioctls.QGROUP_LIMIT, 0), (0, ioctls.QGROUP_LIMIT, ioctls.MOST)
    return any(item.words()[0] for item in _items(fd, first, last))


def _groups(fd: int, first: int, last: int) -> list[int]:
    kind = ioctls.QGROUP_INFO
    return [item.offset for item in _items(fd, (0, kind, first), (0, kind, last))]


def _relations(fd: int, group: int) -> list[int]:
    """What a group is related with: its members if it is one of a level, those that it is in if it is a subvolume's."""
    kind = ioctls.QGROUP_RELATION
    return [item.offset for item in _items(fd, (group, kind, 0), (group, kind, ioctls.MOST))]


def _items(fd: int, first: tuple[int, int, int], last: tuple[int, int, int]) -> list[ioctls.Item]:
    """What the quota tree has; nothing if quotas have been switched off."""
    try:
        return list(ioctls.search(fd, ioctls.QUOTA_TREE, first, last))
    except FileNotFoundError:
        return []


def _exists(fd: int, subvolume: int) -> bool:
    kind = ioctls.ROOT_ITEM
    found = ioctls.search(fd, ioctls.ROOT_TREE, (subvolume, kind, 0), (subvolume, kind, ioctls.MOST))
    return any(item.kind == kind for item in found)


def _made(fd: int, group: int) -> None:
    try:
        ioctls.make_group(fd, group)
    except FileExistsError:
        pass


def _assigned(fd: int, member: int, group: int) -> None:
    try:
        ioctls.assign_group(fd, member, group, assign=True)
    except FileExistsError:
        pass


def _unassigned(fd: int, member: int, group: int) -> None:
    try:
        ioctls.assign_group(fd, member, group, assign=False)
    except FileNotFoundError:
        pass


def _lifted(fd: int, group: int) -> None:
    try:
        ioctls.limit_group(fd, group)
    except FileNotFoundError:
        pass


def removed(fd: int, group: int) -> None:
    """Remove a group; absent, or still in use, is success."""
    try:
        ioctls.remove_group(fd, group)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EBUSY):  # EBUSY: it has got a member, or counts something again
            raise
