"""What a probe says of places."""

import os
import subprocess

import pytest

from cowshed.layers.host import EngineHost
from cowshed.storage import api, options
from cowshed.storage.errors import Unsupported
from cowshed_conformance import backing
from cowshed_driver_btrfs import plugin, quota


def probe(place, **given):
    return plugin.probe(place, options.check(plugin, given), EngineHost())


def codes(report):
    return [reason.code for reason in report.reasons]


def test_another_file_system_is_unusable_and_told_what_to_do(tmp_path):
    if backing.fs_type(str(tmp_path)).startswith("btrfs"):
        pytest.skip("this machine's temporary directory is on btrfs")
    report = probe(str(tmp_path))
    assert report.verdict is api.Verdict.UNUSABLE
    assert report.reasons[0].code == "btrfs.not-btrfs"
    assert "mkfs.btrfs" in report.reasons[0].remedy
    with pytest.raises(Unsupported, match="not on btrfs"):
        plugin.init(f"{tmp_path}/store", options.check(plugin, {}), EngineHost())
    assert os.listdir(tmp_path) == []


def test_a_place_that_suits(place):
    report = probe(f"{place}/not/yet")
    assert report.verdict is api.Verdict.GOOD
    assert codes(report) == ["btrfs.no-quotas", "btrfs.works"]
    assert report.facts["quotas"] == "off"
    assert report.capabilities.changes
    assert not report.capabilities.usage_exact
    assert os.listdir(place) == []


def test_options_that_exclude_each_other(place):
    report = probe(place, compression="zstd", nodatacow="on")
    assert codes(report) == ["btrfs.options"]


@pytest.mark.usefixtures("simple_quotas")
def test_simple_quotas_are_promised_before_they_are_on(place, fd):
    report = probe(place, quota="simple")
    assert report.verdict is api.Verdict.GOOD
    assert report.capabilities.quota is api.QuotaScope.OWN
    assert report.capabilities.usage_exact
    assert not report.capabilities.rootless
    assert quota.state(fd)[0] == quota.OFF


def test_a_kernel_without_simple_quotas(place, monkeypatch):
    monkeypatch.setattr(quota, "kernel_has_simple", lambda: False)
    report = probe(place, quota="simple")
    assert codes(report) == ["btrfs.no-simple-quotas"]
    assert "6.7" in report.reasons[0].remedy


def test_a_file_system_that_is_read_only(tmp_path):
    with backing.file_system("btrfs", str(tmp_path / "fs"), 128 << 20) as system:
        system.remount(read_only=True)
        assert codes(probe(system.path)) == ["btrfs.read-only"]


def test_mixed_chunks_are_a_fact(tmp_path):
    image, at = tmp_path / "image", tmp_path / "at"
    image.write_bytes(b"")
    os.truncate(image, 128 << 20)
    at.mkdir()
    backing.enter_private_namespace()
    subprocess.run(["mkfs.btrfs", "-q", "--mixed", str(image)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(at)], check=True)
    try:
        report = probe(str(at))
        assert report.facts["mixed"]
        assert "btrfs.mixed" in codes(report)
    finally:
        subprocess.run(["umount", str(at)], check=True)


def test_health_tells_metadata_apart(make):
    found = make().driver.health()
    assert 0 < found.data_free <= found.data_total
    assert 0 < found.metadata_free < found.metadata_total < found.data_total
