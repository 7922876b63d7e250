"""P: discovery, probe, options."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from cowshed.storage import api, options, registry
from cowshed.storage.errors import BadOption, StorageError, WrongStore
from cowshed_conformance import crash, hoststate, marks
from cowshed_conformance.backing import Backing
from cowshed_conformance.harness import Store, SuiteHost
from cowshed_conformance.marks import core
from cowshed_conformance.target import Target

ABILITIES = {
    "diff_tree": ("diff_tree",),
    "changes": ("changes",),
    "activation": ("activate", "deactivate"),
    "quota": ("set_quota",),
    "live_snapshot": ("snapshot",),
    "transfer_formats": ("send", "receive"),
    "self_check": ("check", "repair"),
}
REQUIRED = ("close", "health", "scan", "prepare", "commit", "remove", "purge", "mounts", "usage")
SWITCHED_OFF = {None, False, (), api.QuotaScope.NONE, api.Consistency.NONE}


def files_below(path: str) -> list[str]:
    return sorted(f"{where}/{name}" for where, folders, names in os.walk(path) for name in (*folders, *names))


@core
def test_P01_the_entry_point_names_an_object_of_its_own_name(target: Target) -> None:
    assert target.plugin.summary, "the plug-in has no summary for `driver list`"
    assert target.plugin.name.replace("-", "").replace("_", "").isalnum(), f"odd name {target.plugin.name!r}"
    if not target.installed:
        marks.skip("plan", f"{target.name} is no entry point: only the object was looked at")
    assert target.plugin.name == target.name
    assert [x.name for x in registry.installed()].count(target.name) == 1


@core
def test_P02_the_interface_version_fits(target: Target) -> None:
    major, minor = target.plugin.api
    assert major == api.API_VERSION[0]
    assert minor <= api.API_VERSION[1]


@core
def test_P05_the_driver_is_used_whatever_its_truth_value_is(store: Store) -> None:
    assert store.driver is not None
    assert isinstance(store.capabilities, api.Capabilities)
    layer = store.layer()
    assert store.has(layer)


@core
def test_P06_probing_leaves_nothing_behind(target: Target, backing: Backing) -> None:
    place = backing.place()
    os.mkdir(place)
    with open(f"{place}/stranger", "w") as file:
        file.write("mine")
    before, files = hoststate.HostState.now(), files_below(place)
    for where in (place, f"{place}/not/yet/there"):
        report = target.plugin.probe(where, target.at(where), SuiteHost())
        assert isinstance(report, api.ProbeReport)
    assert files_below(place) == files, "probe() changed the directory that it looked at"
    assert hoststate.HostState.now() == before, "probe() left something on the host"


@core
def test_P07_an_unsuitable_place_is_told_with_reason_and_refused(target: Target, backing: Backing) -> None:
    with backing.own(kind="tmpfs") as system:
        system.remount(read_only=True)
        place = f"{system.path}/store"
        report = target.plugin.probe(place, target.at(place), SuiteHost())
        assert report.verdict is api.Verdict.UNUSABLE, "a read-only file system was called usable"
        assert report.capabilities is None
        reasons = [r for r in report.reasons if r.verdict is api.Verdict.UNUSABLE]
        assert reasons
        assert all(r.code and r.text for r in reasons)
        assert any(r.remedy for r in reasons), "nothing says what to do about it"
        with pytest.raises((StorageError, OSError)):
            target.plugin.init(place, target.at(place), SuiteHost())


@core
def test_P08_probing_again_and_at_once_gives_the_same_answer(target: Target, backing: Backing) -> None:
    place = backing.place()
    os.mkdir(place)

    def answer() -> str:
        report = target.plugin.probe(place, target.at(place), SuiteHost())
        return repr((report.verdict, report.capabilities, dict(report.facts), report.reasons))

    first = answer()
    for reason in target.plugin.probe(place, target.at(place), SuiteHost()).reasons:
        assert "\n" not in reason.text
    assert answer() == first

    def check() -> None:
        assert answer() == first

    for child in [crash.start(check) for _ in range(2)]:
        crash.finish(child)


@core
def test_P09_every_option_is_described_and_checked(target: Target) -> None:
    plugin = target.plugin
    names = [o.name for o in plugin.options]
    assert len(names) == len(set(names))
    for option in plugin.options:
        assert option.doc, f"option {option.name} has no description"
        assert option.default is None or type(option.default) is option.kind
        if option.choices:
            assert option.default in option.choices or option.default is None
            with pytest.raises(BadOption):
                options.check(plugin, {option.name: "no such choice"})
        if option.kind is not str:
            with pytest.raises(BadOption):
                options.check(plugin, {option.name: "no such value"})
    with pytest.raises(BadOption) as raised:
        options.check(plugin, {"no_such_option": "1"})
    assert raised.value.remedy


@core
def test_P10_an_option_fixed_at_creation_cannot_change(target: Target) -> None:
    fixed = [o for o in target.plugin.options if o.creation_only]
    if not fixed:
        marks.skip("capability", "no option is fixed at creation")
    for option in fixed:
        other = next((c for c in option.choices if c != target.options[option.name]), None)
        if other is None:
            continue
        wanted = {**target.given, option.name: other}
        kept = options.fixed(target.plugin, target.options)
        with pytest.raises(BadOption):
            options.compare(target.plugin, kept, wanted, options.check(target.plugin, wanted))


@core
def test_P11_capabilities_and_methods_agree(store: Store) -> None:
    for name in REQUIRED:
        assert callable(getattr(store.driver, name, None)), f"the driver has no {name}()"
    capabilities = store.capabilities
    assert isinstance(capabilities.durability, api.Durability)
    assert isinstance(capabilities.granularity, api.Granularity)
    assert isinstance(capabilities.quota, api.QuotaScope)
    assert isinstance(capabilities.live_snapshot, api.Consistency)
    for ability, methods in ABILITIES.items():
        if getattr(capabilities, ability) not in SWITCHED_OFF:
            for name in methods:
                assert callable(getattr(store.driver, name, None)), f"{ability} is claimed without {name}()"
    assert not capabilities.changes_exact or capabilities.changes, "changes_exact without changes"
    assert not capabilities.quota_inodes or capabilities.quota is not api.QuotaScope.NONE, "quota_inodes without quota"
    assert capabilities.max_depth is None or capabilities.max_depth > 0


@core
def test_P12_probe_without_any_tool_in_path_does_not_raise(target: Target, backing: Backing) -> None:
    place = backing.place()
    os.mkdir(place)
    path = os.environ["PATH"]
    os.environ["PATH"] = "/nonexistent"
    try:
        report = target.plugin.probe(place, target.at(place), SuiteHost())
    finally:
        os.environ["PATH"] = path
    if report.verdict is api.Verdict.UNUSABLE:
        assert any(r.remedy for r in report.reasons)
    json.dumps(dict(report.facts))  # for `driver why --format json`


@core
def test_P13_open_keeps_what_is_there_and_refuses_what_is_not_its_own(store: Store, backing: Backing) -> None:
    plugin = store.target.plugin

    def tried(place: str) -> Iterator[str]:
        yield place
        yield f"{place}/below"

    empty = backing.place()
    os.mkdir(empty)
    for root in tried(empty):
        with pytest.raises(WrongStore) as raised:
            plugin.open(root, store.target.at(root), store.host, store=store.id)
        assert "\n" not in str(raised.value)
    assert os.listdir(empty) == [], "open() made something"
    foreign = backing.place()
    os.mkdir(foreign)
    with open(f"{foreign}/letter", "w") as file:
        file.write("dear")
    with pytest.raises(WrongStore):
        plugin.init(foreign, store.target.at(foreign), store.host)
    assert os.listdir(foreign) == ["letter"], "init() in a foreign directory changed it"
    with open(f"{store.root}/stray", "w") as file:
        file.write("kept")
    store.reopen()
    assert os.path.exists(f"{store.root}/stray")
    assert store.living() == set()
