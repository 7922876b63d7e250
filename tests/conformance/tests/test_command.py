"""`cowshed-conformance`: what it runs, what it says of it and to whom, and the versions that cases have."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cowshed_conformance import pages, suite, versions
from cowshed_conformance.report import KINDS, Report

HERE = Path(__file__).parent
FACTS = {"driver": "mine", "level": "core", "options": {"a": "<b>"}, "kernel": "Linux 6.1"}


def command(folder, *words, **environment):
    env = {**os.environ, "PYTHONPATH": str(HERE), "TMPDIR": str(folder), **environment}
    line = [sys.executable, "-m", "cowshed_conformance.command", *words]
    return subprocess.run(line, env=env, cwd=folder, capture_output=True, text=True, timeout=280)


def pytest_(folder, *words):
    line = [sys.executable, "-m", "pytest", "-q", *words]
    env = {**os.environ, "PYTHONPATH": str(HERE), "TMPDIR": str(folder)}
    return subprocess.run(line, env=env, cwd=folder, capture_output=True, text=True, timeout=280)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the suite mounts file systems")


def case(test, outcome="passed", *, since=1, counted=True, reason=""):
    return {
        "case": test[5:8], "test": test, "level": "core", "since": since, "counted": counted, "outcome": outcome,
        "seconds": 0.1, "code": "kernel" if outcome == "skipped" else "", "reason": reason,
    }  # fmt: skip


def found(*cases, whole=True):
    made = Report()
    made.cases = {each["test"]: each for each in cases}
    return {**FACTS, "suite_version": 2, "pinned": 1, "whole": whole, "counts": made.counts(), "cases": list(cases)}


@needs_root
def test_a_report_goes_to_standard_output_and_what_goes_on_to_standard_error(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")  # is none of its business
    done = command(tmp_path, "copy", "--only", "L01,P01", "--backing", "tmpfs", "--report", "json", "--seed", "7")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {each["case"] for each in report["cases"]} == {"L01", "P01"}
    assert {each["level"] for each in report["cases"]} == {"core"}
    assert {each["since"] for each in report["cases"]} == {1}
    assert report["suite_version"] == versions.VERSION
    assert (report["pinned"], report["whole"], report["seed"]) == (None, False, 7)
    assert "passed" in done.stderr


@needs_root
def test_a_fault_ends_it_with_status_1_and_the_page_shows_it(tmp_path):
    words = ("broken:plugin_CommittedWritable", "--only", "L03", "--backing", "tmpfs")
    done = command(tmp_path, *words, "--report", "html", "--output", "page.html", "--report-dir", "out")
    assert done.returncode == 1, done.stdout
    text = (tmp_path / "page.html").read_text()
    assert "Cowshed conformance: 1 failed" in text
    assert text == (tmp_path / "out/conformance.html").read_text()
    assert ">1 failed · suite 2<" in (tmp_path / "out/badge.svg").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "which driver?"),
        (("copi",), "did you mean copy?"),
        (("copy", "--suite-version", "99", "--only", "P02"), "this one has 1 to"),
        (("copy", "--level", "low"), "invalid choice"),
    ],
)
def test_what_was_called_wrongly_is_told(tmp_path, words, said):
    done = command(tmp_path, *words)
    assert done.returncode in (2, 4)
    assert said in done.stderr + done.stdout


def test_every_case_is_listed_with_the_version_that_brought_it(tmp_path):
    lines = command(tmp_path, "--list").stdout.splitlines()
    tests = [name for name in suite.__all__ if name.startswith("test_")]
    assert sorted(line.split()[3] for line in lines) == sorted(tests)
    assert {line.split()[2] for line in lines} == {"core", "full", "faults"}
    assert all(1 <= int(line.split()[1]) <= versions.VERSION for line in lines)


def test_no_test_of_an_older_version_has_gone():
    """A version that plug-ins are held to stays as it was; a test that demands more gets another name."""
    for version in range(1, versions.VERSION):
        lines = (Path(versions.__file__).parent / f"versions/{version}.txt").read_text().split()
        assert lines == sorted(set(lines))
        assert set(lines) <= set(suite.__all__)
    assert versions.since("test_L01_a_child_has_its_parents_root_directory[x]") == 1
    assert versions.since("test_L01_that_nobody_has_written_yet") == versions.VERSION


@needs_root
def test_a_newer_case_fails_nothing_that_is_held_to_an_older_version(tmp_path):
    text = (
        "from cowshed_conformance import marks\nfrom cowshed_conformance.suite import *\n\nDRIVER = 'copy'\n"
        "BACKING = 'tmpfs'\n{pin}\n"
        "@marks.core\ndef test_L98_that_nobody_passes(store):\n    assert store is None, 'passed by nobody'\n"
    )
    words = ("test_mine.py", "-k", "test_L98_ or test_L01_", "--report-dir", "out")
    results = []
    for pin in ("SUITE_VERSION = 1", ""):
        (tmp_path / "test_mine.py").write_text(text.format(pin=pin))
        done = pytest_(tmp_path, *words)
        report = json.loads((tmp_path / "out/conformance.json").read_text())
        (newer,) = [each for each in report["cases"] if each["case"] == "L98"]
        assert newer["outcome"] == "failed"
        assert "passed by nobody" in newer["reason"]
        results.append((done.returncode, newer["counted"], report["counts"]["failed"], report["counts"]["newer"]))
        assert ("told and not counted: test_L98_that_nobody_passes" in done.stdout) == bool(pin)
    assert results == [(0, False, 0, 1), (1, True, 1, 0)]
    done = pytest_(tmp_path, *words, "--suite-version", "1")
    assert done.returncode == 0, done.stdout


class Tags(HTMLParser):
    """Which elements are open, and the text of all."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_page_has_all_cases_and_nothing_of_them_is_taken_for_markup():
    some = [
        case("test_L01_a_base"), case("test_X01_a_kill", "failed", reason="<script>alert(1)</script>"),
        case("test_Q01_a_limit", "failed", since=2, counted=False, reason="too much"),
        case("test_M01_a_mount", "skipped", reason="no & such"),
    ]  # fmt: skip
    text = pages.html(found(*some))
    page = Tags()
    page.feed(text)
    assert page.open == []
    assert "<script" not in text
    for shown in ("Storage driver mine", "a base", "kernel: no & such", "a=<b>", "<script>alert(1)", "1 newer",
                  "failed, newer than the version held to", "Cowshed conformance: 1 failed"):  # fmt: skip
        assert shown in page.text
    assert not re.search(r"(src|href)=", text), "it needs nothing beside it"


@pytest.mark.parametrize(
    ("cases", "whole", "said", "colour"),
    [
        ((case("test_L01_a"),), True, "core passed · suite 1", "2da44e"),
        ((case("test_L01_a"),), False, "1 chosen case passed · suite 1", "6e7781"),
        ((case("test_L01_a"), case("test_L02_a", "error")), True, "1 failed · suite 1", "cf222e"),
        ((case("test_L01_a"), case("test_L02_a", "failed", counted=False)), True, "core passed · suite 1", "2da44e"),
    ],
)
def test_a_badge_says_what_was_asked_and_what_came_of_it(cases, whole, said, colour):
    drawn = ElementTree.fromstring(pages.badge(found(*cases, whole=whole)))
    texts = [each.text for each in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["cowshed conformance", said]
    assert colour in ElementTree.tostring(drawn, encoding="unicode")


def test_the_forms_of_a_report():
    assert KINDS == ("json", "markdown", "html", "badge")
