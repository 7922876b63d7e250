"""What is said of figures: advice with its evidence, tables, the page, two results held against each other."""

import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cowshed_testing.bench_results import result, row, scenario

from cowshed.bench import result as results
from cowshed.bench.report import charts, comparing, page, text
from cowshed.bench.report.advice import advise
from cowshed.bench.report.words import size, value
from cowshed.bench.samples import Sample
from cowshed.errors import BadUsage


def builds(found):
    return next(advice for advice in advise(found) if advice.use == "builds")


# ---------------------------------------------------------------- advice


def test_the_fastest_is_recommended_with_the_rows_that_say_so():
    advice = builds(
        result(
            scenario("a", row("a/x", {"overlay@ext4": 10, "btrfs@btrfs": 40, "copy@ext4": 400})),
            scenario("b", row("b/y", {"overlay@ext4": 5, "btrfs@btrfs": 9, "copy@ext4": 90})),
            scenario("c", row("c/z", {"overlay@ext4": 90, "btrfs@btrfs": 1, "copy@ext4": 100})),
        )
    )
    assert advice.subjects == ("overlay@ext4",)
    assert "in 2 of 3 measurements" in advice.sentence
    assert advice.because[0].startswith("a: x: ")
    assert "btrfs@btrfs 40.0 ms (4.00×)" in advice.because[0]
    assert advice.but == ("c: z: 90.0 ms, where btrfs@btrfs has 1.00 ms (90.0×)",)


def test_where_no_difference_is_shown_none_is_recommended_before_the_other():
    same = {"overlay@ext4": 10, "btrfs@btrfs": 10.1}
    advice = builds(
        result(scenario("a", row("a/x", same), row("a/y", same)), names=("overlay@ext4", "btrfs@btrfs")),
    )
    assert set(advice.subjects) == {"overlay@ext4", "btrfs@btrfs"}
    assert "no difference is shown between them" in advice.sentence


def test_what_its_own_probe_calls_poor_is_never_recommended():
    rows = [row(f"a/{n}", {"overlay@ext4": 10, "btrfs@btrfs": 11, "copy@ext4": 1}) for n in range(3)]
    assert builds(result(scenario("a", *rows), poor=("copy@ext4",))).subjects[0] != "copy@ext4"


def test_evidence_names_only_those_that_are_shown_to_be_slower_than_the_one_recommended():
    """A is the fastest; no difference is shown of B to A or of C to B, but of C to A."""
    spread = {"a@x": [4, 5, 6, 7, 8], "b@x": [7, 8, 9, 10, 11], "c@x": [10, 11, 12, 13, 14]}
    rows = [
        row(f"a/{n}", {name: [Sample(float(v)) for v in found] for name, found in spread.items()}) for n in range(2)
    ]
    rows.append(row("a/alone", {"a@x": 90, "b@x": 10, "c@x": 90}))
    advice = builds(result(scenario("a", *rows), names=tuple(spread)))
    assert advice.subjects == ("b@x",)
    assert sum("no difference from a@x or c@x is shown" in line for line in advice.because) == 2


def test_a_marked_run_says_that_it_is_to_be_repeated():
    rows = [row(f"a/{n}", {"overlay@ext4": 10, "btrfs@btrfs": 40, "copy@ext4": 50}) for n in range(3)]
    assert "repeat it" in builds(result(scenario("a", *rows), marks=["the machine was busy"])).sentence
    assert "repeat it" not in builds(result(scenario("a", *rows))).sentence


def test_too_little_says_nothing():
    assert builds(result(scenario("a", row("a/x", {"overlay@ext4": 1, "btrfs@btrfs": 2})))).subjects == ()
    assert builds(result()).subjects == ()
    few = {"overlay@ext4": [Sample(1.0)] * 3, "btrfs@btrfs": [Sample(9.0)] * 3}
    assert builds(result(scenario("a", row("a/x", few), row("a/y", few)))).subjects == ()


def test_one_that_failed_somewhere_is_not_recommended():
    found = result(
        scenario("a", row("a/x", {"overlay@ext4": 1, "btrfs@btrfs": 2, "copy@ext4": 3})),
        scenario("b", row("b/x", {"btrfs@btrfs": 2, "copy@ext4": 3}), failures={"overlay@ext4": "it is wrong"}),
    )
    assert builds(found).subjects == ("btrfs@btrfs",)


# ---------------------------------------------------------------- text


def test_the_text_has_every_figure_with_its_relations_and_every_warning():
    found = result(
        scenario(
            "a",
            row("a/x", {"overlay@ext4": 10, "btrfs@btrfs": 10.1, "copy@ext4": 400, "bare@ext4": 5}),
            control=True, marks=["the disk drifted"], failures={"zfs@zpool": "it failed"},
        ),
        marks=["the machine was busy"],
    )  # fmt: skip
    told = text.render(found)
    assert "WARNING: the machine was busy" in told
    assert "marked: the disk drifted" in told
    assert "zfs@zpool: it failed" in told
    assert "zfs cannot be had" in told
    figures = [line for line in told.splitlines() if re.match(r"    \w+@", line)]
    lines = {line.split()[0]: " ".join(line.split()) for line in figures}
    assert "fastest 2.00×" in lines["overlay@ext4"]
    assert "no difference shown" in lines["btrfs@btrfs"]
    assert "40.0× 80.0×" in lines["copy@ext4"]
    assert "control" in lines["bare@ext4"]


def test_a_row_is_divided_by_the_one_that_it_names():
    rows = [row("q/without", {"overlay@ext4": 10}), row("q/with", {"overlay@ext4": 20}, versus="q/without")]
    found = result(scenario("q", *rows))
    assert text.relations(rows[1], "overlay@ext4", found) == ("fastest", "2.00×")


@pytest.mark.parametrize(
    ("number", "unit", "said"),
    [
        (0.0005, "ms", "500 ns"),
        (0.5, "ms", "500 µs"),
        (12.34, "ms", "12.3 ms"),
        (2500, "ms", "2.50 s"),
        (5 << 20, "bytes", "5.00 MiB"),
        (12, "bytes", "12 B"),
    ],
)
def test_numbers_have_the_unit_that_fits(number, unit, said):
    assert value(number, unit) == said
    assert size(1536) == "1.50 KiB"


# ---------------------------------------------------------------- the page


class Checker(HTMLParser):
    """Every element is closed, and nothing comes from elsewhere."""

    EMPTY = {"meta", "br", "input", "rect", "line", "circle"}

    def __init__(self):
        super().__init__()
        self.open, self.problems, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        for key, said in attrs:
            if key in ("src", "href", "action") and not (said or "").startswith("#"):
                self.problems.append(f"<{tag} {key}={said}>")
            if key == "id":
                self.ids.append(said)
        if tag == "script":
            self.problems.append("a script")
        if tag not in self.EMPTY and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}>")


def everything():
    return result(
        scenario(
            "a", row("a/x", {"overlay@ext4": 10, "btrfs@btrfs": 5000, "copy@ext4": 1, "bare@ext4": 5}), control=True
        ),
        scenario("b", row("b/<y>", {"overlay@ext4": 3 << 20, "copy@ext4": 5 << 20}, unit="bytes"), marks=["drifted"],
                 failures={"btrfs@btrfs": "<b>&wrong"}),
        marks=["busy & hot"],
    )  # fmt: skip


def test_the_page_is_sound_self_contained_and_escaped():
    checker = Checker()
    told = page.render(everything())
    checker.feed(told)
    assert checker.problems == []
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    assert "url(" not in told
    assert "@import" not in told
    assert "&lt;b&gt;&amp;wrong" in told
    assert "Tested &lt;1&gt;" in told
    assert "prefers-color-scheme:dark" in told
    for link in re.findall(r'href="#([^"]+)"', told):
        assert link in checker.ids


def test_the_page_of_a_run_without_rows_is_a_page():
    checker = Checker()
    checker.feed(page.render(result()))
    assert checker.problems == []


def test_a_wide_range_has_a_logarithmic_scale_and_no_bars():
    wide = row("a/x", {"overlay@ext4": 1, "btrfs@btrfs": 1000})
    scale = charts.Scale(wide)
    assert scale.logarithmic
    assert "rect" not in charts.bar(wide.figures["overlay@ext4"], scale)
    assert 0 <= scale.at(0.9) < scale.at(30) < scale.at(1000) <= 100
    narrow = charts.Scale(row("a/x", {"overlay@ext4": 1, "btrfs@btrfs": 2}))
    assert not narrow.logarithmic
    assert narrow.at(0) == 0
    assert narrow.ticks()[0] == 0


def test_a_row_of_nothing_has_a_chart():
    nothing = row("a/x", {"overlay@ext4": [Sample(0.0)] * 4}, unit="bytes")
    scale = charts.Scale(nothing)
    assert charts.bar(nothing.figures["overlay@ext4"], scale).startswith("<svg")
    assert charts.axis(scale, "bytes").startswith("<svg")


# ---------------------------------------------------------------- files, and two of them


def kept(tmp_path, found, name="a.json"):
    path = tmp_path / name
    path.write_text(results.dump(found))
    return str(path)


def test_a_result_that_was_kept_is_read_as_it_was(tmp_path):
    found = everything()
    again = results.load(kept(tmp_path, found))
    assert results.dump(again) == results.dump(found)
    assert page.render(again) == page.render(found)


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "is no result"), ("[]", "is no result"), ('{"format": "other", "format_version": 1}', "is no result"),
     ('{"format": "cowshed-bench", "format_version": 2}', "has version 2"),
     ('{"format": "cowshed-bench", "format_version": 1, "scenarios": [{}]}', "is damaged")],
)  # fmt: skip
def test_what_is_no_result_is_refused(tmp_path, content, said):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(BadUsage, match=said):
        results.load(str(path))
    with pytest.raises(BadUsage, match="No such file"):
        results.load(str(tmp_path / "absent"))


def test_the_examples_of_the_docs_can_be_read_and_are_marked_as_they_were():
    examples = sorted((Path(__file__).parents[3] / "docs/examples/bench").glob("*.json"))
    assert examples
    for path in examples:
        found = results.load(str(path))
        shown = path.with_suffix(".html").read_text()
        assert found.drivers()
        for mark in found.marks:
            assert escape(mark[1:]) in shown, (path, mark)


def test_two_results_tell_what_is_slower_faster_and_the_same():
    before = result(scenario("a", row("a/x", {"overlay@ext4": 10, "btrfs@btrfs": 10, "copy@ext4": 10})))
    after = result(scenario("a", row("a/x", {"overlay@ext4": 30, "btrfs@btrfs": 4, "copy@ext4": 10})))
    found, warnings = comparing.compare(before, after)
    assert {one.subject: one.verdict for one in found} == {
        "overlay@ext4": "slower", "btrfs@btrfs": "faster", "copy@ext4": "no difference shown",
    }  # fmt: skip
    assert warnings == []
    told = comparing.render(before, after)
    assert told.startswith("1 slower, 1 faster, 1 no difference shown\n")
    assert "slower  3.00× (" in told
    assert comparing.as_json(before, after)["differences"][0]["verdict"] == "slower"


def test_what_cannot_be_compared_is_said():
    before = result(scenario("a", row("a/x", {"overlay@ext4": 10}), sizes={"files": 1}), scenario("b"), marks=["busy"])
    after = result(scenario("a", row("a/x", {"overlay@ext4": 10}), sizes={"files": 2}), scenario("c"))
    after.machine["kernel"] = "Linux 6.1"
    found, warnings = comparing.compare(before, after)
    assert found == []
    assert any("A: busy" in warning for warning in warnings)
    assert any("kernel differs" in warning for warning in warnings)
    assert any("other sizes" in warning for warning in warnings)
    assert any("b is only in A" in warning for warning in warnings)
    assert any("c is only in B" in warning for warning in warnings)
