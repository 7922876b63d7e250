"""X03 to X05 on disks with faults: those of device-mapper, where the kernel has it."""

from __future__ import annotations

import errno
import random

import pytest

from cowshed.storage import api
from cowshed.storage.errors import LayerId
from cowshed_conformance import disks, marks, steps, tree
from cowshed_conformance.backing import Backing
from cowshed_conformance.cases.test_crash import CHANGES, CONTENT, problem_of
from cowshed_conformance.harness import Store, mine, sync
from cowshed_conformance.marks import budget, full
from cowshed_conformance.steps import file
from cowshed_conformance.target import Target

Durable = list[tuple[api.Layer, tree.Tree]]


@full
@budget(120)
def test_X03_X04_what_the_disk_had_not_flushed_is_lost(target: Target, backing: Backing, chance: random.Random) -> None:
    """Acknowledged commits are whole after a power cut at their moment and at later ones, and the store works."""
    with disks.logged(backing, 64 << 20, backing.loop_kind()) as (system, disk):
        with Store(target, f"{system.path}/store") as store:
            if store.capabilities.durability < api.Durability.COMMIT:
                marks.skip("capability", "the driver does not claim to survive a power cut")
            promised: list[tuple[api.Layer, tree.Tree]] = []
            parent = None
            for changes in ((*CONTENT, file("big", chance.randbytes(1 << 20))), CHANGES):
                active = store.new(parent, *changes)
                wanted = store.look(active)
                parent = store.commit(active, None, api.Durability.COMMIT)
                promised.append((parent, wanted))
                disk.mark(f"commit-{len(promised)}")
            for _ in range(3):  # of these nobody was told that they are durable
                store.driver.remove(store.layer(steps.append("d/a", b"-"), parent=parent))
            store.purge_all()
            disk.mark("end")
            entries = disk.entries()
            moments = [number for number, entry in enumerate(entries) if entry.mark]
            assert len(moments) == len(promised) + 1
            later = [chance.randrange(moments[0], moments[-1]) for _ in range(2)]
            for moment in sorted((*moments, *later)):
                told = [layer for at, layer in zip(moments, promised, strict=False) if at <= moment]
                with disks.replayed(backing, disk, entries[:moment], system) as path:
                    after_power_cut(store, path, told, f"at entry {moment} of {len(entries)}")


def after_power_cut(store: Store, path: str, told: list[tuple[api.Layer, tree.Tree]], moment: str) -> None:
    driver = store.open(root=f"{path}/store")
    try:
        found = {(x.layer, x.layer_kind) for x in driver.scan() if x.kind is api.ObjectKind.LAYER}
        for layer, wanted in told:
            assert (layer.id, layer.kind) in found, f"{layer} was durable and is gone after a power cut {moment}"
            tree.same(wanted, store.look(layer, driver=driver), f"after a power cut {moment}")
        for id_, kind in found - {(layer.id, layer.kind) for layer, _ in told}:
            assert id_ is not None
            assert kind is not None
            driver.remove(api.Layer(id_, 1, kind))
        assert driver.purge(mine, 30).objects_left == 0
        new = api.Layer(LayerId("a" * 32), 77, api.Kind.ACTIVE, told[-1][0])
        driver.prepare(new, api.LayerOptions())
        tree.same(told[-1][1], store.look(new, driver=driver), f"a new layer after a power cut {moment}")
    finally:
        driver.close()


@full
@budget(90)
def test_X05_what_the_disk_cannot_read_is_an_error_to_its_reader_alone(
    target: Target, backing: Backing, chance: random.Random
) -> None:
    lost, kept = chance.randbytes(64 << 10), chance.randbytes(64 << 10)
    with backing.own(64 << 20, backing.loop_kind()) as system, Store(target, f"{system.path}/store") as store:
        base = store.layer(*CONTENT, file("lost", lost), file("kept", kept))
        top = store.new(base, file("own", b"1"))
        sync(system.path)
        # Not its ends: what is read for them may hold parts of other files.
        with disks.unreadable_copy(backing, system, lost[4096:-4096]) as path:
            driver = store.open(root=f"{path}/store")
            try:
                for layer in (base, top):
                    with store.mount(layer, read_only=True, driver=driver) as root:
                        with pytest.raises(OSError) as raised:
                            steps.read(root, "lost")
                        assert raised.value.errno == errno.EIO
                        assert steps.read(root, "kept") == kept
                        assert steps.read(root, "d/a") == b"1" * 5000
                if api.has_self_check(driver):
                    # What it may find is the driver's own matter; that it comes to an end is not.
                    problem = problem_of(lambda: list(driver.check([base, top], deep=True)))
                    assert "\n" not in str(problem)
                planned = api.Layer(LayerId("b" * 32), 99, api.Kind.ACTIVE, base)
                problem = problem_of(lambda: driver.prepare(planned, api.LayerOptions()))
                if isinstance(problem, OSError):
                    assert problem.errno == errno.EIO
                for layer in (planned, top):
                    driver.remove(layer)
                assert driver.purge(mine, 30).objects_left == 0
                assert {found.layer for found in driver.scan()} == {base.id}
            finally:
                driver.close()
