"""X: crashes and faults."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from cowshed.errors import CowshedError
from cowshed.layers.archive import stream
from cowshed.layers.changes import of_trees
from cowshed.storage import api
from cowshed.storage.errors import LayerId, NoSpace, StorageError, ToolFailed, WrongStore
from cowshed_conformance import changes, crash, fiemap, marks, steps, tree
from cowshed_conformance.backing import Backing, FileSystem
from cowshed_conformance.cases.test_discovery import files_below
from cowshed_conformance.harness import Store, SuiteHost, mine, sync
from cowshed_conformance.marks import budget, core, faults, full
from cowshed_conformance.steps import directory, file, remove, set_xattr
from cowshed_conformance.target import Target

CONTENT = (
    directory("d", 0o751),
    file("d/a", b"1" * 5000),
    file("b", b"old"),
    steps.link("b", "b2"),
    steps.symlink("b", "s"),
    set_xattr("d/a", "user.told", b"1"),
)
CHANGES = (remove("b"), steps.append("d/a", b"+"), directory("e"), file("e/f", b"new"))
Kinds = set[tuple[LayerId, api.Kind]]


@dataclass
class Call:
    """One changing call, and what is there before and after it, beside the base layer."""

    work: crash.Work
    old: Kinds
    new: Kinds
    layers: list[api.Layer]  # in which the subject may be found
    wanted: tree.Tree = field(default_factory=dict)


def preparing(store: Store, base: api.Layer) -> Call:
    layer = store.plan(base)
    return Call(crash.prepare(layer), set(), {(layer.id, layer.kind)}, [layer], store.look(base))


def preparing_with_owner(store: Store, _: api.Layer) -> Call:
    """A layer on nothing, which drivers make in two steps where it must be filled before it is seen."""
    layer, options = store.plan(), api.LayerOptions(root_uid=1000, root_gid=1001)
    return Call(crash.prepare(layer, options), set(), {(layer.id, layer.kind)}, [layer])


def committing(store: Store, base: api.Layer) -> Call:
    active = store.new(base, *CHANGES)
    new = store.committed(active)
    work = crash.commit(active, new, api.Durability.COMMIT)
    return Call(work, {(active.id, active.kind)}, {(new.id, new.kind)}, [active, new], store.look(active))


def removing(store: Store, base: api.Layer) -> Call:
    active = store.new(base, *CHANGES)
    return Call(crash.remove(active), {(active.id, active.kind)}, set(), [active], store.look(active))


CALLS = {"prepare": preparing, "commit": committing, "remove": removing}
Begin = Callable[[Store, api.Layer], Call]


def old_or_new(store: Store, call: Call, base: api.Layer, wanted: tree.Tree, where: object) -> None:
    """The state before the call, or the one after it, and at most leftovers that scan() calls so."""
    store.reopen()
    living = store.living() - {(base.id, base.kind)}
    assert living in (call.old, call.new), f"stopped at {where}: neither the old state nor the new: {living}"
    for layer in call.layers:
        if (layer.id, layer.kind) in living:
            tree.same(call.wanted, store.look(layer), f"stopped at {where}")
    tree.same(wanted, store.look(base), f"stopped at {where}: the parent")


def take_away(store: Store, call: Call) -> None:
    for layer in call.layers:
        store.driver.remove(layer)
    store.purge_all()


@core
@budget(90)
@pytest.mark.parametrize("what", list(CALLS))
def test_X01_killed_at_every_point_then_repeated_by_another_process(light: Store, what: str) -> None:
    begin, base = CALLS[what], light.layer(*CONTENT)
    wanted = light.look(base)
    model = begin(light, base)
    found = crash.points(light, model.work)
    assert found, f"{what}() makes no call and names no step that changes anything"
    take_away(light, model)
    for point in found:
        call = begin(light, base)
        assert crash.kill_at(light, call.work, point), f"{what}() came by {point} once and not again"
        old_or_new(light, call, base, wanted, point)
        told = crash.elsewhere(light, call.work)
        assert call.work(light) == told, f"killed at {point}: two repeats of {what}() return different data"
        assert light.living() - {(base.id, base.kind)} == call.new, f"killed at {point}: repeated, and not done"
        old_or_new(light, call, base, wanted, point)
        take_away(light, call)
        assert light.leftovers() == []
        # and undone instead
        call = begin(light, base)
        assert crash.kill_at(light, call.work, point)
        take_away(light, call)
        assert light.living() == {(base.id, base.kind)}, f"killed at {point}: removing left something"
        assert light.leftovers() == [], f"killed at {point}: purge() left something"


@core
@budget(60)
def test_X01_what_is_written_after_a_commit_was_killed_is_in_the_next(light: Store) -> None:
    base = light.layer(*CONTENT)
    model = committing(light, base)
    found = crash.points(light, model.work)
    take_away(light, model)
    for point in found:
        call = committing(light, base)
        crash.kill_at(light, call.work, point)
        active, new = call.layers
        light.reopen()
        if (active.id, active.kind) in light.living():
            light.change(active, file("late", b"later"), remove("d/a"))
            wanted = light.look(active)
            call.work(light)
            tree.same(wanted, light.look(new), f"killed at {point}, then written to and committed")
        take_away(light, call)


@core
@budget(60)
def test_X01_killed_at_every_point_of_purge(light: Store) -> None:
    base = light.layer(*CONTENT)
    wanted = light.look(base)

    def trash() -> None:
        for _ in range(2):
            light.driver.remove(light.new(base, *CHANGES))

    trash()
    found = crash.points(light, crash.purge())
    for point in found:
        trash()
        assert crash.kill_at(light, crash.purge(), point), point
        light.reopen()
        assert light.living() == {(base.id, base.kind)}, f"killed at {point} of purge(): a layer is gone or back"
        assert crash.elsewhere(light, crash.purge()) == 0
        assert light.leftovers() == []
    tree.same(wanted, light.look(base), "purge() changed a layer")


@core
@budget(150)  # a driver may make a pool and a file system each time
def test_X01_killed_at_every_point_of_init_and_destroy(target: Target, backing: Backing) -> None:
    with backing.own() as system:
        root = f"{system.path}/store"
        store = Store(target, root)

        def init(other: Store) -> object:
            return target.plugin.init(root, target.at(root), other.host)

        def destroy(other: Store) -> None:
            target.plugin.destroy(root, target.at(root), other.host, store=store.id)

        store.driver.close()
        destroy(store)
        made = crash.points(store, init, closed=True)
        store.id = target.plugin.init(root, target.at(root), SuiteHost())
        gone = crash.points(store, destroy, closed=True)
        for name, work, points in (("init", init, made), ("destroy", destroy, gone)):
            for point in points:
                if name == "destroy":
                    store.id = target.plugin.init(root, target.at(root), SuiteHost())
                assert crash.kill_at(store, work, point, closed=True), f"{name}() came by {point} once and not again"
                if name == "destroy":
                    destroy(store)
                store.id = target.plugin.init(root, target.at(root), SuiteHost())
                driver = target.plugin.open(root, target.at(root), SuiteHost(), store=store.id)
                assert list(driver.scan()) == [], f"killed at {point} of {name}(): the next store is not empty"
                driver.close()
                destroy(store)
        store.id = target.plugin.init(root, target.at(root), SuiteHost())


# ---------------------------------------------------------------- random kills


def busy(store: Store, log: str, seed: int) -> None:
    """Make, commit and remove layers until killed, writing down what is begun and what is done."""
    chance = random.Random(seed)
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    committed: list[api.Layer] = []

    def note(*words: object) -> None:
        os.write(fd, pickle.dumps(words))

    for number in range(1000, 1000 + 10_000):
        parent = chance.choice(committed) if committed and chance.random() < 0.7 else None
        active = api.Layer(LayerId(chance.randbytes(16).hex()), number, api.Kind.ACTIVE, parent)
        note("prepare", active)
        store.driver.prepare(active, api.LayerOptions())
        note("write", active)
        store.change(active, file(active.id, active.id.encode() * 100))
        note("done", active)
        if chance.random() < 0.6:
            new = store.committed(active)
            note("commit", active)
            store.driver.commit(active, new, api.Durability.NONE)
            note("done", new)
            committed.append(new)
        else:
            note("remove", active)
            store.driver.remove(active)
            note("gone", active)
        store.purge(0.05)


def _rounds(light: Store, chance: random.Random, rounds: int) -> None:
    log = light.root + ".log"
    began = time.monotonic()
    with open(log, "wb"):
        pass
    crash.kill_after(light, lambda store: busy(store, log, 1), 0.2)
    scale = max(time.monotonic() - began, 0.05)
    after(light, log)
    for _ in range(rounds):
        seed = chance.randrange(1 << 32)
        with open(log, "wb"):
            pass
        crash.kill_after(light, lambda store, seed=seed: busy(store, log, seed), chance.random() * scale)  # type: ignore[misc]
        after(light, log)


def after(store: Store, log: str) -> None:
    """Hold what is there against the log of a process that was killed, and repeat what it had begun."""
    store.reopen()
    known: dict[LayerId, api.Layer] = {}
    last: tuple[str, api.Layer] | None = None
    with open(log, "rb") as lines:
        while True:
            try:
                what, layer = pickle.load(lines)
            except EOFError:
                break
            last = what, layer
            known.pop(layer.id, None) if what == "gone" else known.update({layer.id: layer})
    pending = last if last is not None and last[0] not in ("done", "gone") else None
    living = store.living()
    for layer in known.values():
        if pending is None or layer.id != pending[1].id:
            assert (layer.id, layer.kind) in living, f"{layer} was done and is gone"
    assert {id_ for id_, _ in living} <= set(known), "layers that nobody made"
    if pending is not None:
        what, layer = pending
        work = {
            "prepare": crash.prepare(layer),
            "write": lambda _: None,
            "commit": crash.commit(layer, store.committed(layer), api.Durability.NONE),
            "remove": crash.remove(layer),
        }[what]
        crash.elsewhere(store, work)
        if what == "commit":
            known[layer.id] = store.committed(layer)
        elif what == "remove":
            del known[layer.id]
    assert store.living() == {(layer.id, layer.kind) for layer in known.values()}
    for layer in known.values():
        for below in layer.chain():
            if pending is None or pending[0] not in ("prepare", "write") or below.id != pending[1].id:
                assert store.read(layer, below.id) == below.id.encode() * 100
    for layer in sorted(known.values(), key=lambda x: -len(list(x.chain()))):
        store.driver.remove(layer)
    store.purge_all()
    assert store.scan() == []


@full
@budget(90)
def test_X02_killed_at_random_moments(light: Store, chance: random.Random) -> None:
    _rounds(light, chance, 30)


@faults
@budget(900)
def test_X02_killed_two_hundred_times_at_random_moments(light: Store, chance: random.Random) -> None:
    _rounds(light, chance, 200)


# ---------------------------------------------------------------- power cuts


@full
@budget(90)
def test_X03_what_was_committed_durably_survives_a_power_cut(target: Target, backing: Backing) -> None:
    with backing.own(64 << 20, backing.loop_kind()) as system, Store(target, f"{system.path}/store") as store:
        if store.capabilities.durability < api.Durability.COMMIT:
            marks.skip("capability", "the driver does not claim to survive a power cut")
        base = store.commit(store.new(None, *CONTENT, file("big", b"x" * 3_000_000)), None, api.Durability.COMMIT)
        top = store.new(base, *CHANGES, *[file(f"n{n}", b"y" * 4096) for n in range(60)])
        wanted = store.look(base), store.look(top)
        top = store.commit(top, None, api.Durability.COMMIT)
        durable(store, backing, system, (base, wanted[0]), (top, wanted[1]))
        # A container's layer is worth as much: its row survives, so must its layer.
        made = store.prepare(store.plan(top))
        durable(store, backing, system, (base, wanted[0]), (top, wanted[1]), (made, wanted[1]))


def durable(store: Store, backing: Backing, system: FileSystem, *layers: tuple[api.Layer, tree.Tree]) -> None:
    """What a power cut at this moment leaves has these layers, and they are whole."""
    with backing.after_power_cut(system) as path:
        driver = store.open(root=f"{path}/store")
        try:
            found = {(x.layer, x.layer_kind) for x in driver.scan() if x.kind is api.ObjectKind.LAYER}
            for layer, wanted in layers:
                assert (layer.id, layer.kind) in found, f"{layer} was durable and is gone after a power cut"
                tree.same(wanted, store.look(layer, driver=driver), "after a power cut")
        finally:
            driver.close()


@full
@budget(90)
def test_X04_after_a_power_cut_the_store_opens_and_works_whatever_was_lost(target: Target, backing: Backing) -> None:
    with backing.own(64 << 20, backing.loop_kind()) as system, Store(target, f"{system.path}/store") as store:
        base = store.layer(*CONTENT)
        for _ in range(3):
            store.layer(*CHANGES, parent=base)
        store.driver.remove(store.new(base, *CHANGES))
        with backing.after_power_cut(system) as path:
            driver = store.open(root=f"{path}/store")
            for found in list(driver.scan()):
                if found.layer is not None:
                    for kind in api.Kind:
                        driver.remove(api.Layer(found.layer, found.number or 1, kind))
            assert driver.purge(mine, 30).objects_left == 0
            assert list(driver.scan()) == []
            layer = api.Layer(LayerId("a" * 32), 77, api.Kind.ACTIVE)
            driver.prepare(layer, api.LayerOptions())
            with store.mount(layer, driver=driver) as root:
                steps.do(root, *CONTENT)
            driver.close()


@full
@budget(60)
def test_X14_after_a_reboot_every_layer_is_usable(target: Target, backing: Backing) -> None:
    with backing.own(64 << 20, backing.loop_kind()) as system, Store(target, f"{system.path}/store") as store:
        base = store.layer(*CONTENT)
        top = store.new(base, *CHANGES)
        wanted = store.look(base), store.look(top)
        store.driver.close()
        system.unmount()  # EBUSY if the driver has left anything open or mounted
        system.mount()
        store.driver = store.open()
        tree.same(wanted[0], store.look(base), "after a reboot")
        tree.same(wanted[1], store.look(top), "after a reboot")
        store.change(top, file("more"))
        assert store.living() == {(base.id, base.kind), (top.id, top.kind)}
        store.commit(top)


# ---------------------------------------------------------------- errors


@full
@budget(60)
def test_X05_a_file_that_the_device_cannot_read_is_an_error_that_names_it(target: Target, backing: Backing) -> None:
    """The end of the image is cut off under its loop device, which then fails to read what lay there, and put back."""
    with backing.own(64 << 20, backing.loop_kind()) as system, Store(target, f"{system.path}/store") as store:
        if not system.image:
            marks.skip("file-system", "there is no device below the store")
        if store.capabilities.activation:
            marks.skip("plan", "a layer has a device of its own: X05 on a disk with faults looks for the content")
        base = store.layer(directory("d"), *[file(f"d/f{n}", os.urandom(1 << 20)) for n in range(6)])
        top = store.new(base, file("b", b"2"))
        wanted = store.look(base)
        with store.mount(base, read_only=True) as root:
            places = {name: place(f"{root}/d/{name}") for name in os.listdir(f"{root}/d")}
        victim = max(places, key=lambda name: places[name])
        store.driver.close()
        system.unmount()
        system.mount()  # nothing of it is in memory now
        store.driver = store.open()
        with store.tree(base, read_only=True) as fd, store.mount(top, read_only=True) as root:
            known = of_trees(None, fd)  # so that only the bytes of files are still to be read
            files_below(root)
            with cut_off(system.image, places[victim]):
                lost = {name: problem_of(lambda name=name: steps.read(root, f"d/{name}")) for name in places}  # type: ignore[misc]
                problem = lost[victim]
                assert isinstance(problem, OSError), f"what the device does not give is read as {problem}"
                assert problem.errno == errno.EIO
                with pytest.raises((CowshedError, OSError)) as told:
                    b"".join(stream(known, fd))
                names = [name for name in lost if lost[name] is not None]
                assert any(f"d/{name}" in str(told.value) for name in names), f"{told.value} names none of {names}"
                if api.has_self_check(store.driver):  # which need not read what is in files: the engine's does
                    found = list(store.driver.check([base, top], deep=True))
                    assert {finding.layer for finding in found} <= {base.id}, f"a check of it says {found}"
        store.driver.close()
        system.unmount()
        system.mount()
        store.driver = store.open()
        tree.same(wanted, store.look(base), "when the device reads again")


def place(path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fiemap.first_extent(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def cut_off(image: str, size: int) -> Iterator[None]:
    """Let a file end there meanwhile; what was read of it before is forgotten."""
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        whole = os.fstat(fd).st_size
        kept = os.pread(fd, whole - size, size)
        os.ftruncate(fd, size)
        try:
            yield
        finally:
            os.pwrite(fd, kept, size)
            os.ftruncate(fd, whole)
    finally:
        os.close(fd)


@core
@budget(90)
@pytest.mark.parametrize("what", list(CALLS))
def test_X06_an_error_at_every_point_leaves_the_old_state_or_the_new(light: Store, what: str) -> None:
    begin, base = CALLS[what], light.layer(*CONTENT)
    wanted = light.look(base)
    model = begin(light, base)
    found = crash.points(light, model.work)
    take_away(light, model)
    for point in found:
        call = begin(light, base)
        said = crash.fail_at(light, call.work, point, OSError(errno.EIO, "a fault of the suite"))
        old_or_new(light, call, base, wanted, point)
        if not said:
            assert light.living() - {(base.id, base.kind)} == call.new, f"{what}() hid an error at {point}"
        call.work(light)
        assert light.living() - {(base.id, base.kind)} == call.new, f"{what}() cannot be repeated after {point}"
        old_or_new(light, call, base, wanted, point)
        take_away(light, call)
        assert light.leftovers() == []


@core
@budget(60)
def test_X07_on_a_full_disk_reading_and_removing_work(target: Target, backing: Backing) -> None:
    with backing.own(24 << 20) as system, Store(target, f"{system.path}/store") as store:
        base = store.layer(*CONTENT, file("big", os.urandom(1 << 20)))
        victim = store.new(base, file("large", os.urandom(4 << 20)))
        wanted = store.look(base)
        # Mounted before: overlay makes a directory when it is mounted, and falls back to read-only if it cannot.
        # Or at the latest when it is synced, where the layer is a file system that thinks that it has space.
        with store.mount(victim) as root, fill(system.path):
            problem = problem_of(lambda: _written(root, file("more", os.urandom(8 << 20))))
        assert isinstance(problem, OSError), f"on a full disk a write ends with {problem!r}"
        # What a device that lies in a file cannot write, it calls an error of input and output.
        more = (errno.EIO, errno.EROFS) if store.capabilities.activation else ()
        assert problem.errno in (errno.ENOSPC, errno.EDQUOT, *more)
        with fill(system.path):
            planned = store.plan(base)
            problem = problem_of(lambda: store.driver.prepare(planned, api.LayerOptions()))
            assert no_space(problem), f"on a full disk prepare() says {problem!r}"
            tree.same(wanted, store.look(base), "on a full disk")
            store.driver.remove(planned)
            store.driver.remove(victim)
            store.purge_all()
            assert store.living() == {(base.id, base.kind)}
            assert store.leftovers() == []
        made = store.new(base, file("again", b"1"))
        assert store.read(made, "again") == b"1"


def _written(root: str, step: steps.Step) -> None:
    steps.do(root, step)
    sync(root)


def problem_of(work: Callable[[], object]) -> Exception | None:
    """The error of a kind that may leave a driver."""
    try:
        work()
    except (StorageError, OSError) as error:
        return error
    return None


def no_space(problem: Exception | None) -> bool:
    if isinstance(problem, OSError):
        return problem.errno in (errno.ENOSPC, errno.EDQUOT)
    return problem is None or isinstance(problem, NoSpace)


@contextlib.contextmanager
def fill(path: str) -> Iterator[None]:
    """Leave no byte free."""
    fd = os.open(f"{path}/filler", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for size in (1 << 20, 4096, 512):
            with contextlib.suppress(OSError):
                while True:
                    os.write(fd, b"\0" * size)
        yield
    finally:
        os.close(fd)
        os.unlink(f"{path}/filler")


@core
@budget(60)
def test_X08_a_failing_tool_is_a_typed_error_and_the_call_can_be_repeated(light: Store) -> None:
    base = light.layer(*CONTENT)
    wanted = light.look(base)
    tried = 0
    for what, begin in CALLS.items():
        model = begin(light, base)
        found = [point for point in crash.points(light, model.work) if point[0] == "host.run"]
        take_away(light, model)
        for point in found:
            tried += 1
            call = begin(light, base)
            said = crash.fail_at(light, call.work, point, ToolFailed("the tool says: schlägt fehl"))
            assert said.startswith("ToolFailed"), f"{what}(): {said or 'the failure was hidden'}"
            old_or_new(light, call, base, wanted, point)
            call.work(light)
            take_away(light, call)
    if not tried:
        marks.skip("plan", "the driver runs no tool")


def purging(store: Store, base: api.Layer) -> Call:
    layer = store.new(base, *CHANGES)
    store.driver.remove(layer)
    return Call(crash.purge(), set(), set(), [layer])


@core
@budget(90)
@pytest.mark.parametrize("times", [2, 1000])
@pytest.mark.parametrize("what", ["remove", "purge"])
def test_X09_what_is_busy_is_tried_again_or_left_for_later(light: Store, what: str, times: int) -> None:
    """Busy for two tries, and for as long as the call lasts: it succeeds, or says so and can be repeated."""
    begin, base = {"remove": removing, "purge": purging}[what], light.layer(*CONTENT)
    wanted = light.look(base)
    model = begin(light, base)
    found = crash.points(light, model.work)
    take_away(light, model)
    if not found:
        marks.skip("plan", f"{what}() makes no call that could be busy")
    for point in found:
        call = begin(light, base)
        crash.fail_at(light, call.work, point, OSError(errno.EBUSY, "a fault of the suite"), times=times)
        light.reopen()
        assert light.living() - {(base.id, base.kind)} in (call.old, call.new), f"busy at {point}: another state"
        tree.same(wanted, light.look(base), f"busy at {point}: the parent")
        take_away(light, call)
        assert light.leftovers() == [], f"busy at {point}: purge() later left something"
        assert light.living() == {(base.id, base.kind)}


# ---------------------------------------------------------------- the clock, and what lies below


@core
def test_X15_a_clock_that_was_set_back_leads_to_no_wrong_diff_and_no_removal(
    store: Store, request: pytest.FixtureRequest
) -> None:
    base = store.layer(*CONTENT, file("c", b"old"))
    active = store.new(base, file("before", b"1"))
    with set_back(86_400, really=request.config.getoption("--set-clock")):
        store.reopen()
        yesterday = time.time_ns()
        store.change(active, steps.append("d/a", b"+"), steps.times("d/a", yesterday))
        store.change(active, file("c", b"new"), steps.times("c", yesterday), file("after", b"2"))
        store.change(active, steps.times("after", yesterday), steps.times("before", yesterday))
        fresh = store.new(base, file("x", b"3"))
        store.purge_all()
        assert store.living() == {(x.id, x.kind) for x in (base, active, fresh)}, "purge() took what is new for old"
        found = changes.of_driver(store, base, active)
        assert {"d/a": "C", "c": "C", "after": "A", "before": "A"}.items() <= found.items(), found
        layer = store.commit(active)
    store.reopen()
    assert store.living() == {(x.id, x.kind) for x in (base, layer, fresh)}
    top = store.new(layer)
    assert store.read(top, "d/a") == b"1" * 5000 + b"+"
    assert store.read(top, "c") == b"new"
    assert changes.of_driver(store, layer, top) == {}


@contextlib.contextmanager
def set_back(seconds: int, *, really: bool) -> Iterator[None]:
    """The clock of the whole machine, if it may be set; else what this process is told of the time."""
    if really:
        began = time.monotonic()
        now = time.time()
        time.clock_settime(time.CLOCK_REALTIME, now - seconds)
        try:
            yield
        finally:
            time.clock_settime(time.CLOCK_REALTIME, now + time.monotonic() - began)
        return
    with pytest.MonkeyPatch.context() as patch:
        told, told_ns = time.time, time.time_ns
        patch.setattr(time, "time", lambda: told() - seconds)
        patch.setattr(time, "time_ns", lambda: told_ns() - seconds * 10**9)
        yield


@core
@budget(60)
def test_X16_a_back_end_that_was_swapped_for_another_is_refused(target: Target, backing: Backing) -> None:
    with backing.own(kind=backing.loop_kind()) as one, backing.own(kind=backing.loop_kind()) as two:
        store, other = Store(target, f"{one.path}/store"), Store(target, f"{two.path}/store")
        assert store.id != other.id
        layer, theirs = store.layer(*CONTENT), other.layer(file("theirs", b"1"))
        wanted = store.look(layer)
        store.driver.close()
        other.driver.close()
        one.swap(two)
        for it in (store, other):
            with pytest.raises(WrongStore) as raised:
                it.open()
            assert raised.value.remedy, "nothing says what to do about it"
            with pytest.raises(WrongStore):
                it.target.plugin.destroy(it.root, target.at(it.root), SuiteHost(), store=it.id)
        one.swap(two)
        store.driver, other.driver = store.open(), other.open()
        tree.same(wanted, store.look(layer), "when each is back in its place")
        assert other.read(theirs, "theirs") == b"1"
        store.driver.close()
        other.driver.close()


# ---------------------------------------------------------------- leftovers and damage


@core
@budget(60)
def test_X10_leftovers_of_a_dead_call_are_purged_and_those_of_a_living_one_are_kept(light: Store) -> None:
    base = light.layer(*CONTENT)

    @contextlib.contextmanager
    def not_mine(_: LayerId) -> Iterator[bool]:
        yield False

    seen = 0
    for begin in (preparing, preparing_with_owner):
        model = begin(light, base)
        found = crash.points(light, model.work)
        wanted = light.look(model.layers[0])
        take_away(light, model)
        for point in found:
            call = begin(light, base)
            crash.kill_at(light, call.work, point)
            before = [(x.kind, x.name) for x in light.scan(api.ObjectKind.TEMP)]
            if before:
                seen += 1
                asked: list[LayerId] = []

                @contextlib.contextmanager
                def noted(id_: LayerId, asked: list[LayerId] = asked) -> Iterator[bool]:
                    asked.append(id_)
                    yield False

                light.driver.purge(noted, 5)
                assert call.layers[0].id in asked, "purge() did not ask whether the layer's temp object is in use"
                light.driver.purge(not_mine, 5)
                after = [(x.kind, x.name) for x in light.scan(api.ObjectKind.TEMP)]
                assert after == before, "purge() deleted what a running call owns"
            call.work(light)
            ignored = () if call.wanted else ("mtime",)
            tree.same(wanted, light.look(call.layers[0]), f"stopped at {point}, then repeated", ignore=ignored)
            take_away(light, call)
            assert light.scan() == [x for x in light.scan() if x.layer == base.id]
    if not seen:
        marks.skip("plan", "prepare() leaves nothing temporary, wherever it is killed")


def opened_look(store: Store, layer: api.Layer) -> tree.Tree:
    driver = store.open()
    try:
        return store.look(layer, driver=driver)
    finally:
        driver.close()


@core
@budget(60)
def test_X11_damaged_metadata_is_refused_in_one_line_or_harmless(target: Target, backing: Backing) -> None:
    with backing.own() as system:
        empty = target.plugin.init(f"{system.path}/empty", target.at(f"{system.path}/empty"), SuiteHost())
        names = [n for n in os.listdir(f"{system.path}/empty") if os.path.isfile(f"{system.path}/empty/{n}")]
        target.plugin.destroy(f"{system.path}/empty", target.at(f"{system.path}/empty"), SuiteHost(), store=empty)
        if not names:
            marks.skip("plan", "the store keeps no file beside its layers")
        store = Store(target, f"{system.path}/store")
        layer = store.layer(*CONTENT)
        wanted = store.look(layer)
        store.driver.close()
        for name in names:
            path = f"{store.root}/{name}"
            with open(path, "rb") as before:
                good = before.read()
            for damage in (b"", b"\xff\x00garbage\n" * 3, None):
                if damage is None:
                    os.unlink(path)
                else:
                    with open(path, "wb") as bad:
                        bad.write(damage)
                problem = problem_of(lambda: tree.same(wanted, opened_look(store, layer), "with a damaged file"))
                assert "\n" not in str(problem)
                with open(path, "wb") as again:
                    again.write(good)
        store.driver = store.open()
        tree.same(wanted, store.look(layer), "with its files restored")
        store.driver.close()


@core
def test_X12_an_object_that_nobody_knows_is_found_and_not_taken_for_a_new_layer(store: Store) -> None:
    stranger = store.new(None, file("stranger", b"1"))
    assert stranger.id in {x.layer for x in store.scan()}
    other = store.new(None)
    assert sorted(store.look(other)) == ["."], "a new layer has the content of one that was there"
    # The same number in another id: after a restored database, say.
    again = store.prepare(api.Layer(LayerId("e" * 32), stranger.number, api.Kind.ACTIVE))
    assert sorted(store.look(again)) == ["."], "a number that is in use was silently taken over"
    assert store.read(stranger, "stranger") == b"1"


@core
def test_X13_a_layer_that_is_gone_is_told_and_can_be_removed(store: Store) -> None:
    base = store.layer(file("a"))
    child = store.new(base, file("b"))
    store.driver.remove(base)  # as a stranger does: rule E1 forbids it
    store.purge_all()
    with pytest.raises(StorageError) as raised:
        store.driver.prepare(store.plan(base), api.LayerOptions())
    assert raised.value.code in ("not-found", "damaged")
    with pytest.raises((StorageError, OSError)), store.mount(base):
        pass
    store.driver.remove(base)
    store.driver.remove(child)
    store.purge_all()
    assert store.scan() == []


@core
def test_X10_a_stopped_call_is_no_dead_one(light: Store) -> None:
    """Two processes prepare different layers while one of them stands still: it goes on and is right."""
    base = light.layer(*CONTENT)
    slow = light.plan(base)
    point = next(iter(crash.points(light, preparing(light, base).work)))
    pid = crash.stop_at(light, crash.prepare(slow), point)
    quick = light.new(base, *CHANGES)

    @contextlib.contextmanager
    def claim(id_: LayerId) -> Iterator[bool]:
        yield id_ != slow.id

    light.driver.purge(claim, 5)
    crash.go_on(pid)
    tree.same(light.look(base), light.look(slow), "a call that stood still for a while")
    assert light.read(quick, "e/f") == b"new"
