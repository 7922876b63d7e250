"""U: layers that are in use, through the engine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cowshed.storage import api
from cowshed.storage.errors import InUse
from cowshed_conformance import crash, hoststate, marks, steps, tree
from cowshed_conformance.backing import Backing
from cowshed_conformance.cases.test_journal import killed
from cowshed_conformance.engine import Engine
from cowshed_conformance.harness import Store
from cowshed_conformance.marks import budget, core, faults, full
from cowshed_conformance.steps import file
from cowshed_conformance.target import Target
from cowshed_linux import mount, process


@pytest.fixture
def engine(target: Target, backing: Backing) -> Iterator[Engine]:
    made = Engine(target, backing.place())
    yield made
    made.close()


@contextmanager
def held(engine: Engine, layer: api.Layer, how: str) -> Iterator[int]:
    """The pid of a process that has the layer mounted: in its `namespace`, `detached`, or by a `file` that is open."""
    reader, writer = os.pipe()
    fd = engine.layers.mount(layer, read_only=False)

    def hold() -> None:
        os.close(reader)
        kept = fd
        if how == "namespace":
            process.unshare(process.CLONE_NEWNS)
            mount.mount(None, "/", None, mount.REC | mount.PRIVATE)
            mount.attach(fd, "/mnt")
            os.close(fd)
        elif how == "file":
            kept = os.open("a", os.O_PATH | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
        os.write(writer, str(kept).encode())
        signal.pause()

    pid = crash.start(hold)
    os.close(writer)
    os.close(fd)
    try:
        assert os.read(reader, 20), "the holder did not come up"
        yield pid
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def shows_detached_mounts(engine: Engine, layer: api.Layer) -> bool:
    """Whether the kernel tells of a mount that no namespace shows: of overlay by its upper directory, of what is
    activated by its device, of aufs in sysfs."""
    if engine.driver.capabilities.activation:
        return True
    last = engine.layers.plan(layer, read_only=False).steps[-1]
    if isinstance(last, api.Aufs):
        return os.path.isdir("/sys/fs/aufs")
    return isinstance(last, api.Overlay) and last.upper is not None


@core
@budget(60)
@pytest.mark.parametrize("how", ["namespace", "detached", "file"])
def test_U01_a_layer_in_use_is_neither_removed_nor_committed(engine: Engine, how: str) -> None:
    layer = engine.create(engine.pull("ab"))
    if how != "namespace" and not shows_detached_mounts(engine, layer):
        marks.skip("kernel", "nothing tells of a detached mount of this kind: the monitor's lock byte has to")
    wanted = engine.look(layer)
    with held(engine, layer, how):
        with pytest.raises(InUse):
            engine.remove(layer)
        with pytest.raises(InUse):
            engine.commit(layer)
        assert engine.findings() == []
    tree.same(wanted, engine.look(layer), "a refused removal changed the layer")
    engine.remove(layer)
    engine.layers.purge(5)
    assert engine.findings() == []


@core
@budget(60)
def test_U02_the_holder_is_named(engine: Engine) -> None:
    layer = engine.create(engine.pull("ab"))
    with held(engine, layer, "namespace") as pid:
        with pytest.raises(InUse) as raised:
            engine.remove(layer)
    assert str(pid) in str(raised.value)
    assert raised.value.holders
    assert raised.value.remedy


@core
@budget(60)
def test_U03_when_the_holder_is_killed_the_layer_is_free(engine: Engine) -> None:
    before = hoststate.loops(), hoststate.mounts()
    for how in ("namespace", "detached"):
        layer = engine.create(engine.pull("ab"))
        with held(engine, layer, how):
            pass  # killed at the end of the block
        engine.remove(layer)
    engine.layers.purge(5)
    assert (hoststate.loops(), hoststate.mounts()) == before
    assert engine.findings() == []


@core
@budget(60)
def test_U04_a_layer_is_never_mounted_twice_for_writing(engine: Engine) -> None:
    layer = engine.create(engine.pull("ab"))

    def second() -> str:
        other = Engine(engine.target, engine.root)
        try:
            with other.mount(other.layers.load(layer.number)):
                return "mounted"
        except InUse as error:
            return str(error)
        finally:
            other.close()

    with engine.mount(layer) as root:
        steps.do(root, file("mine", b"1"))
        assert crash.answer(second) != "mounted"
        clone = mount.beneath(int(root.rpartition("/")[2]), "")  # what a further user gets
        try:
            steps.do(f"/proc/self/fd/{clone}", file("theirs", b"2"))
        finally:
            os.close(clone)
        assert steps.read(root, "theirs") == b"2"
    assert crash.answer(second) == "mounted"


@core
def test_U05_an_activated_layer_lives_as_long_as_its_mount(store: Store) -> None:
    driver = store.driver
    if not api.has_activation(driver):
        marks.skip("capability", "activation is not claimed")
    layer = store.new(store.layer(file("a", b"1")))
    with store.mount(layer) as root:  # activated, mounted, deactivated
        steps.do(root, file("b", b"2"))
        driver.activate(layer, read_only=True)  # while the deferral is pending
        driver.deactivate(layer)
        assert steps.read(root, "b") == b"2"
    store.driver.remove(layer)
    store.purge_all()
    assert not [x for x in store.scan() if x.layer == layer.id], "something of a removed layer is still active"


def active(engine: Engine, layer: api.Layer) -> list[str]:
    """What there is of a layer beside itself: its device, while it is active."""
    return [x.name for x in engine.driver.scan() if x.kind is api.ObjectKind.AUXILIARY and x.layer == layer.id]


def needs_activation(engine: Engine) -> None:
    if not engine.driver.capabilities.activation:
        marks.skip("capability", "activation is not claimed")


@core
@budget(60)
@pytest.mark.parametrize("read_only", [True, False])
def test_U05_what_a_killed_process_left_active_is_deactivated_by_the_next(
    engine: Engine, target: Target, *, read_only: bool
) -> None:
    needs_activation(engine)
    layer = engine.create(engine.pull("ab"))
    mounted = layer.parent if read_only else layer
    assert mounted is not None
    before = active(engine, mounted)

    def mount_it(mine: Engine) -> None:
        os.close(mine.layers.mount(mounted, read_only=read_only))

    for step in ("activate.noted", "activate.done", "deactivate.begin", "deactivate.done"):
        for repaired in (True, False):
            assert killed(target, engine.root, mount_it, f"kill@{step}"), f"{step} was never reached"
            if repaired:
                engine.recover()
                assert active(engine, mounted) == before, f"killed at {step}: the layer is still active"
            with engine.mount(mounted, read_only=read_only) as root:
                assert steps.read(root, "a")
            assert active(engine, mounted) == before, f"killed at {step}: the layer stays active after a mount"
    assert killed(target, engine.root, mount_it, "kill@activate.done")
    engine.remove(layer)
    engine.layers.purge(5)
    engine.recover()
    assert [x for x in engine.driver.scan() if x.layer == layer.id] == [], "what was left active kept the layer"


@core
@budget(60)
def test_U05_many_processes_activate_one_layer_at_once(engine: Engine, target: Target) -> None:
    needs_activation(engine)
    layer = engine.layers.by_chain_id(engine.pull("ab").chain_ids[-1])
    assert layer is not None
    before = active(engine, layer)

    def work() -> None:
        mine = Engine(target, engine.root)
        for _ in range(15):
            with mine.mount(layer, read_only=True) as root:
                assert steps.read(root, "b") == b"b" * 10_000
        mine.close()

    children = [crash.start(work) for _ in range(3)]
    for child in children:
        crash.finish(child)
    assert active(engine, layer) == before, "the layer stays active after its last mount"


@core
@budget(60)
def test_U06_after_a_power_cut_while_a_layer_was_in_use_all_is_usable(
    target: Target, backing: Backing, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        backing.own(96 << 20, backing.loop_kind()) as system,
        Engine(target, f"{system.path}/store") as engine,
    ):
        if engine.driver.capabilities.durability < api.Durability.COMMIT:
            marks.skip("capability", "the driver does not claim to survive a power cut")
        image = engine.pull()
        layer = engine.create(image)
        with engine.mount(layer) as root:
            steps.do(root, file("mine", b"1"))
            with backing.after_power_cut(system) as path:
                monkeypatch.setattr(process, "boot_id", lambda: "another boot")
                with Engine(target, f"{path}/store") as after:
                    after.recover()
                    assert after.findings() == []
                    found = after.look(after.layers.load(layer.number))
                    assert {".", "a", "b", "c"} <= set(found)
                    assert found["a"].size == 10_000
                    assert after.layers.by_chain_id(image.chain_ids[-1]) is not None
                    after.remove(after.layers.load(layer.number))
                    after.create(image)


@core
@budget(60)
def test_U07_a_layer_is_looked_at_while_it_is_used_and_no_mount_is_left(engine: Engine) -> None:
    layer = engine.create(engine.pull("ab"))
    before = hoststate.mounts()
    with engine.mount(layer) as root:
        steps.do(root, file("mine", b"1"))

        def look(path: str = f"/proc/{os.getpid()}/fd/{root.rpartition('/')[2]}") -> object:
            here = f"/proc/self/fd/{mount.beneath(os.open(path, os.O_PATH), '')}"
            return sorted(os.listdir(here)), steps.read(here, "mine").decode()

        assert crash.answer(look) == [["a", "b", "mine"], "1"]
        steps.do(root, file("later", b"2"))
    assert sorted(engine.look(layer)) == [".", "a", "b", "later", "mine"]
    assert hoststate.mounts() == before


def under_load(engine: Engine, rounds: int) -> None:
    image = engine.pull("ab")

    def work() -> None:
        mine = Engine(engine.target, engine.root)
        for _ in range(rounds):
            layer = mine.create(image)
            with mine.mount(layer) as root:
                steps.do(root, file("mine", b"1"))
            mine.remove(layer)
        mine.layers.purge(10)
        mine.close()

    children = [crash.start(work) for _ in range(3)]
    for child in children:
        crash.finish(child)
    engine.layers.purge(10)
    assert engine.findings() == []


@full
@budget(90)
def test_U08_mounting_and_removing_under_load_is_never_refused(engine: Engine) -> None:
    under_load(engine, 15)


@faults
@budget(900)
def test_U08_a_thousand_rounds_of_mounting_and_removing(engine: Engine) -> None:
    under_load(engine, 350)
