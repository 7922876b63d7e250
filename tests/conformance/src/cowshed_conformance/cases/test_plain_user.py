"""B: plain users, who are root in a user namespace of their own."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable

import pytest

from cowshed.cli.main import run
from cowshed.state import layers
from cowshed.state.store import open_store
from cowshed.storage.errors import WrongStore
from cowshed_conformance import crash, marks, steps, tree
from cowshed_conformance.backing import Backing
from cowshed_conformance.cases.test_discovery import files_below
from cowshed_conformance.engine import Engine
from cowshed_conformance.harness import Store, SuiteHost
from cowshed_conformance.marks import core
from cowshed_conformance.namespaces import OUTER, as_plain_user
from cowshed_conformance.steps import chmod, chown, directory, file, remove
from cowshed_conformance.target import Target
from cowshed_linux import mount, process

COMMON = "/mnt"  # for what needs a path of which all directories may be entered; seen by one process only


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
    target.plugin.destroy(root, target.at(root), store.host, store=store.id)
    assert not os.path.lexists(root)


@core
def test_B01_the_probe_of_a_plain_user_says_what_a_store_then_does(target: Target, backing: Backing) -> None:
    def work(root: str) -> None:
        report = target.plugin.probe(root, target.at(root), SuiteHost())
        said = report.capabilities is not None and report.capabilities.rootless
        assert said == claimed, f"for a plain user the probe says {report}, for root rootless={claimed}"
        assert said or any(reason.remedy for reason in report.reasons)

    place = backing.place()
    report = target.plugin.probe(place, target.at(place), SuiteHost())
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


@core
def test_B05_a_store_is_refused_to_those_whose_ids_are_mapped_otherwise(
    target: Target, backing: Backing, store: Store
) -> None:
    if not store.capabilities.rootless:
        marks.skip("capability", "rootless is denied")
    place = backing.place()
    os.mkdir(place)
    root = f"{place}/store"

    def make(there: str) -> None:
        with Store(target, f"{there}/store") as mine, open(f"{there}/told", "w", encoding="ascii") as told:
            layer = mine.layer(file("a", b"1"), chown("a", 5, 5))
            json.dump([mine.id, layer.id], told)

    as_plain_user(place, make)
    with open(f"{place}/told", encoding="ascii") as told:
        identity, layer = json.load(told)
    before = files_below(root)

    def refused(there: str) -> None:
        for attempt in (target.plugin.open, target.plugin.destroy):
            with pytest.raises(WrongStore) as raised:
                attempt(there, target.at(there), SuiteHost(), store=identity)
            assert raised.value.remedy
        with pytest.raises(WrongStore):
            target.plugin.init(there, target.at(there), SuiteHost())

    refused(root)
    # Its owner is the same user, and only those beside them are others.
    others = ((0, OUTER, 1), (1, 3 * OUTER, 65535))
    as_plain_user(place, lambda there: refused(f"{there}/store"), others)
    assert files_below(root) == before, "a store that was refused was changed"

    def own(there: str) -> None:
        driver = target.plugin.open(f"{there}/store", target.at(f"{there}/store"), SuiteHost(), store=identity)
        try:
            assert [found.layer for found in driver.scan()] == [layer]
        finally:
            driver.close()

    as_plain_user(place, own)


@core
def test_B06_what_a_plain_user_has_is_listed_outside_their_namespace(
    target: Target, backing: Backing, store: Store
) -> None:
    """The database says it, without the driver: nobody needs to enter the namespace to see what there is."""
    if not store.capabilities.rootless:
        marks.skip("capability", "rootless is denied")
    if not os.path.isdir(COMMON):
        marks.skip("file-system", f"there is no {COMMON}")
    place, roots = backing.place(), backing.place()
    os.mkdir(place)

    def fill(root: str) -> None:
        with Engine(target, root) as engine:
            engine.create(engine.pull("ab"), "mine")

    def make(there: str) -> None:
        mount.mount(there, COMMON, None, mount.BIND)
        fill(f"{COMMON}/root")

    def ps(root: str) -> None:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert run(["--root", root, "--run-root", f"{root}.run", "ps", "--all"]) == 0
        assert "mine" in said.getvalue()
        reader = open_store(root, f"{root}.run", write=False)
        found = [row.kind for row in layers.list_all(reader, target.plugin.name)]
        assert sorted(found) == ["active", "committed", "committed"]
        reader.close()

    def look() -> None:
        process.unshare(process.CLONE_NEWNS)
        mount.mount(place, COMMON, None, mount.BIND)
        ps(roots)
        os.setgroups([])
        os.setresgid(OUTER, OUTER, OUTER)
        os.setresuid(OUTER, OUTER, OUTER)
        os.environ.clear()
        os.environ["HOME"] = COMMON
        ps(f"{COMMON}/root")

    fill(roots)  # as root first, which also imports what a plain user may not be able to read
    as_plain_user(place, make)
    crash.in_child(look)
