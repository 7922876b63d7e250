"""D: what a layer changed, as the driver tells it, as the engine tells it, and as an archive."""

from __future__ import annotations

import dataclasses
import gc
import os
import random
import tarfile
from collections.abc import Callable, Sequence

import pytest

from cowshed.layers import changes as engine
from cowshed.layers.archive import stream
from cowshed.storage import api, options
from cowshed.storage.errors import BadOption, StorageError
from cowshed_conformance import archive, changes, marks, randoms, steps, tree
from cowshed_conformance.backing import Backing
from cowshed_conformance.cases.test_content import ACCESS, CAPABILITY, KINDS
from cowshed_conformance.harness import Store
from cowshed_conformance.marks import budget, core, faults, full
from cowshed_conformance.steps import (
    Step,
    append,
    chmod,
    chown,
    device,
    directories,
    directory,
    fifo,
    file,
    link,
    move_directory,
    remove,
    remove_all,
    rename,
    set_xattr,
    socket,
    subvolume,
    symlink,
    times,
)  # fmt: skip
from cowshed_conformance.target import Target, resolve

_MOMENT = 1_700_000_000_123_456_789
TREES = int(os.environ.get("COWSHED_RANDOM_TREES", "1000"))  # in parts where a machine is slow


def pair(store: Store, lower: Sequence[Step], upper: Sequence[Step]) -> tuple[api.Layer, api.Layer]:
    base = store.layer(*lower)
    return base, store.layer(*upper, parent=base)


def both(store: Store, lower: api.Layer, upper: api.Layer) -> dict[str, str]:
    """The changes as the engine finds them, which must be those of comparing all that is seen; and applying their
    archive to the lower layer must give the upper one."""
    found, data = archive.of_engine(store, lower, upper)
    below, now = without_sockets(store.look(lower)), without_sockets(store.look(upper))
    wanted = changes.naive(below, now)
    # The engine says of a directory that became something else no word about what lay in it.
    assert dict(found) == {p: c for p, c in wanted.items() if c != "D" or not replaced_above(p, now)}
    assert len(found) == len(dict(found)), "a path is reported twice"
    again = store.new(lower)
    archive.unpack(store, again, data)
    there = without_sockets(store.look(again))
    store.driver.remove(again)
    if not store.capabilities.hard_links_survive_copy_up:
        # A file that was only opened for writing may have parted from its other names, which is no change.
        now, there = (
            {path: node if path in dict(found) else dataclasses.replace(node, links=()) for path, node in side.items()}
            for side in (now, there)
        )
    tree.same(now, there, "applying the archive gives another tree")
    return dict(found)


def without_times(store: Store, found: dict[str, str], *above: str) -> dict[str, str]:
    """Without the directories above a file that was copied up, where that gives them another time."""
    if store.capabilities.parent_times_survive_copy_up:
        return found
    return {path: change for path, change in found.items() if path not in above or change != "C"}


def without_sockets(found: tree.Tree) -> dict[str, tree.Node]:
    return {path: node for path, node in found.items() if node.kind != "socket"}


def replaced_above(path: str, now: tree.Tree) -> bool:
    return any(a in now and now[a].kind != "dir" for a in changes.above(path))


@core
def test_D01_no_change_is_an_empty_list_and_always_the_same_archive(store: Store) -> None:
    base, layer = pair(store, [file("a", b"1"), directory("d")], [])
    assert changes.of_driver(store, base, layer) == {}
    assert both(store, base, layer) == {}
    assert archive.of_engine(store, base, layer) == archive.of_engine(store, base, layer)


@core
def test_D02_added_modified_and_deleted_are_each_reported_once(store: Store) -> None:
    lower = [file("kept", b"1"), file("changed", b"1"), file("gone", b"1"), directory("d"), file("d/in", b"1")]
    base, layer = pair(store, lower, [append("changed", b"2"), remove("gone"), file("new"), file("d/new")])
    changes.check(store, base, layer, added={"new", "d/new"}, modified={"changed"}, deleted={"gone"})
    both(store, base, layer)


@core
def test_D03_other_content_of_the_same_size_and_time_is_found(store: Store) -> None:
    base, layer = pair(store, [file("a", b"one"), times("a", _MOMENT)], [file("a", b"two"), times("a", _MOMENT)])
    changes.check(store, base, layer, modified={"a"})
    both(store, base, layer)


ONLY: dict[str, Step] = {
    "mtime": times("a", _MOMENT + 1_000_000_000),
    "mode": chmod("a", 0o600),
    "owner": chown("a", 0, 12),
    "xattr": set_xattr("a", "user.new", b"1"),
    "capability": set_xattr("a", "security.capability", CAPABILITY),
    "acl": set_xattr("a", "system.posix_acl_access", ACCESS),
}


@core
@pytest.mark.parametrize("what", list(ONLY))
@pytest.mark.parametrize("kind", ["file", "dir"])
def test_D04_a_change_of_one_attribute_only_is_found(store: Store, what: str, kind: str) -> None:
    if kind == "dir" and what == "capability":
        marks.skip("kernel", "a directory has no capabilities")
    first = [times("a", _MOMENT)] if what == "acl" and not store.capabilities.acl_before_copy_up else []
    base, layer = pair(store, [*KINDS[kind]("a"), times("a", _MOMENT)], [*first, ONLY[what]])
    changes.check(store, base, layer, modified={"a"})
    both(store, base, layer)


@core
def test_D05_looking_is_no_change(store: Store) -> None:
    base = store.layer(file("a", b"1"), directory("d"), file("d/b", b"2"))
    top = store.new(base)
    with store.mount(top) as root:
        assert steps.read(root, "a") == b"1"
        os.listdir(f"{root}/d")
        os.close(os.open(f"{root}/d/b", os.O_RDWR))
    assert without_times(store, changes.of_driver(store, base, top), ".", "d") == {}
    assert without_times(store, both(store, base, top), ".", "d") == {}


@core
def test_D06_writing_identical_bytes_is_as_declared(store: Store) -> None:
    lower = [file("a", b"1" * 5000), times("a", _MOMENT)]
    base, layer = pair(store, lower, [file("a", b"2" * 5000), file("a", b"1" * 5000), times("a", _MOMENT)])
    if api.has_changes(store.driver):
        named = {os.fsdecode(c.path) for c in store.driver.changes(base, layer)}
        marks.claim("changes_exact", store.capabilities.changes_exact, "a" not in named, "it is not reported")
    assert without_times(store, both(store, base, layer), ".") == {}


@core
def test_D07_a_deleted_directory_is_one_deletion(store: Store) -> None:
    lower = [directories("d/sub/deep"), file("d/a"), file("d/sub/b"), file("e")]
    base, layer = pair(store, lower, [remove_all("d")])
    changes.check(store, base, layer, deleted={"d"})
    assert both(store, base, layer) == {".": "C", "d": "D"}
    whiteouts = [n for n in archive.members(archive.of_engine(store, base, layer)[1]) if ".wh." in n]
    assert whiteouts == [".wh.d"]


@core
def test_D08_a_replaced_directory(store: Store) -> None:
    lower = [directory("d"), file("d/a", b"1"), file("d/b", b"1"), directory("d/sub"), file("d/sub/c")]
    base, layer = pair(store, lower, [remove_all("d"), directory("d"), file("d/b", b"2"), file("d/new")])
    changes.check(store, base, layer, added={"d/new"}, modified={"d/b"}, deleted={"d/a", "d/sub"})
    both(store, base, layer)


@core
def test_D09_names_that_begin_alike(store: Store) -> None:
    lower = [directory("a"), file("a/b"), file("a-b"), file("ab"), directory("a.d"), file("a.d/x")]
    base, layer = pair(store, lower, [remove_all("a")])
    changes.check(store, base, layer, deleted={"a"})
    assert both(store, base, layer) == {".": "C", "a": "D"}


@core
@pytest.mark.parametrize("old", ["file", "dir", "link", "device"])
@pytest.mark.parametrize("new", ["file", "dir", "link", "fifo"])
def test_D10_one_kind_replaced_by_another(store: Store, old: str, new: str) -> None:
    gone = remove_all("p") if old == "dir" else remove("p")
    base, layer = pair(store, KINDS[old]("p"), [gone, *KINDS[new]("p")])
    both(store, base, layer)


@core
def test_D11_parents_are_in_the_archive_and_are_no_changes(store: Store) -> None:
    lower = [directories("x/y"), chmod("x", 0o711), chown("x/y", 5, 6), file("x/y/a", b"1"), times("x", _MOMENT)]
    base, layer = pair(store, lower, [append("x/y/a", b"2")])
    above = (".", "x", "x/y")
    assert without_times(store, changes.of_driver(store, base, layer), *above) == {"x/y/a": "C"}
    assert without_times(store, both(store, base, layer), *above) == {"x/y/a": "C"}
    found = archive.members(archive.of_engine(store, base, layer)[1])
    assert (found["x"].mode, found["x/y"].uid, found["x/y"].gid) == (0o711, 5, 6)


@core
def test_D12_empty_files_and_directories(store: Store) -> None:
    base, layer = pair(store, [file("old", b"1")], [file("f"), directory("d"), file("old")])
    changes.check(store, base, layer, added={"f", "d"}, modified={"old"})
    both(store, base, layer)


LINKS: dict[str, tuple[Sequence[Step], set[str]]] = {
    "another name": ([link("a", "c")], {"a", "b", "c"}),
    "a name less": ([remove("b")], set()),
    "written": ([append("a", b"2")], {"a"}),
    "written and named": ([append("a", b"2"), link("a", "c")], {"a", "c"}),
    "made again": ([remove("a"), file("a", b"1"), link("a", "d")], {"a", "d"}),
}


@core
@pytest.mark.parametrize("name", list(LINKS))
def test_D13_hard_links(store: Store, name: str) -> None:
    upper, together = LINKS[name]
    base, layer = pair(store, [file("a", b"1"), link("a", "b")], upper)
    both(store, base, layer)
    found = store.look(layer)
    one = next(iter(sorted(together)), "")
    if store.capabilities.hard_links_survive_copy_up and name == "another name":
        assert set(found[one].links) == together


@core
def test_D14_a_moved_file_and_a_moved_tree(store: Store) -> None:
    lower = [file("f", b"1"), directories("t/sub"), file("t/a", b"2"), file("t/sub/b", b"3"), link("t/a", "t/l")]
    base, layer = pair(store, lower, [rename("f", "g"), move_directory("t", "u")])
    wanted = {"g", "u", "u/a", "u/sub", "u/sub/b", "u/l"}
    changes.check(store, base, layer, added=wanted, deleted={"f", "t"})
    both(store, base, layer)


@core
def test_D15_names_that_change_places(store: Store) -> None:
    lower = [step for n in "abcde" for step in (file(n, n.encode()), times(n, _MOMENT))]
    swap = [rename("a", "x"), rename("b", "a"), rename("x", "b")]
    cycle = [rename("c", "x"), rename("d", "c"), rename("e", "d"), rename("x", "e")]
    base, layer = pair(store, lower, [*swap, *cycle])
    changes.check(store, base, layer, modified=set("abcde"))
    both(store, base, layer)


@core
def test_D16_a_file_that_was_deleted_and_made_again(store: Store) -> None:
    base, layer = pair(
        store, [file("a", b"1"), file("b", b"1")], [remove("a"), remove("b"), file("b", b"2"), file("a")]
    )
    changes.check(store, base, layer, modified={"a", "b"})
    both(store, base, layer)


@full
def test_D17_nested_subvolumes(store: Store) -> None:
    if not store.capabilities.nested_subvolumes:
        marks.skip("capability", "nested_subvolumes is not declared")
    base = store.layer(file("a", b"1"))
    inside = [directory("d"), subvolume("d/sub"), file("d/sub/in", b"1"), subvolume("d/sub/deep"), file("d/sub/deep/f")]
    layer = store.new(base, *inside)
    found = archive.of_engine(store, base, layer)[0]
    assert {"d", "d/sub", "d/sub/in", "d/sub/deep", "d/sub/deep/f"} <= set(dict(found)), "changes leave it out"
    attempts: list[Callable[[], api.Layer]] = [lambda: store.commit(layer)]
    if api.has_live_snapshot(store.driver):
        attempts.insert(0, lambda: snapshot_of(store, layer))
    for attempt in attempts:
        made, refused = None, StorageError("")
        try:
            made = attempt()
        except StorageError as error:  # as good as keeping it; an empty directory in its place is not
            refused = error
        if made is not None:
            assert store.read(made, "d/sub/in") == b"1"
            store.driver.remove(made)
            continue
        assert "d/sub" in str(refused), f"what was refused does not say where it is: {refused}"
        assert refused.remedy
        assert store.living() == {(base.id, base.kind), (layer.id, layer.kind)}
        assert store.read(layer, "d/sub/in") == b"1"
    store.driver.remove(layer)
    store.purge_all()
    assert [x.layer for x in store.scan()] == [base.id], "a layer with subvolumes in it is not removed whole"


def snapshot_of(store: Store, active: api.Layer) -> api.Layer:
    driver = store.driver
    assert api.has_live_snapshot(driver)
    new = api.Layer(store.plan().id, store.number, api.Kind.COMMITTED, active.parent)
    return api.Layer(new.id, new.number, new.kind, new.parent, driver.snapshot(active, new, api.Durability.NONE))


@core
def test_D18_sockets_are_left_out_and_devices_kept(store: Store) -> None:
    special = [socket("s"), fifo("f"), device("null", 1, 3), device("blk", 7, 3, 0o060000)]
    base, layer = pair(store, [file("a")], special)
    assert both(store, base, layer).keys() == {".", "f", "null", "blk"}
    found = archive.members(archive.of_engine(store, base, layer)[1])
    assert {n: i.type for n, i in found.items() if n != "."} == {
        "f": tarfile.FIFOTYPE, "null": tarfile.CHRTYPE, "blk": tarfile.BLKTYPE
    }  # fmt: skip
    assert (found["blk"].devmajor, found["blk"].devminor) == (7, 3)


@core
def test_D19_names_numbers_and_times_beyond_ustar(store: Store) -> None:
    deep = "/".join("n" * 60 + str(n) for n in range(6))
    upper = [
        directories(deep), file(f"{deep}/{'f' * 200}", b"1"), symlink("t" * 500, "l"), link(f"{deep}/{'f' * 200}", "h"),
        file("owned"), chown("owned", (1 << 21) + 5, (1 << 31) + 7), file("old"), times("old", -1_500_000_001),
        file("exact"), times("exact", _MOMENT),
    ]  # fmt: skip
    base, layer = pair(store, [file("a")], upper)
    both(store, base, layer)
    found = store.look(layer)
    assert (found["owned"].uid, found["owned"].gid) == ((1 << 21) + 5, (1 << 31) + 7)
    assert (found["old"].mtime, found["exact"].mtime) == (tree.cut(-1_500_000_001), tree.cut(_MOMENT))


@core
def test_D20_nothing_of_the_driver_itself_is_in_an_archive(store: Store) -> None:
    lower = [directory("d"), file("d/a"), file("b", b"1"), file("c")]
    upper = [remove_all("d"), directory("d"), append("b", b"2"), remove("c"), chmod(".", 0o711)]
    base, layer = pair(store, lower, upper)
    for name, info in archive.members(archive.of_engine(store, base, layer)[1]).items():
        assert not name.startswith((".wh..wh.", "lost+found", ".zfs", "work")), name
        assert not [key for key in info.pax_headers if "overlay" in key], (name, info.pax_headers)
        assert info.type != tarfile.CHRTYPE, name


def variants(target: Target) -> list[dict[str, str]]:
    """Every choice of every option on its own, and the last choices of all together."""
    listed = [(o.name, str(c)) for o in target.plugin.options for c in o.choices]
    return [*({name: choice} for name, choice in listed), dict(listed)]


@full
def test_D21_the_diff_is_right_with_every_option(target: Target, backing: Backing) -> None:
    tried = variants(target)
    if len(tried) == 1:
        marks.skip("capability", "the driver has no option to choose")
    for given in tried:
        with_it = dataclasses.replace(target, options=options.check(target.plugin, {**target.given, **given}))
        try:
            store = Store(with_it, backing.place())
        except BadOption:
            continue  # not to be had alone
        try:
            lower = [file("big", b"x" * 100_000), directories("d/sub"), file("d/sub/a", b"1"), file("c", b"1")]
            upper = [chmod("big", 0o600), move_directory("d", "moved"), remove("c"), link("big", "big2")]
            base = store.layer(*lower)
            layer = store.layer(*upper, parent=base)
            with store.mount(layer, read_only=True) as root:
                assert steps.read(root, "big") == b"x" * 100_000
            if api.has_diff_tree(store.driver) or api.has_changes(store.driver):
                both(store, base, layer)
            else:
                found = naive_engine(store, base, layer)
                assert found == changes.naive(store.look(base), store.look(layer)), given
        finally:
            store.discard()


def naive_engine(store: Store, lower: api.Layer | None, upper: api.Layer) -> dict[str, str]:
    with store.tree(upper, read_only=True) as root:
        if lower is None:
            found = engine.of_trees(None, root)
        else:
            with store.tree(lower, read_only=True) as below:
                found = engine.of_trees(below, root)
    return {os.fsdecode(c.path) or ".": c.kind.value for c in found.changes}


@core
@budget(60)
def test_D22_the_quick_way_equals_the_walk_of_both_trees(light: Store, chance: random.Random) -> None:
    quick_equals_walk(light, chance, 40)


@faults
@budget(3600)
def test_D22_a_thousand_times(light: Store, chance: random.Random) -> None:
    quick_equals_walk(light, chance, TREES)


def quick_equals_walk(store: Store, chance: random.Random, count: int) -> None:
    """Random trees and edits; of those that show a fault, the steps that are needed to show it."""
    for _ in range(count):
        base = store.prepare(store.plan())
        with store.mount(base) as root:
            below = randoms.change(root, chance, 25)
        lower = store.commit(base)
        top = store.new(lower)
        with store.mount(top) as root:
            above = randoms.change(root, chance, 12)
        said = disagreement(store, lower, store.commit(top))
        if said:
            below, above = randoms.shrink([below, above], lambda scripts: bool(repeated(store, *scripts)))
            pytest.fail(f"below: {below}\nabove: {above}\n{repeated(store, below, above) or said}")


def repeated(store: Store, below: Sequence[Step], above: Sequence[Step]) -> str:
    base = store.prepare(store.plan())
    with store.mount(base) as root:
        randoms.repeat(root, below)
    lower = store.commit(base)
    top = store.new(lower)
    with store.mount(top) as root:
        randoms.repeat(root, above)
    return disagreement(store, lower, store.commit(top))


def disagreement(store: Store, lower: api.Layer, upper: api.Layer) -> str:
    """What is wrong with the changes; both layers are removed."""
    try:
        quick, walk = both(store, lower, upper), naive_engine(store, lower, upper)
        return "" if quick == walk else f"the driver's way: {quick}\nthe walk: {walk}"
    except AssertionError as error:
        return f"{error}" or "the changes are not those of comparing all that is seen"
    finally:
        store.driver.remove(upper)
        store.driver.remove(lower)
        store.purge_all()


@core
def test_D23_against_parent_grandparent_another_and_nothing(store: Store) -> None:
    one = store.layer(file("a", b"1"), file("b", b"1"))
    two = store.layer(append("a", b"2"), file("c"), parent=one)
    three = store.layer(remove("b"), append("a", b"3"), parent=two)
    other = store.layer(file("z"))
    for lower in (two, one, other, None):
        below: tree.Tree = store.look(lower) if lower is not None else {}
        wanted = changes.naive(below, store.look(three))
        assert changes.of_driver(store, lower, three) == wanted
        assert dict(archive.of_engine(store, lower, three)[0]) == wanted


@core
def test_D24_a_mounted_layer_that_nobody_writes_to_gives_the_same(store: Store) -> None:
    base = store.layer(file("a", b"1"))
    top = store.new(base, append("a", b"2"), file("b"))
    quiet = archive.of_engine(store, base, top)
    with store.mount(top) as root:
        os.listdir(root)
        if store.mounts(top).exclusive and not api.has_diff_tree(store.driver):
            marks.skip("capability", "the layer cannot be mounted twice and has no diff tree")
        if api.has_diff_tree(store.driver):
            assert archive.of_engine(store, base, top) == quiet
    assert archive.of_engine(store, base, top) == quiet


@core
def test_D25_the_same_tree_gives_the_same_bytes_everywhere(store: Store, target: Target, backing: Backing) -> None:
    lower = [file("a", b"1"), directory("d"), file("d/b", b"2"), times("d", 5), times("a", 6), times(".", 7)]
    upper = [append("a", b"3"), remove("d/b"), file("d/c", b"4"), link("d/c", "z"), set_xattr("z", "user.x", b"1")]
    fixed = [times(path, _MOMENT) for path in ("a", "d/c", "d", ".")]
    base, layer = pair(store, lower, [*upper, *fixed])
    data = archive.of_engine(store, base, layer)[1]
    reference = Store(resolve("copy", {}, seed=target.seed, level=target.level), backing.place())
    try:
        there = archive.of_engine(reference, *pair(reference, lower, [*upper, *fixed]))[1]
    finally:
        reference.discard()
    assert data == there


@core
def test_D26_an_archive_has_as_many_bytes_as_what_changed(store: Store) -> None:
    lower = [file("a", b"x" * 100_000), file("b", b"y" * 50_000), file("c", b"z" * 10_000)]
    base, layer = pair(store, lower, [append("a", b"x"), remove("b"), file("d", b"w" * 30_000), chmod("c", 0o600)])
    found = archive.members(archive.of_engine(store, base, layer)[1])
    assert sum(info.size for info in found.values()) == 100_001 + 30_000 + 10_000


@core
def test_D27_an_archive_that_is_given_up_half_way_leaves_nothing_open(store: Store) -> None:
    many = [file(f"f{n}", b"x" * 200_000) for n in range(10)]
    base, layer = pair(store, [file("a")], [directory("d"), *many])

    def opened() -> list[str]:
        gc.collect()
        return sorted(os.listdir("/proc/self/fd"))

    before = opened()
    with store.tree(base, read_only=True) as below, store.tree(layer, read_only=True) as root:
        pieces = stream(engine.of_trees(below, root), root)
        next(pieces)
        close: Callable[[], None] = pieces.close  # type: ignore[attr-defined]
        close()
    assert opened() == before
