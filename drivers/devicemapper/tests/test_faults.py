"""What may have happened before a call: deaths, disks in the place of others, errors of file systems. On a simulated
pool."""

import errno
import os
import subprocess

import pytest

from cowshed.storage import api, options
from cowshed.storage.errors import Damaged, NoSpace, WrongStore
from cowshed_conformance import steps
from cowshed_conformance.harness import Store
from cowshed_conformance.target import Target
from cowshed_driver_devicemapper import check

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="file systems are mounted")
GIVEN = {"layer_size": "32M", "loop_size": "256M", "quota": "off"}


class Died(Exception):
    pass


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The files lie in memory, as every mount is synced at its end."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)
    monkeypatch.setenv("COWSHED_SIMULATION", f"{tmp_path}/simulated")
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    from simulated import plugin

    given = options.check(plugin, GIVEN)
    it = Store(Target("devicemapper", plugin, given, GIVEN, installed=True, seed=0), f"{tmp_path}/store")
    yield it
    it.host.at = None
    it.discard()
    # Lazily: a loop device lets go of its file a moment after the last user has let go of it.
    subprocess.run(["umount", "-l", tmp_path], check=True)


def dies_at(wanted):
    def at(name):
        if name == wanted:
            raise Died

    return at


def thin(store, layer):
    """The simulation's file of a layer's device, and its number in the pool."""
    number = store.driver.device(layer).thin
    return f"{store.driver.pool._mapper.at}/thins/{store.driver.pool.name}/{number}", number


def test_an_id_that_a_dead_purge_has_set_free_is_nobodys_until_its_directory_is_gone(store):
    old = store.new()
    _, number = thin(store, old)
    store.driver.remove(old)
    store.host.at = dies_at("devicemapper.deleted")
    with pytest.raises(Died):
        store.purge()
    store.host.at = None
    assert number not in store.driver.pool.devices()
    again = api.Layer(store.plan().id, old.number, api.Kind.ACTIVE)  # of a database that was rebuilt
    store.prepare(again)
    store.change(again, steps.file("a", b"1"))
    assert thin(store, again)[1] != number
    store.purge_all()
    assert store.read(again, "a") == b"1"
    last = api.Layer(store.plan().id, old.number, api.Kind.ACTIVE)
    store.prepare(last)
    assert thin(store, last)[1] == number


def test_a_device_may_be_that_of_a_layer_whose_record_is_damaged(store):
    layer, other = store.new(None, steps.file("a", b"1")), store.new()
    record = f"{store.root}/active/{layer.id}/thin/device"
    with open(record, "rb") as file:
        right = file.read()
    path, _ = thin(store, layer)
    with open(record, "wb") as file:
        file.write(b"\0" * len(right))
    found = list(store.driver.check([layer, other], deep=False))
    assert [(it.code, it.repair) for it in found] == [("devicemapper.no-record", ""), (check.LOST, "")]
    for each in found:
        store.driver.repair(each)
    assert os.path.exists(path)
    with open(record, "wb") as file:
        file.write(right)
    assert list(store.driver.check([layer, other], deep=False)) == []
    assert store.read(layer, "a") == b"1"


def test_only_an_origin_that_can_be_written_is_held(store):
    base = store.layer(steps.file("a", b"1"))
    active = store.new(base)
    for below, held in ((base, False), (active, True)):
        with store.mount(below):
            store.host.names.clear()
            if held:
                store.driver.snapshot(below, store.committed(store.plan(base)), api.Durability.NONE)
            else:
                store.new(below)
        assert ("devicemapper.suspend" in store.host.names) == held


def test_the_data_of_another_pool_are_refused_when_the_pool_is_set_up(store):
    layer = store.new(None, steps.file("a", b"1"))
    pool = store.driver.pool
    base = f"{pool._mapper.at}/thins/{pool.name}/{pool.known.base}"
    store.driver.close()
    os.rename(base, f"{base}.right")
    with open(base, "wb") as file:
        file.write(b"x" * (1 << 20))
    pool._mapper.remove(pool.name)
    with pytest.raises(WrongStore, match="another one") as raised:
        store.open()
    assert raised.value.remedy
    assert pool._mapper.info(pool.name) is None, "a refused pool is left"
    os.rename(f"{base}.right", base)
    store.driver = store.open()
    assert store.read(layer, "a") == b"1"


@pytest.mark.parametrize("much", [False, True])
def test_a_file_system_that_met_an_error_is_checked_before_it_is_committed(store, much):
    layer = store.new(None, steps.file("a", b"1"))
    path, _ = thin(store, layer)
    words = ["-R", "set_super_value state 3"]  # valid, with errors
    subprocess.run(["debugfs", "-w", *words, path], check=True, capture_output=True)
    if much:
        subprocess.run(["debugfs", "-w", "-R", "clri /root", path], check=True, capture_output=True)
        with pytest.raises(Damaged, match="has errors") as raised:
            store.commit(layer)
        assert "cp" in raised.value.remedy
        assert store.has(layer)
        return
    done = store.commit(layer)
    assert store.host.names.count("devicemapper.mended") == 1
    assert store.read(done, "a") == b"1"
    assert store.read(store.new(done), "a") == b"1"
    assert list(store.driver.check([done], deep=True)) == []


def test_a_pool_that_is_read_only_is_a_lack_of_space_with_a_remedy(store, monkeypatch):
    """The kernel refuses every message to it then."""
    layer, removed = store.new(None, steps.file("a", b"1")), store.new()
    store.driver.remove(removed)
    mapper = store.driver.pool._mapper
    status = mapper.status

    def refuse(name, text):
        raise OSError(errno.EOPNOTSUPP, text)

    def read_only(name):
        (line,) = status(name)
        line.parameters = line.parameters.replace(" rw ", " ro ").replace(" - 32", " needs_check 32")
        return [line]

    with monkeypatch.context() as patch:
        patch.setattr(mapper, "message", refuse)
        patch.setattr(mapper, "status", read_only)
        for do in (store.purge, store.new, lambda: store.driver.pool.snapshot(99, 0, "nothing")):
            with pytest.raises(NoSpace, match="read-only: its metadata needs a check") as raised:
                do()
            assert "thin_check" in raised.value.remedy
        assert store.read(layer, "a") == b"1"
        store.reopen()
        mapper.remove(store.driver.pool.name)
    store.reopen()
    store.purge_all()


def test_a_pool_that_comes_up_read_only_can_be_read(store, monkeypatch):
    """As it does after its metadata were full, until they are checked."""
    layer = store.new(None, steps.file("a", b"1"))
    kind, pool, seen = type(store.driver.pool._mapper), store.driver.pool, store.driver.pool.known.transaction
    status = kind.status

    def read_only(self, name):
        (line,) = status(self, name)
        line.parameters = line.parameters.replace(" rw ", " ro ")
        return [line]

    store.driver.close()
    pool._mapper.remove(pool.name)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "status", read_only)
        store.driver = store.open()
        assert store.read(layer, "a") == b"1"
        assert store.driver.pool.known.transaction == seen
        assert store.driver.health().reasons[-1].verdict is api.Verdict.POOR
        store.driver.close()
        pool._mapper.remove(pool.name)
    store.driver = store.open()
    assert store.driver.pool.known.transaction == seen + 1


def test_a_full_disk_below_a_pool_on_files_takes_no_new_layer(store, monkeypatch):
    layer = store.new(None, steps.file("a", b"1"))
    real = os.statvfs(store.root)
    told = os.statvfs_result([*real[:3], 100, 100, *real[5:]])
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda path: told)
        with pytest.raises(NoSpace, match="are free below") as raised:
            store.new()
        assert raised.value.remedy
    assert store.read(store.commit(layer), "a") == b"1"
