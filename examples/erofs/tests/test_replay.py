"""The driver without erofs: what was recorded where the kernel has it (life.trace) plays on any machine, for any
user. `python test_replay.py` records it again."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

from cowshed.storage import api
from cowshed.storage.errors import LayerId
from cowshed.storage.kit.tracing import Recorder, Replay, Trace, read
from cowshed_driver_erofs import plugin

TRACE = Path(__file__).parent / "life.trace"
OPTIONS = {"compression": "lz4"}


def layer(number, kind, parent=None):
    return api.Layer(LayerId(f"{number:032x}"), number, kind, parent)


def life(host, root):
    """A store, two layers on each other, and their end. Gives what the driver said on the way."""
    store = plugin.init(root, OPTIONS, host)
    driver = plugin.open(root, OPTIONS, host, store=store)
    base, top = layer(1, api.Kind.COMMITTED), layer(2, api.Kind.ACTIVE, layer(1, api.Kind.COMMITTED))
    driver.prepare(layer(1, api.Kind.ACTIVE), api.LayerOptions(root_uid=os.getuid(), root_gid=os.getgid()))
    Path(root, "active", base.id, "upper/file").write_text("content")
    driver.commit(layer(1, api.Kind.ACTIVE), base, api.Durability.COMMIT)
    driver.prepare(top, api.LayerOptions())
    told = [[found.name for found in driver.scan()], driver.mounts(top, api.MountRequest(read_only=False))]
    driver.remove(top)
    told.append(driver.purge(lambda _: None, 10))
    told.append([found.name for found in driver.scan()])
    driver.close()
    return told


def played(tmp_path):
    effects = {"mkfs.erofs": lambda argv: Path(argv[-2]).write_bytes(b"an image")}
    host = Replay(str(TRACE), str(tmp_path / "store"), effects)
    return host, life(host, str(tmp_path / "store"))


def test_the_life_of_layers_is_played_back_without_mkfs_and_without_mounts(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    host, (objects, plan, purged, left) = played(tmp_path)
    host.done()
    base, top = f"committed/{1:032x}", f"active/{2:032x}"
    assert objects == [top, base]
    assert left == [base]
    assert purged.objects_left == 0
    image, overlay = plan.steps
    assert image == api.FileSystem("erofs", f"{tmp_path}/store/{base}/tree", read_only=True)
    assert overlay.lowers == (api.Step(0),)
    assert overlay.upper == f"{tmp_path}/store/{top}/upper"


def test_an_image_that_cannot_be_made_leaves_the_layer_as_it_was(tmp_path, monkeypatch):
    def full(argv):
        from cowshed.storage.errors import ToolFailed

        Path(argv[-2]).write_bytes(b"half an image")
        raise ToolFailed("mkfs.erofs ended with status 1: <E> erofs: [Error 28] No space left on device")

    root = str(tmp_path / "store")
    host = Replay(str(TRACE), root, {"mkfs.erofs": full})
    from cowshed.storage.errors import NoSpace

    with pytest.raises(NoSpace):
        life(host, root)
    assert os.listdir(f"{root}/committed") == []
    assert sorted(os.listdir(f"{root}/active/{1:032x}")) == ["upper", "work"]


def test_the_trace_tells_the_command_with_its_arguments_and_the_time_it_took():
    made = [record for record in read(str(TRACE)) if record["name"] == "mkfs.erofs"]
    assert [record["argv"][-2:] for record in made] == [
        [f"{{root}}/active/{1:032x}/tree", f"{{root}}/active/{1:032x}/upper"]
    ]
    assert all(record["seconds"] > 0 and record["status"] == 0 for record in made)


def record():
    from cowshed.layers.host import EngineHost

    with tempfile.TemporaryDirectory() as folder, Trace(f"{folder}/trace", f"{folder}/store") as trace:
        life(Recorder(EngineHost(), trace), f"{folder}/store")
        trace.close()
        TRACE.write_text(Path(folder, "trace").read_text())


if __name__ == "__main__":
    sys.exit(record())
