"""The driver without any ZFS, real or simulated: what it asked of one is recorded, and played back.

life.trace is of a real one. To record it again, in the guest, with an empty pool:

    tests/vm/run -- sh -c 'modprobe zfs; truncate -s 256M /tmp/disk; zpool create tank /tmp/disk;
        python drivers/zfs/tests/test_zfs_replay.py tank /results/life.trace'
"""

import contextlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import pytest

from cowshed.storage import api, options
from cowshed.storage.errors import InUse, LayerId, NoSpace, NotFound
from cowshed.storage.kit import directories
from cowshed.storage.kit.tracing import Mismatch, Recorder, Replay, Trace, read
from cowshed_driver_zfs import plugin
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


# ---------------------------------------------------------------- of a real ZFS

TRACE = Path(__file__).parent / "recorded/life.trace"
STORE = "5" * 32
MIB = 1 << 20


def layer(number, kind, parent=None):
    return api.Layer(LayerId(f"{number:032x}"), number, kind, parent)


def whole_life(host, root, dataset):
    """A store from its making to its end, with layers that are written to, limited, snapshotted and removed. Gives what
    the driver said on the way."""
    chosen = options.check(plugin, {"dataset": dataset, "compression": "lz4"})
    directories.init_store(root, "zfs")
    Path(root, "store").write_text(f"{STORE}\n")  # what a pool answers has it in it
    store = plugin.init(root, chosen, host)
    driver = plugin.open(root, chosen, host, store=store)
    told = {"can": driver.capabilities}
    base = layer(1, api.Kind.COMMITTED)
    top, copy = layer(2, api.Kind.ACTIVE, base), layer(3, api.Kind.COMMITTED, base)
    driver.prepare(layer(1, api.Kind.ACTIVE), api.LayerOptions(root_uid=5, root_gid=6))
    with host.mounted(driver.mounts(layer(1, api.Kind.ACTIVE), api.MountRequest(read_only=False))) as tree:
        Path(tree.path, "file").write_bytes(b"1" * MIB)
    driver.commit(layer(1, api.Kind.ACTIVE), base, api.Durability.COMMIT)
    driver.prepare(top, api.LayerOptions(quota=api.Quota(bytes=8 * MIB)))
    driver.set_quota(top, api.Quota(bytes=16 * MIB))
    driver.snapshot(top, copy, api.Durability.COMMIT)
    told["plan"] = driver.mounts(top, api.MountRequest(read_only=False))
    told["usage"] = driver.usage(base)
    with pytest.raises(NotFound):
        driver.prepare(layer(9, api.Kind.ACTIVE, layer(8, api.Kind.COMMITTED)), api.LayerOptions())
    for each in (copy, top):
        driver.remove(each)
    told["scan"] = [(found.kind, found.name, found.number) for found in driver.scan()]
    told["purged"] = driver.purge(mine, 60)
    told["left"] = [found.name for found in driver.scan()]
    driver.close()
    snapshot = f"{dataset}/cowshed-{store}/committed.{base.id}@c"
    plan = api.MountPlan((api.FileSystem("zfs", snapshot, read_only=True, options=(("ro", None),)),))
    with host.mounted(plan), pytest.raises(InUse) as raised:
        plugin.destroy(root, chosen, host, store=store)
    told["in use"] = str(raised.value)
    plugin.destroy(root, chosen, host, store=store)
    return told


def shown(*words):
    """What a mount of a layer has when it is played back; the program of this name has nothing to do then."""
    if isinstance(words[0], api.MountPlan):
        os.mkdir(f"{words[1]}/root")


def replay(path, root):
    return Replay(str(path), str(root), {"zfs": shown})


def test_what_a_real_zfs_was_asked_is_asked_again_and_nothing_else(tmp_path):
    root = tmp_path / "store"
    host = replay(TRACE, root)
    told = whole_life(host, str(root), "tank")
    host.done()
    assert told["can"].durability is api.Durability.COMMIT
    (step,) = told["plan"].steps
    assert step.source.endswith(f"/active.{2:032x}")
    assert told["usage"].exact
    assert MIB // 100 < told["usage"].own < MIB, "it is compressed"
    base = f"committed.{1:032x}"
    assert told["scan"] == [
        (api.ObjectKind.LAYER, base, 1),
        (api.ObjectKind.TRASH, f"trash.{2:032x}", 2),
        (api.ObjectKind.TRASH, f"trash.{3:032x}", 3),
    ]
    assert told["purged"].objects_left == 0
    assert told["left"] == [base]
    assert "in use" in told["in use"]
    assert not root.exists()


def test_a_pool_that_answers_otherwise_than_it_did_is_told(tmp_path):
    """What the kernel said of one call is made an error here: the driver says it as it would have then."""
    records = TRACE.read_text().splitlines()
    number = next(n for n, line in enumerate(records) if '"name": "zfs.promote"' in line and '"arguments": ["' in line)
    records[number] = records[number].replace('"result": null', '"error": "OSError", "errno": 28, "text": "promote"')
    path = tmp_path / "full.trace"
    path.write_text("\n".join(records))
    with pytest.raises(NoSpace, match="promote"):
        whole_life(replay(path, tmp_path / "store"), str(tmp_path / "store"), "tank")


def record(dataset, path):
    from cowshed.layers.host import EngineHost

    with tempfile.TemporaryDirectory() as folder, Trace(f"{folder}/trace", f"{folder}/store") as trace:
        whole_life(Recorder(EngineHost(), trace), f"{folder}/store", dataset)
        trace.close()
        Path(path).write_text(Path(folder, "trace").read_text())


if __name__ == "__main__":
    sys.exit(record(*sys.argv[1:]))
