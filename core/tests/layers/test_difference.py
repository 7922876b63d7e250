"""The engine's diff of layers in a store, on both drivers, and what a driver's own candidates are worth."""

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


def test_candidates_of_a_driver_are_compared(layers, active, monkeypatch):
    named = [b"aa", b"bb", b"cc", b"made/new", b"never/there"]
    monkeypatch.setattr(api, "has_changes", lambda driver: True)
    driver = type("Naming", (), {
        "changes": lambda self, lower, upper: [api.Change(path, api.ChangeKind.CANDIDATE) for path in (b"", *named)],
        "__getattr__": lambda self, name: getattr(layers_driver, name),
    })()  # fmt: skip
    layers_driver, layers.driver = layers.driver, driver
    try:
        with LayerDifference(layers, active) as difference:
            assert said(difference) == WANTED
    finally:
        layers.driver = layers_driver


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
