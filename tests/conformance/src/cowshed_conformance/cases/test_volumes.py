"""W: volumes, which are layers: snapshot is commit and prepare, clone is prepare, roll back is prepare and remove."""

from __future__ import annotations

import os

import pytest

from cowshed.storage import api
from cowshed.storage.errors import TooDeep
from cowshed_conformance import crash, marks, steps, tree
from cowshed_conformance.cases.test_concurrency import written_meanwhile
from cowshed_conformance.cases.test_usage import MIB, fill, limited
from cowshed_conformance.harness import Store
from cowshed_conformance.marks import budget, core, full
from cowshed_conformance.steps import append, chmod, chown, directory, file, remove
from cowshed_linux import mount

CONTENT = (
    directory("data", 0o2770), file("data/a", b"1" * 5000), steps.link("data/a", "data/b"), chown("data", 7, 8),
    steps.set_xattr("data/a", "user.told", b"1"), steps.symlink("a", "data/s"), chown(".", 5, 6), chmod(".", 0o711),
)  # fmt: skip


class Volume:
    """The pointer that the engine keeps: which layer is the volume now."""

    def __init__(self, store: Store, *content: steps.Step) -> None:
        self.store, self.layer = store, store.new(None, *content)

    def snapshot(self) -> api.Layer:
        taken = self.store.commit(self.layer)
        self.layer = self.store.new(taken)
        return taken

    def roll_back(self, taken: api.Layer) -> None:
        old, self.layer = self.layer, self.store.new(taken)
        self.store.driver.remove(old)


@core
def test_W01_snapshots_clones_and_what_was_rolled_back_have_equal_trees(store: Store) -> None:
    volume = Volume(store, *CONTENT)
    wanted = store.look(volume.layer)
    first = volume.snapshot()
    tree.same(wanted, store.look(first), "a snapshot")
    tree.same(wanted, store.look(volume.layer), "a volume after its snapshot")
    store.change(volume.layer, append("data/b", b"+"), remove("data/s"), file("data/new", b"2"))
    later = store.look(volume.layer)
    tree.same(wanted, store.look(first), "a snapshot of a volume that was written to")
    clone = store.new(first)
    tree.same(wanted, store.look(clone), "a clone")
    store.change(clone, steps.remove_all("data"), file("mine", b"3"))
    tree.same(later, store.look(volume.layer), "a volume whose clone was written to")
    second = volume.snapshot()
    volume.roll_back(first)
    tree.same(wanted, store.look(volume.layer), "a volume that was rolled back")
    volume.roll_back(second)
    tree.same(later, store.look(volume.layer), "a volume that was rolled forth again")
    store.driver.remove(clone)
    store.purge_all()
    assert store.living() == {(x.id, x.kind) for x in (first, second, volume.layer)}


@full
@budget(60)
def test_W02_a_snapshot_of_a_volume_that_is_written_to_is_consistent(store: Store) -> None:
    driver = store.driver
    if not api.has_live_snapshot(driver):
        marks.skip("capability", "live_snapshot is none: the engine takes a snapshot when nobody has the volume")
    volume = Volume(store, *CONTENT)
    planned: list[api.Layer] = []

    def take() -> api.Layer:
        new = store.plan()
        new = api.Layer(new.id, new.number, api.Kind.COMMITTED, volume.layer.parent)
        planned.append(new)
        data = driver.snapshot(volume.layer, new, api.Durability.COMMIT)
        return api.Layer(new.id, new.number, new.kind, new.parent, data)

    written_meanwhile(store, volume.layer, take)
    assert store.has(volume.layer)
    clone = store.new(planned[0], append("one", b"mine"))
    assert store.read(clone, "one").endswith(b"mine")
    assert not store.read(volume.layer, "one").endswith(b"mine")


@core
def test_W03_two_containers_with_one_volume_see_each_others_writes(store: Store) -> None:
    volume = Volume(store, *CONTENT)
    with store.attached(volume.layer) as one:
        clone = mount.clone(one)  # what a further container gets
        two = f"/proc/self/fd/{clone}"
        steps.do(one, file("mine", b"1"))
        assert steps.read(two, "mine") == b"1"
        steps.do(two, append("mine", b"2"), steps.remove("data/s"))
        assert steps.read(one, "mine") == b"12"

        def elsewhere() -> object:
            there = f"/proc/self/fd/{mount.clone(one)}"
            steps.do(there, append("mine", b"3"))
            return sorted(os.listdir(there))

        assert crash.answer(elsewhere) == ["data", "mine"]
        assert steps.read(one, "mine") == b"123"
    try:  # the first container has gone
        steps.do(two, append("mine", b"4"))
        assert steps.read(two, "mine") == b"1234"
    finally:
        os.close(clone)
    assert store.read(volume.layer, "mine") == b"1234"


@core
def test_W04_a_limit_on_a_volume_holds_for_all_that_it_is_mounted_in(store: Store) -> None:
    layer = limited(store, 8 * MIB)
    with store.attached(layer) as one:
        clone = mount.clone(one)
        try:
            assert fill(one, 3, "one") == 3
            taken = 3 + fill(f"/proc/self/fd/{clone}", 16, "two")
            assert 5 <= taken <= 8, f"a volume with a limit of 8 MiB took {taken}"
            assert fill(one, 2, "more") == 0
        finally:
            os.close(clone)
    volume = Volume(store)
    volume.layer = layer
    first = volume.snapshot()
    with store.mount(volume.layer) as root:  # its limit is set anew: Q04
        assert "one0" in os.listdir(root)
    assert store.look(first)["one0"].size == MIB


@full
@budget(120)
def test_W05_a_volume_that_would_get_too_deep_keeps_what_it_has(store: Store) -> None:
    most = store.capabilities.max_depth
    if most is None:
        marks.skip("capability", "max_depth is none: snapshots may go on")
    volume = Volume(store, file("n", b"0"))
    for n in range(most):
        volume.snapshot()
        if n % 100 == 0 or n == most - 1:
            store.change(volume.layer, file("n", str(n).encode()))
    with pytest.raises(TooDeep) as raised:
        volume.snapshot()
    assert raised.value.remedy, "nothing says what to do about it"
    store.change(volume.layer, append("n", b"+"))
    assert store.read(volume.layer, "n") == f"{most - 1}+".encode()
    assert store.has(volume.layer)
