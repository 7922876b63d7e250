"""Limits and usage by quota groups, and whose the state of quota is."""

import errno
import os

import pytest

from cowshed.storage import api
from cowshed.storage.errors import BadOption, LayerId, Unsupported
from cowshed_conformance.backing import file_system
from cowshed_driver_btrfs import ioctls, quota, subvolumes
from cowshed_linux import files

MIB = 1 << 20
simple = pytest.mark.usefixtures("simple_quotas")


@pytest.fixture
def place(tmp_path):
    """On a file system of its own, whose state of quota is not another test's."""
    with file_system("btrfs", str(tmp_path / "fs"), 256 << 20) as system:
        os.mkdir(f"{system.path}/host")
        yield f"{system.path}/host"


def fill(folder, mebibytes, name="f"):
    """Write that much, each MiB synced; how many were taken whole."""
    for n in range(mebibytes):
        try:
            handle = os.open(f"{folder}/{name}{n}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
            try:
                taken = os.write(handle, os.urandom(MIB))
                files.syncfs(handle)  # full quotas count at the end of a transaction
            finally:
                os.close(handle)
        except OSError as error:
            if error.errno not in (errno.EDQUOT, errno.ENOSPC):
                raise
            return n
        if taken < MIB:
            return n
    return mebibytes


def groups(fd):
    """(level, id) of all that are above single subvolumes."""
    kind = ioctls.QGROUP_INFO
    found = ioctls.search(fd, ioctls.QUOTA_TREE, (0, kind, 1 << 48), (0, kind, ioctls.MOST))
    return [(item.offset >> 48, item.offset & (1 << 48) - 1) for item in found]


def test_quota_is_not_touched_unless_it_is_asked_for(make, fd):
    store = make()
    assert quota.state(fd) == (quota.OFF, 0)
    assert store.driver.capabilities.quota is api.QuotaScope.NONE
    with pytest.raises(Unsupported, match="quotas of its file system are off"):
        store.new(size=MIB)
    store.driver.remove(store.commit(store.new()))
    store.purge()
    assert quota.state(fd) == (quota.OFF, 0)


@simple
def test_what_was_switched_on_for_stores_goes_with_the_last_of_them(make, fd):
    first, second = make("first", quota="simple"), make("second", quota="simple")
    assert quota.state(fd)[0] == quota.SIMPLE
    layer = second.new(size=4 * MIB)
    first.destroy()
    assert quota.state(fd)[0] == quota.SIMPLE, "the first store's end took the second one's limits away"
    with second.mounted(layer) as tree:
        assert fill(tree.path, 8) == 3
    second.destroy()
    assert quota.state(fd) == (quota.OFF, 0)


@simple
def test_what_the_host_switched_on_stays_on(make, fd):
    ioctls.quota_ctl(fd, ioctls.QUOTA_ENABLE_SIMPLE)
    for given in ("auto", "simple"):
        store = make(given, quota=given)
        assert store.driver.capabilities.quota is api.QuotaScope.OWN
        with store.mounted(store.new(size=4 * MIB)) as tree:
            assert fill(tree.path, 8) == 3
        store.destroy()
        assert quota.state(fd)[0] == quota.SIMPLE
        assert groups(fd) == [], "groups of a store that is gone"


@simple
def test_what_the_host_has_limited_meanwhile_keeps_quota_on(make, fd, place):
    store = make(quota="simple")
    subvolumes.create(f"{place}/theirs")
    ioctls.limit_group(fd, subvolumes.identity(f"{place}/theirs"), referenced=MIB)
    store.destroy()
    assert quota.state(fd)[0] == quota.SIMPLE


@simple
def test_quota_that_was_switched_on_by_an_interrupted_call_is_still_ours(make, fd, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(ioctls, "make_group", lambda *_: 1 / 0)  # dies between the switch and the mark
        with pytest.raises(ZeroDivisionError):
            make(quota="simple")
    assert quota.state(fd)[0] == quota.SIMPLE
    make(quota="simple").destroy()
    assert quota.state(fd) == (quota.OFF, 0)


@simple
def test_quota_that_others_switched_off_and_on_is_theirs(make, fd):
    store = make(quota="simple")
    layer = store.new(size=4 * MIB)
    ioctls.quota_ctl(fd, ioctls.QUOTA_DISABLE)
    store.driver.remove(layer)
    store.purge()
    assert list(store.driver.scan()) == []
    ioctls.quota_ctl(fd, ioctls.QUOTA_ENABLE_SIMPLE)
    with store.mounted(store.new(size=4 * MIB)) as tree:
        assert fill(tree.path, 8) == 3, "a store does not make its groups again"
    store.destroy()
    assert quota.state(fd)[0] == quota.SIMPLE


@simple
def test_layers_from_before_quota_have_usage_that_is_not_exact(make, fd):
    store = make()
    layer = store.new()
    with store.mounted(layer) as tree:
        fill(tree.path, 2)
    ioctls.quota_ctl(fd, ioctls.QUOTA_ENABLE_SIMPLE)
    store.driver.close()
    store.driver = store.open()
    assert store.driver.capabilities.usage_exact
    old, new = store.driver.usage(layer), store.driver.usage(store.new())
    assert (old.own, old.exact) == (2 * MIB, False)
    assert (new.own, new.exact) == (16384, True)


@simple
def test_a_container_does_not_get_out_of_its_limit_by_subvolumes(make):
    store = make(quota="simple")
    layer = store.new(size=4 * MIB)
    with store.mounted(layer) as tree:
        subvolumes.create(f"{tree.path}/nested")
        assert fill(f"{tree.path}/nested", 3) == 3
        assert fill(tree.path, 8) == 0
        assert store.driver.usage(layer).own > 3 * MIB
    store.driver.set_quota(layer, api.Quota())
    with store.mounted(layer) as tree:
        assert fill(tree.path, 4) == 4
    store.driver.set_quota(layer, api.Quota(bytes=MIB))
    with store.mounted(layer) as tree:
        assert fill(f"{tree.path}/nested", 1, "more") == 0, "a limit set later leaves out what is there already"


@simple
def test_a_layer_at_its_limit_is_committed_and_removed(make):
    store = make(quota="simple")
    one, other = store.new(size=4 * MIB), store.new(size=4 * MIB)
    for layer in (one, other):
        with store.mounted(layer) as tree:
            assert fill(tree.path, 8) == 3
    committed = store.commit(one)
    child = store.new(committed)
    with store.mounted(child) as tree:
        assert fill(tree.path, 6, "child") == 6, "a limit is inherited"
    for layer in (other, child, committed):
        store.driver.remove(layer)
    assert store.purge().objects_left == 0
    assert list(store.driver.scan()) == []


@simple
def test_what_a_snapshot_still_holds_is_shown_until_it_goes(make):
    """Simple quotas charge who wrote, also when that is gone: its group stays as long as the extents."""
    store = make(quota="simple")
    layer = store.new()
    with store.mounted(layer) as tree:
        fill(tree.path, 2)
    taken = store.committed(api.Layer(LayerId("f" * 32), 99, api.Kind.ACTIVE))
    store.driver.snapshot(layer, taken, api.Durability.COMMIT)
    store.driver.remove(layer)
    store.purge()
    (left,) = store.auxiliary()
    assert left.startswith("qgroup 0/")
    store.driver.remove(taken)
    store.purge()
    store.purge()
    assert list(store.driver.scan()) == []


@simple
def test_a_group_without_a_subvolume_is_a_leftover(make, fd):
    store = make(quota="simple")
    layer = store.new(size=MIB)
    own = quota.Groups(fd, store.id, store.host)
    ioctls.make_group(fd, own.of_layer(77))  # as a prepare that died leaves it
    assert store.auxiliary() == [f"qgroup {own.store >> 48}/{(own.store & (1 << 48) - 1) + 77}"]
    store.purge()
    assert store.auxiliary() == []
    assert own.limits() == [own.of_layer(layer.number)]


def test_full_quotas_are_for_those_who_ask_and_are_told_what_they_cost(make, fd, place):
    from cowshed_driver_btrfs import plugin

    store = make(quota="full")
    assert quota.state(fd)[0] == quota.FULL
    report = plugin.probe(place, store.options, store.host)
    assert report.verdict is api.Verdict.POOR
    assert [r.code for r in report.reasons if r.verdict is api.Verdict.POOR] == ["btrfs.qgroups"]
    base = store.new()
    with store.mounted(base) as tree:
        fill(tree.path, 8)
    layer = store.new(store.commit(base), size=4 * MIB)
    with store.mounted(layer) as tree:
        assert fill(tree.path, 8, "own") in (2, 3), "a limit does not count own bytes"
    store.driver.set_quota(layer, api.Quota())
    store.driver.remove(layer)
    assert store.purge().objects_left == 0
    with pytest.raises(BadOption, match="the file system has full quotas on"):
        make("other", quota="simple")
    store.destroy()
    assert quota.state(fd) == (quota.OFF, 0)


def test_full_quotas_of_the_host_are_not_used_unasked(make, fd):
    ioctls.quota_ctl(fd, ioctls.QUOTA_ENABLE)
    store = make()
    assert store.driver.capabilities.quota is api.QuotaScope.NONE
    store.driver.remove(store.new())
    store.purge()
    store.destroy()
    assert quota.state(fd)[0] == quota.FULL


def test_own_bytes_without_groups_are_those_of_new_extents(make):
    store = make()
    base = store.new()
    with store.mounted(base) as tree:
        fill(tree.path, 3)
        for n in range(3000):  # more than one answer of the kernel holds
            with open(f"{tree.path}/small{n}", "wb") as small:
                small.write(b"x" * 100)
    committed = store.commit(base)
    child = store.new(committed)
    with store.mounted(child) as tree:
        fill(tree.path, 1, "own")
        with open(f"{tree.path}/f0", "r+b") as shared:
            shared.write(b"y" * 4096)
    handle = ioctls.directory(store.root)
    files.syncfs(handle)
    os.close(handle)
    assert store.driver.usage(child).own == MIB + 4096
    assert 3 * MIB + 3000 * 100 <= store.driver.usage(committed).own < 3 * MIB + 3000 * 200
