"""I: mapped ids."""

from __future__ import annotations

import errno
import os
import random
import stat
from dataclasses import replace

import pytest

from cowshed.layers import changes as engine
from cowshed.layers.archive import stream
from cowshed.storage import api
from cowshed_conformance import archive, crash, marks, steps, tree
from cowshed_conformance.cases.test_content import CAPABILITY
from cowshed_conformance.harness import Store
from cowshed_conformance.marks import core, full
from cowshed_conformance.namespaces import OUTER, Map, mapped, takes_maps, user_namespace
from cowshed_conformance.steps import chmod, chown, directory, file, remove
from cowshed_linux import process

NOBODY = 65534
_ALL = (1 << 32) - 1  # ids that there are: the last number means none


def image(store: Store) -> api.Layer:
    base = store.layer(
        file("a", b"1"), file("b", b"2"), chown("b", 1000, 1001), directory("d", 0o777), chown("d", 7, 8)
    )
    return store.layer(file("top"), parent=base)


def owners(root: str, *names: str) -> list[tuple[int, int]]:
    found = [os.lstat(f"{root}/{name}") for name in names]
    return [(status.st_uid, status.st_gid) for status in found]


def gate(store: Store) -> None:
    if not store.capabilities.idmapped_mounts:
        marks.skip("capability", "idmapped_mounts is denied")


@core
@pytest.mark.parametrize("depth", [1, 2])
def test_I07_mounts_take_maps_of_ids_exactly_if_that_is_claimed(store: Store, depth: int) -> None:
    base = store.layer(file("a", b"1"))
    layer = store.new(base) if depth == 2 else base
    with user_namespace() as userns:
        works = takes_maps(store, layer, userns)
    how = f"the mount of a layer at depth {depth} with mapped ids"
    marks.claim("idmapped_mounts", store.capabilities.idmapped_mounts, works, how)


@core
def test_I07_a_map_makes_no_new_files(store: Store) -> None:
    gate(store)
    layer = store.new(image(store))
    with store.mount(layer):
        pass  # what the first mount of all writes is no matter of maps
    before = store.driver.usage(layer)
    with user_namespace() as userns, mapped(store, layer, userns) as root:
        assert owners(root, "a", "b", "d") == [(OUTER, OUTER), (OUTER + 1000, OUTER + 1001), (OUTER + 7, OUTER + 8)]
        after = store.driver.usage(layer)
    assert (after.own, after.inodes) == (before.own, before.inodes), "mapping ids has copied something"


@core
def test_I01_a_mapped_layer_shows_mapped_owners_and_its_parent_stays(store: Store) -> None:
    gate(store)
    below = image(store)
    layer = store.new(below)
    before = store.look(below)
    with user_namespace() as userns, mapped(store, layer, userns) as root:

        def container() -> None:
            os.setresgid(OUTER, OUTER, OUTER)
            os.setresuid(OUTER, OUTER, OUTER)
            steps.do(root, chmod("a", 0o600), steps.append("a", b"+"), file("d/new"))

        crash.in_child(container)
        assert owners(root, "a", "b", "d/new") == [(OUTER, OUTER), (OUTER + 1000, OUTER + 1001), (OUTER, OUTER)]
        assert owners(root, "d") == [(OUTER + 7, OUTER + 8)], "the directory above a new file has another owner"
        assert steps.read(root, "a") == b"1+"
    tree.same(before, store.look(below), "a layer with mapped ids changed its parent")


@core
def test_I02_two_layers_of_one_image_with_two_maps_at_once(store: Store) -> None:
    gate(store)
    below = image(store)
    layers = [store.new(below), store.new(below)]
    with (
        user_namespace(((0, 200_000, 65536),)) as one,
        user_namespace(((0, 300_000, 65536),)) as two,
        mapped(store, layers[0], one) as first,
        mapped(store, layers[1], two) as second,
    ):
        assert owners(first, "a", "b") == [(200_000, 200_000), (201_000, 201_001)]
        assert owners(second, "a", "b") == [(300_000, 300_000), (301_000, 301_001)]
        steps.do(first, chmod("a", 0o600))
        assert owners(first, "a") == [(200_000, 200_000)]
        assert stat.S_IMODE(os.lstat(f"{second}/a").st_mode) == 0o644


@core
def test_I05_ids_outside_the_map_are_nobody_and_never_root(store: Store) -> None:
    gate(store)
    below = store.layer(file("far"), chown("far", 70_000, 70_000), parent=image(store))
    with user_namespace() as userns, mapped(store, store.new(below), userns) as root:
        try:
            found = owners(root, "far")
        except OSError as error:
            found = [(error.errno or 0, 0)]
        assert found in ([(NOBODY, NOBODY)], [(errno.EOVERFLOW, 0)])


@full
@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        (((0, 100_000, 10), (1000, 200_000, 5)), {3: 100_003, 1002: 200_002, 500: NOBODY}),
        (((0, 100_000, 1),), {0: 100_000, 1: NOBODY}),
        (((0, 100_000, 1), (2, 100_002, 1), (4, 100_004, 1)), {0: 100_000, 1: NOBODY, 2: 100_002, 4: 100_004}),
        (((0, 0, _ALL),), {0: 0, 7: 7, _ALL - 1: _ALL - 1}),
        (((0, 1, _ALL - 1),), {0: 1, 65_536: 65_537, _ALL - 2: _ALL - 1}),
    ],
)
def test_I06_maps_of_several_ranges_with_holes_of_one_id_and_of_all(
    store: Store, ids: Map, wanted: dict[int, int]
) -> None:
    gate(store)
    made = [step for uid in wanted for step in (file(f"u{uid}"), chown(f"u{uid}", uid, uid))]
    layer = store.layer(*made)
    with user_namespace(ids) as userns, mapped(store, layer, userns) as root:
        assert owners(root, *(f"u{uid}" for uid in wanted)) == [(uid, uid) for uid in wanted.values()]


@core
def test_I03_what_a_mapped_layer_changed_is_told_in_the_ids_of_its_container(store: Store) -> None:
    gate(store)
    below = image(store)
    layer = store.new(below)
    with (
        user_namespace() as userns,
        mapped(store, layer, userns) as root,
        mapped(store, below, userns, read_only=True) as lower,
    ):

        def container() -> None:
            process.setns(userns, process.CLONE_NEWUSER)
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            steps.do(root, steps.append("b", b"+"), file("d/new"), remove("a"), file("mine"), chown("mine", 33, 34))
            fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for path in (lower, root)]
            found = engine.of_trees(*fds)
            said = {os.fsdecode(change.path): change.kind.value for change in found.changes if change.path}
            assert said == {"a": "D", "b": "C", "d": "C", "d/new": "A", "mine": "A"}
            owned = archive.members(b"".join(stream(found, fds[1])))
            ids = {name: (owned[name].uid, owned[name].gid) for name in ("b", "d", "d/new", "mine")}
            assert ids == {"b": (1000, 1001), "d": (7, 8), "d/new": (0, 0), "mine": (33, 34)}

        crash.in_child(container)


@core
def test_I04_directories_above_a_change_keep_their_mapped_owners(store: Store) -> None:
    gate(store)
    below = store.layer(
        directory("d"), directory("d/e"), directory("d/e/f", 0o777), file("d/e/f/old", mode=0o666),
        chown("d/e/f", 11, 12), chown("d/e", 9, 10), chown("d", 7, 8),
    )  # fmt: skip
    layer = store.new(below)
    before = store.look(below)
    with user_namespace() as userns, mapped(store, layer, userns) as root:

        def container() -> None:
            os.setresgid(OUTER, OUTER, OUTER)
            os.setresuid(OUTER, OUTER, OUTER)
            steps.do(root, steps.append("d/e/f/old", b"+"), steps.directories("d/e/f/g/h"), file("d/e/f/g/h/new"))

        crash.in_child(container)
        above = [(OUTER + uid, OUTER + uid + 1) for uid in (7, 9, 11)]
        assert owners(root, "d", "d/e", "d/e/f") == above
        assert owners(root, ".", "d/e/f/old", "d/e/f/g", "d/e/f/g/h", "d/e/f/g/h/new") == [(OUTER, OUTER)] * 5
    tree.same(before, store.look(below), "a layer with mapped ids changed its parent")


def shift(store: Store, layer: api.Layer, wanted: tree.Tree) -> None:
    """What an engine does for ids where mounts cannot map them: give all files of a layer other owners, and back what
    the kernel takes away then. Repeatable, as it goes by what is wanted and not by what is there."""
    with store.mount(layer) as root:
        for path, node in wanted.items():
            at = f"{root}/{path}"
            os.lchown(at, node.uid, node.gid)
            if node.kind != "link":
                os.chmod(at, node.mode)
            for name, value in node.xattrs:
                os.setxattr(at, name, value, follow_symlinks=False)
            os.utime(at, ns=(node.mtime, node.mtime), follow_symlinks=False)


def owned_by_others(store: Store) -> tuple[api.Layer, tree.Tree, tree.Tree]:
    """A layer with everything that chown takes away; it as it is, and as it should be with other ids."""
    below = store.layer(
        file("program", b"1", 0o755), chmod("program", 0o6755), file("able", b"2", 0o755),
        steps.set_xattr("able", "security.capability", CAPABILITY), steps.set_xattr("able", "user.x", b"3"),
        file("one", b"4"), steps.link("one", "two"), chown("one", 1000, 1001), directory("d", 0o1777),
        steps.symlink("one", "l"), steps.fifo("d/p"), *(steps.times(name, 10**18) for name in ("able", "one", "d")),
    )  # fmt: skip
    before = store.look(below)
    moved = {path: replace(node, uid=node.uid + OUTER, gid=node.gid + OUTER) for path, node in before.items()}
    return below, before, moved


def same_but_links(store: Store, wanted: tree.Tree, layer: api.Layer, *, killed: bool = False) -> None:
    """killed: in the midst of it. A union that joins the names of a file again when its mount ends in order (aufs) has
    parted them then."""
    kept = store.capabilities.hard_links_survive_copy_up and not (killed and store.capabilities.diff_tree)
    parts = () if kept else ("links",)
    found = store.look(layer)
    if not store.capabilities.parent_times_survive_copy_up:
        folders = [path for path, node in wanted.items() if node.kind == "dir"]
        found = {**found, **{path: replace(found[path], mtime=wanted[path].mtime) for path in folders}}
    tree.same(wanted, found, "owners that were changed file by file", ignore=parts)


@core
def test_I08_new_owners_for_every_file_cost_nothing_else(store: Store) -> None:
    below, before, moved = owned_by_others(store)
    layer = store.new(below)
    shift(store, layer, moved)
    same_but_links(store, moved, layer)
    tree.same(before, store.look(below), "new owners show in the parent")


@full
def test_I09_new_owners_whose_giving_was_killed_are_right_after_a_repeat(store: Store, chance: random.Random) -> None:
    below, before, moved = owned_by_others(store)
    for _ in range(6):
        layer = store.new(below)
        point = chance.choice(("os.chown", "os.chmod", "os.utime")), chance.randint(1, len(moved) - 1)
        assert crash.kill_at(store, lambda there, layer=layer: shift(there, layer, moved), point)  # type: ignore[misc]
        shift(store, layer, moved)
        same_but_links(store, moved, layer, killed=True)
    tree.same(before, store.look(below), "new owners show in the parent")


@core
def test_I10_a_mapped_layer_is_committed_checked_and_removed_as_any_other(store: Store) -> None:
    gate(store)
    below = image(store)
    layer, other = store.new(below), store.new(below)
    with user_namespace() as userns:
        for active in (layer, other):
            with mapped(store, active, userns) as root:

                def container(root: str = root) -> None:
                    os.setresgid(OUTER, OUTER, OUTER)
                    os.setresuid(OUTER, OUTER, OUTER)
                    steps.do(root, directory("closed"), file("closed/f", b"1"), chmod("closed", 0), remove("a"))

                crash.in_child(container)
    committed = store.commit(layer)
    store.driver.remove(other)
    child = store.new(committed, file("closed/more"))
    assert "a" not in store.look(child)
    assert store.read(child, "closed/f") == b"1"
    if api.has_self_check(store.driver):
        assert list(store.driver.check([below, committed, child], deep=True)) == []
    for gone in (child, committed):
        store.driver.remove(gone)
    store.purge_all()
    assert store.living() == {(x.id, x.kind) for x in below.chain()}
    assert sorted(store.look(below)) == [".", "a", "b", "d", "top"]
