"""S: the store: init, open, destroy, identity."""

from __future__ import annotations

import os
import resource
import time

import pytest

from cowshed.storage import api
from cowshed.storage.errors import StorageError, WrongStore
from cowshed_conformance import backing as places
from cowshed_conformance import crash, hoststate, marks, steps
from cowshed_conformance.backing import Backing
from cowshed_conformance.cases.test_discovery import files_below
from cowshed_conformance.harness import Store, SuiteHost
from cowshed_conformance.marks import budget, core, full
from cowshed_conformance.target import Target
from cowshed_linux import mount


@core
def test_S01_init_is_repeatable_and_open_makes_nothing(target: Target, backing: Backing) -> None:
    root = backing.place()
    with pytest.raises(WrongStore):
        target.plugin.open(root, target.at(root), SuiteHost(), store=api.StoreId("0" * 32))
    assert not os.path.lexists(root), "open() made a store"
    first = target.plugin.init(root, target.at(root), SuiteHost())
    assert target.plugin.init(root, target.at(root), SuiteHost()) == first
    before = files_below(root)
    target.plugin.open(root, target.at(root), SuiteHost(), store=first).close()
    assert files_below(root) == before, "open() changed the store"
    with pytest.raises(WrongStore):
        target.plugin.open(root, target.at(root), SuiteHost(), store=api.StoreId("0" * len(first)))
    target.plugin.destroy(root, target.at(root), SuiteHost(), store=first)


@core
def test_S02_an_unmounted_or_swapped_file_system_is_an_error(target: Target, backing: Backing) -> None:
    with backing.own() as system:
        root = f"{system.path}/store"
        os.mkdir(root)
        store = Store(target, root)
        layer = store.layer(steps.file("a", b"1"))
        store.driver.close()
        other = backing.place()
        os.mkdir(other)
        mount.mount(other, root, None, mount.BIND)
        try:
            with pytest.raises(WrongStore):
                store.open()
            assert os.listdir(other) == [], "open() on the mount point of another file system wrote to it"
            stranger = target.plugin.init(root, target.at(root), SuiteHost())
            assert stranger != store.id, "two stores have one identity"
            with pytest.raises(WrongStore):
                store.open()
        finally:
            places.take_devices(root)
            mount.unmount(root)
        store.driver = store.open()
        assert store.read(layer, "a") == b"1"
        store.driver.close()


@core
def test_S03_a_store_that_has_moved_opens(store: Store, backing: Backing) -> None:
    base = store.layer(steps.file("a", b"1"))
    child = store.layer(steps.file("b", b"2"), parent=base)
    store.driver.close()
    moved = backing.place(" moved")
    os.rename(store.root, moved)
    store.root = moved
    store.driver = store.open()
    assert store.read(child, "a") == b"1"
    assert store.read(child, "b") == b"2"
    assert store.living() == {(base.id, base.kind), (child.id, child.kind)}
    elsewhere = backing.place()
    os.mkdir(elsewhere)
    mount.mount(moved, elsewhere, None, mount.BIND)
    try:
        driver = store.open(root=elsewhere)
        with store.mount(child, driver=driver) as root:
            assert steps.read(root, "a") == b"1"
        driver.close()
    finally:
        # A program that stands in for the kernel may end a moment after its mount.
        mount.unmount(elsewhere, mount.MNT_DETACH)


@core
def test_S04_a_store_of_a_newer_format_or_another_driver_is_refused_with_directions(store: Store) -> None:
    path = f"{store.root}/format"
    if not os.path.exists(path):
        marks.skip("plan", "the store has no file that tells its format")
    layer = store.layer(steps.file("a", b"1"))
    store.driver.close()
    with open(path) as file:
        was = file.read()
    name, number = was.partition("\n")[0].split()
    before = files_below(store.root)
    for said in (f"{name} {int(number) + 1}", f"another {number}", name):
        with open(path, "w") as file:
            file.write(f"{said}\n")
        with pytest.raises(WrongStore) as raised:
            store.open()
        assert raised.value.remedy, "nothing says what to do about it"
        with pytest.raises(WrongStore):
            store.target.plugin.init(store.root, store.target.at(store.root), SuiteHost())
        with pytest.raises(WrongStore):
            store.target.plugin.destroy(store.root, store.target.at(store.root), SuiteHost(), store=store.id)
    assert files_below(store.root) == before, "a store that was refused was changed"
    with open(path, "w") as file:
        file.write(was)
    store.driver = store.open()
    assert store.read(layer, "a") == b"1"


@core
def test_S05_destroy_takes_its_own_away_and_nothing_else(target: Target, backing: Backing) -> None:
    before = hoststate.HostState.now()
    one, other = Store(target, backing.place()), Store(target, backing.place())
    kept = other.layer(steps.file("a", b"kept"))
    one.new(one.layer(steps.file("a", b"1"), steps.directory("d"), steps.file("d/f")))
    one.driver.close()
    target.plugin.destroy(one.root, target.at(one.root), SuiteHost(), store=one.id)
    target.plugin.destroy(one.root, target.at(one.root), SuiteHost(), store=one.id)
    assert not os.path.exists(one.root) or os.listdir(one.root) == []
    with pytest.raises(WrongStore):
        one.open()
    assert other.read(kept, "a") == b"kept"
    with pytest.raises(WrongStore):
        target.plugin.destroy(other.root, target.at(other.root), SuiteHost(), store=one.id)
    assert other.read(kept, "a") == b"kept"
    other.discard()
    assert hoststate.HostState.now() == before, "destroy() left something on the host"


@core
def test_S06_two_stores_side_by_side_do_not_see_each_other(store: Store, backing: Backing) -> None:
    other = Store(store.target, backing.place())
    try:
        assert other.id != store.id
        mine = store.plan()
        store.prepare(mine)
        assert other.scan() == []
        # The same number in both: quota groups, project ids and device ids must not meet.
        theirs = other.prepare(api.Layer(mine.id, mine.number, mine.kind))
        other.change(theirs, steps.file("a", b"theirs"))
        store.change(mine, steps.file("a", b"mine"))
        other.driver.remove(theirs)
        other.purge_all()
        assert store.read(mine, "a") == b"mine"
    finally:
        other.discard()


@full
@budget(60)
def test_S08_a_store_of_many_layers_opens_and_scans_quickly(store: Store) -> None:
    base = store.layer(steps.file("a"))
    count = 1000
    for _ in range(count):
        store.prepare(store.plan(base))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    store.reopen()
    assert len(store.living()) == count + 1
    spent = time.process_time() - began
    assert spent < 5 * marks.SLOWDOWN, f"open and scan of {count} layers took {spent:.1f} s of CPU"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "scan holds all in memory"


@core
def test_S09_closing_disturbs_no_other_process(store: Store) -> None:
    layer = store.new(None, steps.file("a", b"1"))

    def opens_and_closes() -> None:
        driver = store.open()
        list(driver.scan())
        driver.close()

    with store.mount(layer) as root:
        crash.in_child(opens_and_closes)
        steps.do(root, steps.file("b", b"2"))
    store.commit(layer)
    with pytest.raises(StorageError):
        store.open(root=store.root + "-not-there")
