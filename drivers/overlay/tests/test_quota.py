"""Project quota below overlay: on file systems that have it, and what is said of those that do not."""

import os
import shutil
import time

import pytest

from cowshed.layers.host import EngineHost
from cowshed.storage import api, options
from cowshed.storage.errors import LayerId, Unsupported
from cowshed.storage.kit import places
from cowshed.storage.kit.projects import why_not
from cowshed_conformance.backing import file_system
from cowshed_driver_overlay import plugin
from cowshed_linux import projects

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")
CHOSEN = options.check(plugin, {})
MIB = 1 << 20


@pytest.fixture(params=["ext4-quota", "xfs-quota"])
def system(request, tmp_path):
    with file_system(request.param, str(tmp_path / "fs"), 64 * MIB) as it:
        yield it


@pytest.fixture
def place(system):
    return system.path


class Opened:
    def __init__(self, root):
        self.root, self.host = root, EngineHost()
        self.id = plugin.init(root, CHOSEN, self.host)
        self.driver = plugin.open(root, CHOSEN, self.host, store=self.id)

    def prepare(self, number, quota=None):
        layer = api.Layer(LayerId(f"{number:032x}"), number, api.Kind.ACTIVE, None)
        self.driver.prepare(layer, api.LayerOptions(quota=quota or api.Quota()))
        return layer

    def destroy(self):
        self.driver.close()
        plugin.destroy(self.root, CHOSEN, self.host, store=self.id)


def ids(place):
    """Every project id with a limit, or that a file carries, but the one of all other files."""
    found, number = [], 1
    fd = os.open(place, os.O_RDONLY)
    try:
        while (record := projects.next_project(fd, number)) is not None:
            found.append(record[0])
            number = record[0] + 1
    finally:
        os.close(fd)
    return found


def left(place, count):
    """The ids, when no more are left than that: xfs frees what was deleted in the background."""
    until = time.monotonic() + 20
    while len(found := ids(place)) > count and time.monotonic() < until:
        time.sleep(0.1)
    assert len(found) == count
    return set(found)


@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "xfs", "btrfs"])
def test_what_a_place_lacks_is_told_with_the_commands_that_give_it(kind, tmp_path):
    with file_system(kind, str(tmp_path / "fs")) as system:
        report = plugin.probe(f"{system.path}/store", CHOSEN, EngineHost())
        assert (report.capabilities.quota, report.capabilities.quota_inodes) == (api.QuotaScope.NONE, False)
        (reason,) = [r for r in report.reasons if r.code.startswith("overlay.quota-")]
        assert (reason.code, reason.verdict) == ("overlay.quota-off", api.Verdict.GOOD)
        store = Opened(f"{system.path}/store")
        with pytest.raises(Unsupported, match="no size limits") as raised:
            store.prepare(1, api.Quota(bytes=MIB))
        assert "driver why" in raised.value.remedy
        store.destroy()
        if "CONFIG" in reason.remedy or kind in ("tmpfs", "btrfs"):
            return
        device = reason.remedy.rpartition("prjquota ")[2].split()[0]
        assert device.startswith("/dev/")
        assert reason.remedy.startswith(f"umount {system.path}; ")
        tune = f"tune2fs -O project,quota -Q prjquota {device}; " if kind == "ext4" else ""
        assert reason.remedy.endswith(f"; {tune}mount -o prjquota {device} {system.path}")


def test_a_plain_user_is_told_that_limits_need_root(tmp_path, monkeypatch):
    monkeypatch.setattr("cowshed.storage.kit.places.private_namespace", lambda: True)
    code, _, remedy = why_not(str(tmp_path))
    assert (code, remedy) == ("user-namespace", "run as root")


def exact(place):
    """A copy of xfs shares what it can with what it was made of, so that its size is not what comes back."""
    return places.file_system_name(place) == "ext4"


def test_limits_are_claimed_only_where_they_hold(place):
    report = plugin.probe(f"{place}/store", CHOSEN, EngineHost())
    found = report.capabilities
    assert (found.quota, found.quota_inodes, found.usage_exact) == (api.QuotaScope.OWN, True, exact(place))
    assert not [r for r in report.reasons if "quota" in r.code]
    os.mkdir(f"{place}/limited")
    fd = os.open(f"{place}/limited", os.O_RDONLY)
    projects.set_project(fd, 7, inherit=True)
    os.close(fd)
    report = plugin.probe(f"{place}/limited/store", CHOSEN, EngineHost())
    assert report.capabilities.quota is api.QuotaScope.NONE
    assert [r.code for r in report.reasons if "quota" in r.code] == ["overlay.quota-inside"]


def test_two_stores_have_ids_of_their_own_and_leave_none(place):
    assert ids(place) == []
    one, two = Opened(f"{place}/one"), Opened(f"{place}/two")
    for store in (one, two):
        store.prepare(5, api.Quota(bytes=MIB, inodes=50))
        store.prepare(6)
    found = ids(place)
    blocks = {number >> 24 for number in found}
    assert len(blocks) == 2
    assert 0 not in blocks
    assert sorted({number & 0xFFFFFF for number in found}) == [0, 5, 6]
    limited = [it for it in one.driver.scan() if it.kind is api.ObjectKind.AUXILIARY]
    assert [it.number for it in limited] == [5]
    one.destroy()
    assert left(place, 3) <= set(found)
    two.destroy()
    assert left(place, 0) == set()


def test_a_store_that_was_copied_has_new_ids(place):
    one = Opened(f"{place}/one")
    layer = one.prepare(1, api.Quota(bytes=MIB))
    one.driver.close()
    shutil.copytree(f"{place}/one", f"{place}/two")
    two = Opened(f"{place}/two")
    assert two.driver.usage(layer).exact is False  # what was copied carries no ids: it is walked
    with pytest.raises(Unsupported):
        two.driver.set_quota(layer, api.Quota(bytes=MIB))
    assert two.driver.usage(two.prepare(2, api.Quota(bytes=MIB))).exact == exact(place)
    assert len({number >> 24 for number in ids(place)}) == 2
    two.destroy()
    assert {number & 0xFFFFFF for number in left(place, 2)} == {0, 1}


def test_a_block_in_which_somebody_else_has_an_id_is_not_taken(place):
    fd = os.open(place, os.O_RDONLY)
    free = 17
    for block in range(1, 255):  # only a limit, carried by nothing
        if block != free:
            projects.set_limits(fd, (block << 24) + 9, MIB, 0)
    store = Opened(f"{place}/store")
    store.prepare(1, api.Quota(bytes=MIB))
    assert (free << 24) + 1 in ids(place)
    store.destroy()
    os.close(fd)


def test_a_store_has_limits_once_its_file_system_has_them(system):
    system.unmount()
    options_, system.more = system.more, ()
    system.mount()
    code, _, remedy = why_not(system.path)
    assert code in ("off", "not-enforced")
    assert "mount -o prjquota" in remedy
    store = Opened(f"{system.path}/store")
    old = store.prepare(1)
    with pytest.raises(Unsupported):
        store.driver.set_quota(old, api.Quota(bytes=MIB))
    store.driver.close()
    system.unmount()
    system.more = options_
    system.mount()
    store = Opened(f"{system.path}/store")
    assert not store.driver.usage(old).exact
    with pytest.raises(Unsupported) as raised:
        store.driver.set_quota(old, api.Quota(bytes=MIB))
    assert raised.value.remedy.startswith("make another container")
    new = store.prepare(2, api.Quota(bytes=MIB))
    store.driver.set_quota(new, api.Quota(bytes=2 * MIB))
    assert store.driver.usage(new).exact == exact(system.path)
    store.destroy()


def test_a_limit_that_outlives_its_layer_is_found_and_lifted(place):
    store = Opened(f"{place}/store")
    kept, lost = (store.prepare(n, api.Quota(bytes=8 * MIB)) for n in (1, 2))
    assert list(store.driver.check([kept, lost], deep=False)) == []
    shutil.rmtree(f"{store.root}/active/{lost.id}")
    found = [each for each in store.driver.check([kept], deep=False) if each.found is not None]
    assert [(each.code, each.found.number) for each in found] == [("overlay.lost-limit", 2)]
    store.driver.repair(found[0])
    assert list(store.driver.check([kept], deep=False)) == []
    assert [limit.number for limit in store.driver.scan() if limit.kind is api.ObjectKind.AUXILIARY] == [1]
    store.destroy()


def test_a_work_directory_that_is_made_again_counts_as_before(place):
    """What is copied up is made in it and renamed, which the kernel allows within one project only."""
    store = Opened(f"{place}/store")
    layer = store.prepare(1, api.Quota(bytes=8 * MIB))
    folder = f"{store.root}/active/{layer.id}"

    def project(path):
        fd = os.open(path, os.O_RDONLY)
        try:
            return projects.project(fd)
        finally:
            os.close(fd)

    before = project(f"{folder}/work")
    shutil.rmtree(f"{folder}/work")
    (found,) = store.driver.check([layer], deep=False)
    assert (found.code, found.repair) == ("overlay.no-work", "make it again")
    store.driver.repair(found)
    assert project(f"{folder}/work") == before == project(folder)
    assert list(store.driver.check([layer], deep=True)) == []
    store.destroy()
