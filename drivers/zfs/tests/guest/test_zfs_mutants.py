"""Cases of the suite against faults that are typical of ZFS, in the guest: each is caught by the case that is there for
it. That the driver itself passes them is what the suite's run on it tells."""

import importlib.util
import os
from pathlib import Path

import pytest

from cowshed.storage import options
from cowshed_conformance import backing
from cowshed_conformance.cases import test_changes, test_content, test_crash, test_life, test_stores, test_usage
from cowshed_conformance.harness import Store
from cowshed_conformance.target import Target

pytestmark = pytest.mark.guest
_spec = importlib.util.spec_from_file_location("broken_zfs", Path(__file__).with_name("broken_zfs.py"))
broken_zfs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(broken_zfs)
L, S, Q, C, D, X = test_life, test_stores, test_usage, test_content, test_changes, test_crash
# fault → the case that must fail, and what it is called with beside a store
MUTANTS = {
    "ForgetsTheFree": (D.test_D07_a_deleted_directory_is_one_deletion,),
    "ComparesWithTheOrigin": (D.test_D23_against_parent_grandparent_another_and_nothing,),
    "CountsWhatIsShown": (Q.test_Q12_usage_leaves_out_what_is_shared_with_parents,),
    "LimitsWhatIsShown": (Q.test_Q03_a_limit_counts_what_is_declared,),
    "MountsTheDataset": (L.test_L03_commit_freezes,),
    "KeepsTheOldSnapshot": (X.test_X01_what_is_written_after_a_commit_was_killed_is_in_the_next,),
    "PurgesUnasked": (X.test_X10_leftovers_of_a_dead_call_are_purged_and_those_of_a_living_one_are_kept,),
    "StoresMeet": (S.test_S06_two_stores_side_by_side_do_not_see_each_other, backing.Backing),
    "FoldsCase": (C.test_C22_names_of_every_kind, backing.Backing),
    "NoAccessLists": (C.test_C16_access_lists_are_kept_and_inherited, backing.Backing),
}
CAUGHT = (AssertionError, pytest.fail.Exception, OSError)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    with backing.file_system("zpool", str(tmp_path_factory.mktemp("pool") / "p"), 512 << 20) as system:
        yield system


@pytest.mark.parametrize("name", list(MUTANTS))
def test_a_fault_is_caught_by_its_case(pool, tmp_path, name):
    case, *words = MUTANTS[name]
    plugin = getattr(broken_zfs, f"plugin_{name}")
    target = Target(name, plugin, options.check(plugin, {}), {}, False, 1)
    folder = f"{pool.path}/{name}"
    os.mkdir(folder)
    place = backing.Backing("zpool", folder, str(tmp_path), target)
    store = Store(target, place.place())
    with pytest.raises(CAUGHT) as raised:
        case(store, *(place if word is backing.Backing else word for word in words))
    print(f"{name}: {raised.value}")
    store.discard()
