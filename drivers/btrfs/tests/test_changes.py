"""Native changes against the walk of both trees."""

import os
import random

import pytest

from cowshed.layers import changes as engine
from cowshed_conformance import randoms
from cowshed_driver_btrfs import changes, subvolumes


def found(difference):
    changed = [(c.path, c.kind.value, c.touched) for c in difference.changes]
    return changed, [c.path for c in difference.linked]


@pytest.mark.parametrize("seed", range(4))
def test_random_trees_give_what_comparing_everything_gives(place, seed):
    chance = random.Random(seed)
    for n in range(50):
        lower, upper = f"{place}/lower{n}", f"{place}/upper{n}"
        subvolumes.create(lower)
        os.mkdir(f"{lower}/root")
        randoms.change(f"{lower}/root", chance, chance.choice((5, 25, 60)))
        subvolumes.set_read_only(lower, value=True)
        subvolumes.snapshot(lower, upper)
        randoms.change(f"{upper}/root", chance, chance.choice((3, 12, 40)))
        subvolumes.set_read_only(upper, value=True)
        here, there = (os.open(f"{path}/root", os.O_RDONLY) for path in (lower, upper))
        try:
            native = engine.of_candidates(here, there, changes.changes(lower, upper, "root"))
            assert found(native) == found(engine.of_trees(here, there)), f"seed {seed}, tree {n}"
        finally:
            os.close(here)
            os.close(there)
        subvolumes.remove(lower)
        subvolumes.remove(upper)
