"""Plans become mounts; layers in use are not removed; a driver's host; fault points."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cowshed.layers import faults, mounting, unused
from cowshed.layers.host import EngineHost
from cowshed.state import journal
from cowshed.state import layers as rows
from cowshed.state.store import open_store
from cowshed.storage import api
from cowshed.storage.errors import BadOption, Cancelled, InUse, ToolFailed, WrongStore
from cowshed_linux import mount


def load(name):
    spec = importlib.util.spec_from_file_location(f"layers_{name}", Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


work, trees = load("work"), load("trees")


@pytest.fixture(params=["overlay", "copy"])
def layers(tmp_path, request):
    it = work.opened(str(tmp_path / "store"), request.param)
    yield it
    it.store.close()


def names(fd, path=""):
    return sorted(os.listdir(f"/proc/self/fd/{fd}/{path}"))


def tree(folder, **files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(folder)


# ---------------------------------------------------------------- plans


def test_a_bind_is_read_only_if_it_says_so_or_the_caller_does(tmp_path):
    folder = tree(tmp_path / "a", one="1")
    for step, read_only in ((api.Bind(folder, True), False), (api.Bind(folder), True)):
        with mounting.mounted(api.MountPlan((step,)), read_only=read_only) as mounted:
            assert names(mounted.fd) == ["one"]
            with pytest.raises(OSError, match="Read-only"):
                os.open(mounted.path + "/two", os.O_CREAT | os.O_WRONLY)
    with mounting.mounted(api.MountPlan((api.Bind(folder),))) as mounted:
        Path(mounted.path, "two").write_text("2")
    assert Path(folder, "two").read_text() == "2"


def test_a_source_may_be_a_path_of_any_length(tmp_path):
    """fsconfig(2) takes at most 255 bytes; the mount table names the end of the path."""
    deep = tmp_path.joinpath(*["long" * 20] * 6)
    deep.mkdir(parents=True)
    fd = mounting.detached(api.MountPlan((api.FileSystem("tmpfs", f"{deep}/the-image"),)))
    try:
        assert names(fd) == []
    finally:
        os.close(fd)


def test_overlay_of_many_layers_with_hard_names(tmp_path):
    lowers = [tree(tmp_path / f"l:{n},\\{n}", **{f"f{n}": "x"}) for n in range(200)]
    (tmp_path / "up").mkdir()
    (tmp_path / "work").mkdir()
    plan = api.MountPlan((api.Overlay(tuple(lowers), str(tmp_path / "up"), str(tmp_path / "work")),))
    fd = mounting.detached(plan)
    assert len(names(fd)) == 200
    Path(f"/proc/self/fd/{fd}/new").write_text("n")
    os.close(fd)
    assert (tmp_path / "up/new").read_text() == "n"


def test_a_step_may_stand_on_an_earlier_one_and_a_plan_may_name_a_folder_in_it(tmp_path):
    below = tree(tmp_path / "below", **{"root/one": "1"})
    other = tree(tmp_path / "other", two="2")
    steps = (api.Bind(below), api.Overlay((api.Step(0, "root"), other)))
    fd = mounting.detached(api.MountPlan(steps))
    assert names(fd) == ["one", "two"]
    os.close(fd)
    fd = mounting.detached(api.MountPlan((api.Bind(below),), subpath="root"))
    assert names(fd) == ["one"]
    os.close(fd)


def test_a_failing_plan_leaves_no_descriptor_and_tells_what_the_kernel_said(tmp_path):
    before = os.listdir("/proc/self/fd")
    steps = (api.Bind(tree(tmp_path / "a", x="")), api.Overlay((str(tmp_path / "missing"), str(tmp_path / "a"))))
    with pytest.raises(OSError, match="missing"):
        mounting.detached(api.MountPlan(steps))
    assert os.listdir("/proc/self/fd") == before


def test_nothing_is_seen_on_the_host(tmp_path):
    with mounting.mounted(api.MountPlan((api.Bind(tree(tmp_path / "here", x="")),))):
        assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


# ---------------------------------------------------------------- in use


def test_a_layer_mounted_by_another_command_is_in_use(layers):
    layer = work.create(layers, work.pull(layers))
    other = open_store(layers.store.root, layers.store.root + ".run")
    other.locks.take("mounts", layer.number)
    with pytest.raises(InUse, match="mounted by a running"):
        layers.remove(layer)
    other.close()
    work.remove(layers, layer)


def test_a_layer_mounted_in_any_namespace_is_in_use_and_its_holder_is_named(layers, monkeypatch):
    monkeypatch.setattr(unused, "PATIENCE", 0.02)
    layer = work.create(layers, work.pull(layers))
    fd = mounting.detached(layers.plan(layer, read_only=False))
    code = (
        "import sys, os; from cowshed_linux import mount, process; process.unshare(process.CLONE_NEWNS);"
        "mount.mount(None, '/', None, mount.REC | mount.PRIVATE); mount.attach(int(sys.argv[1]), '/mnt');"
        "os.close(int(sys.argv[1])); print('ready', flush=True); os.read(0, 1)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(fd)], pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    os.close(fd)
    assert holder.stdout.readline() == b"ready\n"
    with pytest.raises(InUse, match=f"process {holder.pid}"):
        layers.remove(layer)
    with pytest.raises(InUse):
        layers.commit(layer)
    assert journal.get(layers.store, layer.number) is None
    holder.communicate(b"x")
    work.remove(layers, layer)


def test_a_detached_mount_that_no_namespace_shows_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(unused, "PATIENCE", 0.02)
    layers = work.opened(str(tmp_path / "store"), "overlay")
    layer = work.create(layers, work.pull(layers))
    fd = mounting.detached(layers.plan(layer, read_only=False))
    with pytest.raises(InUse, match="detached mount"):
        layers.remove(layer)
    os.close(fd)
    work.remove(layers, layer)
    layers.store.close()


def test_a_committed_layer_is_looked_at_by_two_and_not_removed_meanwhile(layers):
    work.pull(layers, diffs=work.DIFFS[:1])
    number = rows.list_all(layers.store, layers.name)[0].number
    top = layers.load(number)
    other = work.opened(layers.store.root, layers.name)
    with layers.mounted(top, read_only=True) as one, other.mounted(top, read_only=True) as two:
        assert names(one) == names(two) == ["aa"]
        with layers.store.transaction() as tx:
            tx.execute("delete from chains")
        third = work.opened(layers.store.root, layers.name)
        third.remove_unreferenced()
        assert rows.get(layers.store, number) is not None
        third.store.close()
    layers.remove_unreferenced()
    assert rows.get(layers.store, number) is None
    other.store.close()


def test_one_look_at_all_mount_tables_serves_many_removals(layers, monkeypatch):
    """And one among them that is in use stays."""
    monkeypatch.setattr(unused, "PATIENCE", 0.02)
    for n in range(20):
        work.pull(layers, (f"sha256:{n + 1:064x}",), name=f"{n:x}", durability="none")
    looks = []

    class Counting(unused.Shown):
        def __init__(self):
            looks.append(1)
            super().__init__()

    monkeypatch.setattr(unused, "Shown", Counting)
    numbers = [row.number for row in rows.list_all(layers.store, layers.name)]
    assert len(numbers) == 20
    other = work.opened(layers.store.root, layers.name)
    with layers.store.transaction() as tx:
        tx.execute("delete from chains")
    with other.mounted(layers.load(numbers[7]), read_only=True):
        layers.remove_unreferenced()
    assert [row.number for row in rows.list_all(layers.store, layers.name)] == [numbers[7]]
    assert len(looks) == 1
    assert journal.list_all(layers.store) == []
    layers.remove_unreferenced()
    assert rows.list_all(layers.store, layers.name) == []
    other.store.close()


# ---------------------------------------------------------------- layers


def test_s2_a_layer_of_an_earlier_boot_that_was_not_synced_is_made_again(layers):
    image = work.pull(layers)
    old = layers.by_chain_id(image.chain_ids[0])
    with layers.store.transaction() as tx:
        tx.execute("update layers set boot_id = 'earlier', durable = 0")
    assert layers.by_chain_id(image.chain_ids[0]) is None
    assert {finding.code for finding in layers.check()} == {"suspect"}
    work.pull(layers)
    new = layers.by_chain_id(image.chain_ids[0])
    assert new.id != old.id
    layers.remove_unreferenced()  # the suspects gave their chain ids up
    layers.purge(5)
    assert list(layers.check()) == []
    assert len(rows.list_all(layers.store, layers.name)) == 3


@pytest.mark.parametrize("durability", ["none", "commit"])
def test_rows_say_whether_a_layer_was_published_durably(layers, durability):
    image = work.image_row(work.DIFFS[:1])
    sealed = layers.seal(layers.begin(None))
    layers.publish([(sealed, image.chain_ids[0], image.diff_ids[0])], durability, lambda tx: None)
    assert rows.get(layers.store, sealed.number).durable is (durability == "commit")


def test_images_share_layers_and_the_last_one_takes_them_away(layers):
    first = work.pull(layers, work.DIFFS, "1")
    second = work.pull(layers, work.DIFFS[:2], "2")
    work.rmi(layers, first)
    assert len(rows.list_all(layers.store, layers.name)) == 2
    assert layers.by_chain_id(second.chain_ids[-1]) is not None
    work.rmi(layers, second)
    assert rows.list_all(layers.store, layers.name) == []
    assert list(layers.driver.scan()) == []


def test_check_tells_missing_layers_and_orphans(layers):
    work.pull(layers)
    row = rows.list_all(layers.store, layers.name)[0]
    folder = f"{layers.store.root}/drivers/{layers.name}/committed"
    os.rename(f"{folder}/{row.id}", f"{folder}/{'0' * 32}")
    assert sorted(finding.code for finding in layers.check()) == ["missing", "orphan"]


def test_check_tells_what_a_driver_finds_of_its_own_layers(layers):
    """Of layers that nobody works on; a layer that is busy is not shown to it."""
    image = work.pull(layers)
    busy = work.create(layers, image)
    other = work.opened(layers.store.root, layers.name)
    asked, real = [], other.driver

    class Checking:
        capabilities = trees.with_capabilities(real.capabilities, self_check=True)

        def __getattr__(self, name):
            return getattr(real, name)

        def check(self, shown, *, deep):
            asked.append(({layer.number for layer in shown}, deep))
            yield api.Finding("bent", f"layer {min(layer.number for layer in shown)} is bent")

    other.driver = Checking()
    assert [finding.code for finding in other.check(deep=True)] == ["bent"]
    assert asked[0] == ({row.number for row in rows.list_all(layers.store, layers.name)} - {busy.number}, True)
    other.store.close()
    work.remove(layers, busy)


def test_a_driver_store_that_is_gone_or_another_is_refused(layers):
    work.pull(layers)
    folder = f"{layers.store.root}/drivers/{layers.name}"
    os.rename(folder, folder + ".away")
    os.mkdir(folder)
    with pytest.raises(WrongStore, match=r"no \w+ store at"):
        work.opened(layers.store.root, layers.name)
    assert os.listdir(folder) == []
    with pytest.raises(BadOption):
        work.open_driver(layers.store, layers.name, {"nonsense": "1"})


def test_purge_does_not_delete_under_a_call_of_this_process(layers):
    from cowshed.layers.purge import Claim

    with layers.store.transaction() as tx:
        layer = layers.reserve(tx, None, "prepare")
    with Claim(layers.store, layer.id) as mine:
        assert not mine
    assert layers.store.locks.mine("layers", layer.number)
    other = work.opened(layers.store.root, layers.name)
    with Claim(other.store, layer.id) as mine:
        assert not mine
    layers.store.locks.release("layers", layer.number)
    with Claim(other.store, layer.id) as mine:
        assert mine
    other.store.close()


def test_a_number_whose_transaction_failed_is_free_again_at_once(layers):
    def failing():
        with layers.store.transaction() as tx:
            numbers.append(layers.reserve(tx, None, "run").number)
            raise RuntimeError

    numbers = []
    with pytest.raises(RuntimeError):
        failing()
    other = work.opened(layers.store.root, layers.name)
    assert not other.store.locks.held("layers", numbers[0])
    assert not other.store.locks.held("containers", numbers[0])
    other.store.locks.take("containers", numbers[0])  # as a command that is dying just then
    with layers.store.transaction() as tx:
        assert layers.reserve(tx, None, "run").number == numbers[0] + 1
    assert not other.store.locks.held("layers", numbers[0])
    assert other.store.locks.held("containers", numbers[0] + 1)
    other.store.close()


# ---------------------------------------------------------------- host and faults


def test_tools_run_in_the_c_locale_and_fail_with_their_words(tmp_path):
    host = EngineHost()
    assert host.run(["sh", "-c", "echo $LC_ALL"], timeout=5).stdout == b"C\n"
    assert host.run(["sh", "-c", "exit 3"], timeout=5, ok=(0, 3)).returncode == 3
    with pytest.raises(ToolFailed, match="status 4: broken"):
        host.run(["sh", "-c", "echo broken >&2; exit 4"], timeout=5)
    with pytest.raises(ToolFailed, match="not installed"):
        host.run(["no-such-tool-at-all"], timeout=5)
    with pytest.raises(ToolFailed, match="did not end"):
        host.run(["sleep", "5"], timeout=0.05)
    folder, target = tree(tmp_path / "a", one="1"), tmp_path / "target"
    target.mkdir()
    plan = api.MountPlan((api.Bind(folder),))
    assert host.run(["ls", str(target)], timeout=5, mounts=[(plan, str(target))]).stdout == b"one\n"
    assert os.listdir(target) == []


def test_cancelling_stops_at_the_next_step_and_progress_is_told():
    told = []
    host = EngineHost(lambda *words: told.append(words))
    host.progress("copying", 1, 2)
    host.step("one")
    host.cancel()
    with pytest.raises(Cancelled):
        host.step("two")
    with pytest.raises(Cancelled):
        host.progress("copying", 2, 2)
    assert told == [("copying", 1, 2), ("copying", 2, 2)]


def test_a_fault_is_injected_at_the_nth_time_only(monkeypatch):
    monkeypatch.setattr(faults, "_wanted", "error@here:2")
    monkeypatch.setattr(faults, "_count", 0)
    faults.step("here")
    faults.step("elsewhere")
    with pytest.raises(OSError, match="here"):
        faults.step("here")
    faults.step("here")


def test_a_detached_mount_is_attached_where_the_caller_says(tmp_path):
    """What a foreign runtime needs: the same mount at a path of a private namespace."""
    target = tmp_path / "target"
    target.mkdir()
    source = tree(tmp_path / "a", one="1")
    pid = os.fork()
    if pid == 0:
        from cowshed_linux import process

        status = 1
        try:
            process.unshare(process.CLONE_NEWNS)
            mount.mount(None, "/", None, mount.REC | mount.PRIVATE)
            fd = mounting.detached(api.MountPlan((api.Bind(source),)))
            mount.attach(fd, str(target))
            status = int(os.listdir(target) != ["one"])
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert os.listdir(target) == []
