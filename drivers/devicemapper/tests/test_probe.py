"""The probe: reasons, remedies, nothing left."""

import os
from pathlib import Path

import pytest

from cowshed.layers.host import EngineHost
from cowshed.storage import options
from cowshed.storage.api import Verdict
from cowshed_driver_devicemapper import make_plugin, plugin

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a plain user is refused before all else")


class Machine:
    """As much of device-mapper as the probe asks for: a stand-in."""

    kernel, known = True, {"thin-pool": "1.22.0", "thin": "1.22.0"}

    def library_version(self):
        return "1.02"

    def driver_version(self):
        if not self.kernel:
            raise OSError(6, "no")
        return "4.47.0"

    def targets(self):
        return self.known

    def info(self, name):
        return None


def probe(machine, place, **given):
    made = make_plugin(lambda: machine)
    return made.probe(str(place), options.check(made, given), EngineHost())


def test_on_this_machine_it_says_what_is_missing_and_leaves_nothing(tmp_path):
    report = plugin.probe(f"{tmp_path}/store", options.check(plugin, {}), EngineHost())
    assert report.reasons
    assert all(reason.text and (reason.remedy or reason.verdict is Verdict.GOOD) for reason in report.reasons)
    assert os.listdir(tmp_path) == []
    if not os.path.exists("/dev/mapper/control") or "device-mapper" not in Path("/proc/misc").read_text():
        assert report.verdict is Verdict.UNUSABLE
        assert report.reasons[0].code == "devicemapper.no-kernel"
        assert "no device-mapper" in report.reasons[0].text


def test_a_pool_on_loop_files_is_poor(tmp_path):
    report = probe(Machine(), tmp_path)
    assert report.verdict is Verdict.POOR
    assert report.facts["pool"] == "loop"
    assert "loop files" in report.reasons[0].text


@pytest.mark.parametrize(
    ("change", "code"),
    [({"kernel": False}, "no-kernel"), ({"known": {}}, "no-thin"), ({"known": {"thin-pool": "1"}}, "no-thin")],
)
def test_what_the_kernel_lacks_is_named(tmp_path, change, code):
    machine = Machine()
    vars(machine).update(change)
    report = probe(machine, tmp_path)
    assert report.verdict is Verdict.UNUSABLE
    assert report.reasons[0].code == f"devicemapper.{code}"
    assert "modprobe" in report.reasons[0].remedy


def test_a_missing_library_or_tool_is_named(tmp_path, monkeypatch):
    def none():
        raise FileNotFoundError(2, "the library is not installed")

    made = make_plugin(none)
    report = made.probe(str(tmp_path), options.check(made, {}), EngineHost())
    assert report.reasons[0].code == "devicemapper.no-library"
    monkeypatch.setenv("PATH", str(tmp_path))
    report = probe(Machine(), tmp_path)
    assert report.reasons[0].code == "devicemapper.no-tool"
    assert "e2fsprogs" in report.reasons[0].remedy


@pytest.mark.parametrize(
    "given",
    [
        {"pool": "there-is-none"},
        {"pool": "/dev/null"},
        {"pool": "a", "data_device": "/dev/loop0"},
        {"data_device": "/dev/null"},
        {"data_device": "/dev/null", "metadata_device": "/dev/zero"},
        {"layer_size": "many"},
        {"layer_size": "1M"},
        {"layer_size": "200M", "filesystem": "xfs"},
        {"loop_size": "-1"},
    ],
)
def test_wrong_options_are_told_before_anything_is_made(tmp_path, given):
    report = probe(Machine(), tmp_path, **given)
    assert report.verdict is Verdict.UNUSABLE
    assert report.reasons[0].code == "devicemapper.bad-option"
    assert "\n" not in report.reasons[0].text
    assert os.listdir(tmp_path) == []
