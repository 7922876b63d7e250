"""The driver without any ZFS, real or simulated: what it asked of one is recorded, and played back."""

import contextlib
import importlib.util
from pathlib import Path

import pytest

from cowshed.storage import api
from cowshed.storage.errors import LayerId, NotFound
from cowshed.storage.kit.tracing import Mismatch, Recorder, Replay, Trace, read
from cowshed_driver_zfs.driver import ZfsDriver, capabilities

_spec = importlib.util.spec_from_file_location("zfs_simulated_to_record", Path(__file__).with_name("simulated.py"))
simulated = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(simulated)


@contextlib.contextmanager
def mine(_):
    yield True


def driver_on(host, zfs, reader):
    can = capabilities(durable=True, exact=True, idmapped=False)
    store = simulated.STORE
    return ZfsDriver("/nowhere", store, can, host.library("zfs", zfs), host.library("reader", reader), host)


def life(driver):
    """What the driver says while layers come and go."""
    told = []
    active = api.Layer(LayerId("1" * 32), 1, api.Kind.ACTIVE)
    base = api.Layer(LayerId("1" * 32), 1, api.Kind.COMMITTED)
    top = api.Layer(LayerId("2" * 32), 2, api.Kind.ACTIVE, base)
    told.append(driver.prepare(active, api.LayerOptions()))
    told.append(driver.commit(active, base, api.Durability.COMMIT))
    told.append(driver.prepare(top, api.LayerOptions()))
    told.append(driver.mounts(top, api.MountRequest(read_only=False)))
    told.append([(found.kind, found.name, found.layer) for found in driver.scan()])
    with pytest.raises(NotFound) as missing:
        driver.prepare(
            api.Layer(LayerId("4" * 32), 4, api.Kind.ACTIVE, api.Layer(LayerId("3" * 32), 3, api.Kind.COMMITTED)),
            api.LayerOptions(),
        )
    told.append(str(missing.value))
    driver.remove(top)
    told.append(driver.purge(mine, 60))
    told.append([(found.kind, found.name, found.layer) for found in driver.scan()])
    return told


def never():
    raise AssertionError("there is no ZFS")


@pytest.fixture
def recorded(tmp_path):
    zfs, path = simulated.SimulatedZfs(), str(tmp_path / "trace")
    with Trace(path) as trace:
        host = Recorder(simulated.SimulatedHost(), trace)
        told = life(driver_on(host, lambda: zfs, lambda: simulated.SimulatedReader(zfs)))
    return path, told


def test_the_driver_says_the_same_without_zfs(recorded):
    path, told = recorded
    host = Replay(path)
    assert life(driver_on(host, never, never)) == told
    host.done()


def test_the_trace_has_each_call_of_the_library_with_its_arguments(recorded):
    path, _ = recorded
    records = list(read(path))
    clones = [record for record in records if record["name"] == "zfs.clone" and record["arguments"]]
    assert [record.get("code", "") for record in clones] == ["", "", "ENOENT"]
    assert all(record["arguments"][1].endswith("@c") and record["seconds"] >= 0 for record in clones)
    outer = {record["n"]: record["name"] for record in records}
    assert {outer[record["within"]] for record in clones} == {"zfs.clone"}, "the kill point around it"


def test_a_driver_that_does_more_than_it_did_is_found(recorded):
    path, _ = recorded
    driver = driver_on(Replay(path), never, never)
    life(driver)
    with pytest.raises(Mismatch, match="nothing more was done"):
        list(driver.scan())
