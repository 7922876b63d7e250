"""The driver on a real pool, in the guest: `tests/vm/run -- sh -c 'modprobe zfs; pytest -m guest drivers/zfs'`."""

import contextlib
import errno
import io
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile

import pytest

from cowshed.layers.host import EngineHost
from cowshed.storage import api, options
from cowshed.storage.errors import BadOption, Damaged, InUse, StorageError, Unsupported
from cowshed_conformance import backing, changes, crash, randoms, steps, tree
from cowshed_conformance.harness import Store
from cowshed_conformance.target import Target
from cowshed_driver_zfs import binding, names, plugin
from cowshed_driver_zfs import probe as probing
from cowshed_driver_zfs.reading import Reader

pytestmark = pytest.mark.guest
MIB = 1 << 20


def zfs(*words):
    return backing.tool("zfs", *words)


def target(**chosen):
    return Target("zfs", plugin, options.check(plugin, chosen), chosen, True, 1)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    with backing.file_system("zpool", str(tmp_path_factory.mktemp("pool") / "p"), 512 * MIB) as system:
        yield system


_count = itertools.count()


@pytest.fixture
def store(pool):
    made = Store(target(), f"{pool.path}/store{next(_count)}")
    yield made
    made.discard()
    assert f"cowshed-{made.id}" not in zfs("list", "-Ho", "name"), "destroy() left the dataset"


def dataset(store):
    return f"{names.pool(store.driver._store)}/cowshed-{store.id}"


# ---------------------------------------------------------------- the binding, against OpenZFS's own


@pytest.fixture(scope="module")
def oracle():
    sys.path.append("/usr/lib/python3/dist-packages")
    try:
        import libzfs_core
    finally:
        sys.path.pop()
    return libzfs_core


@pytest.fixture
def ours():
    made = binding.Zfs()
    yield made
    made.close()


@pytest.fixture
def place(pool):
    name = f"{pool.pool}/x{next(_count)}"
    zfs("create", "-o", "mountpoint=legacy", name)
    yield name
    zfs("destroy", "-R", name)


def prop(name, what):
    return zfs("get", "-Hpo", "value", what, name).strip()


def test_each_call_does_what_that_of_openzfs_does(ours, oracle, place):
    a, b = f"{place}/a", f"{place}/b"
    raw_a, raw_b = a.encode(), b.encode()
    ours.create(a)
    oracle.lzc_create(raw_b)
    assert oracle.lzc_exists(raw_a)
    assert ours.exists(b)
    assert not ours.exists(f"{place}/none")
    ours.snapshot(f"{a}@s", {"cowshed:number": "7"})
    oracle.lzc_snapshot([raw_b + b"@s"], {b"cowshed:number": b"7"})
    assert prop(f"{a}@s", "cowshed:number") == prop(f"{b}@s", "cowshed:number") == "7"
    wanted = {"canmount": 2, "quota": 20 * MIB, "cowshed:number": "8"}
    ours.clone(f"{a}1", f"{a}@s", wanted)
    oracle.lzc_clone(
        raw_b + b"1", raw_b + b"@s", {k.encode(): v.encode() if isinstance(v, str) else v for k, v in wanted.items()}
    )
    for what in wanted:
        assert prop(f"{a}1", what) == prop(f"{b}1", what)
    assert (prop(f"{a}1", "canmount"), prop(f"{a}1", "quota")) == ("noauto", str(20 * MIB))
    ours.rename(f"{a}1", f"{a}2")
    assert oracle.lzc_exists(raw_a + b"2")
    ours.promote(f"{a}2")
    oracle.lzc_promote(raw_b + b"1")
    assert (prop(a, "origin"), prop(b, "origin")) == (f"{a}2@s", f"{b}1@s")
    ours.destroy_snapshots([f"{a}2@s", f"{a}2@none"])  # deferred: it has a clone
    oracle.lzc_destroy_snaps([raw_b + b"1@s"], True)
    assert (prop(f"{a}2@s", "defer_destroy"), prop(f"{b}1@s", "defer_destroy")) == ("on", "on")
    ours.destroy(a)
    oracle.lzc_destroy(raw_b)
    assert not ours.exists(f"{a}2@s")
    assert not ours.exists(f"{b}1@s")
    ours.sync(names.pool(place))
    program = 'local a = ...; a = a["argv"] or a; return a["x"] .. "-" .. tostring(zfs.exists(a["x"]))'
    answer = ours.program(names.pool(place), program, {"x": place})
    theirs = oracle.lzc_channel_program_nosync(
        names.pool(place).encode(), program.encode(), params={b"x": place.encode()}
    )
    assert answer == f"{place}-true"
    assert theirs in (answer, answer.encode())  # pyzfs gives back what the program returned


def test_streams_are_those_of_openzfs(ours, oracle, place, tmp_path):
    a = f"{place}/a"
    ours.create(a)
    for name in ("s1", "s2"):
        ours.snapshot(f"{a}@{name}", {})
    for origin in (None, f"{a}@s1"):
        with open(tmp_path / "ours", "wb") as file:
            ours.send(f"{a}@s2", origin, file.fileno())
        with open(tmp_path / "theirs", "wb") as file:
            oracle.lzc_send(f"{a}@s2".encode(), origin.encode() if origin else None, file.fileno())
        data = [(tmp_path / name).read_bytes() for name in ("ours", "theirs")]
        assert data[0] == data[1]
        assert len(data[0]) > 600
        if origin is None:
            with open(tmp_path / "theirs", "rb") as file:
                ours.receive(f"{place}/b@s2", None, {"cowshed:number": "9"}, file.fileno())
            assert prop(f"{place}/b@s2", "guid") == prop(f"{a}@s2", "guid")
            assert prop(f"{place}/b@s2", "cowshed:number") == "9"


def test_a_held_snapshot_goes_with_the_last_hold(ours, oracle, place):
    ours.snapshot(f"{place}@s", {})
    fd = ours.hold(f"{place}@s", "mine")
    assert oracle.lzc_get_holds(f"{place}@s".encode()).keys() == {b"mine"}
    ours.destroy_snapshots([f"{place}@s"])
    assert ours.exists(f"{place}@s")
    os.close(fd)
    assert not ours.exists(f"{place}@s")


def test_errors_are_the_same(ours, oracle, place):
    a = f"{place}/a"
    ours.create(a)
    ours.snapshot(f"{a}@s", {})
    ours.clone(f"{place}/c", f"{a}@s", {})
    new, missing = f"{place}/new", f"{place}/missing"
    for name, arguments, number in (
        ("create", (a,), errno.EEXIST),
        ("create", (f"{missing}/below",), errno.ENOENT),
        ("clone", (a, f"{a}@missing"), errno.EEXIST),
        ("clone", (new, f"{a}@missing"), errno.ENOENT),
        ("snapshot", (f"{a}@s",), errno.EEXIST),
        ("snapshot", (f"{missing}@s",), errno.ENOENT),
        ("destroy", (missing,), errno.ENOENT),
        ("destroy", (a,), errno.EBUSY),
        ("rename", (missing, new), errno.ENOENT),
        ("rename", (f"{place}/c", a), errno.EEXIST),
    ):
        more = ({},) if name in ("clone", "snapshot") else ()
        with pytest.raises(OSError) as raised:
            getattr(ours, name)(*arguments, *more)
        assert raised.value.errno == number, (name, arguments)
        raw = [each.encode() for each in arguments]
        with pytest.raises(oracle.exceptions.ZFSError) as other:
            getattr(oracle, f"lzc_{name}")(*([raw] if name == "snapshot" else raw))
        said = getattr(other.value, "errors", None) or [other.value]
        assert [each.errno for each in said] == [number], (name, arguments)
    with pytest.raises(StorageError, match="no such value"):
        ours.program(names.pool(place), 'error("no such value")', {})
    ours.close()
    with pytest.raises(StorageError):
        ours.exists(a)


# ---------------------------------------------------------------- the store


def test_the_probe_is_good_and_leaves_no_dataset(pool):
    before = zfs("list", "-Ht", "all", "-o", "name")
    report = plugin.probe(f"{pool.path}/not/yet", options.check(plugin, {}), EngineHost())
    assert report.verdict is api.Verdict.GOOD, report.reasons
    assert report.facts["dataset"] == pool.pool
    assert zfs("list", "-Ht", "all", "-o", "name") == before


def test_what_a_killed_probe_has_left_is_taken_away_by_a_later_one(pool, monkeypatch):
    def killed(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def trials():
        return [name for name in zfs("list", "-Ho", "name").split() if "cowshed-probe-" in name]

    def died():
        monkeypatch.setattr(probing, "_undone", killed)
        plugin.probe(f"{pool.path}/not/yet", options.check(plugin, {}), EngineHost())

    with pytest.raises(AssertionError, match="-9"):
        crash.in_child(died)
    left = trials()
    assert [name.rpartition("/")[2] for name in left][1:] == ["clone"]
    for dead, wanted in ((3600.0, left), (-60.0, [])):
        monkeypatch.setattr(probing, "_DEAD", dead)
        report = plugin.probe(f"{pool.path}/not/yet", options.check(plugin, {}), EngineHost())
        assert report.verdict is api.Verdict.GOOD, report.reasons
        assert trials() == wanted


def test_a_directory_elsewhere_needs_a_dataset_and_works_with_one(pool, tmp_path):
    with pytest.raises(BadOption):
        Store(target(), str(tmp_path / "store"))
    made = Store(target(dataset=pool.pool, compression="lz4", recordsize="16K"), str(tmp_path / "store"))
    layer = made.layer(steps.file("a", b"1"))
    assert made.read(layer, "a") == b"1"
    name = dataset(made)
    assert (prop(name, "compression"), prop(name, "recordsize"), prop(name, "atime")) == ("lz4", "16384", "off")
    made.discard()
    assert not (tmp_path / "store").exists()


def test_a_dataset_that_folds_case_and_forms_does_not_hand_that_down(pool, tmp_path):
    name = f"{pool.pool}/folds"
    folds = ("-ocasesensitivity=insensitive", "-onormalization=formD", "-outf8only=on")
    zfs("create", "-o", "mountpoint=legacy", *folds, name)
    made = Store(target(dataset=name), str(tmp_path / "store"))
    given = ["A", "a", "\u00e9", "e\u0301", "\udcff"]
    layer = made.layer(*[steps.file(each) for each in given])
    with made.mount(layer, read_only=True) as root:
        assert sorted(os.listdir(root)) == sorted(given)
    made.discard()
    zfs("destroy", name)


def test_sync_disabled_is_poor_and_no_durability(pool, tmp_path):
    name = f"{pool.pool}/fast"
    zfs("create", "-o", "mountpoint=legacy", "-o", "sync=disabled", name)
    report = plugin.probe(str(tmp_path), options.check(plugin, {"dataset": name}), EngineHost())
    assert report.verdict is api.Verdict.POOR
    assert [r.code for r in report.reasons] == ["zfs.sync-disabled"]
    made = Store(target(dataset=name), str(tmp_path / "a"))
    assert made.capabilities.durability is api.Durability.NONE
    made.discard()
    made = Store(target(dataset=name, sync="standard"), str(tmp_path / "b"))
    assert made.capabilities.durability is api.Durability.COMMIT
    made.discard()
    zfs("destroy", name)


def test_a_store_in_use_is_not_destroyed_and_says_who_uses_it(pool, tmp_path):
    made = Store(target(), f"{pool.path}/used")
    layer = made.layer(steps.file("a"))
    at = tmp_path / "at"
    at.mkdir()
    subprocess.run(["mount", "-t", "zfs", f"{dataset(made)}/committed.{layer.id}", at], check=True)
    with pytest.raises(InUse) as raised:
        plugin.destroy(made.root, made.target.options, EngineHost(), store=made.id)
    assert any(f"process {os.getpid()} " in line or "process" in line for line in raised.value.holders)
    subprocess.run(["umount", at], check=True)
    made.driver.close()
    plugin.destroy(made.root, made.target.options, EngineHost(), store=made.id)
    assert not os.path.exists(made.root)


def test_the_tool_and_the_program_see_the_same(store):
    base = store.layer(steps.file("a"))
    store.driver.remove(store.new(base))
    taken = store.plan()
    store.driver.snapshot(
        store.new(base), api.Layer(taken.id, taken.number, api.Kind.COMMITTED, base), api.Durability.NONE
    )
    reader = store.driver._reader
    tool = Reader(store.driver._zfs, dataset(store), EngineHost())
    tool.read_only = True
    assert tool.objects(dataset(store)) == reader.objects(dataset(store))
    for name in (
        f"{dataset(store)}/committed.{base.id}",
        f"{dataset(store)}/committed.{base.id}@c",
        f"{dataset(store)}/no",
    ):
        wanted = ("used", "referenced", "cowshed:number")
        assert tool.properties(name, *wanted) == reader.properties(name, *wanted)


# ---------------------------------------------------------------- space


def write(root, name, size):
    with open(f"{root}/{name}", "wb") as file:
        file.write(os.urandom(size))
        file.flush()
        os.fsync(file.fileno())


def test_a_limit_counts_what_is_written_over_the_parents_data(store):
    base = store.layer(steps.file("big", os.urandom(8 * MIB)))
    layer = store.prepare(store.plan(base), api.LayerOptions(quota=api.Quota(bytes=4 * MIB)))
    with store.mount(layer) as root:
        os.unlink(f"{root}/big")  # makes no room: it is not the layer's own
        write(root, "a", 3 * MIB)
        with pytest.raises(OSError) as raised:
            write(root, "b", 8 * MIB)
        assert raised.value.errno in (errno.EDQUOT, errno.ENOSPC)
    usage = store.driver.usage(layer)
    assert usage.exact
    assert 3 * MIB < usage.own < 6 * MIB


def test_a_layer_that_a_stranger_has_cloned_stays_until_the_clone_has_gone(pool, store):
    base = store.layer(steps.file("a", b"1"))
    clone, elsewhere = f"{pool.pool}/x{next(_count)}", prop(f"{dataset(store)}/committed.{base.id}@c", "guid")
    zfs("clone", "-o", "mountpoint=legacy", f"{dataset(store)}/committed.{base.id}@c", clone)
    store.driver.remove(base)
    assert store.purge().objects_left == 1
    store.driver.close()
    with pytest.raises(InUse):
        plugin.destroy(store.root, store.target.options, EngineHost(), store=store.id)
    assert prop(prop(clone, "origin"), "guid") == elsewhere
    zfs("destroy", clone)
    plugin.destroy(store.root, store.target.options, EngineHost(), store=store.id)
    assert f"cowshed-{store.id}" not in zfs("list", "-Ho", "name")


def test_a_snapshot_held_by_a_stranger_delays_the_removal_only(store):
    base = store.layer(steps.file("a", os.urandom(MIB)))
    name = f"{dataset(store)}/committed.{base.id}@c"
    zfs("hold", "backup", name)
    store.driver.remove(base)
    assert store.purge().objects_left == 1
    zfs("release", "backup", name.replace("committed.", "trash."))
    assert store.purge().objects_left == 0
    assert store.scan() == []


@pytest.mark.parametrize("first", ["layer", "snapshot"])
def test_a_layer_and_its_live_snapshots_go_in_any_order(store, first):
    base = store.layer(steps.file("a", b"0"))
    active = store.new(base)
    taken = []
    with store.mount(active) as root:
        for n in range(3):
            write(root, f"f{n}", MIB)
            planned = store.plan()
            new = api.Layer(planned.id, planned.number, api.Kind.COMMITTED, base)
            store.driver.snapshot(active, new, api.Durability.COMMIT)
            assert store.driver.snapshot(active, new, api.Durability.COMMIT) == {}
            taken.append(new)
    for n, new in enumerate(taken):
        with store.mount(new, read_only=True) as root:
            assert sorted(os.listdir(root)) == ["a", *[f"f{i}" for i in range(n + 1)]]
        assert changes.of_driver(store, base, new) == changes.naive(store.look(base), store.look(new))
    assert changes.of_driver(store, base, active) == changes.naive(store.look(base), store.look(active))
    wanted = store.look(active)
    order = [active, *taken] if first == "layer" else [taken[1], taken[0], taken[2], active]
    for layer in order:
        store.driver.remove(layer)
        assert store.purge().objects_left == 0
        if layer is not active and first == "snapshot":
            tree.same(wanted, store.look(active), "the removal of a snapshot changed its layer")
    assert store.living() == {(base.id, base.kind)}
    snapshots = zfs("list", "-Hrt", "snapshot", "-o", "name", dataset(store)).split()
    assert {each.partition("@")[2] for each in snapshots} == {"c"}, "a snapshot that nothing needs is left"


# ---------------------------------------------------------------- streams


def test_layers_are_sent_and_received(pool, store):
    base = store.layer(steps.file("a", os.urandom(MIB)), steps.directory("d"), steps.link("a", "d/b"))
    top = store.layer(steps.append("a", b"+"), steps.remove("d/b"), parent=base)
    other = Store(target(), f"{pool.path}/received")
    made = None
    for layer in (base, top):
        out = io.BytesIO()
        store.driver.send(layer, layer.parent, "zfs-send", out)
        new = api.Layer(layer.id, layer.number, layer.kind, made)
        for _ in range(2):
            out.seek(0)
            other.driver.receive(new, made, "zfs-send", out, api.Durability.COMMIT)
        tree.same(store.look(layer), other.look(new), "what was received differs")
        made = new
    assert {(x.layer, x.number, x.parent) for x in other.scan()} == {
        (base.id, base.number, None),
        (top.id, top.number, base.id),
    }
    child = other.new(made, steps.file("new"))
    assert changes.of_driver(other, made, child) == {"new": "A", ".": "C"}
    # and what was made there comes back, on what had been sent
    back, out = other.commit(child), io.BytesIO()
    other.driver.send(back, made, "zfs-send", out)
    here = api.Layer(back.id, back.number, back.kind, top)
    out.seek(0)
    store.driver.receive(here, top, "zfs-send", out, api.Durability.COMMIT)
    tree.same(other.look(back), store.look(here), "what came back differs")
    other.discard()


def test_streams_that_do_not_fit_are_refused_and_leave_nothing(store):
    base = store.layer(steps.file("a"))
    top, stranger = store.layer(steps.file("b"), parent=base), store.layer(steps.file("z"))
    out, whole = io.BytesIO(), io.BytesIO()
    store.driver.send(top, base, "zfs-send", out)
    store.driver.send(base, None, "zfs-send", whole)
    before = store.living()
    planned = store.plan()
    new = api.Layer(planned.id, planned.number, api.Kind.COMMITTED, stranger)
    for data, below in (
        (out.getvalue(), stranger),
        (whole.getvalue()[:-500], None),
        (b"rubbish" * 100, None),
        (b"", None),
    ):
        with pytest.raises((Unsupported, Damaged)) as raised:
            store.driver.receive(new, below, "zfs-send", io.BytesIO(data), api.Durability.COMMIT)
        assert "\n" not in str(raised.value)
    for n, kind in enumerate(("nothing", "link", "file")):
        name = f"{dataset(store)}/foreign{n}"
        zfs("create", "-o", "canmount=noauto", name)
        with store.host.mounted(api.MountPlan((api.FileSystem("zfs", name),))) as opened:
            if kind == "link":
                os.symlink("/tmp", f"{opened.path}/root")
            elif kind == "file":
                os.close(os.open(f"{opened.path}/root", os.O_WRONLY | os.O_CREAT))
        zfs("snapshot", f"{name}@c")
        foreign = subprocess.run(["zfs", "send", f"{name}@c"], capture_output=True, check=True).stdout
        with pytest.raises(Damaged, match="no directory root"):
            store.driver.receive(new, None, "zfs-send", io.BytesIO(foreign), api.Durability.COMMIT)
        zfs("destroy", "-r", name)
    with pytest.raises(Unsupported):
        store.driver.send(base, None, "tar", io.BytesIO())
    assert store.living() == before
    assert store.leftovers() == []


# ---------------------------------------------------------------- changes


def compare(store, lower, upper):
    wanted = changes.naive(store.look(lower), store.look(upper))
    assert changes.of_driver(store, lower, upper) == wanted
    return wanted


def test_attributes_in_a_hidden_directory_and_files_deleted_while_open(store):
    base = store.layer(steps.file("big"), steps.file("held", b"1"), steps.file("<xattrdir>"), steps.directory("d"))
    top = store.new(base)
    with store.mount(top) as root:
        os.setxattr(f"{root}/big", "user.big", b"x" * 65536)  # does not fit in the inode
        os.setxattr(f"{root}/<xattrdir>", "user.small", b"x")
        with open(f"{root}/held") as held:
            os.unlink(f"{root}/held")
            assert compare(store, base, top) == {"big": "C", "held": "D", "<xattrdir>": "C", ".": "C"}
            assert held.read() == "1"
    upper = store.commit(top)
    compare(store, base, upper)
    again = store.new(upper)
    with store.mount(again) as root:
        os.setxattr(f"{root}/big", "user.big", b"y" * 65536)  # the hidden file changes, its owner by the time alone
    assert compare(store, upper, again) == {"big": "C"}


def deepest(root, levels):
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(levels):
        with contextlib.suppress(FileExistsError):
            os.mkdir("x" * 250, dir_fd=fd)
        below = os.open("x" * 250, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    return fd


def test_a_change_below_a_path_longer_than_the_kernel_takes(store):
    base = store.new()
    with store.mount(base) as root:
        os.close(deepest(root, 20))
    base = store.commit(base)
    top = store.new(base)
    with store.mount(top) as root:
        fd = deepest(root, 20)
        os.close(os.open("new", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
        os.close(fd)
    assert any(change.path == b"" and change.subtree for change in store.driver.changes(base, top))


def test_a_change_in_the_same_tick_of_the_clock_is_seen(store):
    """`zfs diff` takes an object whose ctime is the same for unchanged."""
    layer = store.layer(steps.file("a", b"0"))
    for n in range(4):
        top = store.new(layer)
        with store.mount(top) as root, open(f"{root}/a", "r+b", buffering=0) as file:
            file.write(str(n + 1).encode())
        upper = store.commit(top)
        assert "a" in changes.of_driver(store, layer, upper)
        layer = upper


def test_a_file_whose_last_name_has_gone_while_an_older_one_is_left(store):
    """ZFS remembers the directory of the last name only: `zfs diff` finds no path of such a file, and is silent."""
    base = store.layer(
        steps.directory("d"), steps.file("older", b"1"), steps.link("older", "d/later"), steps.remove("d/later")
    )
    top = store.new(base, steps.append("older", b"2"))
    assert changes.of_driver(store, base, top) == {"older": "C"}


def test_what_a_killed_comparison_leaves_is_purged(store):
    base = store.layer(steps.file("a"))
    top = store.new(base, steps.append("a", b"1"))

    def killed():
        for _ in store.driver.changes(base, top):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(AssertionError, match="-9"):
        crash.in_child(killed)
    assert {found.kind for found in store.scan()} <= {api.ObjectKind.LAYER, api.ObjectKind.TEMP}
    store.purge_all()
    assert store.leftovers() == []
    assert changes.of_driver(store, base, top) == {"a": "C"}


def test_random_changes_equal_the_walk():
    """As D22: COWSHED_ZFS_TREES of them, 12 by default. A tree costs one layer, which is mounted once: it is a child of
    the tree before, in chains of 20. The pool lies in memory, and goes as a whole."""
    count = int(os.environ.get("COWSHED_ZFS_TREES", "12"))
    seed = int(os.environ.get("COWSHED_ZFS_SEED", "1"))
    chance = random.Random(seed)
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
        backing.file_system("zpool", f"{folder}/pool", 512 * MIB) as system,
        Store(target(), f"{system.path}/store") as made,
    ):
        for done in range(count):
            if not done % 20:
                lower, before = randomly_changed(made, None, chance, 40)
            upper, after = randomly_changed(made, lower, chance, 12)
            found = changes.between(made.driver, lower, upper, before, after)
            assert found == changes.naive(before, after), f"seed {seed}, tree {done}"
            lower, before = upper, after


def randomly_changed(store, parent, chance, count):
    """A committed layer, and the tree in it."""
    layer = store.new(parent)
    with store.mount(layer) as root:
        randoms.change(root, chance, count)
        seen = tree.read(root)
    return store.commit(layer), seen
