"""Plans: which steps, in which order, by which way, with what is lost, and what refuses them."""

import pytest

from cowshed.convert.plan import Box, Facts, Link, Place, Source, Wanted, mask, plan
from cowshed.storage import api

MIB = 1 << 20


def can(granularity="FILE", **more):
    return api.Capabilities(granularity=api.Granularity[granularity], **more)


DIFFS = can(diff_tree=True, quota=api.QuotaScope.OWN, quota_inodes=True)
TREES = can("TREE")
BLOCKS = can("BLOCK", quota=api.QuotaScope.OWN)


def place(name, abilities, *, device=1, kind="ext4", free=None):
    return Place(name, abilities, device, kind, free)


def link(n, *, below=0, sources=("one",), twin=None, trusted=True, size=10):
    made = tuple(Source(100 * n + i, name, size, 3, trusted) for i, name in enumerate(sources))
    return Link(f"c{n}", f"sha256:{n:064}", f"c{below}" if below else "", made, twin)


def facts(*links, target=None, boxes=(), images=None, pace=1.0, **places):
    target = target or place("two", TREES)
    found = {"one": place("one", DIFFS), **places, target.driver: target}
    return Facts(target, found, {each.chain: each for each in links}, images or {"image": "c3"}, tuple(boxes), pace)


CHAIN = (link(3, below=2), link(1), link(2, below=1))
BOX = Box(7, "a" * 64, "box", "one", False, "c3", 5, 2)


def steps(planned):
    return [(step.kind, step.chain or step.name, step.how) for step in planned.steps]


def test_layers_come_before_what_stands_on_them_and_each_once():
    fork = link(4, below=1)
    planned = plan(facts(*CHAIN, fork, images={"i": "c3", "k": "c4"}, boxes=[BOX]), Wanted(True, True))
    assert [name for _, name, _ in steps(planned)] == ["c1", "c2", "c3", "c4", "box"]
    assert planned.steps[-1].below == "c3"
    assert planned.sources == ("one",)


def test_only_what_is_named_with_all_that_it_stands_on():
    other = link(4)
    planned = plan(facts(*CHAIN, other, images={"i": "c3", "k": "c4"}, boxes=[BOX]), Wanted(image_names=("k",)))
    assert steps(planned) == [("layer", "c4", "copy")]
    planned = plan(facts(*CHAIN, other, images={"k": "c4"}, boxes=[BOX]), Wanted(container_ids=(BOX.id,)))
    assert [name for _, name, _ in steps(planned)] == ["c1", "c2", "c3", "box"]


def test_what_is_there_is_no_work_and_an_image_without_layers_is_none():
    planned = plan(facts(link(1, twin=9), link(2, below=1)), Wanted(True))
    assert steps(planned) == []
    planned = plan(facts(link(1, twin=9), link(2, below=1), images={"i": "c2", "unrealised": "c8"}), Wanted(True))
    assert steps(planned) == [("layer", "c1", "there"), ("layer", "c2", "copy")]
    assert [step.chain for step in planned.work] == ["c2"]


def test_of_several_drivers_that_have_a_layer_one_that_tells_what_changed_gives_it():
    planned = plan(
        facts(link(1, sources=("plain", "one")), images={"i": "c1"}, plain=place("plain", TREES)), Wanted(True)
    )
    (step,) = planned.steps
    assert (step.source, step.number, step.others) == ("one", 101, (100,))


@pytest.mark.parametrize(
    ("source", "target", "how"),
    [
        (place("one", DIFFS, kind="btrfs"), place("two", can("EXTENT"), kind="btrfs"), "reflink"),
        (place("one", DIFFS, kind="btrfs"), place("two", DIFFS, kind="btrfs"), "reflink"),
        (place("one", DIFFS, kind="btrfs"), place("two", can(), kind="btrfs"), "copy"),  # only through a mount
        (place("one", DIFFS, kind="xfs"), place("two", TREES, kind="xfs", device=2), "copy"),
        (place("one", DIFFS, kind="ext4"), place("two", TREES, kind="ext4"), "copy"),
        (place("one", DIFFS, kind="xfs"), place("two", BLOCKS, kind="xfs"), "copy"),
        (place("one", can("BLOCK", transfer_formats=("a", "b"))), place("two", can("BLOCK", transfer_formats=("b",))),
         "send b"),
    ],
)  # fmt: skip
def test_the_way_is_the_shortest_that_both_have(source, target, how):
    boxes = [Box(7, "a" * 64, "box", "one", False, "c1", 5, 2)]
    planned = plan(facts(link(1), target=target, images={"i": "c1"}, boxes=boxes, one=source), Wanted(True, True))
    assert planned.steps[0].how == how
    assert planned.steps[1].how == ("copy" if how.startswith("send") else how), "what can be written to is never sent"
    assert planned.steps[0].size == (0 if how == "reflink" else 10)


def test_a_driver_that_shares_nothing_wants_room_for_whole_trees():
    planned = plan(facts(*CHAIN), Wanted(True))
    assert [step.size for step in planned.steps] == [10, 20, 30]
    full = plan(facts(*CHAIN, target=place("two", TREES, free=59)), Wanted(True))
    assert full.refused == ("60 B are wanted, and driver two has 59 B free",)
    assert plan(facts(*CHAIN, target=place("two", TREES, free=60)), Wanted(True)).refused == ()


def test_of_a_driver_that_shares_nothing_only_what_a_layer_adds_is_wanted():
    chain = (link(1, size=100), link(2, below=1, size=130))
    box = Box(7, "a" * 64, "box", "one", False, "c2", 150, 9)
    planned = plan(
        facts(*chain, target=place("two", DIFFS, free=150), images={"i": "c2"}, boxes=[box], one=place("one", TREES)),
        Wanted(True, True),
    )
    assert [step.size for step in planned.steps] == [100, 30, 20]
    assert planned.refused == ()


def test_what_runs_is_left_out_and_refused_by_name():
    up = Box(7, "a" * 64, "up", "one", True, "c3")
    assert plan(facts(*CHAIN, boxes=[up]), Wanted(containers=True)).left_out == (
        "container up: it runs: stop it first",
    )
    assert plan(facts(*CHAIN, boxes=[up]), Wanted(container_ids=(up.id,))).refused == (
        "container up: it runs: stop it first",
    )
    mine = Box(7, "a" * 64, "up", "two", True, "c3")
    assert plan(facts(*CHAIN, boxes=[mine]), Wanted(container_ids=(mine.id,))).refused == (), "it is there"


def test_a_limit_that_the_target_has_not_refuses_unless_it_may_be_lost():
    box = Box(7, "a" * 64, "box", "one", False, "", 0, 0, api.Quota(8 * MIB, 100))
    refused = plan(facts(boxes=[box]), Wanted(containers=True))
    assert refused.refused == (
        "container box: its limit of 8.39 MB, cannot be held by driver two",
        "container box: its limit of 100 inodes, cannot be held by driver two",
    )
    assert [loss.code for loss in refused.losses if loss.certain] == ["quota", "quota"]
    lossy = plan(facts(boxes=[box]), Wanted(containers=True, lossy=True))
    assert lossy.refused == ()
    assert lossy.steps[0].quota == api.Quota()
    half = plan(facts(boxes=[box], target=place("two", BLOCKS)), Wanted(containers=True, lossy=True))
    assert half.steps[0].quota == api.Quota(bytes=8 * MIB)


def test_too_many_layers_are_refused_before_anything_is_done():
    planned = plan(facts(*CHAIN, target=place("two", can(max_depth=2))), Wanted(True))
    assert planned.refused == (f"layer {'0' * 12} would be number 3 of its chain, and driver two takes 2",)


def test_what_a_power_cut_may_have_cut_is_never_copied():
    cut = (link(1), link(2, below=1, trusted=False), link(3, below=2))
    planned = plan(facts(*cut, boxes=[BOX]), Wanted(True, True))
    assert [name for _, name, _ in steps(planned)] == ["c1"]
    assert [text.split(":")[0] for text in planned.left_out] == [
        f"layer {'0' * 12} may have been cut by a power cut",
        "container box stands on a layer that a power cut may have cut",
    ]


def test_losses_are_the_difference_of_what_both_can():
    source = can("EXTENT", live_snapshot=api.Consistency.CRASH, durability=api.Durability.COMMIT)
    target = can(
        lost_xattrs=("trusted.overlay.",), acl=False, char_0_0_visible=False, sparse=False, time_granularity=1000,
        name_max=242, reserved_names=(".wh.",), hard_links_survive_copy_up=False, rename_lower_directory=False,
        xattrs_removable=False, stale_reads_after_copy_up=True,
    )  # fmt: skip
    chain = (link(1),)
    found = plan(
        facts(*chain, target=place("two", target), images={"i": "c1"}, one=place("one", source)), Wanted(True)
    ).losses
    assert [loss.code for loss in found] == [
        "sockets", "xattrs", "acl", "device", "sparse", "times", "names", "names", "links", "rename", "xattrs", "stale",
        "snapshots", "durability",
    ]  # fmt: skip
    back = plan(facts(*chain, target=place("two", source), images={"i": "c1"}, one=place("one", target)), Wanted(True))
    assert [loss.code for loss in back.losses] == ["sockets"]
    assert mask(source, target, lossy=False).granularity == 1000
    assert mask(source, target, lossy=False).attributes == ()
    assert mask(source, target, lossy=True).attributes == ("system.posix_acl_", "trusted.overlay.")
    assert mask(source, target, lossy=True).null_devices


def test_the_time_is_what_the_last_conversion_says():
    once = plan(facts(*CHAIN), Wanted(True)).seconds
    assert once > 0
    assert plan(facts(*CHAIN, pace=3.0), Wanted(True)).seconds == pytest.approx(3 * once)
