"""The list of all cases against the cases: each number has a test, or says where else: nothing is forgotten."""

import re
from pathlib import Path

from cowshed_conformance import cases, catalogue

ROOT = Path(__file__).parents[3]


def numbers_of_tests():
    names = re.compile(r"^def test_([A-Z]\d\d)_", re.M)
    folder = Path(cases.__file__).parent
    return {number for file in folder.glob("test_*.py") for number in names.findall(file.read_text())}


def test_the_list_has_all_cases_once():
    counts = "P13 L27 C30 D27 A16 M12 I10 Q14 N12 X16 R13 V09 H10 S09 U08 J06 B06 W05"
    wanted = [f"{word[0]}{n:02}" for word in counts.split() for n in range(1, int(word[1:]) + 1)]
    assert list(catalogue.TITLES) == wanted
    assert len(catalogue.TITLES) == 243
    assert all(catalogue.TITLES.values())


def test_every_case_is_tested_or_says_where_else():
    assert numbers_of_tests() <= set(catalogue.TITLES), "cases that are not in the list"
    assert set(catalogue.TITLES) - numbers_of_tests() == set(catalogue.ELSEWHERE)


def test_what_is_tested_elsewhere_is_there():
    for number, (code, where) in catalogue.ELSEWHERE.items():
        assert code in ("suite", "engine", "issue"), number
        if code != "issue":
            path, _, name = where.partition("::")
            assert f"\ndef {name}(" in (ROOT / path).read_text(), f"{number}: there is no {name} in {path}"
