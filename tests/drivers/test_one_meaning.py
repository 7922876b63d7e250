"""Usage, limits and changes mean the same on all drivers: the same scripts on each that is usable on this machine."""

import os
import shutil
import time
from pathlib import Path

import pytest

from cowshed.storage import api
from cowshed_conformance import pairs, steps, tree
from cowshed_conformance.cases.test_usage import fill
from cowshed_conformance.harness import usage

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")
MIB = 1 << 20
SEEDS = range(20)
KINDS = os.environ.get("COWSHED_BACKINGS", "").split() or pairs.KINDS  # of file systems; few where time is short
AUFS = f"{Path(__file__).parents[2]}/drivers/aufs/tests/fuse_overlayfs.py:stand_in"


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    stand_in = AUFS if shutil.which("fuse-overlayfs") else ""
    with pairs.sides(str(tmp_path_factory.mktemp("sides")), KINDS, stand_in=stand_in) as found:
        assert len(found) > 1, "one driver alone has nothing to agree with"
        yield found


def disagreements(sides, script):
    """One line for each way in which two sides that declare the same come to something else. Between those that do not
    declare the same of times, all but times is held."""
    told, first, first_of_all = [], {}, {}
    for side in sides:
        mine = pairs.carry_out(side, script)
        if dict(mine.changes) != dict(pairs.walked(side, mine)):
            told.append(f"{side.name}: changes() says {dict(mine.changes)}, the walk {dict(pairs.walked(side, mine))}")
        loose, alike = side.kind(script.depends, times=False), side.kind(script.depends, times=True)
        _, wanted = first_of_all.setdefault(loose, (side, mine))
        told += [f"{side.name}: {line}" for line in tree.differences(wanted.now, mine.now, ignore=("mtime",))]
        other, theirs = first.setdefault(alike, (side, mine))
        between = f"{side.name} against {other.name}"
        told += [f"{between}: lower: {line}" for line in tree.differences(theirs.below, mine.below)]
        told += [f"{between}: upper: {line}" for line in tree.differences(theirs.now, mine.now)]
        if mine.changes != theirs.changes:
            told.append(f"{between}: changes {mine.changes} for {theirs.changes}")
        if mine.data != theirs.data:
            told.append(f"{between}: another archive, of {len(mine.data)} bytes for {len(theirs.data)}")
        # The archive that another driver made, applied here, gives what was made here.
        archived = {path: node for path, node in mine.now.items() if node.kind != "socket"}
        applied = pairs.apply_to(side, mine.lower, theirs.data)
        told += [f"{between}: its archive applied: {line}" for line in tree.differences(archived, applied)]
        if side is not other:
            pairs.forget(side, mine)
    for side, outcome in first.values():
        pairs.forget(side, outcome)
    return told


@pytest.mark.parametrize("name", pairs.SCRIPTS)
def test_a_script_comes_to_the_same_on_every_driver(sides, name):
    assert disagreements([side for side in sides if side.can(name)], pairs.SCRIPTS[name]) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_script_comes_to_the_same_on_every_driver(sides, seed, tmp_path):
    script = pairs.random_script(str(tmp_path), seed, sides)
    told = disagreements(sides, script)
    if told:
        few = pairs.shrunk(script, lambda fewer: bool(disagreements(sides, fewer)))
        pytest.fail(f"{few}\n" + "\n".join(told[:10]))


def settled(look, wanted):
    """Some file systems count, and free, in the background."""
    until = time.monotonic() + 15
    while not wanted(value := look()) and time.monotonic() < until:
        time.sleep(0.1)
    return value


def test_usage_means_what_the_layer_itself_has_written(sides):
    for side in sides:
        store = side.store
        base = store.layer(steps.file("below", os.urandom(4 * MIB)))
        layer = store.new(base)
        copied = store.capabilities.granularity is api.Granularity.TREE
        # zfs tells the blocks of a file that was copied when they are on the disk
        empty = settled(lambda s=store, x=layer: usage(s, x), lambda n, c=copied: not c or n >= 4 * MIB)
        assert empty >= 4 * MIB if copied else empty < 256 << 10, (side.name, empty)
        store.change(layer, *[steps.file(f"f{n}", os.urandom(MIB)) for n in range(3)], steps.link("f0", "too"))
        more = settled(lambda s=store, x=layer, e=empty: usage(s, x) - e, lambda n: n >= 3 * MIB)
        assert 3 * MIB <= more <= 3 * MIB + (512 << 10), (side.name, more)
        store.change(layer, *[steps.remove(f"f{n}") for n in range(3)], steps.remove("too"))
        # where a layer is a file system of its own, the blocks of its log and its tables stay
        rest = 2 * MIB if store.capabilities.granularity is api.Granularity.BLOCK else 512 << 10
        left = settled(lambda s=store, x=layer, e=empty: usage(s, x) - e, lambda n, r=rest: n < r)
        assert left < rest, (side.name, left)
        assert store.driver.usage(layer).exact == store.capabilities.usage_exact, side.name
        store.driver.remove(layer)
        store.driver.remove(base)
        store.purge()


def test_a_limit_means_the_same_wherever_it_is_had(tmp_path):
    """Four MiB above a layer of eight: what is the layer's own counts, or all that it shows, as is declared."""
    with pairs.sides(str(tmp_path), KINDS, limits=True) as limited:
        if not limited:
            pytest.skip("no driver has limits on the file systems that this kernel has")
        for side in limited:
            store = side.store
            base = store.layer(*[steps.file(f"below{n}", os.urandom(MIB)) for n in range(8)])
            layer = store.prepare(store.plan(base), api.LayerOptions(quota=api.Quota(bytes=4 * MIB)))
            with store.mount(layer) as root:
                taken = fill(root, 8)
            own = store.capabilities.quota is api.QuotaScope.OWN
            assert 2 <= taken <= 4 if own else taken == 0, (side.name, store.capabilities.quota, taken)
            said = usage(store, layer)
            assert said <= 4 * MIB + (256 << 10), (side.name, said)
            store.driver.remove(layer)
            store.driver.remove(base)
            store.purge()
