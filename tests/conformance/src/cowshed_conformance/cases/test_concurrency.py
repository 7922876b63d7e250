"""N: several threads and processes at once."""

from __future__ import annotations

import errno
import gc
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from cowshed.errors import Busy, Conflict, NotFound
from cowshed.layers.host import EngineHost
from cowshed.state.rows import ImageRow
from cowshed.storage import api
from cowshed.storage.errors import Cancelled, InUse, LayerId, ToolFailed
from cowshed_conformance import changes, crash, hoststate, marks, steps, tree
from cowshed_conformance.backing import Backing
from cowshed_conformance.engine import Engine
from cowshed_conformance.harness import Store, SuiteHost
from cowshed_conformance.marks import budget, core, full
from cowshed_conformance.steps import directory, file
from cowshed_conformance.target import Target

PROMPT = 3.0  # seconds in which looking answers, whatever else goes on, on a busy machine too
INHERITED = """
import os
for name in os.listdir("/proc/self/fd"):
    try:
        print(os.readlink(f"/proc/self/fd/{name}"))
    except OSError:
        pass  # the one of listdir
"""


def at_once(works: Iterable[Callable[[], object]]) -> None:
    """Each in a process of its own, all at the same time; all must succeed."""
    children = [crash.start(work) for work in works]
    problems = []
    for child in children:
        try:
            crash.finish(child)
        except AssertionError as error:
            problems.append(error)
    if problems:
        raise problems[0]


def life(store: Store, base: api.Layer, active: api.Layer) -> None:
    """One layer from its making to its removal."""
    active = store.prepare(active)
    with store.mount(active) as root:
        steps.do(root, file("mine", active.id.encode()), steps.append("shared", active.id.encode()))
    if active.number % 2:
        active = store.commit(active)
    with store.mount(active, read_only=True) as root:
        assert steps.read(root, "mine") == active.id.encode()
        assert steps.read(root, "shared") == b"base" + active.id.encode()
    store.driver.remove(active)


@core
@budget(60)
def test_N01_thirty_two_threads_work_on_layers_of_their_own(store: Store) -> None:
    base = store.layer(file("shared", b"base"))
    planned = [store.plan(base) for _ in range(96)]
    with ThreadPoolExecutor(32) as pool:
        for done in [pool.submit(life, store, base, layer) for layer in planned]:
            done.result()
    assert store.living() == {(base.id, base.kind)}
    assert store.read(base, "shared") == b"base"
    store.purge_all()
    assert [x.layer for x in store.scan()] == [base.id]


@core
@budget(60)
def test_N02_of_many_containers_of_one_name_one_is_made(target: Target, backing: Backing) -> None:
    root = backing.place()
    with Engine(target, root) as engine:
        image = engine.pull("a")

    def make() -> str:
        with Engine(target, root) as mine:
            try:
                return mine.create(image, "web").id
            except Conflict:
                return ""

    reader, writer = os.pipe()
    at_once([lambda: steps.void(os.write(writer, f"{make()}\n".encode()))] * 12)
    os.close(writer)
    with open(reader, encoding="ascii") as told:
        made = [line.strip() for line in told if line.strip()]
    assert len(made) == 1, f"{len(made)} containers have one name"
    with Engine(target, root) as engine:
        assert engine.findings() == []
        assert [x.layer for x in engine.driver.scan() if x.layer_kind is api.Kind.ACTIVE] == made


@core
@budget(60)
def test_N03_a_child_is_made_while_its_parent_is_removed(target: Target, backing: Backing) -> None:
    root = backing.place()
    for n in range(6):
        engine = Engine(target, root)
        image = engine.pull("ab")
        engine.close()

        def make(n: int = n, image: ImageRow = image) -> None:
            mine = Engine(target, root)
            time.sleep(0.002 * n)
            try:
                made = mine.create(image)
            except (NotFound, Busy):
                return  # the parent went first
            assert sorted(mine.look(made)) == [".", "a", "b"]
            mine.remove(made)

        def take(image: ImageRow = image) -> None:
            Engine(target, root).untag(image)

        at_once([make, take])
        engine = Engine(target, root)
        engine.layers.remove_unreferenced()
        engine.layers.purge(5)
        assert engine.findings() == []
        assert list(engine.driver.scan()) == []
        engine.close()


@core
@budget(60)
def test_N04_processes_share_a_store(store: Store) -> None:
    base = store.layer(file("shared", b"base"))

    def work(first: int) -> Callable[[], object]:
        def run() -> None:
            mine = object.__new__(Store)
            mine.__dict__.update(store.__dict__)
            mine.driver, mine.number = mine.open(), first
            for _ in range(15):
                life(mine, base, mine.plan(base))
            mine.driver.close()

        return run

    at_once(work(n * 1000) for n in range(1, 5))
    store.reopen()
    assert store.living() == {(base.id, base.kind)}
    assert store.read(base, "shared") == b"base"


@core
@budget(60)
def test_N05_a_layer_that_is_being_compared_is_not_removed(target: Target, backing: Backing) -> None:
    engine = Engine(target, backing.place())
    image = engine.pull("ab")
    active = engine.create(image)
    with engine.mount(active) as root:
        steps.do(root, file("mine", b"1"))

    def remove() -> str:
        other = Engine(target, engine.root)
        try:
            other.remove(other.layers.load(active.number))
        except InUse as error:
            return str(error)
        finally:
            other.close()
        return ""

    with engine.mount(active, read_only=True) as root:
        said = crash.answer(remove)
        assert sorted(tree.read(root)) == [".", "a", "b", "mine"], "the layer went while it was looked at"
    assert said, "a layer was removed while a command looked at it"
    assert crash.answer(remove) == ""
    assert engine.findings() == []
    engine.close()


@core
@budget(60)
def test_N06_looking_is_prompt_beside_work(store: Store) -> None:
    base = store.layer(file("shared", b"base"), *[file(f"f{n}") for n in range(50)])
    active = store.new(base)
    stop = threading.Event()

    def work(first: int) -> None:
        number = first
        while not stop.is_set():
            number += 1
            life(store, base, api.Layer(id_of(number), number, api.Kind.ACTIVE, base))

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work, n * 10_000) for n in range(1, 5)]
        try:
            until = time.monotonic() + 0.5
            while time.monotonic() < until:
                for look in (
                    lambda: list(store.driver.scan()),
                    lambda: store.driver.usage(active),
                    lambda: store.driver.health(),
                    lambda: store.mounts(active),
                ):
                    began = time.monotonic()
                    look()
                    assert time.monotonic() - began < PROMPT, "looking waits for work on other layers"
        finally:
            stop.set()
        for done in working:
            done.result()


def id_of(number: int) -> LayerId:
    return LayerId(f"{number:032x}")


@core
@budget(60)
def test_N07_no_descriptor_is_inherited_by_programs_started_meanwhile(store: Store) -> None:
    base = store.layer(file("a"))
    active = store.new(base, file("b"))
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            with store.mount(active):
                pass
            list(store.driver.scan())
            store.driver.usage(active)
            store.open().close()
            store.driver.remove(store.prepare(store.plan(base)))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(25):
            # close_fds=False: what is not marked close-on-exec would be passed on.
            done = subprocess.run([sys.executable, "-ISc", INHERITED], capture_output=True, text=True, close_fds=False)
            assert store.root not in done.stdout, f"a descriptor of the store was inherited: {done.stdout}"
    finally:
        stop.set()
        thread.join()


def cancelling(after: int) -> SuiteHost:
    """A host that cancels when so many of its names have been reached."""

    def reached(_: str) -> None:
        if len(host.names) == after:
            host.cancel()

    host = SuiteHost(reached)
    return host


def written_meanwhile(store: Store, layer: api.Layer, take: Callable[[], api.Layer]) -> None:
    """Take a copy of a layer while a thread writes to it, and hold the copy against what had been synced before: each
    of two files is cut somewhere, never before that, and the second never goes ahead of the first."""
    size, done = 32, 0
    stop = threading.Event()
    with store.mount(layer) as root:
        steps.do(root, file("one"), file("two"))

        def write() -> None:
            nonlocal done
            fds = [os.open(f"{root}/{name}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC) for name in ("one", "two")]
            try:
                while not stop.is_set():
                    for fd in fds:
                        os.write(fd, f"{done:{size - 1}}\n".encode())
                        os.fsync(fd)
                    done += 1
            finally:
                for fd in fds:
                    os.close(fd)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            while done < 20 and thread.is_alive():
                stop.wait(0.01)
            before = done
            taken = take()
            after = done
        finally:
            stop.set()
            thread.join()
    one, two = store.read(taken, "one"), store.read(taken, "two")
    stream = "".join(f"{n:{size - 1}}\n" for n in range(after + 2)).encode()
    for name, found in (("one", one), ("two", two)):
        assert stream.startswith(found), f"{name} has what was never written there in that order"
        assert before * size <= len(found), f"{name} lacks what had been synced before"
    assert len(two) <= len(one) <= len(two) + size, "what was written later is there, and what was synced before is not"
    assert done > before, "nothing was written meanwhile"


def refused(engine: Engine, work: Callable[[Engine], object]) -> str:
    """What another command is told that wants to do something with a layer in use: in a process of its own."""
    with Engine(engine.target, engine.root) as other:
        try:
            work(other)
        except InUse as error:
            return f"{error.layer} {error} {error.holders}"
    return ""


@full
@budget(60)
def test_N08_a_layer_that_is_written_to_is_copied_as_declared_or_not_at_all(
    store: Store, target: Target, backing: Backing
) -> None:
    driver = store.driver
    if not api.has_live_snapshot(driver):
        with Engine(target, backing.place()) as engine:
            layer = engine.create(engine.pull("ab"))
            with engine.mount(layer) as root:
                steps.do(root, file("mine", b"1"))
                assert crash.answer(lambda: refused(engine, lambda other: other.commit(layer)))
                steps.do(root, steps.append("mine", b"2"))
            assert engine.findings() == []
            with engine.mount(engine.commit(layer), read_only=True) as root:
                assert steps.read(root, "mine") == b"12"
        return
    base = store.layer(file("below", b"1"), directory("d"))
    active = store.new(base, file("mine", b"2"))
    planned = store.plan(base)
    new = api.Layer(planned.id, planned.number, api.Kind.COMMITTED, base)

    def take() -> api.Layer:
        data = driver.snapshot(active, new, api.Durability.COMMIT)
        assert dict(driver.snapshot(active, new, api.Durability.COMMIT)) == dict(data), "a repeat returns another thing"
        return api.Layer(new.id, new.number, new.kind, new.parent, data)

    written_meanwhile(store, active, take)
    assert store.living() == {(base.id, base.kind), (active.id, active.kind), (new.id, new.kind)}
    assert store.read(new, "mine") == b"2"
    assert store.read(new, "below") == b"1"
    with store.mount(new) as root, pytest.raises(OSError) as raised:
        steps.do(root, file("more"))
    assert raised.value.errno == errno.EROFS
    assert changes.of_driver(store, base, new).keys() >= {"one", "two", "mine"}
    store.driver.remove(active)
    assert store.read(store.new(new), "mine") == b"2", "a snapshot does not outlive what it was taken of"


class Slow(SuiteHost):
    """A host whose tools do not answer."""

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        ok: Collection[int] = (0,),
        mounts: Sequence[tuple[api.MountPlan, str]] = (),
    ) -> api.CompletedRun:
        self.names.append("host.run")
        assert 0 < timeout <= 600, f"{argv[0]} may take {timeout} s: no limit at all"
        stopped = ("sh", "-c", "kill -STOP $$")  # as a tool that waits for a device that does not answer
        return EngineHost.run(self, stopped, timeout=0.2, ok=ok, mounts=mounts)


@core
@budget(60)
def test_N11_a_tool_that_does_not_answer_is_given_up_and_the_call_can_be_repeated(light: Store) -> None:
    base = light.layer(file("a", b"1"))
    wanted, tried = light.look(base), 0
    for what in ("prepare", "commit", "remove"):
        host = Slow()
        active = light.plan(base) if what == "prepare" else light.new(base, file("b", b"2"))
        new = light.committed(active)
        try:
            driver = light.open(host)
        except ToolFailed:
            tried += 1
            continue
        calls: dict[str, Callable[[api.Driver], object]] = {
            "prepare": lambda driver, active=active: driver.prepare(active, api.LayerOptions()),  # type: ignore[misc]
            "commit": lambda driver, active=active, new=new: driver.commit(active, new, api.Durability.NONE),  # type: ignore[misc]
            "remove": lambda driver, active=active: driver.remove(active),  # type: ignore[misc]
        }
        told = ""
        try:
            calls[what](driver)
        except ToolFailed as error:
            told = str(error)
            tried += 1
        assert "\n" not in told
        assert told or "host.run" not in host.names, f"{what}() hid that a tool did not answer"
        driver.close()
        calls[what](light.driver)  # the tool answers again
        tree.same(wanted, light.look(base), f"the parent, after a tool did not answer in {what}()")
        for layer in (active, new):
            light.driver.remove(layer)
        light.purge_all()
        assert [x.layer for x in light.scan()] == [base.id]
    if not tried:
        marks.skip("plan", "the driver runs no tool")


@full
@budget(60)
def test_N09_calls_that_are_cancelled_leave_a_clean_store(light: Store, chance: random.Random) -> None:
    base = light.layer(*[file(f"f{n}", b"x" * 50) for n in range(600)])
    wanted = light.look(base)
    cancelled = 0
    for _ in range(30):
        driver = light.open(cancelling(chance.randrange(1, 9)))
        layer = light.plan(base)
        try:
            driver.prepare(layer, api.LayerOptions())
            driver.commit(layer, light.committed(layer), api.Durability.NONE)
            driver.remove(light.committed(layer))
        except Cancelled:
            cancelled += 1
        driver.close()
        for kind in api.Kind:
            light.driver.remove(api.Layer(layer.id, layer.number, kind, base))
        light.purge_all()
        assert [x.layer for x in light.scan()] == [base.id]
    assert cancelled, "no call asks the host whether it is to stop"
    tree.same(wanted, light.look(base), "cancelled calls changed the parent")


@core
@budget(60)
def test_N10_a_hundred_rounds_leave_nothing_open(store: Store) -> None:
    base = store.layer(file("a", b"1"))
    active = store.new(base, file("b"))

    def round_() -> None:
        for layer in (base, active):
            with store.mount(layer, read_only=True) as root:
                os.listdir(root)
        driver = store.open()
        list(driver.scan())
        driver.close()
        made = store.prepare(store.plan(base))
        store.driver.remove(made)

    round_()
    store.purge_all()
    gc.collect()
    before, size = hoststate.HostState.now(), memory()
    for _ in range(100):
        round_()
    store.purge_all()
    gc.collect()
    assert hoststate.HostState.now() == before, "something stays open"
    assert memory() - size < 8 << 20, "memory grows"


def memory() -> int:
    with open("/proc/self/statm", encoding="ascii") as file_:
        return int(file_.read().split()[1]) * os.sysconf("SC_PAGESIZE")


@core
@budget(90)
def test_N12_purge_beside_other_processes_touches_no_living_layer(target: Target, backing: Backing) -> None:
    with backing.own(256 << 20) as system:
        root = f"{system.path}/engine"
        engine = Engine(target, root)
        image = engine.pull("ab")
        engine.close()

        def work() -> None:
            mine = Engine(target, root)
            for n in range(15):
                layer = mine.create(image)
                with mine.mount(layer) as path:
                    steps.do(path, file("mine", layer.id.encode()))
                assert sorted(mine.look(layer)) == [".", "a", "b", "mine"]
                if n % 3 == 0:
                    layer = mine.commit(layer)
                    with mine.mount(layer, read_only=True) as path:
                        assert steps.read(path, "mine") == layer.id.encode()
                else:
                    mine.remove(layer)
            mine.close()

        def purge() -> None:
            mine = Engine(target, root)
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                mine.layers.purge(0.05)
            mine.close()

        at_once([work] * 4 + [purge] * 2)
        engine = Engine(target, root)
        engine.clear()
        assert engine.findings() == []
        assert list(engine.driver.scan()) == []
        engine.close()


@full
@budget(60)
def test_N12_purge_beside_calls_of_this_interface_alone(light: Store) -> None:
    """Without the engine: prepare() of many layers while others purge with a claim that says whose is whose."""
    base = light.layer(file("shared", b"base"), directory("d"), *[file(f"d/{n}", b"x") for n in range(40)])
    working: set[str] = set()
    lock = threading.Lock()

    class Claim:
        def __init__(self, id_: str) -> None:
            self.id = id_

        def __enter__(self) -> bool:
            lock.acquire()
            return self.id not in working

        def __exit__(self, *_: object) -> None:
            lock.release()

    stop = threading.Event()

    def purge() -> None:
        while not stop.is_set():
            light.driver.purge(Claim, 0.05)

    def make(layer: api.Layer) -> None:
        with lock:
            working.add(layer.id)
        try:
            life(light, base, layer)
        finally:
            with lock:
                working.discard(layer.id)

    planned = [light.plan(base) for _ in range(60)]
    with ThreadPoolExecutor(6) as pool:
        purging = [pool.submit(purge) for _ in range(2)]
        made = [pool.submit(make, layer) for layer in planned]
        try:
            for done in made:
                done.result()
        finally:
            stop.set()
        for done in purging:
            done.result()
    assert light.living() == {(base.id, base.kind)}
