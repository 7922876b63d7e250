"""The driver without any device-mapper, real or simulated: what it asked of one is recorded, and played back.

life.trace is of a real one. To record it again, in the guest:

    tests/vm/run -- sh -c 'modprobe dm_thin_pool; truncate -s 64M /tmp/data; truncate -s 4M /tmp/metadata;
        losetup /dev/loop0 /tmp/data; losetup /dev/loop1 /tmp/metadata;
        python drivers/devicemapper/tests/test_devicemapper_replay.py /dev/loop0 /dev/loop1 /results/life.trace'
"""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import pytest

from cowshed.storage import api, options
from cowshed.storage.errors import Damaged, LayerId, NoSpace, NotFound
from cowshed.storage.kit import directories
from cowshed.storage.kit.tracing import Recorder, Replay, Trace, read
from cowshed_driver_devicemapper import plugin

TRACE = Path(__file__).parent / "recorded/life.trace"
STORE = "5" * 32
MIB = 1 << 20
DATA, METADATA = "/dev/loop0", "/dev/loop1"


@contextlib.contextmanager
def mine(_):
    yield True


def layer(number, kind, parent=None):
    return api.Layer(LayerId(f"{number:032x}"), number, kind, parent)


def whole_life(host, root, data, metadata):
    """A store from its making to its end, with layers that are written to, limited, snapshotted, compared and removed.
    Gives what the driver said on the way."""
    chosen = options.check(plugin, {"data_device": data, "metadata_device": metadata, "layer_size": "32M"})
    directories.init_store(root, "devicemapper")
    Path(root, "store").write_text(f"{STORE}\n")  # the base has it in it
    store = plugin.init(root, chosen, host)
    driver = plugin.open(root, chosen, host, store=store)
    base = layer(1, api.Kind.COMMITTED)
    top, copy, same = layer(2, api.Kind.ACTIVE, base), layer(3, api.Kind.COMMITTED, base), layer(4, base.kind, base)
    driver.prepare(layer(1, api.Kind.ACTIVE), api.LayerOptions())
    driver.activate(layer(1, api.Kind.ACTIVE), read_only=False)
    with host.mounted(driver.mounts(layer(1, api.Kind.ACTIVE), api.MountRequest(read_only=False))) as tree:
        driver.deactivate(layer(1, api.Kind.ACTIVE))
        Path(tree.path, "file").write_bytes(b"1" * MIB)
    driver.commit(layer(1, api.Kind.ACTIVE), base, api.Durability.COMMIT)
    driver.prepare(top, api.LayerOptions(quota=api.Quota(bytes=8 * MIB)))
    driver.set_quota(top, api.Quota(bytes=16 * MIB))
    driver.snapshot(top, copy, api.Durability.COMMIT)
    told = {"plan": driver.mounts(top, api.MountRequest(read_only=False)), "usage": driver.usage(base)}
    driver.prepare(layer(4, api.Kind.ACTIVE, base), api.LayerOptions())
    driver.commit(layer(4, api.Kind.ACTIVE, base), same, api.Durability.NONE)
    told["changes"] = list(driver.changes(base, same))
    told["health"] = driver.health()
    with pytest.raises(NotFound):
        driver.prepare(layer(9, api.Kind.ACTIVE, layer(8, api.Kind.COMMITTED)), api.LayerOptions())
    for each in (copy, top, same):
        driver.remove(each)
    told["scan"] = [(found.kind, found.name) for found in driver.scan()]
    told["purged"] = driver.purge(mine, 60)
    told["left"] = [found.name for found in driver.scan()]
    driver.close()
    plugin.destroy(root, chosen, host, store=store)
    return told


def replay(path, root):
    return Replay(str(path), str(root), {"ext4": lambda _, folder: os.mkdir(f"{folder}/root")})


def test_what_a_real_pool_was_asked_is_asked_again_and_nothing_else(tmp_path):
    root = tmp_path / "store"
    host = replay(TRACE, root)
    told = whole_life(host, str(root), DATA, METADATA)
    host.done()
    (step,) = told["plan"].steps
    assert step.source == f"/dev/mapper/cowshed-{STORE[:16]}-{2:032x}"
    assert MIB <= told["usage"].own < 4 * MIB
    assert told["changes"] == []
    assert 0 < told["health"].data_free < told["health"].data_total <= 64 * MIB
    trash = [(api.ObjectKind.TRASH, f"trash/{n:032x}.{where}") for n, where in ((2, "active"), (3, "committed"))]
    trash.append((api.ObjectKind.TRASH, f"trash/{4:032x}.committed"))
    assert told["scan"] == [(api.ObjectKind.LAYER, f"committed/{1:032x}"), *trash]
    assert told["purged"].objects_left == 0
    assert told["left"] == [f"committed/{1:032x}"]
    assert not root.exists()


def test_the_trace_has_what_is_done_to_devices():
    names = [record["name"] for record in read(str(TRACE))]
    for wanted in ("blank", "mkfs.ext4", "ext4", "pool", "node", "superblock", "flush", "limit", "discard", "wipe"):
        assert wanted in names, wanted


FULL = '"error": "OSError", "errno": 28, "text": "full"'


@pytest.mark.parametrize(
    ("words", "old", "new", "raised", "text"),
    [
        (('"dm.message"', "create_snap 2 1"), '"result": null', FULL, NoSpace, "no metadata space"),
        (('"superblock"', STORE), f'"uuid": "{STORE}"', f'"uuid": "{"6" * 32}"', Damaged, "not the ext4"),
    ],
    ids=["metadata full", "another file system"],
)
def test_a_pool_that_answers_otherwise_than_it_did_is_told(tmp_path, words, old, new, raised, text):
    """What the kernel said of one call is made another answer here: the driver says it as it would have then."""
    lines = TRACE.read_text().splitlines()
    number = max(n for n, line in enumerate(lines) if all(word in line for word in words))
    assert old in lines[number]
    lines[number] = lines[number].replace(old, new)
    path = tmp_path / "other.trace"
    path.write_text("\n".join(lines))
    with pytest.raises(raised, match=text):
        whole_life(replay(path, tmp_path / "store"), str(tmp_path / "store"), DATA, METADATA)


def record(data, metadata, path):
    from cowshed.layers.host import EngineHost

    with tempfile.TemporaryDirectory() as folder, Trace(f"{folder}/trace", f"{folder}/store") as trace:
        whole_life(Recorder(EngineHost(), trace), f"{folder}/store", data, metadata)
        trace.close()
        Path(path).write_text(Path(folder, "trace").read_text())


if __name__ == "__main__":
    sys.exit(record(*sys.argv[1:]))
