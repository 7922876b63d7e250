"""The crash sequences S1 to S15 of the engine's half of storage, each by its number. Elsewhere: S7 with real commands
in tests/e2e/test_full_disk.py; S8 among the suite's cases of activation (U05), which test_activation.py beside the
suite runs on a driver that has it; S9 and S13 in tests/e2e/test_killed_helpers.py."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cowshed.errors import StoreError
from cowshed.state import journal
from cowshed.state.store import open_store
from cowshed.storage import api
from cowshed.storage.errors import LayerId, WrongStore

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("layers_work", HERE / "work.py")
work = importlib.util.module_from_spec(spec)
spec.loader.exec_module(work)


def command(root, driver, *words, fault=""):
    return subprocess.run(
        [sys.executable, str(HERE / "work.py"), str(root), driver, *words],
        env={**os.environ, "COWSHED_FAULT": fault}, capture_output=True, timeout=120,
    )  # fmt: skip


@pytest.fixture(params=["overlay", "copy"])
def layers(request, tmp_path):
    it = work.opened(str(tmp_path / "store"), request.param)
    yield it
    it.store.close()


@pytest.mark.parametrize("driver", ["overlay", "copy"])
@pytest.mark.parametrize("step", ["layers.prepare.end", "layers.commit.done", "layers.remove.end"])
def test_s1_done_by_the_driver_and_not_written_down(tmp_path, driver, step):
    """Whoever takes the layer's byte next repeats it, and that changes nothing more."""
    root = tmp_path / "store"
    assert command(root, driver, "everything", fault=f"kill@{step}").returncode == -signal.SIGKILL
    layers = work.opened(str(root), driver)
    assert len(journal.list_all(layers.store)) == 1
    work.recover(layers)
    assert journal.list_all(layers.store) == []
    layers.remove_unreferenced()
    layers.purge(10)
    assert list(layers.check()) == []
    layers.store.close()


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_s2_s3_s10_what_was_made_durable_survives_a_power_cut(tmp_path, kind):
    script = ["unshare", "-m", "--propagation", "private", sys.executable, str(HERE / "power_cut.py")]
    done = subprocess.run(
        [*script, str(tmp_path), kind], capture_output=True, timeout=120, env={**os.environ, "PYTHONPATH": str(HERE)}
    )
    assert done.returncode == 0, (done.stdout, done.stderr.decode())
    assert b"sound" in done.stdout


def test_s4_the_number_is_written_down_for_good_before_the_driver_is_called(layers, monkeypatch):
    """Else a power cut would take the row back and leave the object, and the number would be given away again."""
    store = layers.store
    assert store.query("pragma synchronous") == [(2,)]  # FULL: a commit is on the disk when it returns
    image = work.pull(layers)
    seen = []
    real = layers.driver.prepare

    def prepare(layer, options):
        other = open_store(store.root, store.root + ".run", write=False)
        seen.append((layer.number, other.value("next"), journal.get(other, layer.number).op))
        other.close()
        return real(layer, options)

    monkeypatch.setattr(layers.driver, "prepare", prepare)
    active = work.create(layers, image)
    assert seen == [(active.number, active.number + 1, "prepare")]


@pytest.mark.parametrize("driver", ["overlay", "copy"])
@pytest.mark.parametrize("step", ["layers.begin.written", "layers.seal.end", "layers.publish.synced"])
def test_s5_a_layer_that_was_being_filled_is_undone_not_finished(tmp_path, driver, step):
    root = tmp_path / "store"
    assert command(root, driver, "pull", fault=f"kill@{step}").returncode == -signal.SIGKILL
    layers = work.opened(str(root), driver)
    assert {entry.op for entry in journal.list_all(layers.store)} == {"apply"}
    for chain in work.image_row().chain_ids:
        assert layers.by_chain_id(chain) is None
    work.recover(layers)
    layers.purge(10)
    assert (list(layers.driver.scan()), layers.store.query("select * from layers")) == ([], [])
    layers.store.close()


def test_s6_a_number_is_given_away_while_its_last_owner_is_not_purged_and_they_do_not_meet(layers):
    """The counter goes round once in 2**24 layers; should a number come again that soon, ids keep objects apart."""
    image = work.pull(layers)
    first = work.create(layers, image)
    work.remove(layers, first)
    with layers.store.transaction() as tx:
        tx.execute("update meta set value = ? where key = 'next'", first.number)
    second = work.create(layers, image)
    assert (second.number, second.id == first.id) == (first.number, False)
    layers.purge(10)
    with layers.mounted(second, read_only=True) as tree:
        assert sorted(os.listdir(f"/proc/self/fd/{tree}")) == ["aa", "bb", "cc"]
    work.remove(layers, second)


def test_s11_a_store_that_is_not_mounted_or_another_is_no_empty_store(layers, tmp_path):
    work.pull(layers)
    root, name = layers.store.root, layers.name
    shutil.move(f"{root}/drivers/{name}", tmp_path / "away")
    with pytest.raises(WrongStore, match=r"there is no .* store at"):
        work.opened(root, name)
    assert not os.path.exists(f"{root}/drivers/{name}/store"), "an empty one was made"
    os.makedirs(f"{root}/drivers/{name}", exist_ok=True)
    stranger = work.opened(str(tmp_path / "stranger"), name)
    stranger.store.close()
    os.rmdir(f"{root}/drivers/{name}")
    shutil.copytree(tmp_path / "stranger" / "drivers" / name, f"{root}/drivers/{name}")
    with pytest.raises(WrongStore, match="holds store"):
        work.opened(root, name)


def test_s12_an_older_database_over_a_newer_disk(layers, tmp_path, capsys):
    """No number comes twice: what is newer than the database is told and kept. A container's layer is never removed by
    itself, nor a committed one before the counters are raised."""
    from cowshed.layers.check import remove_orphans

    store = layers.store
    image = work.pull(layers)
    store.query("vacuum into ?", str(tmp_path / "copy"))
    newer = work.create(layers, image)
    strange = api.Layer(LayerId("e" * 32), 4711, api.Kind.ACTIVE)
    layers.driver.prepare(strange, api.LayerOptions())
    layers.driver.commit(strange, api.Layer(strange.id, 4711, api.Kind.COMMITTED), api.Durability.NONE)
    store.locks.release("layers", newer.number)
    store.close()
    for name in ("db.sqlite", "db.sqlite-wal", "db.sqlite-shm"):
        Path(store.root, name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "copy", f"{store.root}/db.sqlite")
    again = work.opened(store.root, layers.name)
    assert remove_orphans(again) == 0
    assert capsys.readouterr().err.count("which the database does not know, stays") == 2
    made = work.create(again, image)
    assert made.number == newer.number + 1
    assert "is older than what lies beside it: 1 layers were made since" in capsys.readouterr().err
    work.create(again, image)
    assert capsys.readouterr().err == "", "it is told once"
    found = {finding.layer: (finding.code, bool(finding.repair)) for finding in again.check()}
    assert found == {newer.id: ("orphan", False), strange.id: ("orphan", True)}
    with again.mounted(made, read_only=True) as tree:
        assert sorted(os.listdir(f"/proc/self/fd/{tree}")) == ["aa", "bb", "cc"]
    assert remove_orphans(again) == 1
    again.purge(10)
    assert [finding.layer for finding in again.check()] == [newer.id]
    again.driver.remove(newer)
    again.purge(10)
    assert list(again.check()) == []
    work.remove(again, made)
    layers.store = again.store  # closed by the fixture


def test_s14_two_stores_beside_each_other_do_not_meet(layers, tmp_path):
    other = work.opened(str(tmp_path / "other"), layers.name)
    image = work.pull(layers)
    work.pull(other)
    mine, theirs = work.create(layers, image), work.create(other, image)
    assert mine.number == theirs.number
    work.remove(layers, mine)
    layers.purge(10)
    work.rmi(layers, image)
    assert list(layers.driver.scan()) == list(layers.check()) == list(other.check()) == []
    with other.mounted(theirs, read_only=True) as tree:
        assert sorted(os.listdir(f"/proc/self/fd/{tree}")) == ["aa", "bb", "cc"]
    work.remove(other, theirs)
    other.store.close()


def test_s15_nothing_but_sqlite_opens_the_database(tmp_path):
    """A descriptor of it that a process closes takes SQLite's locks with it: corruption. Python tells of every open."""
    code = f"""
import sys
sys.path[:0] = {[str(HERE), *sys.path]!r}
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import work
layers = work.opened({str(tmp_path / "store")!r}, "overlay")
work.everything(layers)
list(layers.check())
layers.store.close()
import json
print(json.dumps(opened))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    opened = json.loads(done.stdout.splitlines()[-1])
    assert any("/locks/layers" in path for path in opened), "the hook sees nothing"
    assert [path for path in opened if "db.sqlite" in path] == []


def test_garbage_behind_the_database_is_ignored_or_told(layers):
    """What is behind the last whole transaction of the write-ahead log is none of it."""
    image = work.pull(layers)
    root, name = layers.store.root, layers.name
    layers.store.close()
    Path(root, "db.sqlite-wal").write_bytes(os.urandom(40_000))
    Path(root, "db.sqlite-shm").write_bytes(os.urandom(32_768))
    layers = work.opened(root, name)
    assert layers.by_chain_id(image.chain_ids[-1]) is not None
    assert layers.store.query("pragma integrity_check") == [("ok",)]
    layers.store.close()
    with open(f"{root}/db.sqlite", "r+b") as f:
        f.seek(4096)
        f.write(os.urandom(60_000))
    with pytest.raises(StoreError) as told:
        read_everything(root)
    assert told.value.remedy


def read_everything(root):
    store = open_store(root, root + ".run", write=False)
    try:
        for table in ("layers", "images", "chains"):
            store.query(f"select * from {table}")
    finally:
        store.close()


def test_a_purge_goes_on_where_its_budget_or_its_life_ended(layers):
    image = work.pull(layers)
    active = work.create(layers, image)
    with layers.mounted(active, read_only=False) as tree:
        for n in range(3000):
            os.close(os.open(f"file-{n}", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=tree))
    work.remove(layers, active)
    assert layers.purge(0).objects_left > 0
    root = layers.store.root
    purging = subprocess.Popen([sys.executable, str(HERE / "work.py"), root, layers.name, "purge"])
    trash = Path(root, "drivers", layers.name, "trash")
    while purging.poll() is None and sum(len(files) for _, _, files in os.walk(trash)) > 2500:
        continue
    purging.kill()
    purging.wait()
    assert layers.purge(60).objects_left == 0
    assert list(trash.iterdir()) == []
    assert list(layers.check()) == []
