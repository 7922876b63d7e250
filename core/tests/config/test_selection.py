"""Which driver serves, and why: with plug-ins that report what a test wants (nothing here is mounted)."""

import pytest

from cowshed.config import selection
from cowshed.config.settings import Said, Settings
from cowshed.errors import NotFound
from cowshed.storage import registry
from cowshed.storage.api import API_VERSION, Capabilities, DriverPlugin, Granularity, ProbeReport, Reason, Verdict
from cowshed.storage.errors import BadOption
from cowshed.storage.registry import Found

ABLE = Capabilities(granularity=Granularity.FILE)


def plugin(name, verdict=None, priority=10, *, probe=None):
    def told(root, options, host):
        reason = Reason(f"{name}.told", f"{name} says {verdict.value}", f"remedy of {name}", verdict)
        return ProbeReport(None if verdict is Verdict.UNUSABLE else ABLE, {"place": root}, (reason,))

    def never(*words, **more):
        raise AssertionError("choosing opens nothing")

    return Found(
        name, f"dist-{name} 1.0",
        DriverPlugin(name, API_VERSION, name, (), probe or told, never, never, never, priority),
    )  # fmt: skip


@pytest.fixture
def installed(monkeypatch):
    """Only these drivers are installed."""

    def install(*found):
        monkeypatch.setattr(registry, "installed", lambda: list(found))

    return install


def settings(driver="", source="option --driver", **more):
    said = [
        Said("option --driver", ""),
        Said("environment variable COWSHED_DRIVER", ""),
        Said("configuration file /c", ""),
    ]
    said = [Said(one.source, driver if one.source == source else "") for one in said]
    return Settings("/store", "/run", driver, source if driver else "", drivers_said=tuple(said), **more)


def told(choice):
    return [f"{step.source}: {step.outcome}" for step in choice.steps]


def test_what_is_said_is_not_probed(installed):
    installed(plugin("bad", probe=lambda *words: pytest.fail("it was probed")))
    for source in ("option --driver", "environment variable COWSHED_DRIVER", "configuration file /c"):
        choice = selection.choose(settings("bad", source), "other", None)
        assert choice.name == "bad"
        assert f"{source}: says bad" in told(choice)


def test_a_weaker_source_is_told_as_overruled():
    said = tuple(Said(f"source {n}", value) for n, value in enumerate(("", "one", "two", "")))
    choice = selection.choose(Settings("/s", "/r", "one", "source 1", drivers_said=said), "three", None)
    assert told(choice) == [
        "source 0: says nothing",
        "source 1: says one",
        "source 2: says two, which is overruled",
        "source 3: says nothing",
    ]


def test_the_store_comes_before_any_probe(installed):
    installed(plugin("best", probe=lambda *words: pytest.fail("it was probed")))
    assert selection.choose(settings(), "old", None).name == "old"


def test_the_good_one_of_highest_priority_is_chosen(installed):
    installed(plugin("low", Verdict.GOOD, 10), plugin("high", Verdict.GOOD, 20), plugin("poor", Verdict.POOR, 90))
    choice = selection.choose(settings(), "", None)
    assert (choice.name, choice.verdict) == ("high", Verdict.GOOD)


def test_a_poor_one_is_never_chosen_in_silence_and_the_message_says_how_to_consent(installed):
    installed(plugin("poor", Verdict.POOR, 90), plugin("shy", Verdict.GOOD, 0), plugin("bad", Verdict.UNUSABLE, 99))
    with pytest.raises(NotFound, match="no storage driver is good for a store at /store") as caught:
        selection.choose(settings(), "", None)
    assert "--driver poor" in caught.value.remedy
    assert "--driver shy" in caught.value.remedy
    assert "--driver bad" not in caught.value.remedy
    assert selection.choose(settings("poor"), "", None).name == "poor"


def test_a_driver_with_wrong_options_is_an_error_and_not_passed_over(installed):
    """A slip in the configuration must not give people another driver than they meant."""
    installed(plugin("meant", Verdict.GOOD, 50), plugin("other", Verdict.GOOD, 10))
    slip = settings(driver_options={"meant": {"indx": "on"}})
    with pytest.raises(BadOption, match="driver meant has no option indx"):
        selection.choose(slip, "", None)
    explained = selection.explain(slip, "", None)
    assert (explained.choice, explained.problem) == (None, "driver meant has no option indx")
    assert selection.choose(slip, "other", None).name == "other"


def test_a_refusal_says_what_each_driver_lacks(installed):
    installed(plugin("bad", Verdict.UNUSABLE, 9), Found("gone", "dist 1.0", None, "ImportError: x"))
    with pytest.raises(NotFound) as caught:
        selection.choose(settings(), "", None)
    assert (
        str(caught.value)
        == "no storage driver is good for a store at /store (bad: bad says unusable; gone: ImportError: x)"
    )


def test_no_driver_at_all_is_told_as_such(installed):
    installed()
    with pytest.raises(NotFound, match="no storage driver is installed"):
        selection.choose(settings(), "", None)


def test_broken_ones_stop_nobody(installed):
    def fails(root, options, host):
        raise ZeroDivisionError("a bug")

    def complains(root, options, host):
        raise BadOption("it wants an option that nobody gave")

    installed(
        Found("gone", "dist-gone 1.0", None, "ImportError: x", remedy="reinstall it"),
        plugin("bug", probe=fails, priority=99),
        plugin("none", probe=lambda root, options, host: None, priority=98),
        plugin("mute", probe=lambda root, options, host: ProbeReport(None), priority=97),
        plugin("pert", probe=complains, priority=96),
        plugin("fine", Verdict.GOOD, 1),
    )
    explained = selection.explain(settings(), "", None)
    assert explained.choice.name == "fine"
    steps = told(explained)
    assert "driver bug: cannot be asked: its probe failed: ZeroDivisionError: a bug" in steps
    assert any(step.startswith("driver none: cannot be asked: its probe failed: AttributeError") for step in steps)
    assert any("mute: cannot be asked: its probe failed: ValueError: it tells neither" in step for step in steps)
    assert "driver pert: cannot be asked: it wants an option that nobody gave" in steps
    assert "driver gone: cannot be asked: ImportError: x" in steps
    (bug,) = [p for p in explained.probed if p.name == "bug"]
    assert "ZeroDivisionError" in bug.trace


def test_why_tells_of_a_choice_that_cannot_serve(installed):
    installed(plugin("bad", Verdict.UNUSABLE), plugin("overlay", Verdict.GOOD))
    bad = selection.explain(settings("bad"), "", None)
    assert (bad.problem, bad.remedy) == ("driver bad cannot be used: bad says unusable", "remedy of bad")
    missing = selection.explain(settings("overlya"), "", None)
    assert (missing.problem, missing.remedy) == ("driver overlya is not installed", "did you mean overlay?")
    nothing = selection.explain(settings(), "gone", None)
    assert nothing.problem == "driver gone is not installed"


def test_why_tells_of_options_for_a_driver_that_nobody_has(installed):
    installed(plugin("overlay", Verdict.GOOD))
    explained = selection.explain(settings(driver_options={"overlya": {"index": "on"}, "overlay": {}}), "", None)
    assert "table storage.drivers.overlya: is for a driver that is not installed: did you mean overlay?" in told(
        explained
    )
