"""What scenarios do to a subject, which only writes it down."""

import contextlib
from types import SimpleNamespace

import pytest

from cowshed.bench.scenarios.data import Density
from cowshed.bench.scenarios.life import Aging


class Recorder:
    """A store of directories, and what was done to it."""

    trees = ()

    def __init__(self, folder):
        self.folder, self.done, self.mounted, self.most = folder, [], 0, 0
        folder.mkdir()

    def new(self, parent=None):
        self.done.append("new")
        return object()

    def commit(self, layer):
        self.done.append("commit")
        return layer

    def remove(self, layer):
        self.done.append("remove")

    def purge(self):
        return 0

    @contextlib.contextmanager
    def mount(self, layer):
        self.mounted += 1
        self.most = max(self.most, self.mounted)
        yield str(self.folder)
        self.mounted -= 1


@pytest.fixture
def subject(tmp_path):
    def made(name):
        store = Recorder(tmp_path / name)
        system = SimpleNamespace(path=str(tmp_path), transferred=lambda: None)
        return SimpleNamespace(
            name=name, driven=store, store=store, layers={"image": None}, settle=lambda: None, cold=lambda: None,
            system=system,
        )  # fmt: skip

    return made


def test_everybody_has_the_same_long_life(subject, monkeypatch):
    scenario = Aging({"steps": 60})
    monkeypatch.setattr(scenario, "_measure", lambda it, age: None)
    both = [subject("a"), subject("b")]
    for _ in range(scenario.rounds):
        for it in both:
            scenario.round(it)
    first, second = [it.driven for it in both]
    assert len(first.done) > 60
    assert first.done == second.done
    assert sorted(path.name for path in first.folder.iterdir()) == sorted(path.name for path in second.folder.iterdir())


def test_children_are_mounted_together(subject, monkeypatch):
    it = subject("a")
    monkeypatch.setattr("cowshed.bench.scenarios.data._read_all", lambda folder, size: None)
    Density({"containers": 4, "bytes": 1 << 20}).round(it)
    assert it.driven.most == 4
    assert it.driven.mounted == 0
