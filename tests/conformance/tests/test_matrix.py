"""The page of drivers by cases: what a report says of each number, and why some did not run."""

import pytest

from cowshed_conformance import catalogue, matrix

FACTS = {
    "driver": "one", "distribution": "one 1.0", "kernel": "Linux 6.1.0-44 x86_64", "backing": "ext4 (rw)",
    "options": {}, "date": "2026-11-28T12:00:00+00:00", "level": "full", "seed": 7, "suite": "1",
    "python": "3.11.2", "verdict": "good",
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(matrix, "WHOLE", 5)


def report(*found, **facts):
    cases = [
        {"case": test[5:8], "test": test, "outcome": outcome, "seconds": 0.1, "code": code, "reason": reason}
        for test, outcome, code, reason in found
    ]
    return {**FACTS, **facts, "cases": cases, "counts": {}, "skipped": []}


ONE = report(
    ("test_P01_a", "passed", "", ""),
    ("test_Q01_a", "skipped", "capability", "quota is denied"),
    ("test_Q03_a", "skipped", "capability", "quota is denied"),
    ("test_M08_a", "skipped", "kernel", "no SELinux"),
    ("test_D06_a", "passed", "", ""),
    ("test_D06_b", "skipped", "tool", "no tool"),
    ("test_L01_a", "passed", "", ""),
    ("test_L01_b", "error", "", "it broke"),
    ("test_X10_a", "skipped", "plan", "nothing temporary"),
    ("test_X10_b", "skipped", "kernel", "no SELinux"),
)


def test_a_number_has_one_result_and_its_reasons():
    kept = matrix.condense(ONE)
    assert kept["driver"] == "one"
    assert "counts" not in kept
    assert kept["cases"] == {"P01": "passed", "L01": "failed", "D06": ["passed", 0], "M08": [1], "Q01": [2], "Q03": [2],
                             "X10": [1, 3]}  # fmt: skip
    assert kept["reasons"] == [["tool", "no tool"], ["kernel", "no SELinux"], ["capability", "quota is denied"],
                               ["plan", "nothing temporary"]]  # fmt: skip
    found = {number: matrix.kind(kept, number) for number in (*kept["cases"], "P02", "H02")}
    assert found == {"P01": "passed", "L01": "failed", "D06": "passed", "M08": "not run", "Q01": "n/a", "Q03": "n/a",
                     "X10": "not run", "P02": "not run", "H02": ""}  # fmt: skip


def test_a_later_run_of_the_same_kind_replaces_the_earlier():
    kept = matrix.condense(ONE)
    assert matrix.name_of(kept, "one") == "one-ext4-6-1"
    assert matrix.name_of({**kept, "seed": 8, "date": "2027"}, "one") == "one-ext4-6-1"
    assert matrix.name_of({**kept, "kernel": "Linux 6.12.9 x86_64"}, "one") == "one-ext4-6-12"
    assert matrix.name_of({**kept, "mounted_by": "the kernel"}, "one") == "one-ext4-6-1"
    assert matrix.name_of({**kept, "mounted_by": "fuse-overlayfs, a stand-in"}, "one") == "one-ext4-6-1-fuse-overlayfs"


def test_parts_of_a_run_are_one_run_and_the_latest_result_counts():
    again = report(
        ("test_L01_b", "passed", "", ""),
        ("test_P02_a", "passed", "", ""),
        ("test_P01_a", "skipped", "kernel", "not this one"),
        ("test_Q01_a", "skipped", "kernel", "not this one"),
        date="2026-11-29T00:00:00+00:00",
        seed=8,
    )
    kept = matrix.condense(matrix.joined([again, ONE]))
    assert (kept["seed"], kept["date"][:10], kept["level"]) == ("7, 8", "2026-11-29", "full")
    assert {number: matrix.kind(kept, number) for number in kept["cases"]} == {
        "P01": "passed", "P02": "passed", "L01": "passed", "D06": "passed", "M08": "not run", "Q01": "not run",
        "Q03": "n/a", "X10": "not run",
    }  # fmt: skip
    assert matrix.joined([again, {**ONE, "level": "core"}])["level"] == "core"


def test_what_failed_and_turned_out_not_to_apply_is_failed_no_longer():
    failed = report(*[(f"test_{number}_a", "failed", "", "") for number in ("X05", "X10", "X11")],
                    ("test_X12_a", "passed", "", ""))  # fmt: skip
    later = report(
        ("test_X05_a", "skipped", "plan", "a device of its own"),
        ("test_X10_a", "skipped", "capability", "denied"),
        ("test_X11_a", "skipped", "kernel", "not this one"),
        ("test_X12_a", "skipped", "plan", "a device of its own"),
        date="2026-11-29T00:00:00+00:00",
    )
    kept = matrix.condense(matrix.joined([later, failed]))
    found = {number: matrix.kind(kept, number) for number in ("X05", "X10", "X11", "X12")}
    assert found == {"X05": "n/a", "X10": "n/a", "X11": "failed", "X12": "passed"}


def test_the_page_has_a_row_for_each_case_and_a_column_for_each_run():
    other = report(("test_Q01_a", "passed", "", ""), driver="two", options={"index": "off", "size": None},
                   mounted_by="fuse-overlayfs, a stand-in")  # fmt: skip
    text = matrix.page([matrix.condense(other), matrix.condense(ONE)], "<!-- note -->")
    assert text.splitlines()[2] == "<!-- note -->"
    assert "| 1 | one | 6.1.0-44 | ext4 (rw) | 2026-11-28 | full | 7 | 2 | 2 |" in text
    assert "| 2 | two, mounted by fuse-overlayfs (index=off) |" in text
    rows = {line.split(" | ")[0][2:]: line for line in text.splitlines() if line[:2] == "| " and line[2:3].isupper()}
    assert list(rows) == list(catalogue.TITLES)
    assert rows["P01"].endswith("| passed |  |"), "a run of chosen cases says nothing of others"
    assert rows["L01"].endswith("| **failed** |  |")
    assert rows["Q01"].endswith("| n/a 3 | passed |")
    assert rows["D06"].endswith("| passed 1 |  |")
    assert rows["P02"].endswith("| not run |  |")
    assert rows["X10"].endswith("| not run 2, 4 |  |")
    for number, (code, _) in catalogue.ELSEWHERE.items():
        assert f"*{'issue ' if code == 'issue' else 'the '}" in rows[number]
    assert "3. capability: quota is denied" in text.splitlines()
