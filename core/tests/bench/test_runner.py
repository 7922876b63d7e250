"""Turns, warm-up, failures and digests of a scenario, with subjects that only count."""

import itertools
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from cowshed.bench import machine, runner, session, subjects
from cowshed.bench.report import text
from cowshed.bench.result import ScenarioResult
from cowshed.bench.samples import Sample
from cowshed.bench.scenario import Scenario, Wrong
from cowshed.bench.scenarios import ALL
from cowshed.errors import BadUsage, NoSpace
from cowshed.storage import options, registry
from cowshed.storage.api import Option


class Counting(Scenario):
    """A round gives its own number; what a test puts into it happens."""

    name, workloads, title, text = "counting", ("W0",), "Counting", "counts"
    quick = full = {"files": 1000, "steps": 3}

    def plan(self):
        self.order, self.counts = [], {}
        self.fails, self.digests, self.wanted = {}, {}, ""

    def round(self, it):
        self.order.append(it.name)
        self.counts[it.name] = count = self.counts.get(it.name, 0) + 1
        if self.fails.get(it.name) == count:
            raise Wrong("a driver that is wrong")
        self.record(it, self.row("x", "x"), Sample(float(count)))

    def verify(self, it):
        return self.digests.get(it.name, "same")

    def expected(self):
        return self.wanted


def subjects_of(*names):
    return [SimpleNamespace(name=name, bare=name.startswith("bare@")) for name in names]


def done(scenario, names=("a@x", "b@x", "c@x"), rounds=10, seconds=1e9, began=0.0, **more):
    result = ScenarioResult("counting", ("W0",), "", "", False, {}, 0.0, [], [], {})
    alive = subjects_of(*names)
    plan = runner.Plan(rounds, seconds, 1, [], **more)
    count = runner._rounds(scenario, plan, alive, result, began)
    runner._verify(scenario, plan, alive, result)
    return count, [one.name for one in alive], result.failures


def test_everybody_once_in_each_round_in_random_order_that_the_seed_repeats():
    orders = []
    for _ in range(2):
        scenario = Counting(Counting.full)
        assert done(scenario)[0] == 10
        rounds = [tuple(scenario.order[n : n + 3]) for n in range(0, len(scenario.order), 3)]
        assert all(set(one) == {"a@x", "b@x", "c@x"} for one in rounds)
        assert len(set(rounds)) > 2
        orders.append(rounds)
    assert orders[0] == orders[1]


def test_the_first_round_is_dropped_and_every_other_sample_kept():
    scenario = Counting(Counting.full)
    done(scenario, rounds=4)
    assert [sample.value for sample in scenario.rows["counting/x"].samples["a@x"]] == [2.0, 3.0, 4.0, 5.0]


def test_without_time_there_are_as_many_rounds_as_say_something_and_without_any_time_one():
    assert done(Counting(Counting.full), seconds=0.0, least=4)[0] == 4
    assert done(Counting(Counting.full), seconds=0.0, least=4, until=0.0)[0] == 1


class Steady(Counting):
    """Rows of samples as a test has them, by key and round; the same for every subject."""

    values: dict

    def round(self, it):
        self.counts[it.name] = count = self.counts.get(it.name, -1) + 1  # 0 is the warm-up
        for key, (use, value) in self.values.items():
            self.record(it, self.row(key, key, use=use), Sample(value(count)))


@pytest.mark.parametrize(
    ("values", "rounds"),
    [
        ({"x": ((), lambda n: 100.0 + n % 3)}, 8),
        ({"x": ((), lambda n: 100.0 + n % 3 * 20)}, 15),
        ({"x": (("builds",), lambda n: 100.0 + n % 3), "y": ((), lambda n: 100.0 + n % 3 * 20)}, 8),  # nobody's choice
        ({"x": (("builds",), lambda n: 100.0 + n % 3), "y": (("images",), lambda n: 100.0 + n % 3 * 20)}, 15),
        ({"x": ((), lambda n: 100.0 + (20 if n in (1, 2) else 0))}, 11),
        ({"x": ((), lambda n: 0.0)}, 8),  # bytes that nobody writes
    ],
)
def test_it_ends_at_a_look_that_finds_all_intervals_narrow(values, rounds):
    scenario = Steady(Counting.full)
    scenario.values = values
    result = ScenarioResult("counting", ("W0",), "", "", False, {}, 0.0, [], [], {})
    plan = runner.Plan(15, 1e9, 1, [], looks=(8, 11))
    assert runner._rounds(scenario, plan, subjects_of("a@x", "b@x"), result, 0.0) == rounds
    assert result.narrow_after == (rounds if rounds < 15 else 0)
    said = "\n".join(text.ended(result))
    assert said.startswith(f"ended after {rounds} rounds: no interval" if rounds < 15 else "")
    assert bool(said) is (rounds < 15)


def test_without_looks_and_with_a_fixed_number_of_rounds_all_are_done():
    scenario = Steady(Counting.full)
    scenario.values = {"x": ((), lambda n: 1.0)}
    assert done(scenario)[0] == 10
    scenario.rounds, scenario.counts = 12, {}
    assert done(scenario, looks=(8, 11))[0] == 12
    assert session._LOOKS[session.QUICK] == ()


def test_one_that_fails_is_left_out_and_the_others_go_on():
    scenario = Counting(Counting.full)
    scenario.fails = {"b@x": 3}
    count, alive, failures = done(scenario)
    assert (count, set(alive), failures) == (10, {"a@x", "c@x"}, {"b@x": "a driver that is wrong"})
    assert scenario.order.count("b@x") == 3


@pytest.mark.parametrize(
    ("digests", "wanted", "names", "wrong"),
    [
        ({"b@x": "other"}, "same", ("a@x", "b@x"), {"b@x"}),
        ({"a@x": "other", "b@x": "other"}, "", ("a@x", "b@x", "bare@x"), {"a@x", "b@x"}),  # the bare one is right
        ({"b@x": "other"}, "", ("a@x", "b@x", "c@x"), {"b@x"}),  # most are right
        ({"b@x": "other"}, "", ("a@x", "b@x"), {"a@x", "b@x"}),  # nobody knows
    ],
)
def test_a_wrong_digest_has_no_figures(digests, wanted, names, wrong):
    scenario = Counting(Counting.full)
    scenario.digests, scenario.wanted = digests, wanted
    assert set(done(scenario, names)[2]) == wrong


def test_the_scale_is_of_files_and_of_nothing_else():
    assert Counting(Counting.full, 0.1).sizes == {"files": 100, "steps": 3}
    assert Counting(Counting.full, 0.0001).sizes["files"] == 10


def test_drift_is_told_beyond_a_tenth():
    before = {"processor": 10.0, "disk": 10.0}
    assert machine.drifts(before, {"processor": 10.9, "disk": 9.1}) == []
    assert machine.drifts(before, {"processor": 12.0, "disk": 5.0}) == [
        "the processor became slower by 20% meanwhile", "the disk became faster by 50% meanwhile",
    ]  # fmt: skip


# ---------------------------------------------------------------- what is asked for


def test_scenarios_have_names_and_every_workload_has_one():
    names = [one.name for one in ALL]
    assert len(set(names)) == len(names)
    had = set(itertools.chain(*[one.workloads for one in ALL]))
    assert had == {f"W{n}" for n in range(1, 23)}
    for one in ALL:
        assert one.title
        assert one.text.endswith((".", ")"))


def test_scenarios_are_chosen_by_name_workload_and_mode():
    assert [one.name for one in session.scenarios(["copy-up,w2"], "full")] == ["child", "copy-up"]
    quick, full = session.scenarios([], "quick"), session.scenarios([], "full")
    assert set(quick) < set(full)
    with pytest.raises(BadUsage, match="W23"):
        session.scenarios(["W23"], "full")


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("overlay", "overlay@"),
        ("overlay@xfs", "overlay@xfs"),
        ("btrfs@btrfs,compression=zstd:1", "btrfs@btrfs,compression=zstd:1"),
    ],
)
def test_a_subject_is_named_as_it_is_asked_for(word, name):
    assert subjects.parse(word).name == name


@pytest.mark.parametrize("word", ["", "@xfs", "overlay@", "overlay@xfs,metacopy"])
def test_what_is_no_subject_is_refused(word):
    with pytest.raises(BadUsage, match="write DRIVER"):
        subjects.parse(word)


def test_the_guide_asks_for_what_drivers_have():
    guide = Path(__file__).parents[3] / "docs/how-to/compare-drivers-and-file-systems.md"
    words = re.findall(r"--subject ([^\s`]+)", guide.read_text())
    assert len(words) > 3
    for word in words:
        asked = subjects.parse(word)
        options.check(registry.load(asked.driver)[0], asked.options)


def test_options_that_lead_outside_are_refused(monkeypatch):
    plugin = SimpleNamespace(name="pools", options=(Option("pool", str, "", "a pool", outside=True),))
    monkeypatch.setattr(registry, "load", lambda name: (plugin, None))
    asked = [subjects.parse("pools@path,pool=tank")]
    chosen, refused = subjects.choose(asked, {"path": SimpleNamespace(path="/none")}, {})
    assert chosen == []
    assert "option pool leads out of the file systems of the run" in refused[0]


def test_scenarios_that_fill_a_file_system_are_left_out_of_ones_own():
    kept, left_out = session._harmless(session.Asked(path="/mine"))
    assert left_out == ["full"]
    assert {one.name for one in ALL} - {one.name for one in kept} == {"full"}
    assert session._harmless(session.Asked())[1] == []


def test_a_disk_that_the_images_could_fill_is_refused(monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=3 << 20, f_frsize=1 << 10))  # 3 GiB
    session._want_room(session.Asked(size=1 << 30, place="/disk"), 3)
    with pytest.raises(NoSpace, match="3072 MiB free, and the images of 4 file systems can come to 4096 MiB") as caught:
        session._want_room(session.Asked(size=1 << 30, place="/disk"), 4)
    assert "--place" in caught.value.remedy
    session._want_room(session.Asked(path="/disk", place="/disk"), 4)
