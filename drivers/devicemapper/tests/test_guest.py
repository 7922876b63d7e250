"""What only the kernel can show: `pytest -m guest` in a guest of tests/vm."""

import contextlib
import errno
import os
import subprocess
import threading
import time

import pytest

from cowshed.storage import api, options
from cowshed.storage.errors import BadOption, NoSpace, StorageError, WrongStore
from cowshed_conformance import archive, disks, steps
from cowshed_conformance.backing import take_devices, tool
from cowshed_conformance.harness import Store, held_to_limits, sync
from cowshed_conformance.target import Target
from cowshed_driver_devicemapper import blockdevices, filesystems, plugin, tables
from cowshed_driver_devicemapper.libdevmapper import Target as Line
from cowshed_driver_devicemapper.mapper import Mapper
from cowshed_driver_devicemapper.metadata import Metadata

pytestmark = pytest.mark.guest
MIB = 1 << 20


def target(**given):
    return Target("devicemapper", plugin, options.check(plugin, given), given, installed=True, seed=0)


@pytest.fixture(scope="module", autouse=True)
def modules():
    for name in ("dm_mod", "dm_thin_pool", "loop", "xfs"):
        subprocess.run(["modprobe", name], check=True)


@contextlib.contextmanager
def pool(folder, size=64 * MIB, name=""):
    """The name of a thin pool that somebody has made."""
    mapper, numbers, opened = Mapper(), [], []
    name = name or f"test-{os.urandom(4).hex()}"
    for part, length in (("metadata", 4 * MIB), ("data", size)):
        with open(f"{folder}/{part}", "wb") as file:
            file.truncate(length)
        opened.append(blockdevices.attach_loop(f"{folder}/{part}"))
        numbers.append(blockdevices.device_number(opened[-1]))
    mapper.create(name, Line(0, size // 512, "thin-pool", tables.pool_parameters(*numbers)))
    for fd in opened:
        os.close(fd)
    try:
        yield name
    finally:
        take_devices(str(folder))


@pytest.fixture
def made(tmp_path):
    with pool(tmp_path) as name:
        yield name


@pytest.fixture
def store(tmp_path):
    there = Store(target(layer_size="64M"), f"{tmp_path}/store")
    yield there
    there.discard()
    take_devices(str(tmp_path))


def test_two_stores_and_strangers_share_a_pool(tmp_path, made):
    mapper = Mapper()
    mapper.message(made, "create_thin 1")  # as LVM would
    mapper.message(made, f"create_thin {1 << 20}")  # even where the first slot begins
    one, two = (Store(target(pool=made), f"{tmp_path}/{name}") for name in ("one", "two"))
    layer = one.new(None, steps.file("a", b"one"))
    two.prepare(api.Layer(layer.id, layer.number, layer.kind))
    two.change(layer, steps.file("a", b"two"))
    with one.mount(layer) as here, two.mount(layer) as there:
        assert (steps.read(here, "a"), steps.read(there, "a")) == (b"one", b"two")
    assert len(mapper.thin_devices(made)) == 6
    two.discard()
    assert one.read(layer, "a") == b"one"
    one.discard()
    assert sorted(mapper.thin_devices(made)) == [1, 1 << 20]
    assert [name for name in mapper.names() if name.startswith(made)] == [made]


def test_another_pool_of_the_same_name_is_refused(tmp_path):
    folders = [f"{tmp_path}/{name}" for name in ("first", "second")]
    for folder in folders:
        os.mkdir(folder)
    with pool(folders[0]) as name:
        there = Store(target(pool=name), f"{tmp_path}/store")
        layer = there.new(None, steps.file("a", b"1"))
        there.reopen()
        assert there.read(layer, "a") == b"1"
        there.driver.close()
    with pool(folders[1], name=name):
        with pytest.raises(WrongStore, match="another one"):
            there.open()
        other = Store(target(pool=name), f"{tmp_path}/other")  # has the same slot there
        with pytest.raises(WrongStore, match="another one"):
            there.open()
        other.discard()


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_full_pool_is_an_error_and_no_hang(tmp_path, kind):
    with pool(tmp_path, 64 * MIB if kind == "ext4" else 176 * MIB) as name:
        size = "56M" if kind == "ext4" else "300M"
        there = Store(target(pool=name, filesystem=kind, layer_size=size), f"{tmp_path}/store")
        layers = [there.new(), there.new()]
        began = time.monotonic()
        with there.mount(layers[0]) as root, there.mount(layers[1]) as other:
            with pytest.raises(OSError) as raised:  # noqa: PT012 - whichever of them is the last that fits
                for n in range(200):
                    for at in (root, other):
                        steps.do(at, steps.file(f"f{n}", os.urandom(MIB)))
                        sync(at)
            assert raised.value.errno in (errno.ENOSPC, errno.EIO, errno.EROFS)
        assert time.monotonic() - began < 200, "a full pool holds its writers"
        with pytest.raises(NoSpace):
            there.new()
        for layer in layers:
            there.driver.remove(layer)
        there.purge_all()
        layer = there.new(None, steps.file("again", b"1"))
        assert there.read(layer, "again") == b"1"
        there.discard()


class FlakyDisk:
    """A disk whose writes fail for as long as one wants (dm-flakey, error_writes)."""

    def __init__(self, name, below, sectors):
        self.name, self.path, self._below, self._sectors = name, f"/dev/mapper/{name}", below, sectors

    @contextlib.contextmanager
    def failing(self):
        self._become(f"flakey {self._below} 0 0 600 1 error_writes")
        try:
            yield
        finally:
            self._become(f"linear {self._below} 0")

    def _become(self, what):
        tool("dmsetup", "load", self.name, "--table", f"0 {self._sectors} {what}")
        tool("dmsetup", "suspend", "--noflush", "--nolockfs", self.name)
        tool("dmsetup", "resume", self.name)


@contextlib.contextmanager
def disk(folder, name, size):
    with open(f"{folder}/{name}", "wb") as file:
        file.truncate(size)
    with disks.loop(f"{folder}/{name}") as below:
        with disks.mapped(disks.Piece(0, size // 512, f"linear {below} 0")) as made:
            yield FlakyDisk(made, below, size // 512)


@pytest.fixture
def on_disks(tmp_path):
    """A store whose pool lies on two such disks."""
    disks.require("flakey", "linear")
    with disk(tmp_path, "data", 96 * MIB) as data, disk(tmp_path, "metadata", 4 * MIB) as metadata:
        given = target(data_device=data.path, metadata_device=metadata.path, layer_size="32M")
        there = Store(given, f"{tmp_path}/store")
        yield there, data, metadata
        there.discard()
        assert not [name for name in Mapper().names() if name.startswith(there.driver.pool.name)]


def test_a_disk_that_fails_to_write_data_is_an_error_of_that_layer_alone(on_disks):
    """X06 on a real disk: the old state or the new, and all goes on once the disk does."""
    store, data, _ = on_disks
    base = store.layer(steps.file("a", b"1" * 5000))
    wanted = store.look(base)
    top, other = store.new(base, steps.file("b", b"2")), store.new(base, steps.file("c", b"3"))
    began = time.monotonic()
    with store.mount(top) as root, data.failing():
        with pytest.raises(OSError) as raised:  # noqa: PT012 - the write, or when it is written back
            steps.do(root, steps.file("lost", os.urandom(MIB)))
            sync(root)
        assert raised.value.errno in (errno.EIO, errno.EROFS)
    with data.failing():
        new = store.committed(other)
        with contextlib.suppress(OSError, StorageError):
            store.driver.commit(other, new, api.Durability.COMMIT)
    assert time.monotonic() - began < 200, "a failing disk holds its writers"
    assert store.look(base) == wanted
    if not store.has(new):
        store.driver.commit(other, new, api.Durability.COMMIT)
    assert store.read(new, "c") == b"3"
    store.driver.remove(top)
    store.purge_all()
    again = store.new(new, steps.file("again", b"1"))
    assert store.read(again, "again") == b"1"
    assert store.leftovers() == []


def test_a_disk_that_fails_to_write_metadata_stops_the_pool_until_it_is_checked(on_disks):
    store, _, metadata = on_disks
    base = store.layer(steps.file("a", b"1" * 5000))
    wanted = store.look(base)
    lost = store.plan(base)
    with metadata.failing():
        with pytest.raises((OSError, StorageError)) as raised:
            store.prepare(lost)
        assert "\n" not in str(raised.value)
        assert store.look(base) == wanted, "what is there cannot be read any more"
    assert store.driver.health().reasons[-1].verdict is api.Verdict.POOR
    with pytest.raises(StorageError, match="read-only") as raised:
        store.new(base)
    assert "thin_check" in raised.value.remedy
    store.driver.close()
    Mapper().remove(store.driver.pool.name)
    store.driver = store.open()  # after a boot, before anybody has looked at it
    assert store.look(base) == wanted, "what is there cannot be read any more"
    with pytest.raises(NoSpace, match="needs a check"):
        store.new(base)
    store.driver.pool.down()
    store.driver.close()
    tool("thin_check", "--clear-needs-check-flag", metadata.path)
    store.driver = store.open()
    assert store.look(base) == wanted
    assert {found[0] for found in store.living()} == {base.id}
    store.purge_all()
    assert store.read(store.new(base, steps.file("b", b"2")), "b") == b"2"
    assert [found.kind for found in store.scan()] == [api.ObjectKind.LAYER] * 2


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_layer_grows_for_a_limit_beyond_what_layers_hold(tmp_path, kind):
    holds = 64 if kind == "ext4" else 300
    there = Store(target(filesystem=kind, layer_size=f"{holds}M", loop_size="2G"), f"{tmp_path}/store")
    base = there.layer(steps.file("a", b"1" * 5000))
    top = there.prepare(there.plan(base), api.LayerOptions(quota=api.Quota(bytes=(holds + 100) * MIB)))

    def fill(root, name, size):
        fd = os.open(f"{root}/{name}", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            with held_to_limits():
                os.posix_fallocate(fd, 0, size * MIB)
        finally:
            os.close(fd)

    with there.mount(top) as root:
        fill(root, "most", holds + 90)
        with pytest.raises(OSError) as raised:
            fill(root, "more", 60)
        assert raised.value.errno in (errno.EDQUOT, errno.ENOSPC)
        there.driver.set_quota(top, api.Quota(bytes=(holds + 200) * MIB))  # while it is mounted
        fill(root, "more", 60)
        steps.do(root, steps.file("b", b"2"))
    there.driver.set_quota(top, api.Quota(bytes=(holds + 300) * MIB))
    large = there.commit(top, None, api.Durability.COMMIT)
    child = there.new(large, steps.append("b", b"3"))
    with there.mount(child) as root:
        assert os.stat(f"{root}/more").st_size == 60 * MIB
        assert steps.read(root, "b") == b"23"
        fill(root, "even", 90)
    assert list(there.driver.check([base, large], deep=True)) == []
    sizes = [there.driver.device(layer).sectors * 512 // MIB for layer in (base, large, child)]
    assert sizes[0] == holds
    assert sizes[1] == sizes[2] > holds + 300
    if kind == "ext4":
        found = dict(archive.of_engine(there, base, large)[0])
        assert found == {".": "C", "b": "A", "more": "A", "most": "A"}
    there.discard()
    take_devices(str(tmp_path))


def test_changes_are_found_by_blocks_and_not_by_comparing_all(tmp_path):
    """Of an active layer too, mounted or not, with nothing left of the snapshot that it takes."""
    there = Store(target(loop_size="400M", layer_size="200M"), f"{tmp_path}/store")
    many = [steps.file(f"d/f{n}", b"x" * 100) for n in range(300)]
    base = there.layer(steps.directory("d"), steps.file("a", b"1"), *many)
    devices = there.driver.pool.devices().keys()
    top = there.new(base)
    assert list(there.driver.changes(base, top)) == []
    there.change(top, steps.append("d/f7", b"+"), steps.remove("a"))
    wanted = {b"", b"a", b"d/f7"}
    assert {change.path for change in there.driver.changes(base, top)} == wanted
    with there.mount(top) as root:
        assert steps.read(root, "d/f9") == b"x" * 100
        assert {change.path for change in there.driver.changes(base, top)} == wanted
        steps.do(root, steps.file("d/new"))  # not written back
        assert {change.path for change in there.driver.changes(base, top)} == wanted | {b"d", b"d/new"}
    assert there.driver.pool.devices().keys() == devices | {there.driver.device(top).thin}
    assert there.leftovers() == []
    done = there.commit(top)
    assert {change.path for change in there.driver.changes(base, done)} == wanted | {b"d", b"d/new"}
    there.discard()
    take_devices(str(tmp_path))


def test_the_metadata_are_read_as_the_tools_read_them(store):
    base = store.layer(steps.file("a", os.urandom(3 * MIB)))
    child = store.new(base, steps.file("b", os.urandom(MIB)), steps.append("a", b"+"))
    mapper, name = Mapper(), store.driver.pool.name
    node = blockdevices.node_of(tables.parse_pool_table(mapper.table(name)[0].parameters).metadata)
    with Metadata(node) as metadata:
        devices = metadata.devices()
        difference = metadata.difference(base.number, child.number)
        assert metadata.difference(base.number, base.number) == []
    mapper.message(name, "reserve_metadata_snap")
    try:
        listed = subprocess.run(
            ["thin_ls", "--no-headers", "-m", "-o", "DEV,MAPPED_BLOCKS", node],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        words = ["thin_delta", "-m", "--thin1", str(base.number), "--thin2", str(child.number), node]
        xml = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    finally:
        mapper.message(name, "release_metadata_snap")
    assert devices == {int(a): int(b) for a, b in (line.split() for line in listed.splitlines())}
    told = []
    for line in xml.splitlines():
        kind = line.strip().partition(" ")[0].lstrip("<")
        if kind in ("different", "left_only", "right_only"):
            told.append((int(line.split('"')[1]), int(line.split('"')[3])))
    blocks = [n for first, count in told for n in range(first, first + count)]
    assert [n for first, count in difference for n in range(first, first + count)] == blocks
    assert 16 <= len(blocks) < 40


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_snapshot_of_a_busy_layer_needs_no_repair(tmp_path, kind):
    there = Store(target(filesystem=kind, loop_size="400M", layer_size="300M"), f"{tmp_path}/store")
    layer = there.new()
    stop = threading.Event()

    def writes(root):
        for n in range(10_000):
            steps.do(root, steps.file(f"f{n}", b"x" * 20_000))
            if stop.is_set():
                return

    with there.mount(layer) as root:
        writer = threading.Thread(target=writes, args=(root,))
        writer.start()
        time.sleep(1)
        new = api.Layer(there.plan().id, 77, api.Kind.COMMITTED)
        there.driver.snapshot(layer, new, api.Durability.COMMIT)
        assert there.driver.snapshot(layer, new, api.Durability.COMMIT) == {}
        seen = len(os.listdir(root))
        stop.set()
        writer.join()
        assert len(os.listdir(root)) >= seen, "the layer does not go on"
    names = there.look(new)
    assert 1 < len(names) <= seen + 1
    there.driver.activate(new, read_only=True)
    node = there.mounts(new).steps[0].source
    check = ["e2fsck", "-fn", node] if kind == "ext4" else ["xfs_repair", "-n", node]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    there.driver.deactivate(new)
    assert done.returncode == 0, done.stdout + done.stderr
    there.discard()
    take_devices(str(tmp_path))


def test_what_a_dead_snapshot_holds_goes_on_at_the_next_open(store):
    layer = store.new()
    mapper = Mapper()
    with store.mount(layer) as root:
        mapper.suspend(f"{store.driver.pool.prefix}{layer.id}")
        store.reopen()
        steps.do(root, steps.file("a", b"1"))
        sync(root)
    assert store.read(layer, "a") == b"1"


def test_after_a_reboot_the_pool_is_set_up_and_an_older_one_is_refused(tmp_path, store):
    layer = store.new(None, steps.file("a", b"1"))
    metadata = f"{store.root}/pool/metadata"

    def reboot():
        store.driver.close()
        take_devices(str(tmp_path))

    reboot()
    with open(metadata, "rb") as file:
        older = file.read()
    for n in range(2):
        store.driver = store.open()
        assert store.read(layer, "a") == b"1"
        store.change(layer, steps.file(f"b{n}"))
        reboot()
    with open(metadata, "rb") as file:
        newer = file.read()
    with open(metadata, "wb") as file:
        file.write(older)
    with pytest.raises(WrongStore, match="another time"):
        store.open()
    assert not [name for name in Mapper().names() if name.startswith("cowshed-")], "a refused pool is left"
    with open(metadata, "wb") as file:
        file.write(newer)
    store.driver = store.open()
    assert store.read(layer, "a") == b"1"


def test_a_base_that_is_not_the_stores_is_noticed(store):
    layer = store.new(None, steps.file("a", b"1"))
    store.driver.activate(layer, read_only=False)
    node = store.mounts(layer).steps[0].source
    size = store.driver.pool.known.sectors * 512
    subprocess.run(filesystems.mkfs("ext4", node, "f" * 32, size, quota=True, zeroed=False), check=True)
    store.driver.deactivate(layer)
    with pytest.raises(Exception, match="not the ext4") as raised:
        store.commit(layer)
    assert raised.value.code == "damaged"


def test_devices_that_hold_data_are_not_taken_and_come_back_blank(tmp_path):
    opened = []
    for name, size in (("metadata", 4), ("data", 64)):
        with open(f"{tmp_path}/{name}", "wb") as file:
            file.truncate(size * MIB)
        opened.append(blockdevices.attach_loop(f"{tmp_path}/{name}"))
    nodes = [blockdevices.node_of(blockdevices.device_number(fd)) for fd in opened]
    given = target(metadata_device=nodes[0], data_device=nodes[1], layer_size="32M")
    try:
        for _ in range(2):
            there = Store(given, f"{tmp_path}/store")
            layer = there.layer(steps.file("a", b"1"))
            with pytest.raises(BadOption, match="Device or resource busy"):
                Store(given, f"{tmp_path}/other")
            there.driver.close()
            Mapper().remove(there.driver.pool.name)  # a reboot
            there.driver = there.open()
            assert there.read(layer, "a") == b"1"
            there.discard()
            assert not os.path.exists(f"{tmp_path}/store")
        with open(nodes[0], "r+b") as device:
            device.write(b"something")
        with pytest.raises(BadOption, match="holds data"):
            Store(given, f"{tmp_path}/other")
    finally:
        for fd in opened:
            os.close(fd)


def test_a_disk_that_has_the_name_of_the_pools_after_a_boot_is_not_touched(tmp_path):
    sizes = {"metadata": 4, "data": 64, "other": 64}
    with contextlib.ExitStack() as stack:
        nodes = {}
        for name, size in sizes.items():
            with open(f"{tmp_path}/{name}", "wb") as file:
                file.write(os.urandom(MIB) if name == "other" else b"")
                file.truncate(size * MIB)
            nodes[name] = stack.enter_context(disks.loop(f"{tmp_path}/{name}"))
        link, mapper = f"{tmp_path}/link", Mapper()

        def name_is_of(name):
            os.symlink(nodes[name], f"{link}.new")
            os.rename(f"{link}.new", link)

        name_is_of("data")
        there = Store(
            target(metadata_device=nodes["metadata"], data_device=link, layer_size="32M"), f"{tmp_path}/store"
        )
        layer = there.layer(steps.file("a", b"1"))
        there.driver.remove(there.new(layer, steps.file("b", b"2" * MIB)))
        there.driver.pool.down()  # as a boot does
        there.driver.close()
        with open(nodes["other"], "rb") as device:
            before = device.read()
        name_is_of("other")
        with pytest.raises(WrongStore, match="another one"):
            there.open()
        assert mapper.info(there.driver.pool.name) is None, "a refused pool is left"
        with open(nodes["other"], "rb") as device:
            blockdevices.forget_cached(device.fileno())
            assert device.read() == before
        name_is_of("data")
        there.driver = there.open()
        there.purge_all()
        assert there.read(layer, "a") == b"1"
        there.discard()


def test_with_udevd_beside_it_nothing_is_busy(store):
    daemon = next(
        (p for p in ("/lib/systemd/systemd-udevd", "/usr/lib/systemd/systemd-udevd") if os.path.exists(p)), ""
    )
    if not daemon:
        pytest.skip("no udevd is installed")
    udevd = subprocess.Popen([daemon], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 30
        while not os.path.exists("/run/udev/control"):
            assert time.monotonic() < until
            time.sleep(0.1)
        layer = store.new(None, steps.file("a", b"1"))
        for _ in range(12):
            store.change(layer, steps.append("a", b"+"))
            child = store.new(store.commit(store.new(None, steps.file("b"))))
            store.driver.remove(child)
        store.purge_all()
        assert store.read(layer, "a") == b"1" + b"+" * 12
        until = time.monotonic() + 10
        while [name for name in Mapper().names() if name.startswith(store.driver.pool.prefix)]:
            assert time.monotonic() < until, "a device outlives its mount"
            time.sleep(0.05)
    finally:
        udevd.terminate()
        udevd.wait()
