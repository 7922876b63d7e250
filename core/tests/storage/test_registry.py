"""Finding drivers: what is installed is listed with its reason, and stevedore's traps are not ours."""

import importlib
import os
import sys

import pytest
from cowshed_testing import plugins

from cowshed.errors import NotFound
from cowshed.storage import registry
from cowshed.storage.errors import Unsupported


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A directory of distributions on sys.path; what is imported from there is forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield str(tmp_path)
    for name in [m for m in sys.modules if m.startswith("example_") and m not in before]:
        del sys.modules[name]


def found(name):
    return [f for f in registry.installed() if f.name == name]


def test_every_broken_driver_is_listed_with_its_reason_and_stops_nobody(folder):
    plugins.all_kinds(folder)
    listed = registry.installed()
    assert {f.name for f in listed if f.plugin is not None} >= {
        "copy",
        "overlay",
        "mine",
        "falsy",
        "badopen",
        "badprobe",
    }
    reasons = {f.name: f.error for f in listed if f.plugin is None}
    assert "a_module_that_nobody_has" in reasons["noimport"]
    assert "SyntaxError" in reasons["syntax"]
    assert "SystemExit" in reasons["exits"]
    assert "no DriverPlugin" in reasons["noplugin"]
    assert "calls itself othername" in reasons["misnamed"]
    assert "needs interface 1.2; this engine has 1.1" in reasons["newer"]
    assert "needs interface 0.0" in reasons["older"]
    remedies = {f.name: f.remedy for f in listed}
    assert remedies["newer"] == "upgrade cowshed"
    assert remedies["older"] == "upgrade the driver"
    (broken,) = found("noimport")
    assert "example_noimport.py" in broken.trace
    assert broken.distribution == "example-noimport 1.0"


def test_a_falsy_driver_is_one(folder):
    plugins.driver(folder, "falsy", plugins.FALSY)
    plugin, _ = registry.load("falsy")
    assert not plugin
    assert plugin.name == "falsy"


def test_two_claims_of_a_name_are_both_shown_and_neither_is_taken(folder):
    plugins.driver(folder, "twice", 'plugin = made("twice")')
    plugins.driver(folder, "single", 'plugin = made("single")')
    plugins.distribution(folder, "other-twice", {"twice": "example_single:plugin"}, {})
    claims = found("twice")
    assert {c.distribution for c in claims} == {"example-twice 1.0", "other-twice 1.0"}
    assert all("example-twice 1.0 and other-twice 1.0" in c.error for c in claims)
    with pytest.raises(NotFound, match=r"claimed by example-twice 1\.0 and other-twice 1\.0"):
        registry.load("twice")
    assert "example_twice" not in sys.modules, "nothing is imported of a name that is claimed twice"
    assert registry.load("single")[0].name == "single"


def test_one_driver_is_loaded_without_importing_the_others(folder):
    plugins.all_kinds(folder)
    assert registry.load("mine")[0].name == "mine"
    assert not [m for m in sys.modules if m.startswith("example_") and m != "example_mine"]


@pytest.mark.parametrize(("asked", "offered"), [("overlya", "did you mean overlay?"), ("zzz", "installed are ")])
def test_an_unknown_name_is_met_with_the_nearest(asked, offered):
    with pytest.raises(NotFound) as caught:
        registry.load(asked)
    assert offered in caught.value.remedy


def test_a_misfit_keeps_its_type_and_a_broken_one_says_how_to_see_more(folder):
    plugins.all_kinds(folder)
    with pytest.raises(Unsupported):
        registry.load("newer")
    with pytest.raises(NotFound, match="is broken: ModuleNotFoundError") as caught:
        registry.load("noimport")
    assert "--debug" in caught.value.remedy


# ---------------------------------------------------------------- what is remembered


def test_what_is_remembered_is_imported_without_a_search(folder, monkeypatch):
    plugins.driver(folder, "mine", 'plugin = made("mine")')
    _, kept = registry.load("mine")
    monkeypatch.setattr(registry, "entry_points", lambda: pytest.fail("it was searched for"))
    assert registry.load("mine", kept)[0].name == "mine"
    assert registry.Remembered(**registry.as_dict(kept)) == kept


def test_a_changed_file_is_seen_however_small_the_time_between(folder):
    """stevedore's own cache keeps times as 32-bit floats: two minutes are one moment to it."""
    path = plugins.driver(folder, "mine", 'plugin = made("mine")\nother = made("mine", summary="another")')
    _, kept = registry.load("mine")
    with open(path) as file:
        text = file.read()
    with open(path, "w") as file:
        file.write(text.replace(":plugin", ":other "))  # the same size
    os.utime(path, ns=(kept.mtime_ns, kept.mtime_ns + 1))
    plugin, fresh = registry.load("mine", kept)
    assert plugin.summary == "another"
    assert fresh.attr == "example_mine:other"


def test_a_driver_that_was_uninstalled_is_missed(folder):
    path = plugins.driver(folder, "mine", 'plugin = made("mine")')
    _, kept = registry.load("mine")
    os.unlink(path)
    importlib.invalidate_caches()
    with pytest.raises(NotFound, match="no storage driver is called mine"):
        registry.load("mine", kept)


def test_a_module_that_lost_its_attribute_is_searched_for_again(folder):
    plugins.driver(folder, "mine", 'plugin = made("mine")')
    _, kept = registry.load("mine")
    del sys.modules["example_mine"].plugin
    with pytest.raises(NotFound, match="is broken: AttributeError"):
        registry.load("mine", kept)
