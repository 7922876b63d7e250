"""A simulated ZFS: datasets, snapshots and clones in memory, with the errors that the real one gave in the guest.

For the order of calls and for what a killed call leaves, which cannot be seen on a host without ZFS. What the real one
does is tested in the guest.
"""

import errno
import os

from cowshed.layers.host import EngineHost
from cowshed_driver_zfs import programs

STORE = "tank/cowshed-0"


def _fail(number, name):
    raise OSError(number, f"{name}: {os.strerror(number)}")


class Dataset:
    def __init__(self, origin=None, properties=()):
        self.origin = origin  # the snapshot's name
        self.properties = dict(properties)
        self.snapshots = {}  # name after the @: properties, oldest first
        self.mounted = False


class SimulatedZfs:
    def __init__(self):
        self.datasets = {STORE: Dataset(), f"{STORE}/empty": Dataset()}
        self.datasets[f"{STORE}/empty"].snapshots["c"] = {}
        self.held, self.deferred = set(), set()

    def close(self):
        pass

    def sync(self, pool):
        pass

    def clones(self, snapshot):
        return [name for name, found in self.datasets.items() if found.origin == snapshot]

    def exists(self, name):
        dataset, _, snapshot = name.partition("@")
        return dataset in self.datasets and (not snapshot or snapshot in self.datasets[dataset].snapshots)

    def clone(self, name, origin, properties):
        if name in self.datasets:
            _fail(errno.EEXIST, name)
        if not self.exists(origin):
            _fail(errno.ENOENT, origin)
        self.datasets[name] = Dataset(origin, {k: v for k, v in properties.items() if ":" in k})

    def rename(self, source, target):
        if source not in self.datasets:
            _fail(errno.ENOENT, source)
        if target in self.datasets:
            _fail(errno.EEXIST, target)
        self.datasets[target] = self.datasets.pop(source)
        for found in self.datasets.values():
            if found.origin and found.origin.partition("@")[0] == source:
                found.origin = f"{target}@{found.origin.partition('@')[2]}"
        self.deferred = {name.replace(f"{source}@", f"{target}@") for name in self.deferred}

    def snapshot(self, name, properties):
        dataset, _, snapshot = name.partition("@")
        if dataset not in self.datasets:
            _fail(errno.ENOENT, name)
        if snapshot in self.datasets[dataset].snapshots:
            _fail(errno.EEXIST, name)
        self.datasets[dataset].snapshots[snapshot] = dict(properties)

    def destroy_snapshots(self, names):
        present = [name for name in names if self.exists(name)]
        if any(self.datasets[name.partition("@")[0]].mounted for name in present):
            _fail(errno.EBUSY, names[0])
        for name in present:
            self.deferred.add(name)
        self._reap()

    def _reap(self):
        for name in list(self.deferred):
            dataset, _, snapshot = name.partition("@")
            if not self.clones(name) and name not in self.held:
                self.datasets[dataset].snapshots.pop(snapshot, None)
                self.deferred.discard(name)

    def destroy(self, name):
        if name not in self.datasets:
            _fail(errno.ENOENT, name)
        if self.datasets[name].mounted or self.datasets[name].snapshots:
            _fail(errno.EBUSY, name)
        if any(each.startswith(f"{name}/") for each in self.datasets):
            _fail(errno.EEXIST, name)
        del self.datasets[name]
        self._reap()

    def promote(self, name):
        clone = self.datasets[name]
        if clone.origin is None:
            _fail(errno.EINVAL, name)
        old, _, last = clone.origin.partition("@")
        origin = self.datasets[old]
        moved = {}
        for each in list(origin.snapshots):  # all that are as old as the origin, or older
            moved[each] = origin.snapshots.pop(each)
            if each == last:
                break
        if moved.keys() & clone.snapshots.keys():
            _fail(errno.EEXIST, name)
        clone.snapshots = {**moved, **clone.snapshots}
        clone.origin, origin.origin = origin.origin, f"{name}@{last}"
        for found in self.datasets.values():
            if found.origin and found.origin.partition("@")[0] == old and found.origin.partition("@")[2] in moved:
                found.origin = f"{name}@{found.origin.partition('@')[2]}"
        self.deferred = {
            f"{name}@{n.partition('@')[2]}"
            if n.partition("@")[::2] == (old, n.partition("@")[2]) and n.partition("@")[2] in moved
            else n
            for n in self.deferred
        }


class SimulatedReader:
    read_only = False

    def __init__(self, zfs):
        self.zfs = zfs

    def properties(self, name, *wanted):
        dataset, _, snapshot = name.partition("@")
        if not self.zfs.exists(name):
            return None
        found = self.zfs.datasets[dataset]
        said = {**found.properties, **(found.snapshots[snapshot] if snapshot else {}), "origin": found.origin or ""}
        return {each: str(said.get(each) or programs.NOTHING) for each in wanted}

    def objects(self, store):
        found = []
        for name, dataset in self.zfs.datasets.items():
            if name.startswith(f"{store}/"):
                said = {**dataset.properties, **dataset.snapshots.get("c", {})}
                parent = said.get("cowshed:parent")
                clones = {
                    each: [programs.relative(clone, store) for clone in self.zfs.clones(f"{name}@{each}")]
                    for each in dataset.snapshots
                }
                number = said.get("cowshed:number")
                found.append(
                    programs.Object(
                        name[len(store) + 1 :],
                        int(number) if number else None,
                        parent if parent != "none" else None,
                        clones,
                    )
                )
        return sorted(found, key=lambda it: it.name)


class Killed(BaseException):
    """What stands for kill -9."""


class SimulatedHost(EngineHost):
    """Counts the points at which a call can be killed, and kills it at one."""

    def __init__(self):
        super().__init__()
        self.reached, self.last = 0, None

    def step(self, name):
        self.reached += 1
        if self.reached == self.last:
            raise Killed(name)

    def run(self, argv, **_):
        from cowshed.storage.api import CompletedRun

        assert tuple(argv[:2]) == ("zpool", "get")
        return CompletedRun(tuple(argv), 0, b"0\n", b"")
