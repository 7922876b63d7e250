"""J: the engine's journal with this driver: what a dead command began is redone or undone by the next one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from cowshed.layers import faults
from cowshed.state import layers as rows
from cowshed.storage import api
from cowshed_conformance import crash, steps
from cowshed_conformance.backing import Backing
from cowshed_conformance.cases.test_concurrency import at_once
from cowshed_conformance.cases.test_crash import fill
from cowshed_conformance.engine import Engine, image_of
from cowshed_conformance.marks import budget, core, full
from cowshed_conformance.steps import file
from cowshed_conformance.target import Target
from cowshed_linux import process


def killed(target: Target, root: str, work: Callable[[Engine], object], fault: str) -> bool:
    """Let a command do the work with a fault; whether it was killed."""

    def run() -> None:
        faults.inject(fault)
        mine = Engine(target, root)
        work(mine)
        mine.close()

    pid = crash.start(run)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"{fault}: the command ended with {code}, see its output"
    return code != 0


def recover(target: Target, root: str) -> None:
    engine = Engine(target, root)
    engine.recover()
    engine.close()


@full
@budget(120)
def test_J01_killed_at_each_named_step_then_repaired_by_two_at_once(target: Target, backing: Backing) -> None:
    with backing.own(256 << 20) as system:
        trace = f"{system.path}/trace"
        assert not killed(target, f"{system.path}/traced", Engine.everything, f"trace@{trace}")
        with open(trace, encoding="utf-8") as lines:
            names = lines.read().split()
        root = f"{system.path}/store"
        Engine(target, root).close()
        for n, name in enumerate(names):
            point = f"{name}:{names[: n + 1].count(name)}"
            if not killed(target, root, Engine.everything, f"kill@{point}"):
                continue  # a step of the store's making
            at_once([lambda: recover(target, root)] * 2)  # J05
            # Of a chain, each may have found a child that the other was about to undo: the next command ends it.
            recover(target, root)
            with Engine(target, root) as engine:
                findings = [code for code in engine.findings() if code != "orphan"]
                assert not findings, f"killed at {point}, repaired: {findings}"
                for row in rows.list_all(engine.store, engine.layers.name):
                    found = engine.look(engine.layers.load(row.number))
                    assert all(found[name].size == 10_000 for name in found if len(name) == 1 and name != ".")
                engine.clear()
                assert engine.findings() == [], f"killed at {point}"
                assert list(engine.driver.scan()) == [], f"killed at {point}: something is left"


@core
@budget(60)
def test_J02_a_half_extracted_layer_is_never_committed(target: Target, backing: Backing) -> None:
    root = backing.place()
    chain = image_of("a").chain_ids[0]

    def half(engine: Engine) -> None:
        active = engine.layers.begin(None)
        with engine.mount(active) as path:
            steps.do(path, file("a", b"half"))
            os.kill(os.getpid(), signal.SIGKILL)

    assert killed(target, root, half, "")
    engine = Engine(target, root)
    assert engine.layers.by_chain_id(chain) is None
    assert engine.recover() == 1
    engine.layers.purge(5)
    assert list(engine.driver.scan()) == []
    engine.pull("a")
    found = engine.layers.by_chain_id(chain)
    assert found is not None
    assert engine.look(found)["a"].size == 10_000
    engine.close()


@core
@budget(60)
def test_J03_what_was_not_made_durable_is_suspect_after_another_boot(
    target: Target, backing: Backing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X04 through the engine: after a power cut such a layer is complete, or said to be suspect and made again."""
    with backing.own(96 << 20, backing.loop_kind()) as system:
        engine = Engine(target, f"{system.path}/store")
        image = engine.pull("ab", durability="none")
        with backing.after_power_cut(system) as path:
            monkeypatch.setattr(process, "boot_id", lambda: "another boot")
            after = Engine(target, f"{path}/store")
            after.recover()
            assert after.layers.by_chain_id(image.chain_ids[-1]) is None, "a layer that may be cut short is trusted"
            known = rows.list_all(after.store, after.layers.name)
            if known:
                assert "suspect" in after.findings()
            after.pull("ab")
            found = after.layers.by_chain_id(image.chain_ids[-1])
            assert found is not None
            assert {node.size for name, node in after.look(found).items() if name != "."} == {10_000}
            after.clear()
            assert list(after.driver.scan()) == []
            after.close()
        engine.close()


@core
@budget(60)
def test_J05_two_repeat_one_dead_operation_and_one_does_it(target: Target, backing: Backing) -> None:
    root = backing.place()
    engine = Engine(target, root)
    layer = engine.create(engine.pull("a"))
    engine.close()

    def commit(mine: Engine) -> None:
        mine.commit(mine.layers.load(layer.number))

    assert killed(target, root, commit, "kill@layers.commit.intended")
    at_once([lambda: recover(target, root)] * 4)
    engine = Engine(target, root)
    row = rows.get(engine.store, layer.number)
    assert row is not None
    assert row.kind == api.Kind.COMMITTED.value
    assert engine.findings() == []
    assert sorted(engine.look(engine.layers.load(layer.number))) == [".", "a"]
    engine.close()


@core
@budget(60)
def test_J04_on_a_full_disk_layers_are_listed_and_removed_and_nothing_is_lost(target: Target, backing: Backing) -> None:
    run = backing.place("run")
    with backing.own(96 << 20, backing.loop_kind()) as system:
        root = f"{system.path}/store"
        with Engine(target, root, run) as engine:
            image = engine.pull("ab")
            kept, victim = engine.create(image), engine.create(image)
            with engine.mount(victim) as path:
                steps.do(path, file("big", os.urandom(4 << 20)))
        with fill(system.path):
            with Engine(target, root, run, write=False) as engine:
                assert {row.id for row in rows.list_all(engine.store, engine.layers.name)} >= {kept.id, victim.id}
            with Engine(target, root, run, freeing=True) as engine:
                engine.remove(engine.layers.load(victim.number))
                engine.layers.purge(10)
                assert engine.findings() == []
                assert sorted(engine.look(engine.layers.load(kept.number))) == [".", "a", "b"]
        with Engine(target, root, run) as engine:
            assert engine.findings() == []
            assert sorted(engine.look(engine.create(image))) == [".", "a", "b"]


@core
@budget(60)
def test_S07_an_older_database_over_a_newer_back_end_is_told_and_harms_nothing(
    target: Target, backing: Backing
) -> None:
    root = backing.place()
    with Engine(target, root) as engine:
        image = engine.pull("a")
    with open(f"{root}/db.sqlite", "rb") as file_:
        old = file_.read()
    with Engine(target, root) as engine:
        newer = engine.create(image)
        with engine.mount(newer) as path:
            steps.do(path, file("precious", b"1"))
    for name in os.listdir(root):
        if name.startswith("db.sqlite"):
            os.unlink(f"{root}/{name}")
    with open(f"{root}/db.sqlite", "wb") as file_:
        file_.write(old)
    with Engine(target, root) as engine:
        assert engine.findings() == ["orphan"], "a layer that the database does not know is not told"
        made = engine.create(image)
        assert sorted(engine.look(made)) == [".", "a"], "a new layer has what an unknown one held"
        engine.layers.purge(5)
        fd = engine.layers.mount(newer, read_only=True)
        names = sorted(os.listdir(f"/proc/self/fd/{fd}"))
        os.close(fd)
        assert names == ["a", "precious"], "what the database does not know was changed"
        engine.remove(made)
        engine.driver.remove(newer)
        assert engine.findings() == []
