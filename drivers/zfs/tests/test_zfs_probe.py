"""The plug-in object, and the probe on a machine without ZFS."""

import os
import subprocess
import sys

import pytest

from cowshed.layers.host import EngineHost
from cowshed.storage import options
from cowshed.storage.api import Verdict
from cowshed.storage.errors import BadOption, StorageError
from cowshed_driver_zfs import plugin, stores

without = pytest.mark.skipif(os.path.exists("/sys/module/zfs"), reason="this kernel has ZFS")
CHOSEN = options.check(plugin, {})


@without
def test_without_the_module_it_is_unusable_with_reason_and_remedy_and_leaves_nothing(tmp_path):
    before = sorted(tmp_path.rglob("*")), sorted(os.listdir("/proc/self/fd"))
    report = plugin.probe(str(tmp_path / "store"), CHOSEN, EngineHost())
    assert (sorted(tmp_path.rglob("*")), sorted(os.listdir("/proc/self/fd"))) == before
    assert report.verdict is Verdict.UNUSABLE
    assert report.capabilities is None
    (reason,) = report.reasons
    assert reason.code == ("zfs.no-module" if os.geteuid() == 0 else "zfs.not-root")
    assert reason.remedy
    assert report.facts["kernel"] == os.uname().release


@without
def test_without_the_module_no_store_is_made(tmp_path):
    root = tmp_path / "store"
    for chosen in (CHOSEN, {**CHOSEN, "dataset": "tank"}):
        with pytest.raises((StorageError, OSError)) as raised:
            plugin.init(str(root), chosen, EngineHost())
        assert "\n" not in str(raised.value)
    assert not root.exists()


def test_a_directory_on_another_file_system_wants_a_dataset_named(tmp_path):
    with pytest.raises(BadOption) as raised:
        stores.dataset_of("/proc/self", CHOSEN)
    assert "dataset=" in raised.value.remedy
    assert stores.dataset_of("/proc/self", {**CHOSEN, "dataset": "tank/a"}) == "tank/a"


def test_a_store_has_what_containers_expect_and_what_was_asked_for():
    found = stores.properties({**CHOSEN, "compression": "lz4", "recordsize": "16K", "atime": True, "sync": "always"})
    assert found["mountpoint"] == "legacy"
    assert found["canmount"] == "off"
    assert (found["xattr"], found["acltype"], found["dnodesize"]) == ("sa", "posixacl", "auto")
    assert (found["casesensitivity"], found["normalization"], found["utf8only"]) == ("sensitive", "none", "off")
    assert (found["compression"], found["recordsize"], found["atime"], found["sync"]) == ("lz4", "16K", "on", "always")
    assert {"compression", "recordsize", "sync"}.isdisjoint(stores.properties(CHOSEN)), (
        "what was not asked is inherited"
    )


def test_the_object_is_looked_at_without_the_library():
    wanted = ("cffi", "_cffi", "cowshed_")
    code = f"import sys, cowshed_driver_zfs; print(*[n for n in sys.modules if n.startswith({wanted})])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["cowshed_driver_zfs"]
