"""The package that `driver new` writes: its names, what it refuses, and that it leaves nothing of what it began.

That it installs, works and passes the suite is tried by the tutorial (tests/e2e/test_docs.py).
"""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cowshed.errors import BadUsage, Conflict, StoreError
from cowshed.scaffold import new
from cowshed_conformance import versions

TOP = Path(__file__).parents[3]


def test_a_package_has_its_name_everywhere_and_no_word_of_the_template(tmp_path):
    directory, made = new.write("two-words", str(tmp_path / "mine"))
    assert sorted(made) == sorted(str(p.relative_to(directory)) for p in Path(directory).rglob("*") if p.is_file())
    declared = tomllib.loads(Path(directory, "pyproject.toml").read_text())["project"]
    assert declared["name"] == "cowshed-driver-two-words"
    assert declared["entry-points"]["cowshed.storage_drivers"] == {"two-words": "cowshed_driver_two_words:plugin"}
    for path in made:
        text = Path(directory, path).read_text()
        assert not any(word in text for word in ("@name@", "@module@", "@Class@", "@suite@")), path
        if path.endswith(".py"):
            ast.parse(text)
    assert "class TwoWordsDriver:" in Path(directory, "src/cowshed_driver_two_words/driver.py").read_text()


def test_it_is_held_to_the_version_of_the_suite_that_there_is():
    assert versions.VERSION == new.SUITE


def test_the_package_is_well_typed_and_well_formed(tmp_path):
    directory, _ = new.write("plain", str(tmp_path / "mine"))
    for words in (
        ("mypy", "--strict", "--cache-dir", os.devnull, "--follow-imports", "silent", f"{directory}/src"),
        ("ruff", "check", "-q", "--no-cache", "--config", TOP / "pyproject.toml", directory),
        ("ruff", "format", "-q", "--no-cache", "--check", "--config", TOP / "pyproject.toml", directory),
    ):
        done = subprocess.run([sys.executable, "-m", *words], cwd=TOP, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["", "Plain", "1st", "-a", "a-", "a--b", "a_b", "a/b", "é", "..", "x" * 41])
def test_a_name_that_no_driver_can_have(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadUsage, match="can be no driver's name"):
        new.write(name)
    assert os.listdir(tmp_path) == []


def test_a_driver_of_that_name_that_is_installed(tmp_path):
    with pytest.raises(Conflict, match="copy is installed"):
        new.write("copy", str(tmp_path / "mine"))


def test_a_directory_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(Conflict, match="is there and not empty"):
            new.write("plain", str(place))
    assert os.listdir(tmp_path) == ["file"]
    (tmp_path / "empty").mkdir()
    new.write("plain", str(tmp_path / "empty"))


def test_what_was_begun_is_taken_away_if_it_cannot_be_ended(tmp_path, monkeypatch):
    opened = []

    def full(path, *words, **more):
        if str(path).startswith(str(tmp_path)):
            opened.append(path)
            if len(opened) == 4:
                raise OSError(28, "No space left on device")
        return open(path, *words, **more)

    monkeypatch.setattr(new, "open", full, raising=False)
    with pytest.raises(StoreError, match="No space left on device"):
        new.write("plain", str(tmp_path / "mine"))
    assert os.listdir(tmp_path) == []
