"""The engine's diff of layers in a store, on both drivers, and what a driver's own candidates are worth."""

import contextlib
import importlib.util
import io
import os
import tarfile
from pathlib import Path

import pytest

from cowshed.layers import changes
from cowshed.layers.difference import LayerDifference
from cowshed.layers.mounting import detached
from cowshed.storage import api
from cowshed.storage.errors import Damaged, ToolFailed, Unsupported


def load(name):
    spec = importlib.util.spec_from_file_location(f"layers_{name}", Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


work, trees = load("work"), load("trees")


@pytest.fixture(params=["overlay", "copy"])
def layers(tmp_path, request):
    it = work.opened(str(tmp_path / "store"), request.param)
    yield it
    it.store.close()


@pytest.fixture
def active(layers):
    layer = work.create(layers, work.pull(layers))
    with layers.mounted(layer, read_only=False) as fd:
        os.unlink("bb", dir_fd=fd)
        os.mkdir("made", dir_fd=fd)
        os.close(os.open("made/new", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.chmod("aa", 0o600, dir_fd=fd)
    yield layer
    work.remove(layers, layer)


WANTED = [("", "C"), ("aa", "C"), ("bb", "D"), ("made", "A"), ("made/new", "A")]


def said(difference):
    return [(os.fsdecode(c.path), c.kind.value) for c in difference.changes]


def test_a_layer_against_its_parent(layers, active):
    with LayerDifference(layers, active) as difference:
        assert said(difference) == WANTED
        one = b"".join(difference.stream())
    with LayerDifference(layers, active) as difference:
        assert b"".join(difference.stream()) == one


def test_its_archive_says_no_more_than_what_changed(layers, active, tmp_path):
    with LayerDifference(layers, active) as difference:
        data = b"".join(difference.stream(clamp=0))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == [".", ".wh.bb", "aa", "made", "made/new"]
        assert {member.mtime for member in archive} == {0}
    (tmp_path / "out").mkdir()
    (tmp_path / "out/bb").write_text("goes")
    trees.unpacked(data, str(tmp_path / "out"))
    assert sorted(os.listdir(tmp_path / "out")) == ["aa", "made"]


def test_a_mounted_layer_is_not_mounted_twice(layers, active, monkeypatch):
    """Its living mount is looked at where the driver says that there may be one only."""
    asked = []
    with layers.mounted(active, read_only=False) as fd:

        def live():
            asked.append(1)
            return os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)

        with LayerDifference(layers, active, live=live) as difference:
            assert said(difference) == WANTED
        assert not asked
        monkeypatch.setattr(api, "has_diff_tree", lambda driver: False)
        with LayerDifference(layers, active, live=live) as difference:
            assert said(difference) == WANTED
        exclusive = layers.plan(active, read_only=True).exclusive
        assert asked == ([1] if exclusive else [])


def test_a_directory_that_is_no_plain_diff_falls_back_to_the_trees(layers, active, monkeypatch):
    def not_plain(*_):
        raise changes.NotPlain

    monkeypatch.setattr(changes, "of_diff_tree", not_plain)
    with LayerDifference(layers, active) as difference:
        assert said(difference) == WANTED
        assert b".wh.bb" in b"".join(difference.stream())


@contextlib.contextmanager
def telling(layers, monkeypatch, changes_of):
    """The same driver, which tells changes itself."""
    monkeypatch.setattr(api, "has_changes", lambda driver: True)
    real = layers.driver
    layers.driver = type("Telling", (), {
        "changes": lambda self, lower, upper: changes_of(), "__getattr__": lambda self, name: getattr(real, name),
    })()  # fmt: skip
    try:
        yield
    finally:
        layers.driver = real


def candidates(*paths):
    return [api.Change(path, api.ChangeKind.CANDIDATE) for path in paths]


def test_candidates_of_a_driver_are_compared(layers, active, monkeypatch):
    named = candidates(b"", b"aa", b"bb", b"cc", b"made/new", b"never/there")
    with telling(layers, monkeypatch, lambda: named), LayerDifference(layers, active) as difference:
        assert said(difference) == WANTED
        assert difference.disagreements() == []


def test_what_a_driver_misses_is_found_when_it_is_asked_for(layers, active, monkeypatch):
    with telling(layers, monkeypatch, lambda: candidates(b"aa")), LayerDifference(layers, active) as difference:
        assert said(difference) == [("aa", "C")]
        assert difference.disagreements() == [
            "/: unchanged, and C in the trees",
            "/bb: unchanged, and D in the trees",
            "/made: unchanged, and A in the trees",
            "/made/new: unchanged, and A in the trees",
        ]


def test_a_directory_of_changes_is_held_against_the_trees(layers, active):
    with LayerDifference(layers, active) as difference:
        assert difference.disagreements() == []


@pytest.mark.parametrize("error", [Unsupported("not in here"), ToolFailed("no tool")])
def test_a_driver_that_cannot_tell_this_time_is_helped_by_the_trees(layers, active, monkeypatch, error):
    def fails():
        yield from candidates(b"aa")
        raise error

    with telling(layers, monkeypatch, fails), LayerDifference(layers, active) as difference:
        assert said(difference) == WANTED


def test_an_error_that_is_no_refusal_comes_out(layers, active, monkeypatch):
    def fails():
        raise Damaged("torn")

    with telling(layers, monkeypatch, fails), pytest.raises(Damaged), LayerDifference(layers, active):
        pass


def test_a_layer_without_a_parent(layers):
    layer = layers.begin(None)
    with layers.mounted(layer, read_only=False) as fd:
        os.mkdir("first", dir_fd=fd)
    with LayerDifference(layers, layer) as difference:
        assert said(difference) == [("", "A"), ("first", "A")]
    layers.abandon(layer)


def test_nothing_stays_mounted_or_locked(layers, active):
    before = len(os.listdir("/proc/self/fd"))
    with LayerDifference(layers, active), LayerDifference(layers, active):
        pass
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(detached(layers.plan(active, read_only=False)))
