"""What a dead run's entry says, and who may take it up."""

import fcntl
import json
import os
from types import SimpleNamespace

import pytest

from cowshed.bench import journal
from cowshed.errors import NotFound


@pytest.fixture
def dead(tmp_path, monkeypatch):
    """The entry of a run that has died."""
    (tmp_path / "place").mkdir()
    made = journal.Journal.begin(f"{tmp_path}/root", f"{tmp_path}/place")
    monkeypatch.setattr(journal.process, "lives", lambda pid, start: False)
    return made


def test_what_cannot_begin_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        journal.Journal.begin(f"{tmp_path}/root", f"{tmp_path}/nowhere")
    assert list(tmp_path.iterdir()) == []


def test_one_cleans_at_a_time(tmp_path, dead, monkeypatch):
    folder, clean, tried = journal.entries_folder(f"{tmp_path}/root"), journal._clean, []

    def meanwhile(path, **more):
        fd = os.open(folder, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(fd)
        tried.append(path)
        return clean(path, **more)

    monkeypatch.setattr(journal, "_clean", meanwhile)
    assert journal.clean_left(f"{tmp_path}/root") == (1, [])
    assert tried == [dead.path]
    assert os.listdir(tmp_path / "place") == []


def test_an_entry_stays_while_its_place_is_not_there(tmp_path, dead):
    os.rename(tmp_path / "place", tmp_path / "unmounted")
    cleaned, (problem,) = journal.clean_left(f"{tmp_path}/root")
    assert cleaned == 0
    assert f"if it is gone for good: rm {dead.path}" in problem
    with pytest.raises(NotFound):
        dead.clean()
    os.rename(tmp_path / "unmounted", tmp_path / "place")
    assert journal.clean_left(f"{tmp_path}/root") == (1, [])


def test_an_entry_whose_device_is_not_given_names_nothing_else_any_more(tmp_path, dead, monkeypatch):
    with open(dead.path) as file:
        said = json.load(file)
    with open(dead.path, "w") as file:
        json.dump(said | {"device": "/dev/disk", "identity": 7, "loops": [3]}, file)
    monkeypatch.setattr(journal.scratch, "identity_of", lambda path: 7)
    monkeypatch.setattr(journal, "_is_ours", lambda *words: False)
    cleaned, (problem,) = journal.clean_left(f"{tmp_path}/root")
    assert cleaned == 0
    assert "cowshed bench --clean --device /dev/disk" in problem
    with open(dead.path) as file:
        assert json.load(file)["loops"] == []
    wiped = []
    disk = SimpleNamespace(identity=lambda: 7, wipe=lambda: wiped.append(True), close=lambda: None)
    monkeypatch.setattr(journal.scratch, "Device", lambda path: disk)
    assert journal.clean_left(f"{tmp_path}/root", "/dev/disk") == (1, [])
    assert wiped == [True]
