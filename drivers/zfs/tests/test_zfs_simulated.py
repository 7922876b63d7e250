"""The driver on a simulated ZFS: layers through their lives, and every call killed at every point and repeated."""

import contextlib
import importlib.util
import os
from pathlib import Path

import pytest

from cowshed.storage import api
from cowshed.storage.errors import AlreadyExists, LayerId, NotFound, Unsupported
from cowshed_driver_zfs import driver
from cowshed_driver_zfs.driver import ZfsDriver, capabilities

_spec = importlib.util.spec_from_file_location("zfs_simulated", Path(__file__).with_name("simulated.py"))
simulated = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(simulated)
STORE = simulated.STORE
ACTIVE, COMMITTED = api.Kind.ACTIVE, api.Kind.COMMITTED


@contextlib.contextmanager
def mine(_):
    yield True


@contextlib.contextmanager
def others(_):
    yield False


class Store:
    def __init__(self):
        self.zfs, self.host = simulated.SimulatedZfs(), simulated.SimulatedHost()
        can = capabilities(durable=True, exact=True, idmapped=False)
        self.driver = ZfsDriver("/nowhere", STORE, can, self.zfs, simulated.SimulatedReader(self.zfs), self.host)
        self.number = 0

    def plan(self, parent=None, kind=ACTIVE):
        self.number += 1
        return api.Layer(LayerId(f"{self.number:032x}"), self.number, kind, parent)

    def active(self, parent=None):
        layer = self.plan(parent)
        self.driver.prepare(layer, api.LayerOptions())
        return layer

    def committed(self, parent=None):
        active = self.active(parent)
        new = api.Layer(active.id, active.number, COMMITTED, parent)
        self.driver.commit(active, new, api.Durability.COMMIT)
        return new

    def snapshot(self, active):
        new = self.plan(active.parent, COMMITTED)
        self.driver.snapshot(active, new, api.Durability.COMMIT)
        return new

    def purge(self, claim=mine):
        return self.driver.purge(claim, 60)

    def living(self):
        return {(it.layer, it.layer_kind) for it in self.driver.scan() if it.kind is api.ObjectKind.LAYER}

    def rest(self):
        """What is there beside what every store has."""
        return sorted(name for name in self.zfs.datasets if name not in (STORE, f"{STORE}/empty"))


def key(*layers):
    return {(layer.id, layer.kind) for layer in layers}


@pytest.fixture
def store():
    return Store()


def test_a_committed_layer_and_its_child(store):
    base = store.committed()
    child = store.active(base)
    assert store.living() == key(base, child)
    found = {it.layer: it for it in store.driver.scan()}
    assert (found[child.id].number, found[child.id].parent) == (2, base.id)
    assert store.zfs.datasets[f"{STORE}/active.{child.id}"].origin == f"{STORE}/committed.{base.id}@c"
    plan = store.driver.mounts(base, api.MountRequest(read_only=False))
    assert plan.steps[0].source == f"{STORE}/committed.{base.id}@c", "a committed layer is not its snapshot"
    assert plan.subpath == "root"


def test_nothing_is_left_when_all_is_removed(store):
    base = store.committed()
    layers = [store.committed(base), store.active(base)]
    for layer in (*layers, base):
        store.driver.remove(layer)
        store.driver.remove(layer)
    assert store.living() == set()
    assert store.purge().objects_left == 0
    assert store.rest() == []


def test_a_removed_parent_waits_for_a_child_that_is_still_there(store):
    base = store.committed()
    child = store.active(base)
    store.driver.remove(base)
    assert store.living() == key(child)
    store.zfs.held.add("nothing")
    store.driver.remove(child)
    assert store.purge().objects_left == 0
    assert store.rest() == []


def test_what_is_mounted_or_held_stays_until_it_is_not(store, monkeypatch):
    monkeypatch.setattr("cowshed_driver_zfs.removal.sleep", lambda _: None)
    base, active = store.committed(), store.active()
    for layer in (base, active):
        store.driver.remove(layer)
    store.zfs.datasets[f"{STORE}/trash.{active.id}"].mounted = True
    hold = f"{STORE}/trash.{base.id}@c"
    store.zfs.held.add(hold)
    assert store.purge().objects_left == 2
    store.zfs.held.clear()
    assert store.purge().objects_left == 1
    store.zfs.datasets[f"{STORE}/trash.{active.id}"].mounted = False
    assert store.purge().objects_left == 0
    assert store.rest() == []


@pytest.mark.parametrize("clone", ["tank/mine", "t/m", f"{STORE}/empty/below"])
def test_what_a_stranger_has_cloned_stays_and_the_clone_is_not_touched(store, clone):
    base, other = store.committed(), store.committed()
    store.zfs.clone(clone, f"{STORE}/committed.{base.id}@c", {})
    for layer in (base, other):
        store.driver.remove(layer)
    assert store.purge().objects_left == 1
    assert store.zfs.datasets[clone].origin == f"{STORE}/trash.{base.id}@c"
    assert store.rest() == sorted([clone, f"{STORE}/trash.{base.id}"])
    store.zfs.destroy(clone)
    assert store.purge().objects_left == 0
    assert store.rest() == []


@pytest.mark.parametrize("first", ["layer", "snapshot"])
def test_a_layer_and_its_snapshots_are_removed_in_any_order(store, first):
    base = store.committed()
    active = store.active(base)
    taken = [store.snapshot(active) for _ in range(3)]
    assert store.living() == key(base, active, *taken)
    order = [active, *taken] if first == "layer" else [taken[1], taken[0], taken[2], active]
    for n, layer in enumerate(order):
        store.driver.remove(layer)
        assert store.purge().objects_left == 0, f"{layer} cannot be destroyed while others live"
        assert store.living() == key(base, *order[n + 1 :])
    names = {each for found in store.zfs.datasets.values() for each in found.snapshots}
    assert names == {"c"}, "snapshots that nothing needs are left"


def test_a_snapshotted_layer_is_committed_and_its_snapshot_removed(store):
    active = store.active(store.committed())
    taken = store.snapshot(active)
    child = store.active(taken)
    new = api.Layer(active.id, active.number, COMMITTED, active.parent)
    store.driver.commit(active, new, api.Durability.COMMIT)
    store.driver.remove(child)
    store.driver.remove(taken)
    assert store.purge().objects_left == 0
    assert store.living() == key(active.parent, new)


def test_a_temporary_dataset_of_a_running_call_is_left_alone(store):
    layer = store.plan()
    store.zfs.clone(f"{STORE}/temp.{layer.id}", f"{STORE}/empty@c", {})
    assert store.purge(others).objects_left == 1
    assert store.purge(mine).objects_left == 0
    assert store.rest() == []


def test_a_dataset_without_its_number_is_no_layer_and_is_made_again(store):
    layer = store.plan()
    store.zfs.clone(f"{STORE}/active.{layer.id}", f"{STORE}/empty@c", {})  # a power cut, before the properties were set
    assert [it.kind for it in store.driver.scan()] == [api.ObjectKind.TEMP]
    store.driver.prepare(layer, api.LayerOptions())
    assert store.living() == key(layer)


def test_refusals(store):
    base, active = store.committed(), store.active()
    with pytest.raises(NotFound):
        store.driver.prepare(store.plan(store.plan(kind=COMMITTED)), api.LayerOptions())
    with pytest.raises(AlreadyExists):
        store.driver.prepare(api.Layer(active.id, 77, ACTIVE), api.LayerOptions())
    with pytest.raises(Unsupported):
        store.driver.prepare(store.plan(), api.LayerOptions(quota=api.Quota(inodes=5)))
    with pytest.raises(Unsupported):
        store.driver.commit(active, api.Layer(active.id, active.number, COMMITTED, base), api.Durability.NONE)
    missing = store.plan()
    with pytest.raises(NotFound):
        store.driver.commit(missing, api.Layer(missing.id, missing.number, COMMITTED), api.Durability.NONE)
    with pytest.raises(NotFound):
        store.driver.snapshot(store.plan(), store.plan(kind=COMMITTED), api.Durability.NONE)
    assert store.living() == key(base, active)


def test_a_comparison_takes_another_snapshot_if_a_purge_beside_it_destroys_the_first(store, monkeypatch):
    active = store.active()
    name, held = f"{STORE}/active.{active.id}@live.{active.id}", []

    def hold(snapshot, tag):
        if not held:
            store.purge()
        if not store.zfs.exists(snapshot):
            held.append("purged")
            raise FileNotFoundError(snapshot)
        store.zfs.held.add(snapshot)
        held.append(tag)
        return os.open("/dev/null", os.O_RDONLY)

    monkeypatch.setattr(store.zfs, "hold", hold, raising=False)
    store.zfs.snapshot(name, {})  # of a call that was killed
    with driver._Moment(store.zfs, name) as taken:
        assert taken == name
        assert held == ["purged", "cowshed"]
        assert store.purge().objects_left == 0
        assert store.zfs.exists(name), "it is held"
        assert name in store.zfs.deferred, "it would not go with the hold"


# ---------------------------------------------------------------- killed at every point


def prepare(store):
    layer = store.plan(store.committed())
    return lambda: store.driver.prepare(layer, api.LayerOptions()), key(layer.parent, layer)


def commit(store):
    active = store.active(store.committed())
    new = api.Layer(active.id, active.number, COMMITTED, active.parent)
    return lambda: store.driver.commit(active, new, api.Durability.COMMIT), key(active.parent, new)


def snapshot(store):
    active = store.active(store.committed())
    new = store.plan(active.parent, COMMITTED)
    return lambda: store.driver.snapshot(active, new, api.Durability.COMMIT), key(active.parent, active, new)


def remove(store):
    layer = store.committed()
    return lambda: store.driver.remove(layer), set()


def purge(store):
    base = store.committed()
    for layer in (store.snapshot(store.active(base)), store.active(base)):
        store.driver.remove(layer)
    kept = store.living()
    return lambda: store.purge(), kept


@pytest.mark.parametrize("work", [prepare, commit, snapshot, remove, purge])
@pytest.mark.parametrize("again", ["repeated", "given up"])
def test_killed_anywhere_it_can_be_repeated_or_purged(work, again):
    for last in range(1, 40):
        store = Store()
        do, wanted = work(store)
        before = store.living()
        store.host.reached, store.host.last = 0, last
        try:
            do()
            break
        except simulated.Killed:
            pass
        store.host.last = None
        assert store.living() in (before, wanted), f"killed at point {last}, something else is there"
        if again == "repeated":
            do()
            assert store.living() == wanted, f"killed at point {last}"
        assert store.purge().objects_left == 0
        assert store.living() in (before, wanted)
        assert {it.kind for it in store.driver.scan()} <= {api.ObjectKind.LAYER}
        for id_, kind in store.living():
            store.driver.remove(api.Layer(id_, 1, kind))
        assert store.purge().objects_left == 0
        assert store.rest() == [], f"killed at point {last}"
    else:
        pytest.fail("the call has no end")
    assert last > 1, "the call has no point to be killed at"
