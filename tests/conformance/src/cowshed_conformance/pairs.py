"""One meaning: the same script of operations on every driver that is usable here, and what each makes of it.

Every driver of the registry takes part on every kind of file system that its own probe does not call unusable. A
script says which capabilities it depends on; where two sides declare the same of these, tree, changes and archive are
the same.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from cowshed.layers.changes import of_trees
from cowshed.storage import api, registry
from cowshed_conformance import archive, backing, randoms, standins, tree
from cowshed_conformance.harness import Store, SuiteHost
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
    remove_xattr,
    rename,
    set_xattr,
    socket,
    symlink,
    times,
    truncate,
    write_at,
)  # fmt: skip
from cowshed_conformance.target import resolve

KINDS = ("tmpfs", *(kind for kind in backing.KINDS if kind != "dir"))
SIZE = 512 << 20
_PINNED = 1_600_000_000  # seconds; what a script does not set itself gets a time from here on
_NOW = 1_750_000_000  # whatever is younger has the time at which the script ran


@dataclass(frozen=True)
class Script:
    lower: Sequence[Step]
    upper: Sequence[Step]
    depends: tuple[str, ...] = ()  # capabilities that decide what comes of it


@dataclass(frozen=True)
class Side:
    """A driver on a kind of file system."""

    name: str
    store: Store
    stand_in: standins.StandIn | None = None  # what mounts its layers here

    def kind(self, depends: Sequence[str], *, times: bool) -> tuple[object, ...]:
        """Sides of one kind come to the same. With times: also the times of directories above what was changed."""
        names = (*depends, "parent_times_survive_copy_up") if times else depends
        return tuple(getattr(self.store.capabilities, name) for name in names)

    def can(self, name: str) -> bool:
        """Whether a script of this name tells of the driver, and not of a fault of its stand-in."""
        return self.stand_in is None or f"script {name}" not in self.stand_in.cannot


@dataclass(frozen=True)
class Outcome:
    lower: api.Layer
    upper: api.Layer
    below: tree.Tree = field(repr=False)
    now: tree.Tree = field(repr=False)
    changes: Sequence[tuple[str, str]]
    data: bytes = field(repr=False)


@contextlib.contextmanager
def sides(
    folder: str, kinds: Sequence[str] = KINDS, *, limits: bool = False, stand_in: str = ""
) -> Iterator[list[Side]]:
    """A store of every driver on each of these kinds of file system; with limits, only those that have them, be it by
    an option. Drivers that this kernel has nothing for take part with a stand-in, if one is named that serves them."""
    with contextlib.ExitStack() as until:
        systems = [(kind, system) for kind in kinds if (system := _first(kind, f"{folder}/{kind}", until)) is not None]
        found = []
        without = set(registry.names())
        for kind, system in systems:
            for name in registry.names():
                side = _side(name, kind, system, until, limits=limits)
                if side is not None:
                    found.append(side)
                    without.discard(name)
        if stand_in:
            standins.use(stand_in)
            try:
                more = [_side(name, *systems[0], until, limits=limits) for name in sorted(without)]
            finally:
                standins.used = None  # it is for these only; its mounts are of a kind that the others do not have
            found += [side for side in more if side is not None]
        yield found


def _first(kind: str, folder: str, until: contextlib.ExitStack) -> backing.FileSystem | None:
    """Such a file system, with quota if the kernel has that; None if this machine lacks what makes one, or if it does
    not hold what scripts write."""
    if kind == "tmpfs" and not backing.tmpfs_has_user_attributes():
        return None
    for one in (f"{kind}-quota", kind) if kind in backing.PROJECTS else (kind,):
        try:
            return until.enter_context(backing.file_system(one, f"{folder}/{one}", SIZE))
        except pytest.skip.Exception:
            continue
    return None


def _side(
    name: str, kind: str, system: backing.FileSystem, until: contextlib.ExitStack, *, limits: bool
) -> Side | None:
    plugin = resolve(name, {}, seed=0, level="full").plugin
    choices = [{option.name: choice} for option in plugin.options for choice in option.choices] if limits else []
    for given in ({}, *choices):
        target = resolve(name, given, seed=0, level="full")
        target = replace(target, plugin=standins.under(target.plugin))
        target.places[system.path] = system.options
        root = f"{system.path}/{name}"
        report = target.plugin.probe(root, target.at(root), SuiteHost())
        if report.verdict is api.Verdict.UNUSABLE or report.capabilities is None:
            continue
        if not limits or report.capabilities.quota is not api.QuotaScope.NONE:
            store = Store(target, root)
            until.callback(store.discard)
            words = [name, *(f"{key}={value}" for key, value in given.items()), "on", kind]
            return Side(" ".join(words), store, standins.used)
    return None


def carry_out(side: Side, script: Script) -> Outcome:
    store = side.store
    lower = _layer(store, None, script.lower, 1)
    upper = _layer(store, lower, script.upper, 2)
    found, data = archive.of_engine(store, lower, upper)
    return Outcome(lower, upper, store.look(lower), store.look(upper), found, data)


def _layer(store: Store, parent: api.Layer | None, script: Sequence[Step], phase: int) -> api.Layer:
    layer = store.new(parent)
    with store.mount(layer) as root:
        randoms.repeat(root, script)
        pin(root, phase)
    return store.commit(layer)


def pin(root: str, phase: int) -> None:
    """Give everything that was made or written to just now a time that is the same everywhere."""
    for where, names, others in os.walk(f"{root}/."):
        for path in (where, *(f"{where}/{name}" for name in (*others, *names))):
            if os.lstat(path).st_mtime_ns // 10**9 > _NOW:
                os.utime(path, ns=(0, (_PINNED + phase) * 10**9), follow_symlinks=False)


def apply_to(side: Side, lower: api.Layer, data: bytes) -> tree.Tree:
    """What the side shows when an archive, of whatever driver, is applied to its lower layer."""
    layer = side.store.new(lower)
    try:
        archive.unpack(side.store, layer, data)
        return side.store.look(layer)
    finally:
        side.store.driver.remove(layer)


def walked(side: Side, outcome: Outcome) -> list[tuple[str, str]]:
    """The changes by comparing both trees, whatever quicker way the driver has."""
    store = side.store
    with store.tree(outcome.lower, read_only=True) as below, store.tree(outcome.upper, read_only=True) as now:
        return [(os.fsdecode(it.path) or ".", it.kind.value) for it in of_trees(below, now).changes]


def forget(side: Side, outcome: Outcome) -> None:
    side.store.driver.remove(outcome.upper)
    side.store.driver.remove(outcome.lower)
    side.store.purge()


def random_script(folder: str, seed: int, all_sides: Sequence[Side]) -> Script:
    """Made by doing it in a plain directory, so that it is the same for all. It keeps away from what the capabilities
    of one of the sides say that it does in its own way."""
    chance = random.Random(seed)
    root = f"{folder}/model{seed}"
    os.mkdir(root)
    standins.used = next((side.stand_in for side in all_sides if side.stand_in is not None), None)
    try:
        return _random(root, chance, all_sides)
    finally:
        standins.used = None


def _random(root: str, chance: random.Random, all_sides: Sequence[Side]) -> Script:
    lower = randoms.change(root, chance, 30)
    several: set[int] = set()
    places: set[int] = set()
    for where, names, others in os.walk(root):
        found = [os.lstat(f"{where}/{name}") for name in others]
        several.update(status.st_ino for status in found if status.st_nlink > 1)
        places.update(os.lstat(f"{where}/{name}").st_ino for name in names)
    able = [side.store.capabilities for side in all_sides]
    upper = randoms.change(
        root, chance, 20,
        spared=set() if all(it.hard_links_survive_copy_up for it in able) else several,
        unmoved=set() if all(it.rename_lower_directory for it in able) else places,
    )  # fmt: skip
    return Script(lower, upper)


def shrunk(script: Script, fails: Callable[[Script], bool]) -> str:
    """The steps of a script that show what fails."""
    lower, upper = randoms.shrink([script.lower, script.upper], lambda parts: fails(Script(parts[0], parts[1])))
    return f"lower: {lower}\nupper: {upper}"


_DATA = bytes(range(256)) * 40
_ACCESS = bytes.fromhex("0200000001000600ffffffff02000400e803000004000400ffffffff10000600ffffffff20000000ffffffff")
_CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
_TREE = (
    directories("d/sub/deep"),
    file("d/a", b"1"),
    file("d/sub/b", b"2"),
    file("d/sub/deep/c", b"3"),
    file("e", b"4"),
)

_DEEP = "/".join("x" * 40)

SCRIPTS = {
    "nothing": Script(_TREE, ()),
    "a file more": Script(_TREE, [file("new", _DATA), file("d/sub/new")]),
    "a file with other content": Script(_TREE, [append("d/a", b"+"), file("e", b"5")]),
    "other content of the same size and time": Script(
        [file("a", b"one"), times("a", 10**18)], [file("a", b"two"), times("a", 10**18)]
    ),
    "a file less": Script(_TREE, [remove("d/a")]),
    "a directory less": Script(_TREE, [remove_all("d")]),
    "all gone": Script(_TREE, [remove_all("d"), remove("e")]),
    "a directory made again": Script(_TREE, [remove_all("d"), directory("d"), file("d/a", b"1"), file("d/x")]),
    "a directory made again below one": Script(
        _TREE, [remove_all("d/sub"), directory("d/sub", 0o711), directory("d/sub/deep"), file("d/sub/deep/new", b"6")]
    ),
    "a file made again as it was": Script(_TREE, [remove("e"), file("e", b"4")]),
    "a directory for a file": Script(_TREE, [remove("e"), directory("e"), file("e/in", b"1")]),
    "a file for a directory": Script(_TREE, [remove_all("d"), file("d", b"1")]),
    "a link for a directory": Script(_TREE, [remove_all("d"), symlink("e", "d")]),
    "a link to somewhere else": Script([symlink("a", "l")], [remove("l"), symlink("b", "l"), symlink("/abs", "m")]),
    "modes": Script(_TREE, [chmod("e", 0o4755), chmod("d", 0o1777), chmod("d/sub", 0o2750)]),
    "owners": Script(_TREE, [chown("e", 1000, 1001), chown("d/sub", 70_000, 1 << 31), chown(".", 3, 4)]),
    "times": Script(_TREE, [times("e", 10**18 + 1), times("d", -(10**9))]),
    "attributes": Script(
        [file("a"), set_xattr("a", "user.x", b"1"), set_xattr("a", "user.gone", b"2"), directory("d")],
        [set_xattr("a", "user.x", b"\0\xff"), remove_xattr("a", "user.gone"), set_xattr("d", "user.y", b"")],
    ),
    "attributes of root": Script(
        [file("a")], [set_xattr("a", "trusted.x", b"1"), set_xattr("a", "security.capability", _CAPABILITY)]
    ),
    "access lists": Script(
        [file("a"), directory("d")],
        [set_xattr(path, "system.posix_acl_access", _ACCESS) for path in ("a", "d")],
        ("acl",),
    ),
    "names of one new file": Script(_TREE, [file("x", _DATA), link("x", "y"), link("x", "d/z")]),
    "another name of a file": Script(_TREE, [link("e", "d/too")]),
    "one of two names gone": Script([file("a", b"1"), link("a", "b")], [remove("b")]),
    "one of two names written to": Script(
        [file("a", b"1"), link("a", "b")], [append("a", b"2")], ("hard_links_survive_copy_up",)
    ),
    "moves of files": Script(
        _TREE, [rename("e", "f"), rename("d/a", "e"), file("d/a", b"new"), rename("d/sub/b", "d/a")]
    ),
    "a new directory moved": Script(_TREE, [directories("n/m"), file("n/m/f", b"1"), rename("n", "d/n")]),
    "a directory of below moved": Script(_TREE, [move_directory("d", "moved")]),
    "deep": Script([directories(_DEEP)], [directories(f"{_DEEP}/y/y/y"), file(f"{_DEEP}/f", b"1")]),
    "odd names": Script(
        [file(b"odd \xff\n", b"1"), file("-rf"), file("n" * 200), file("\u00e9"), file("e\u0301")],
        [
            append(b"odd \xff\n", b"2"), remove("-rf"), chmod("n" * 200, 0o600), remove("\u00e9"), file("wh."),
            file(".x.wh"),
        ],
    ),
    "names that begin alike": Script(
        [directory("a"), file("a/b"), file("a-b"), file("ab"), directory("a.d"), file("a.d/x")], [remove_all("a")]
    ),
    "special files": Script(
        [fifo("p")], [remove("p"), fifo("q"), device("null", 1, 3), device("b", 7, 3, 0o060000), socket("s")]
    ),
    "device 0:0": Script([file("a")], [device("none", 0, 0)], ("char_0_0_visible",)),
    "holes": Script(
        [file("s"), truncate("s", 4 << 20)],
        [write_at("s", 2 << 20, _DATA), file("t"), truncate("t", 1 << 20), truncate("s", 3 << 20)],
    ),
    "many files": Script([file(f"f{n}", b"1") for n in range(150)], [remove(f"f{n}") for n in range(0, 150, 3)]),
}  # fmt: skip
