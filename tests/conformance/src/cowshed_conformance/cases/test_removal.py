"""R: removal, check, and looking at a store that cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable

import pytest

from cowshed.layers.check import remove_orphans
from cowshed.storage import api
from cowshed.storage.errors import Cancelled, LayerId, StorageError
from cowshed_conformance import crash, marks, steps, tree
from cowshed_conformance.backing import Backing
from cowshed_conformance.engine import Engine
from cowshed_conformance.harness import Store, SuiteHost, directory_of, mine, sync
from cowshed_conformance.marks import budget, core, full
from cowshed_conformance.steps import chmod, directory, file
from cowshed_conformance.target import Target
from cowshed_linux import files, mount

MANY = 3000


@full
@budget(60)
def test_R01_a_purge_that_was_killed_half_way_is_finished_by_the_next(light: Store) -> None:
    kept = light.layer(file("kept", b"1"))
    victim = light.new(kept, directory("d"), *[file(f"d/{n}") for n in range(MANY)])
    light.driver.remove(victim)
    killed, seconds = 0, 0.004
    while killed < 3 and crash.kill_after(light, crash.purge(), seconds):
        light.reopen()
        assert light.living() == {(kept.id, kept.kind)}, "a killed purge() changed a layer"
        killed, seconds = killed + 1, seconds * 2
    calls = 0
    while light.purge(0.02).objects_left:
        calls += 1
        assert calls < MANY, "purge() with a small budget makes no progress"
    assert [x.layer for x in light.scan()] == [kept.id]
    assert light.read(kept, "kept") == b"1"


@core
def test_R02_trees_that_resist_are_removed(store: Store) -> None:
    base = store.layer(file("lower"), directory("locked", 0), file("locked/in"))
    layer = store.new(base)
    flagged = 0
    with store.mount(layer) as root:
        steps.do(root, directory("d"), file("d/f", mode=0), directory("d/e"), file("d/e/g"))
        steps.do(root, steps.append("lower", b"1"), chmod("d", 0), chmod("d/e", 0o100))
        for path, flags in (("d/f", files.FS_IMMUTABLE), ("d/e", files.FS_APPEND), ("lower", files.FS_IMMUTABLE)):
            flagged += set_flags(steps.at(root, path), flags)
        at = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        for _ in range(300):  # deeper than a path can say
            os.mkdir("n" * 50, dir_fd=at)
            below = os.open("n" * 50, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
        os.close(at)
    store.driver.remove(layer)
    store.purge_all()
    assert [x.layer for x in store.scan()] == [base.id]
    flagged += _flag_below(store, base)
    store.driver.remove(base)
    store.purge_all()
    assert store.scan() == [], f"with {flagged} flagged files"


def set_flags(path: str, flags: int) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        files.set_inode_flags(fd, files.inode_flags(fd) | flags)
        return True
    except OSError:
        return False  # the file system has no such flags
    finally:
        os.close(fd)


def _flag_below(store: Store, layer: api.Layer) -> int:
    """Flags on the back end's own files: overlay keeps those that are set through it to itself."""
    own = directory_of(store.mounts(layer))
    return sum(set_flags(f"{own}/{name}", files.FS_IMMUTABLE) for name in ("locked/in", "locked", "lower") if own)


@core
def test_R03_what_cannot_be_deleted_keeps_nothing_else_and_is_told_each_time(store: Store) -> None:
    stuck = store.new(None, directory("d"), file("d/f"))
    own = directory_of(store.mounts(stuck))
    if not own:
        marks.skip("plan", "the layer is no directory of the host in which something can be stuck")
    before = mount.clone(f"{own}/d")  # names the directory wherever it is moved to
    mount.mount("tmpfs", f"{own}/d", "tmpfs")
    try:
        others = [store.new(None, file("a")) for _ in range(3)]
        for layer in (others[0], stuck, *others[1:]):
            store.driver.remove(layer)
        for _ in range(2):
            try:
                if not store.purge(5).objects_left:
                    assert store.leftovers() == [], "purge() says that nothing is left"
                    marks.skip("plan", "the back end deletes a layer whatever is mounted in it")
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
            left = [x for x in store.scan() if x.kind is not api.ObjectKind.LAYER]
            assert {x.layer for x in left} == {stuck.id}, f"one stuck layer keeps others: {left}"
    finally:
        mounted = [line.split()[4] for line in open_mountinfo() if line.split()[4].endswith("/d")]
        for path in mounted:
            mount.unmount(path.encode().decode("unicode_escape"))
        os.close(before)
    store.purge_all()
    assert store.scan() == []


def open_mountinfo() -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        return list(lines)


def used_inodes(path: str) -> int:
    """Where they are made when they are wanted, the number of free ones says nothing: it goes with the space."""
    status = os.statvfs(path)
    return status.f_files - status.f_ffree


@core
@budget(60)
def test_R04_when_all_layers_are_gone_the_space_is_back(target: Target, backing: Backing) -> None:
    with backing.own(192 << 20) as system, Store(target, f"{system.path}/store") as store:
        sync(system.path)
        before, inodes = system.used(), used_inodes(system.path)
        layers = []
        parent = None
        for n in range(4):
            parent = store.layer(file(f"f{n}", os.urandom(2 << 20)), directory(f"d{n}"), file(f"d{n}/s"), parent=parent)
            layers.append(parent)
        layers += [store.new(parent, file(f"a{n}", os.urandom(1 << 20)), steps.remove("f0")) for n in range(4)]
        for layer in reversed(layers):
            store.driver.remove(layer)
        result = store.purge()
        assert result.objects_left == 0
        assert store.scan() == []
        until = time.monotonic() + (30 if result.space_pending else 5)
        while True:
            sync(system.path)
            kept = system.used() - before
            if kept <= system.size // 100 or time.monotonic() > until:
                break
            time.sleep(0.1)
        assert kept <= system.size // 100, f"{kept} bytes are not back"
        gone = used_inodes(system.path) - inodes
        assert gone <= 16, f"{gone} inodes are not back"


@core
@budget(60)
def test_R05_check_is_clean_on_a_fresh_a_busy_and_an_old_store(target: Target, backing: Backing) -> None:
    engine = Engine(target, backing.place())
    assert engine.findings() == []
    image = engine.pull()
    running = engine.create(image)
    with engine.mount(running) as root:
        steps.do(root, file("x", b"1"))
        assert engine.findings() == []

        def other() -> None:
            second = Engine(target, engine.root)
            made = second.create(image)
            assert second.findings() == []
            second.remove(made)
            second.close()

        crash.in_child(other)
        assert engine.findings() == []
    engine.remove(running)
    engine.untag(image)
    assert engine.findings() == []
    engine.layers.purge(60)
    assert engine.findings() == []
    assert list(engine.driver.scan()) == []
    engine.close()


@core
@budget(60)
def test_R07_check_finds_missing_layers_and_unknown_ones(target: Target, backing: Backing) -> None:
    engine = Engine(target, backing.place())
    image = engine.pull("ab")
    container = engine.create(image)
    engine.driver.prepare(api.Layer(LayerId("d" * 32), 4711, api.Kind.ACTIVE), api.LayerOptions())
    assert engine.findings() == ["orphan"]
    engine.driver.remove(container)
    assert engine.findings() == ["missing", "orphan"]
    engine.remove(container)
    engine.driver.remove(api.Layer(LayerId("d" * 32), 4711, api.Kind.ACTIVE))
    assert engine.findings() == []
    engine.close()


@core
def test_L11_a_layer_stays_while_others_stand_on_it(target: Target, backing: Backing) -> None:
    with Engine(target, backing.place()) as engine:
        image, other = engine.pull("ab"), engine.pull("a")
        container = engine.create(image)
        wanted = engine.look(container)
        engine.untag(image)
        engine.untag(other)
        engine.layers.purge(60)
        tree.same(wanted, engine.look(container), "the layers below a container were removed")
        assert engine.findings() == []
        engine.remove(container)
        engine.layers.remove_unreferenced()
        engine.layers.purge(60)
        assert list(engine.driver.scan()) == []


@full
def test_R06_the_drivers_own_check_is_clean_where_it_has_one(store: Store) -> None:
    driver = store.driver
    if not api.has_self_check(driver):
        marks.skip("capability", "self_check is not claimed")
    base = store.layer(file("a", b"1"))
    active = store.new(base, file("b", b"2"))
    for deep in (False, True):
        assert list(driver.check([base, active], deep=deep)) == []


@core
@budget(90)
def test_R08_what_a_dead_call_has_left_is_found_and_goes(target: Target, backing: Backing) -> None:
    """Of every kind: layers, half-made ones, what was removed, and what belongs to them (limits, devices)."""
    quota = api.Quota(bytes=4 << 20)
    with backing.own(256 << 20) as system:
        engine = Engine(target, f"{system.path}/engine")
        limits = engine.driver.capabilities.quota is not api.QuotaScope.NONE
        given = api.LayerOptions(quota=quota if limits else api.Quota())
        with Store(target, f"{system.path}/model") as store:
            found = crash.points(store, lambda child: child.driver.prepare(store.plan(), given))
        assert found
        # The engine's own store, with layers that its database does not know
        there = object.__new__(Store)
        there.__dict__.update(store.__dict__)
        there.root = f"{engine.root}/drivers/{target.plugin.name}"
        there.id, there.number = api.StoreId(engine.store.query("select store from drivers")[0][0]), 5000
        for point in [*found, ("", 10_000)]:
            layer = there.plan()
            crash.kill_at(there, lambda child, layer=layer: child.driver.prepare(layer, given), point)  # type: ignore[misc]
            left = [x for x in engine.driver.scan() if x.kind in (api.ObjectKind.LAYER, api.ObjectKind.TEMP)]
            assert engine.findings() == ["orphan"] * len(left), f"killed at {point}"
            assert {x.layer for x in left} <= {layer.id}
            for kind in api.Kind:
                engine.driver.remove(api.Layer(layer.id, layer.number, kind))
            engine.driver.purge(mine, 30)
            assert list(engine.driver.scan()) == [], f"killed at {point}: something stays"
            assert engine.findings() == []
        engine.close()


LOOKS = frozenset(("open", "os.listdir", "os.scandir", "os.listxattr", "os.getxattr"))


@core
@budget(60)
def test_R09_a_quick_check_looks_at_layers_and_not_at_what_is_in_them(target: Target, backing: Backing) -> None:
    def looks(root: str) -> Callable[[], object]:
        def count() -> int:
            engine, seen = Engine(target, root), 0
            engine.findings()  # what is read once in a process

            def hook(event: str, _: tuple[object, ...]) -> None:
                nonlocal seen
                seen += event in LOOKS

            sys.addaudithook(hook)
            assert engine.findings() == []
            found = seen
            engine.close()
            return found

        return count

    found = []
    for files_ in (3, 300):
        with Engine(target, backing.place()) as engine:
            layer = engine.create(engine.pull("ab"))
            with engine.mount(layer) as root:
                steps.do(root, directory("d"), *[file(f"d/{n}", b"1") for n in range(files_)])
            engine.commit(layer)
            layer_root = engine.root
        found.append(crash.answer(looks(layer_root)))
    assert found[0] == found[1], f"a check of layers of 3 files makes {found[0]} calls, of 300 files {found[1]}"


@full
@budget(60)
def test_R09_the_drivers_own_check_is_cancelled_and_done_again(store: Store) -> None:
    driver = store.driver
    if not api.has_self_check(driver):
        marks.skip("capability", "self_check is not claimed")
    layers = [store.layer(*[file(f"f{n}", b"1") for n in range(600)]), store.new(None, file("a"))]
    for deep in (False, True):
        host = SuiteHost()
        cancelled = store.open(host)
        assert api.has_self_check(cancelled)
        host.cancel()
        with contextlib.suppress(Cancelled):  # a quick one may be over before it asks
            list(cancelled.check(layers, deep=deep))
        cancelled.close()
        assert list(driver.check(layers, deep=deep)) == []


@core
@budget(60)
def test_R10_what_is_repaired_was_told_before_and_nothing_else_is_touched(target: Target, backing: Backing) -> None:
    with Engine(target, backing.place()) as engine:
        image = engine.pull("ab")
        kept = engine.create(image)
        with engine.mount(kept) as root:
            steps.do(root, file("mine", b"1"))
        wanted, before = engine.look(kept), {x.layer for x in engine.driver.scan()}
        for n in (4711, 4712):
            engine.driver.prepare(api.Layer(LayerId(f"{n:032x}"), n, api.Kind.ACTIVE), api.LayerOptions())
        active = api.Layer(LayerId(f"{4712:032x}"), 4712, api.Kind.ACTIVE)
        engine.driver.commit(active, api.Layer(active.id, 4712, api.Kind.COMMITTED), api.Durability.NONE)
        told = [finding for finding in engine.layers.check() if finding.code == "orphan"]
        assert {x.layer for x in engine.driver.scan()} == before | {x.layer for x in told}, "looking repairs something"
        assert sorted(bool(finding.repair) for finding in told) == [False, True]
        assert remove_orphans(engine.layers) == 1, "what may be a container's goes by itself, or rubbish stays"
        assert [finding.layer for finding in engine.layers.check()] == [LayerId(f"{4711:032x}")]
        engine.driver.remove(api.Layer(LayerId(f"{4711:032x}"), 4711, api.Kind.ACTIVE))
        engine.layers.purge(60)
        assert engine.findings() == []
        assert {x.layer for x in engine.driver.scan()} == before
        tree.same(wanted, engine.look(kept), "a repair changed another layer")


@full
@budget(60)
def test_R10_the_drivers_own_repair_makes_its_next_check_clean(store: Store) -> None:
    driver = store.driver
    if not api.has_self_check(driver):
        marks.skip("capability", "self_check is not claimed")
    base, other = store.layer(file("a", b"1")), store.layer(file("b", b"2"))
    wanted = store.look(other)
    assert list(driver.check([base, other], deep=True)) == []
    driver.remove(base)  # as a stranger does
    store.purge_all()
    told = list(driver.check([base, other], deep=False))
    assert [finding for finding in told if finding.layer == base.id], "a layer that is gone is not missed"
    assert not [finding for finding in told if finding.layer == other.id], "a whole layer is said to be damaged"
    for finding in told:
        if finding.repair:
            driver.repair(finding)
    left = list(driver.check([other], deep=True))
    assert left == [], f"after the repair: {left}"
    tree.same(wanted, store.look(other), "a repair changed another layer")


@core
@budget(60)
def test_R12_a_store_that_cannot_be_written_is_listed_and_read(target: Target, backing: Backing) -> None:
    with backing.own(64 << 20) as system, Store(target, f"{system.path}/store") as store:
        base = store.layer(file("a", b"1"), directory("d"))
        top = store.new(base, file("b", b"2"), steps.remove("d"))
        wanted, living = (store.look(base), store.look(top)), store.living()
        store.driver.close()
        system.remount(read_only=True)
        try:
            try:
                store.driver = store.open()
            except StorageError as refused:
                if not store.capabilities.activation or not refused.remedy:
                    raise  # else its devices are set up from what lies there, and the kernel must write to them
                marks.skip("plan", f"the devices of the store need a place that can be written: {refused}")
            assert store.living() == living
            tree.same(wanted[0], store.look(base), "on a read-only file system")
            tree.same(wanted[1], store.look(top), "on a read-only file system")
            store.driver.usage(top)
            assert store.driver.health().data_total
            with pytest.raises((StorageError, OSError)):
                store.driver.prepare(store.plan(base), api.LayerOptions())
            with pytest.raises((StorageError, OSError)):
                store.driver.remove(top)
            assert store.living() == living
            store.driver.close()
        finally:
            system.remount(read_only=False)


@core
def test_R13_the_back_end_alone_tells_which_layers_there_are(store: Store) -> None:
    base = store.layer(file("a"))
    middle = store.layer(file("b"), parent=base)
    top = store.new(middle)
    known = {x.id: x for x in (base, middle, top)}
    for found in store.scan(api.ObjectKind.LAYER):
        assert found.layer is not None
        layer = known.pop(found.layer)
        assert found.layer_kind is layer.kind
        assert found.parent in (None, layer.parent.id if layer.parent else None)
        assert found.number in (None, layer.number)
        assert dict(found.data) == dict(layer.data), "scan() does not give the data that the call returned"
    assert not known, f"layers that scan() does not show: {known}"
