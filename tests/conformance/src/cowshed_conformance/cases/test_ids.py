"""I: mapped ids. B: plain users."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

import pytest

from cowshed.storage import api
from cowshed_conformance import crash, marks, steps, tree
from cowshed_conformance.backing import Backing
from cowshed_conformance.harness import Store, SuiteHost
from cowshed_conformance.marks import core, full
from cowshed_conformance.namespaces import OUTER, Map, as_plain_user, mapped, takes_maps, user_namespace
from cowshed_conformance.steps import chmod, chown, directory, file, remove
from cowshed_conformance.target import Target

NOBODY = 65534


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
        works = takes_maps(store.mounts(layer), userns)
    how = f"the mount of a layer at depth {depth} with mapped ids"
    marks.claim("idmapped_mounts", store.capabilities.idmapped_mounts, works, how)


@core
def test_I07_a_map_makes_no_new_files(store: Store) -> None:
    gate(store)
    layer = store.new(image(store))
    before = store.driver.usage(layer)
    with user_namespace() as userns, mapped(store.mounts(layer), userns) as root:
        assert owners(root, "a", "b", "d") == [(OUTER, OUTER), (OUTER + 1000, OUTER + 1001), (OUTER + 7, OUTER + 8)]
        after = store.driver.usage(layer)
    assert (after.own, after.inodes) == (before.own, before.inodes), "mapping ids has copied something"


@core
def test_I01_a_mapped_layer_shows_mapped_owners_and_its_parent_stays(store: Store) -> None:
    gate(store)
    below = image(store)
    layer = store.new(below)
    before = store.look(below)
    with user_namespace() as userns, mapped(store.mounts(layer), userns) as root:

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
        mapped(store.mounts(layers[0]), one) as first,
        mapped(store.mounts(layers[1]), two) as second,
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
    with user_namespace() as userns, mapped(store.mounts(store.new(below)), userns) as root:
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
    ],
)
def test_I06_maps_of_several_ranges_with_holes_and_of_one_id(store: Store, ids: Map, wanted: dict[int, int]) -> None:
    gate(store)
    made = [step for uid in wanted for step in (file(f"u{uid}"), chown(f"u{uid}", uid, uid))]
    layer = store.layer(*made)
    with user_namespace(ids) as userns, mapped(store.mounts(layer), userns) as root:
        assert owners(root, *(f"u{uid}" for uid in wanted)) == [(uid, uid) for uid in wanted.values()]


# ---------------------------------------------------------------- plain users


def plain(backing: Backing, work: Callable[[str], object]) -> None:
    """work, with the root of a store that belongs to a plain user."""
    place = backing.place()
    os.mkdir(place)
    as_plain_user(place, lambda there: work(f"{there}/store"))


def whole_life(target: Target, root: str) -> None:
    """What containers do, from the store's making to its destruction."""
    store = Store(target, root)
    assert store.capabilities.rootless, "the store itself, opened as a plain user, says that it is not for them"
    base = store.layer(
        file("a", b"1"), file("b", b"2"), directory("d"), file("d/below", b"3"), chown("b", 1000, 1000),
        steps.set_xattr("a", "user.x", b"1"), chmod("a", 0o4755), steps.symlink("a", "l"), steps.fifo("p"),
    )  # fmt: skip
    before = store.look(base)
    middle = store.layer(remove("a"), steps.remove_all("d"), directory("d"), file("d/new", b"4"), parent=base)
    assert sorted(store.look(middle)) == [".", "b", "d", "d/new", "l", "p"]
    top = store.new(middle, directory("a"), steps.append("b", b"+"), steps.rename("l", "m"))
    found = store.look(top)
    assert sorted(found) == [".", "a", "b", "d", "d/new", "m", "p"]
    assert (found["a"].kind, found["b"].uid, found["b"].size) == ("dir", 1000, 2)
    assert not [name for node in found.values() for name, _ in node.xattrs], "the driver's own attributes show"
    store.driver.remove(top)
    store.driver.remove(middle)
    store.purge_all()
    tree.same(before, store.look(base), "a plain user's layers changed their parent")
    store.reopen()
    assert store.living() == {(base.id, base.kind)}
    store.driver.close()
    target.plugin.destroy(root, target.options, store.host, store=store.id)
    assert not os.path.lexists(root)


@core
def test_B01_the_probe_of_a_plain_user_says_what_a_store_then_does(target: Target, backing: Backing) -> None:
    def work(root: str) -> None:
        report = target.plugin.probe(root, target.options, SuiteHost())
        said = report.capabilities is not None and report.capabilities.rootless
        assert said == claimed, f"for a plain user the probe says {report}, for root rootless={claimed}"
        assert said or any(reason.remedy for reason in report.reasons)

    report = target.plugin.probe(backing.place(), target.options, SuiteHost())
    claimed = report.capabilities is not None and report.capabilities.rootless
    plain(backing, work)


@core
def test_B02_a_plain_user_has_whole_lives_of_layers_exactly_if_that_is_claimed(
    target: Target, backing: Backing, store: Store
) -> None:
    if store.capabilities.rootless:
        plain(backing, lambda root: whole_life(target, root))
        return

    def refused(root: str) -> None:
        with pytest.raises(Exception):  # noqa: B017 - whatever it is that does not work
            whole_life(target, root)

    plain(backing, refused)


@core
def test_B03_files_of_other_ids_and_closed_directories_are_purged(
    target: Target, backing: Backing, store: Store
) -> None:
    if not store.capabilities.rootless:
        marks.skip("capability", "rootless is denied")

    def work(root: str) -> None:
        with Store(target, root) as mine:
            layer = mine.new(
                None, directory("d"), file("d/f"), chown("d/f", 5, 5), chown("d", 6, 6), chmod("d", 0), file("g"),
                chown("g", 65_535, 65_535),
            )  # fmt: skip
            mine.driver.remove(layer)
            mine.purge_all()
            assert mine.scan() == []

    plain(backing, work)


@core
def test_B04_devices_and_trusted_attributes_are_refused_to_a_plain_user(
    target: Target, backing: Backing, store: Store
) -> None:
    if not store.capabilities.rootless:
        marks.skip("capability", "rootless is denied")

    def work(root: str) -> None:
        with Store(target, root) as mine:
            top = mine.new(mine.layer(file("a", b"1")))
            for attempt in (steps.device("null", 1, 3), steps.set_xattr("a", "trusted.x", b"1")):
                with pytest.raises(PermissionError):
                    mine.change(top, attempt)
            assert sorted(mine.look(top)) == [".", "a"]

    plain(backing, work)
