"""Taking datasets away: each after its clones, snapshots before the dataset, and never by force.

A snapshot with a clone cannot go. If the clone is a layer in use (the layer was snapshotted while it lived, see
ZfsDriver.snapshot), the clone is promoted: the snapshot is its own then, and goes at once. What is mounted or held by
somebody stays until the next time; a held snapshot is marked, so that ZFS destroys it with the last hold. So does what
a stranger has cloned: that clone is not ours to promote.
"""

from __future__ import annotations

import errno
from time import monotonic, sleep

from cowshed_driver_zfs import names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cowshed.storage.api import Host
    from cowshed_driver_zfs.binding import Zfs
    from cowshed_driver_zfs.programs import Object
    from cowshed_driver_zfs.reading import Reader

# Mounted or snapshotted; a clone needs it; a clone's limit is too small for what it would own.
_LATER = (errno.EBUSY, errno.EEXIST, errno.EDQUOT, errno.ENOSPC)
_BUSY_TRIES, _BUSY_PAUSE = 20, 0.025  # the kernel lets go of a mount a moment after its end


class Removal:
    """done: whether anything was destroyed."""

    def __init__(self, zfs: Zfs, reader: Reader, store: str, host: Host) -> None:
        self._zfs, self._reader, self._store, self._host = zfs, reader, store, host
        self.done = False

    def trash(self, objects: Iterable[Object], until: float) -> int:
        """Destroy what was removed; how many datasets are left. objects: all of the store; until: time.monotonic()."""
        return self._rounds(lambda name: name.startswith(f"{names.TRASH}."), until, {it.name: it for it in objects})

    def everything(self) -> int:
        """Destroy all that is in the store; how many datasets are left."""
        return self._rounds(lambda _: True, float("inf"))

    def destroy(self, name: str) -> bool:
        """Destroy one dataset of the store; whether it is gone."""
        return not self._rounds(lambda each: each == name, float("inf"))

    def unfinished(self, name: str) -> bool:
        """Destroy what a call that died has left (scan() says TEMP); whether it is gone, or done after all."""
        dataset, snapshot, _ = name.partition("@")
        if snapshot:
            return self._later(lambda: self._zfs.destroy_snapshots([f"{self._store}/{name}"]))
        found = self._objects().get(dataset)
        if found is None or (dataset.startswith(f"{names.ACTIVE}.") and found.number is not None):
            return True
        if not self.destroy(dataset):
            return False
        live = f"live.{dataset.partition('.')[2]}"  # what it was cloned from, if it was to be a snapshot of a layer
        rest = [f"{self._store}/{each}@{live}" for each, it in self._objects().items() if live in it.snapshots]
        return not rest or self._later(lambda: self._zfs.destroy_snapshots(rest))

    def _objects(self) -> dict[str, Object]:
        return {found.name: found for found in self._reader.objects(self._store)}

    def _rounds(self, wanted: Callable[[str], bool], until: float, seen: dict[str, Object] | None = None) -> int:
        """Destroy what is wanted, of seen or of what is there. One that cannot be destroyed does not keep the others:
        the first error is raised when all have been tried."""
        problem: OSError | None = None
        while True:
            there, seen = self._objects() if seen is None else seen, None
            targets = {name: found for name, found in there.items() if wanted(name)}
            if not targets:
                return 0
            self._free_snapshots(targets)
            gone: set[str] = set()
            progress = False
            for name in _clones_first(targets):
                if monotonic() > until:
                    return len(targets) - len(gone)
                try:
                    progress |= self._step(name, targets, gone)
                except OSError as error:
                    problem = problem or error
            if len(gone) == len(targets):
                return 0
            if not progress:
                if problem is not None:
                    raise problem
                return len(targets)

    def _free_snapshots(self, targets: dict[str, Object]) -> None:
        """Let the snapshots go that no other dataset needs, each with its last clone: all of them in one group of
        transactions, if ZFS lets them."""
        free = [
            f"{self._store}/{name}@{snapshot}"
            for name, found in targets.items()
            for snapshot, clones in found.snapshots.items()
            if targets.keys() >= {*clones}
        ]
        if free and not self._later(lambda: self._zfs.destroy_snapshots(free)):
            for each in free:
                self._later(lambda each=each: self._zfs.destroy_snapshots([each]))  # type: ignore[misc]

    def _step(self, name: str, targets: dict[str, Object], gone: set[str]) -> bool:
        """Bring a dataset nearer to its end; whether that was possible. gone: those that have come to theirs."""
        for snapshot, clones in targets[name].snapshots.items():
            for clone in clones:
                if clone not in targets:
                    return names.parse(clone) is not None and self._handed_over(clone, snapshot)
            if not gone >= {*clones}:
                return False  # one that is on its own way out could not go yet
        for _ in range(_BUSY_TRIES):
            if self._later(lambda: self._zfs.destroy(f"{self._store}/{name}")):
                self.done = True
                gone.add(name)
                return True
            sleep(_BUSY_PAUSE)
        return False

    def _handed_over(self, clone: str, snapshot: str) -> bool:
        """Let a clone in use own the snapshot that it was made of."""
        if not self._later(lambda: self._zfs.promote(f"{self._store}/{clone}")):
            return False
        self._later(lambda: self._zfs.destroy_snapshots([f"{self._store}/{clone}@{snapshot}"]))
        return True

    def _later(self, do: Callable[[], None]) -> bool:
        """Whether it could be done now."""
        try:
            self._host.call("zfs.destroy", do)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno not in _LATER:
                raise
            return False
        return True


def _clones_first(targets: dict[str, Object]) -> list[str]:
    """The datasets in an order in which each comes after all that were cloned from it."""
    order: dict[str, None] = {}
    for start in targets:
        below = [start] if start not in order else []
        for name in below:  # grows: a chain may be longer than Python's stack
            below += [each for clones in targets[name].snapshots.values() for each in clones if each in targets]
        for name in reversed(below):
            order.setdefault(name)
    return list(order)
