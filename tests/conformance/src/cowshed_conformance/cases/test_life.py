"""L: the life of layers, and their names."""

from __future__ import annotations

import contextlib
import errno
import os

import pytest

from cowshed.storage import api
from cowshed.storage.errors import InUse, LayerId, NotFound, StorageError, TooDeep, Unsupported, WrongStore
from cowshed_conformance import crash, marks, steps, tree
from cowshed_conformance.backing import Backing
from cowshed_conformance.cases.test_concurrency import refused
from cowshed_conformance.engine import Engine
from cowshed_conformance.harness import Store, new_id
from cowshed_conformance.marks import budget, core, full
from cowshed_conformance.steps import chmod, chown, directory, file, remove, set_xattr, times
from cowshed_conformance.target import Target

LONG_AGO = 1_000_000_000_123_456_789


@core
def test_L01_a_base_is_an_empty_directory_of_the_owner_asked_for(store: Store) -> None:
    layer = store.prepare(store.plan(), api.LayerOptions(root_uid=1001, root_gid=1002))
    found = store.look(layer)
    assert list(found) == ["."], "a layer without parent is not empty"
    root = found["."]
    assert (root.kind, oct(root.mode), root.uid, root.gid) == ("dir", "0o755", 1001, 1002)
    assert store.has(layer)


@core
def test_L01_a_child_has_its_parents_root_directory(store: Store) -> None:
    old_mask = os.umask(0o077)
    try:
        attributes = [chown(".", 7, 8), chmod(".", 0o1731), set_xattr(".", "user.told", b"1"), times(".", LONG_AGO)]
        parent = store.layer(*attributes)
        above = store.layer(parent=parent)
        child = store.new(above)
    finally:
        os.umask(old_mask)
    wanted = store.look(parent)["."]
    assert (oct(wanted.mode), wanted.uid, wanted.gid, wanted.mtime) == ("0o1731", 7, 8, tree.cut(LONG_AGO))
    tree.same({".": wanted}, {".": store.look(above)["."]}, "the root of a committed child")
    tree.same({".": wanted}, {".": store.look(child)["."]}, "the root of an active child")


@core
def test_L02_a_child_shows_its_parent_and_never_changes_it(store: Store) -> None:
    parent = store.layer(directory("d"), file("d/a", b"old"), file("b", b"old"), file("c", b"old"))
    before = store.look(parent)
    child = store.new(parent)
    tree.same(before, store.look(child), "a new child differs from its parent")
    store.change(child, steps.append("d/a", b"+"), remove("b"), chmod("c", 0o600), file("new", b"1"), chmod(".", 0o700))
    tree.same(before, store.look(parent), "writing to the child changed the parent")
    sibling = store.new(parent)
    tree.same(before, store.look(sibling), "writing to one child changed another")


@core
def test_L03_commit_freezes(store: Store) -> None:
    active = store.new(None, file("a", b"1"))
    layer = store.commit(active)
    with store.mount(layer) as root:
        with pytest.raises(OSError) as raised:
            steps.do(root, file("b"))
    assert raised.value.errno == errno.EROFS
    assert store.read(layer, "a") == b"1"


@core
@pytest.mark.parametrize("depth", [1, 3])
def test_L04_a_committed_layer_is_read_only_for_root_too(store: Store, depth: int) -> None:
    layer = store.layer(file("a", b"1"), directory("d"))
    for n in range(depth - 1):
        layer = store.layer(file(f"n{n}"), parent=layer)
    before = store.look(layer)
    attempts = [
        steps.append("a", b"2"),
        file("new"),
        chmod("a", 0o777),
        chown("a", 1, 1),
        remove("a"),
        set_xattr("a", "user.x", b"1"),
        steps.device("null", 1, 3),
        directory("e"),
        steps.rename("a", "b"),
        times("a", 1),
    ]
    with store.mount(layer, read_only=False) as root:
        for attempt in attempts:
            with pytest.raises(OSError) as raised:
                attempt(root)
            assert raised.value.errno == errno.EROFS, f"{attempt}: {raised.value}"
    tree.same(before, store.look(layer), "a committed layer was changed")


@core
def test_L05_read_only_looks_at_base_deep_and_active_layers(store: Store) -> None:
    base = store.layer(file("a", b"1"))
    deep = store.layer(file("c", b"3"), parent=store.layer(file("b", b"2"), parent=base))
    active = store.new(deep, file("d", b"4"))
    for layer, names in ((base, "a"), (deep, "abc"), (active, "abcd")):
        with store.mount(layer, read_only=True) as root:
            assert sorted(os.listdir(root)) == list(names)
            with pytest.raises(OSError) as raised:
                steps.do(root, file("z"))
            assert raised.value.errno == errno.EROFS
    for kind in api.Kind:
        with pytest.raises((NotFound, OSError)), store.mount(api.Layer(new_id(), 4711, kind), read_only=True):
            pass


@core
def test_L06_a_missing_parent_is_not_found_and_nothing_is_left(store: Store) -> None:
    ghost = api.Layer(new_id(), 4711, api.Kind.COMMITTED)
    orphan = store.plan(ghost)
    with pytest.raises(NotFound) as raised:
        store.prepare(orphan)
    assert "\n" not in str(raised.value)
    assert raised.value.layer in (ghost.id, orphan.id), "the error does not name the layer"
    assert store.living() == set()
    store.purge_all()


@core
def test_L07_each_call_repeated_gives_the_same_result(store: Store) -> None:
    base = store.layer(file("a", b"1"))
    planned = store.plan(base)
    first = store.driver.prepare(planned, api.LayerOptions())
    active = api.Layer(planned.id, planned.number, planned.kind, base, first)
    store.change(active, file("b", b"2"))
    again = store.driver.prepare(planned, api.LayerOptions())
    assert dict(again) == dict(first), "prepare() repeated returned other data"
    assert store.read(active, "b") == b"2", "prepare() repeated emptied the layer"
    assert len(store.scan(api.ObjectKind.LAYER)) == 2
    new = store.committed(active)
    done = store.driver.commit(active, new, api.Durability.COMMIT)
    assert dict(store.driver.commit(active, new, api.Durability.COMMIT)) == dict(done)
    layer = api.Layer(new.id, new.number, new.kind, base, done)
    assert store.read(layer, "b") == b"2"
    assert store.living() == {(base.id, base.kind), (layer.id, layer.kind)}


@core
def test_L08_commit_consumes_the_active_layer(store: Store) -> None:
    active = store.new(store.layer(file("a")), file("b"))
    layer = store.commit(active)
    assert store.has(layer)
    assert not store.has(active), "the active layer is still there after commit"
    ghost = api.Layer(new_id(), 4711, api.Kind.ACTIVE)
    with pytest.raises(NotFound):
        store.driver.commit(ghost, store.committed(ghost), api.Durability.NONE)
    assert store.has(layer)


@core
def test_L09_a_layer_committed_under_another_id_is_found_there_only(store: Store) -> None:
    base = store.layer(file("a", b"1"))
    active = store.new(base, file("b", b"2"))
    target = store.plan(base)
    new = api.Layer(target.id, target.number, api.Kind.COMMITTED, base)
    data = store.driver.commit(active, new, api.Durability.NONE)
    assert store.driver.commit(active, new, api.Durability.NONE) == data
    layer = api.Layer(new.id, new.number, new.kind, base, data)
    assert store.living() == {(base.id, base.kind), (layer.id, layer.kind)}
    assert store.read(layer, "b") == b"2"


@core
def test_L10_removing_what_is_absent_is_success(store: Store) -> None:
    layer = store.layer(file("a"))
    active = store.new(layer)
    for it in (active, active, layer, layer):
        store.driver.remove(it)
        assert not store.has(it), "a removed layer is still a LAYER"
    store.driver.remove(api.Layer(new_id(), 4711, api.Kind.ACTIVE))
    store.driver.remove(api.Layer(new_id(), 4712, api.Kind.COMMITTED))
    store.purge_all()
    store.driver.remove(layer)
    assert store.scan() == []


@core
def test_L12_removing_leaves_siblings_and_parents_alone(store: Store) -> None:
    base = store.layer(file("a", b"1"))
    middle = store.layer(file("b", b"2"), parent=base)
    top = store.layer(file("c", b"3"), parent=middle)
    sibling = store.new(base, file("s", b"4"))
    wanted = store.look(sibling), store.look(base)
    store.driver.remove(top)
    store.driver.remove(middle)
    store.purge_all()
    assert store.living() == {(base.id, base.kind), (sibling.id, sibling.kind)}
    tree.same(wanted[0], store.look(sibling), "removing a layer changed a sibling")
    tree.same(wanted[1], store.look(base), "removing a layer changed its parent")


@core
def test_L14_removing_the_active_layer_after_its_commit_keeps_the_committed_one(store: Store) -> None:
    active = store.new(None, file("a", b"1"))
    layer = store.commit(active)
    store.driver.remove(active)
    store.purge_all()
    assert store.read(layer, "a") == b"1"
    store.driver.remove(layer)
    again = store.new(None)
    assert list(store.look(again)) == ["."], "a new layer is not clean"


@core
def test_L15_scan_shows_exactly_the_layers(store: Store) -> None:
    base = store.layer(file("a"))
    wanted = {(base.id, base.kind)}
    for n in range(5):
        active = store.new(base, file(f"n{n}"))
        if n % 2:
            layer = store.commit(active)
            wanted.add((layer.id, layer.kind))
        else:
            wanted.add((active.id, active.kind))
    assert store.living() == wanted
    order = [(x.kind, x.name) for x in store.driver.scan()]
    assert order == [(x.kind, x.name) for x in store.driver.scan()], "two scans differ in order"
    assert len(order) == len(set(order))
    for found in store.driver.scan():
        if found.parent is not None and found.layer != base.id:
            assert found.parent == base.id


@full
@budget(60)
def test_L16_scan_beside_work_shows_no_half_made_layer(store: Store) -> None:
    base = store.layer(*[file(f"f{n}", b"x" * 100) for n in range(30)])
    wanted = set(store.look(base))

    def work() -> None:
        mine = object.__new__(Store)
        mine.__dict__.update(store.__dict__)
        mine.driver, mine.number = mine.open(), 1000
        for _ in range(60):
            active = mine.prepare(mine.plan(base))
            mine.driver.remove(active)
        mine.driver.close()

    child = crash.start(work)
    try:
        for _ in range(200):
            for found in store.driver.scan():
                if found.kind is not api.ObjectKind.LAYER or found.layer == base.id:
                    continue
                assert found.layer is not None
                layer = api.Layer(found.layer, 1, api.Kind.ACTIVE, base, found.data)
                try:
                    with store.mount(layer, read_only=True) as root:
                        there = {".", *os.listdir(root)}
                except OSError:
                    continue  # removed since
                except StorageError:
                    continue
                assert there == wanted or not store.has(layer), "scan() called a half-made layer a LAYER"
    finally:
        crash.finish(child)


@core
def test_L17_layers_survive_close_and_open(store: Store) -> None:
    base = store.layer(file("a", b"1"))
    active = store.new(base, file("b", b"2"))
    wanted = store.living(), store.look(base), store.look(active)
    data = {x.layer: dict(x.data) for x in store.scan(api.ObjectKind.LAYER)}
    store.reopen()
    assert store.living() == wanted[0]
    assert {x.layer: dict(x.data) for x in store.scan(api.ObjectKind.LAYER)} == data
    tree.same(wanted[1], store.look(base), "a committed layer changed by reopening")
    tree.same(wanted[2], store.look(active), "an active layer changed by reopening")


@core
def test_L18_close_twice_is_harmless(store: Store) -> None:
    layer = store.layer(file("a", b"1"))
    store.driver.close()
    store.driver.close()
    store.driver = store.open()
    assert store.read(layer, "a") == b"1"


@core
@budget(60)
def test_L13_a_layer_that_is_mounted_is_not_lost_by_its_removal(target: Target, backing: Backing) -> None:
    """Through the engine it is refused; a driver alone refuses, or removes what the mount then shows to the end."""
    with Engine(target, backing.place()) as engine:
        layer = engine.create(engine.pull("ab"))
        wanted = engine.look(layer)
        with engine.mount(layer):
            told = crash.answer(lambda: refused(engine, lambda other: other.remove(layer)))
            assert str(told).startswith(layer.id), "a layer that is mounted was removed"
        tree.same(wanted, engine.look(layer), "a refused removal changed the layer")
        engine.remove(layer)
    with Store(target, backing.place()) as store:
        base = store.layer(file("a", b"1"))
        active = store.new(base, file("b", b"2"))
        with store.mount(active) as root:
            with contextlib.suppress(InUse):
                store.driver.remove(active)
            assert steps.read(root, "a") == b"1"
        store.driver.remove(active)
        store.purge_all()
        assert [x.layer for x in store.scan()] == [base.id]
        assert store.read(base, "a") == b"1"
        store.discard()


@core
def test_L20_ids_and_names_that_differ_little_do_not_collide(target: Target, backing: Backing) -> None:
    with Engine(target, backing.place()) as engine:
        image = engine.pull("a")
        layers = [engine.create(image, name) for name in ("web", "WEB", "Web")]
        for layer, name in zip(layers, ("web", "WEB", "Web"), strict=True):
            assert layer.id == layer.id.lower()
            with engine.mount(layer) as root:
                steps.do(root, file("mine", name.encode()))
        found = [engine.look(layer)["mine"].content for layer in layers]
        assert len(set(found)) == 3, "containers whose names differ in case share a layer"
        assert engine.findings() == []
    with Store(target, backing.place()) as store:
        ids = ["a" * 31 + "b", "a" * 32, "a" * 30 + "ba"]
        made = [store.prepare(api.Layer(LayerId(id_), n, api.Kind.ACTIVE)) for n, id_ in enumerate(ids, 1)]
        for layer in made:
            store.change(layer, file("mine", layer.id.encode()))
        assert [store.read(layer, "mine").decode() for layer in made] == ids
        store.driver.remove(made[1])
        store.purge_all()
        assert [store.read(made[n], "mine").decode() for n in (0, 2)] == [ids[0], ids[2]]
        store.discard()


@core
def test_L19_numbers_and_ids_of_every_value_are_taken(store: Store) -> None:
    for id_, number in (("f" * 32, 1 << 23), ("0" * 32, (1 << 24) - 1), ("0123456789abcdef" * 2, 1 << 16)):
        layer = store.prepare(api.Layer(LayerId(id_), number, api.Kind.ACTIVE))
        store.change(layer, file("a", id_.encode()))
        assert store.read(store.commit(layer), "a") == id_.encode()
    assert {str(id_) for id_, _ in store.living()} == {"f" * 32, "0" * 32, "0123456789abcdef" * 2}


def chain(store: Store, depth: int) -> api.Layer:
    """A committed layer of so many, each with a file of its number and one that all change."""
    layer: api.Layer | None = None
    for n in range(depth):
        layer = store.layer(file(f"own{n}", str(n).encode()), file("last", str(n).encode()), parent=layer)
    assert layer is not None
    return layer


@core
@pytest.mark.parametrize("depth", [1, 2, 42])
def test_L21_a_chain_shows_the_files_of_all_its_layers(store: Store, depth: int) -> None:
    _chain_of(store, depth)


@full
@budget(90)
@pytest.mark.parametrize("depth", [127, 128])
def test_L21_a_long_chain_shows_the_files_of_all_its_layers(store: Store, depth: int) -> None:
    _chain_of(store, depth)


def _chain_of(store: Store, depth: int) -> None:
    most = store.capabilities.max_depth
    if most is not None and depth > most:
        marks.skip("capability", f"max_depth is {most}")
    top = store.new(chain(store, depth))
    with store.mount(top) as root:
        assert steps.read(root, "last") == str(depth - 1).encode(), "the chain is not in order"
        for n in range(depth):
            assert steps.read(root, f"own{n}") == str(n).encode()
        assert len(os.listdir(root)) == depth + 1
        steps.do(root, steps.append("own0", b"+"), remove(f"own{depth - 1}") if depth > 1 else file("x"))
        assert steps.read(root, "own0") == b"0+"


@full
@budget(90)
def test_L22_the_greatest_depth_mounts_and_one_more_is_refused(store: Store) -> None:
    depth = store.capabilities.max_depth
    if depth is None:
        marks.skip("capability", "max_depth is not declared")
    layer: api.Layer | None = None
    for n in range(depth):
        layer = store.commit(store.new(layer, *([file("bottom", b"0")] if n == 0 else [])))
    top = store.new(layer)
    with store.mount(top) as root:
        assert steps.read(root, "bottom") == b"0"
        steps.do(root, file("top"))
    before = store.living()
    with pytest.raises(TooDeep) as raised:
        store.commit(top)
    assert raised.value.remedy
    assert store.living() == before
    assert sorted(store.look(top)) == [".", "bottom", "top"]


@full
@budget(60)
def test_L23_deep_layers_at_a_long_path_mount(target: Target, backing: Backing) -> None:
    root = backing.place()
    while len(root) < 900:
        root += "/" + "long" * 25
    os.makedirs(os.path.dirname(root))
    store = Store(target, root)
    try:
        top = store.new(chain(store, 24))
        assert store.read(top, "own0") == b"0"
        assert len(store.look(top)) == 26
    finally:
        store.discard()


@full
@budget(60)
def test_L24_five_hundred_children_of_one_parent(store: Store) -> None:
    base = store.layer(file("a", b"1"))
    children = [store.prepare(store.plan(base)) for _ in range(500)]
    assert len(store.living()) == 501
    store.change(children[0], file("a", b"2"))
    assert store.read(children[499], "a") == b"1"
    for child in children:
        store.driver.remove(child)
    store.purge_all()
    assert store.living() == {(base.id, base.kind)}


@core
def test_L25_another_process_has_the_same_view(store: Store) -> None:
    base = store.layer(file("a", b"1"))
    active = store.new(base, file("b", b"2"))
    wanted = store.look(active)

    def other() -> None:
        driver = store.open()
        tree.same(wanted, store.look(active, driver=driver), "another process sees another tree")
        with store.mount(active, driver=driver) as root:
            steps.do(root, file("c", b"3"))
        new = store.committed(active)
        driver.commit(active, new, api.Durability.NONE)
        driver.close()

    crash.in_child(other)
    layer = store.committed(active)
    assert store.living() == {(base.id, base.kind), (layer.id, layer.kind)}
    assert store.read(layer, "c") == b"3"


@core
@pytest.mark.parametrize(
    "name", [" a b", ",comma", ":colon", "\\back", "ünï", "\udcff", "newline\n", "'\"$", "lowerdir+=x"]
)
def test_L26_a_root_with_odd_characters_works_or_is_refused_at_once(
    target: Target, backing: Backing, name: str
) -> None:
    root = backing.place(name)
    try:
        store = Store(target, root)
    except (WrongStore, Unsupported):
        return
    try:
        base = store.layer(file("a", b"1"))
        top = store.new(store.layer(file("b", b"2"), parent=base), file("c", b"3"))
        assert sorted(store.look(top)) == [".", "a", "b", "c"]
    finally:
        store.discard()


@core
def test_L26_a_root_behind_a_symbolic_link_or_with_a_slash_at_the_end_works(target: Target, backing: Backing) -> None:
    place = backing.place()
    os.mkdir(place)
    os.mkdir(f"{place}/real")
    os.symlink("real", f"{place}/link")
    for root in (f"{place}/link/store", f"{place}/real/other/"):
        store = Store(target, root)
        top = store.new(store.layer(file("a", b"1")), file("b", b"2"))
        assert sorted(store.look(top)) == [".", "a", "b"]
        store.driver.close()


@core
def test_L27_committing_onto_another_parent(store: Store) -> None:
    base = store.layer(file("a", b"1"))
    active = store.new(None, file("b", b"2"))
    new = api.Layer(active.id, active.number, api.Kind.COMMITTED, base)
    if not store.capabilities.rebase:
        with pytest.raises(Unsupported):
            store.driver.commit(active, new, api.Durability.NONE)
        assert store.has(active), "a refused commit consumed the layer"
        return
    layer = store.commit(active, new)
    usual = store.layer(file("b", b"2"), parent=base)
    tree.same(store.look(usual), store.look(layer), "rebased", ignore=("mtime",))
