"""`doctor` on sound and on broken hosts: it tells what is wrong and nothing else, and changes nothing."""

import contextlib
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cowshed_testing import plugins
from cowshed_testing.filesystems import mounted

from cowshed_linux import files


@pytest.fixture
def driver():
    return "overlay"


@pytest.fixture
def ground(engine, tmp_path):
    """The engine's store on an ext4 of its own, with room."""
    with mounted("ext4", str(tmp_path / "disk")) as path:
        engine.root = Path(path) / "store"
        yield path
        engine.close()


def looked(engine, *words, env=None):
    """{code: finding} of warnings and errors, and the status."""
    done = engine(*words, "doctor", "--format", "json", env=env)
    assert b"Traceback" not in done.stderr, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for finding in found:
        assert finding["Text"]
        assert finding["Consequence"], finding
        assert finding["Remedy"], finding
        assert not [text for text in finding.values() if "\n" in text]
    kinds = {finding["Severity"] for finding in found}
    assert done.returncode == (2 if "error" in kinds else 1 if "warning" in kinds else 0)
    return {finding["Code"]: finding for finding in found}, done.returncode


def written(path):
    """Bring one file system to its disk: others on this host are not waited for."""
    fd = os.open(path, os.O_RDONLY)
    try:
        files.syncfs(fd)
    finally:
        os.close(fd)


def state(root):
    """Every path below a store, with its content; but for SQLite's files beside the database."""
    found = {}
    for path in sorted(root.rglob("*")):
        if not path.name.startswith("db.sqlite-"):
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
            found[str(path)] = (path.lstat().st_mode, path.lstat().st_size if content else 0, content)
    return found


# ---------------------------------------------------------------- sound


def test_a_sound_host_without_and_with_a_store(engine, ground, greeting):
    assert looked(engine) == ({}, 0)
    assert not engine.root.exists()
    engine.ok("run", "--name", "ended", "-v", "/data", greeting, "sh", "-c", "echo x > /new")
    engine.ok("run", "-d", "--name", "runs", greeting, "sleep", "600")
    engine.ok("--driver", "copy", "create", greeting, "true")
    engine.driver = None
    before = state(engine.root)
    found, status = looked(engine)
    assert set(found) == {"drivers.copy.copies"}, "a poor driver that is used is told"
    assert (found["drivers.copy.copies"]["Severity"], status) == ("warning", 1)
    assert state(engine.root) == before
    engine.ok("rm", "-f", engine.ok("ps", "-aql").strip())
    told = engine("doctor", "--all")
    assert "1 warning" in told.stdout.decode().splitlines()[-1]
    assert "note: Linux " in told.stdout.decode()


def test_text_and_status(engine, ground):
    lines = engine.ok("doctor").splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("sound (")
    engine.driver = "btrfs"
    done = engine("doctor")
    assert done.returncode == 2
    error, consequence, remedy, last = done.stdout.decode().splitlines()
    assert error == f"error: driver btrfs: {ground} is on ext4"
    assert consequence == "  consequence: containers on it cannot be made or started"
    assert remedy.startswith("  what to do: put the store (--root) on a btrfs file system")
    assert last.startswith("1 error (")


# ---------------------------------------------------------------- five broken hosts


def test_a_tool_is_missing(engine, ground):
    engine.driver, engine.options = "devicemapper", ("--driver-option", "filesystem=xfs")
    found, _ = looked(engine, env={"PATH": "/nowhere"})
    (finding,) = found.values()
    assert finding["Code"] == "drivers.devicemapper.no-tool"
    assert finding["Text"] == "driver devicemapper: mkfs.xfs is not installed"
    assert finding["Remedy"] == "install xfsprogs"


def test_metadata_is_full(engine, tmp_path, greeting):
    with mounted("btrfs", str(tmp_path / "disk"), "256M") as path:
        engine.driver, engine.root = "btrfs", Path(path) / "store"
        engine.ok("create", greeting, "true")
        assert looked(engine) == ({}, 0)
        # Chunks of data take all that has none yet; then there is room in them, and none for more metadata.
        with contextlib.suppress(OSError):
            for n in range(1000):
                Path(f"{path}/data-{n}").write_bytes(bytes(8 << 20))
                written(path)
        for n in range(0, 10, 2):
            os.unlink(f"{path}/data-{n}")
        written(path)
        with contextlib.suppress(OSError):
            for n in range(20_000):
                Path(f"{path}/{n}").write_bytes(b"x" * 2000)
        written(path)
        found, _ = looked(engine)
        assert found.keys() & {"places.metadata", "back-ends.metadata"}, found
        (finding,) = [found.pop(code) for code in ("places.metadata", "back-ends.metadata") if code in found]
        assert not found.keys() - {"store.full"}, "SQLite needs a file beside the database, if it is not there yet"
        assert finding["Severity"] == "error"
        assert "metadata is " in finding["Text"]
        assert "btrfs balance" in finding["Remedy"]
        engine.close()


def test_inodes_are_used_up(engine, ground, greeting):
    engine.ok("create", greeting, "true")
    with contextlib.suppress(OSError):
        for n in range(1_000_000):
            os.mknod(f"{ground}/{n}")
    found, _ = looked(engine)
    assert set(found) == {"places.inodes"}
    assert found["places.inodes"]["Severity"] == "error"
    assert " has 0 of " in found["places.inodes"]["Text"]


def test_the_disk_is_full(engine, ground, greeting):
    engine.ok("create", "--name", "box", greeting, "true")
    for name in ("db.sqlite-shm", "ballast"):
        (engine.root / name).unlink(missing_ok=True)
    subprocess.run(["dd", "if=/dev/zero", f"of={ground}/data", "bs=64k"], capture_output=True)
    subprocess.run(["dd", "if=/dev/zero", f"of={ground}/more", "bs=1k"], capture_output=True)
    found, _ = looked(engine)
    assert set(found) == {"places.data", "store.full"}
    assert " has 0 MiB of " in found["places.data"]["Text"]
    os.unlink(f"{ground}/data")
    assert set(looked(engine)[0]) == {"store.no-ballast"}
    engine.ok("rm", "box")
    assert looked(engine) == ({}, 0)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_quota_was_switched_off(engine, tmp_path, greeting, kind):
    image, target = tmp_path / "image", tmp_path / "disk"
    target.mkdir()
    subprocess.run(["truncate", "-s", "400M", image], check=True)
    subprocess.run([f"mkfs.{kind}", "-q", image], check=True)
    quota = ",prjquota" if kind == "xfs" else ""
    done = subprocess.run(["mount", "-o", f"loop{quota}", image, target], capture_output=True)
    if done.returncode:
        pytest.skip("this kernel does not mount xfs with prjquota")
    try:
        engine.root = target / "store"
        if kind == "btrfs":
            if not os.path.exists("/sys/fs/btrfs/features/simple_quota"):
                pytest.skip("this kernel has no simple quotas")
            engine.driver, engine.options = "btrfs", ("--driver-option", "quota=simple")
        engine.ok("create", "--name", "limited", "--storage-opt", "size=10m", greeting, "true")
        assert looked(engine) == ({}, 0)
        if kind == "btrfs":
            subprocess.run(["btrfs", "quota", "disable", target], check=True)
        else:
            subprocess.run(["umount", target], check=True)
            subprocess.run(["mount", "-o", "loop", image, target], check=True)
        found, _ = looked(engine)
        assert set(found) == {"back-ends.quota-off"}
        finding = found["back-ends.quota-off"]
        assert finding["Text"] == f"driver {engine.driver}: no size limit is enforced, and limited has one"
        remedy = (
            f"btrfs quota enable --simple {engine.root}" if kind == "btrfs" else f"umount {target}; mount -o prjquota"
        )
        assert remedy in finding["Remedy"]
        engine.close()
    finally:
        subprocess.run(["umount", "-l", target], check=True)


def test_the_file_system_is_a_wrong_one(engine, tmp_path):
    (tmp_path / "c.toml").write_text('[storage]\ndriver = "btrfs"\n')
    with mounted("tmpfs", str(tmp_path / "disk")) as path:
        engine.driver, engine.root = None, Path(path) / "store"
        found, _ = looked(engine, "--config", str(tmp_path / "c.toml"))
        assert set(found) == {"drivers.btrfs.not-btrfs", "places.in-memory"}
        assert found["drivers.btrfs.not-btrfs"]["Text"] == f"driver btrfs: {path} is on tmpfs"
        assert found["places.in-memory"]["Severity"] == "warning"


def test_mounts_were_left(engine, ground, tmp_path, greeting):
    engine.ok("create", "--name", "box", greeting, "true")
    (layer,) = (engine.root / "drivers/overlay/active").iterdir()
    point = str(layer / "upper")
    subprocess.run(["mount", "--bind", point, point], check=True)
    try:
        found, status = looked(engine)
    finally:
        subprocess.run(["umount", point], check=True)
    assert set(found) == {"leftovers.mount"}
    assert status == 1
    assert found["leftovers.mount"]["Text"] == f"{point} is mounted on this host"
    assert found["leftovers.mount"]["Remedy"] == f"umount {point}"
    assert looked(engine) == ({}, 0)
    # The same in a namespace of somebody else's.
    place = tmp_path / "elsewhere"
    place.mkdir()
    script = f"mount --bind {point} {place} && echo ready && exec sleep 600"
    holder = subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"ready\n"
        found, _ = looked(engine)
    finally:
        holder.kill()
        holder.communicate()
    assert set(found) == {"leftovers.mount"}
    text = f"process {holder.pid} has the layer of container box mounted, which does not run"
    assert found["leftovers.mount"]["Text"] == text


HEALTH = """
from cowshed.storage.api import Health, Reason, Verdict

class Told:
    def __init__(self, driver):
        self._driver = driver
    def __getattr__(self, name):
        return getattr(self._driver, name)
    def health(self):
        if FAILS:
            raise KeyError("a bug")
        low = Reason("mine.metadata-low", "its index is nearly full", "make it larger", Verdict.POOR)
        worn = Reason("mine.worn", "a disk is worn", "replace it", Verdict.UNUSABLE)
        return Health(100 << 30, 10 << 20, 1000, 500, (low, worn))

def open_(root, options, host, *, store):
    return Told(copy.open(root, options, host, store=store))

plugin = made("mine", open=open_)
"""


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_driver_of_somebody_else_tells_is_heard(engine_of, tmp_path, greeting, fails):
    folder = tmp_path / "distributions"
    folder.mkdir()
    plugins.driver(str(folder), "mine", f"FAILS = {fails}\n{HEALTH}")
    it = engine_of(tmp_path, "mine", plugins.launcher(tmp_path / "cowshed", folder))
    it.ok("create", greeting, "true")
    found, status = looked(it)
    poor = found.pop("drivers.copy.copies")
    assert poor["Text"].startswith("driver mine: every layer is a copy")
    mine = {
        code: (each["Severity"], each["Text"], each["Remedy"]) for code, each in found.items() if "mine" in each["Text"]
    }
    if fails:
        assert mine == {
            "back-ends.bug": ("error", "driver mine has a bug: KeyError: 'a bug'", "report it to its author")
        }
    else:
        data = mine.pop("back-ends.data")
        assert data[:2] == ("error", "driver mine: 10 MiB of 102,400 MiB for data are free")
        assert mine == {
            "back-ends.metadata": ("warning", "driver mine: its index is nearly full", "make it larger"),
            "back-ends.mine.worn": ("error", "driver mine: a disk is worn", "replace it"),
        }
    assert status == 2
    it.close()


# ---------------------------------------------------------------- what else is left, and what is broken itself


def test_leftovers_of_killed_commands(engine, ground, greeting):
    engine.ok("run", "--name", "box", greeting, "true")
    run = Path(engine.run_directory())
    (run / "c" / ("0" * 32)).mkdir()
    os.utime(run / "c" / ("0" * 32), (time.time() - 600,) * 2)
    trial = Path(ground) / "store/.cowshed-probe-123456"
    trial.mkdir()
    os.utime(trial, (time.time() - 600,) * 2)
    (engine.root / "drivers/overlay/active" / ("f" * 32)).mkdir()
    id_ = engine.ok("inspect", "-f", "{{.Id}}", "box").strip()
    groups = [path for path in parents() if os.access(path, os.W_OK)]
    os.makedirs(f"{groups[0]}/{id_}")
    try:
        found, status = looked(engine)
    finally:
        os.rmdir(f"{groups[0]}/{id_}")
    wanted = {"leftovers.run-directory", "leftovers.trial", "leftovers.cgroup", "back-ends.orphan"}
    assert (set(found), status) == (wanted, 1)
    assert str(trial) in found["leftovers.trial"]["Text"]
    assert found["leftovers.trial"]["Remedy"] == f"rm -r --one-file-system {trial}"
    left = f"{run}/c/{'0' * 32}"
    assert found["leftovers.run-directory"]["Remedy"] == f"cowshed storage gc, or rm -r --one-file-system {left}"
    assert found["back-ends.orphan"]["Remedy"] == "cowshed storage check tells what it may be"


def parents():
    """Where containers' control groups are."""
    script = (
        "from cowshed_runtime.cgroup.group import Group; print(*[p[:-2] for p in Group('x').directories()], sep='\\n')"
    )
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()


def test_a_loop_device_on_a_file_that_is_gone(engine, ground, greeting):
    engine.ok("create", greeting, "true")
    image = engine.root / "drivers/overlay/image"
    image.write_bytes(bytes(8 << 20))
    device = subprocess.run(
        ["losetup", "-f", "--show", image], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        image.unlink()
        found, _ = looked(engine)
        dry = engine.ok("storage", "gc", "--dry-run")
        holds = Path(f"/sys/block/{os.path.basename(device)}/loop/backing_file")
        assert f"Would delete Remains:\n{device} holds {image} (deleted)\n" in dry
        assert holds.read_text() == f"{image} (deleted)\n"
        engine.ok("storage", "gc", "-f")
        assert not holds.exists()
    finally:
        subprocess.run(["losetup", "-d", device], capture_output=True)
    assert found["leftovers.loop"]["Text"].startswith(f"{device} holds {image}")
    assert found["leftovers.loop"]["Remedy"] == f"cowshed storage gc, or losetup -d {device}"


def test_a_zygote_whose_run_directory_is_gone_and_a_container_without_its_monitor(engine, ground, greeting):
    engine.ok("run", "-d", "--name", "box", greeting, "sleep", "600")
    (monitor,) = [pid for pid in engine.children() if b"zygote" in Path(f"/proc/{pid}/cmdline").read_bytes()][:1]
    os.kill(monitor, 9)
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{monitor}/ns/mnt") and time.monotonic() < deadline:
        time.sleep(0.01)
    found, _ = looked(engine)
    assert set(found) == {"leftovers.processes"}
    assert found["leftovers.processes"]["Remedy"] == "cowshed rm -f box"
    engine.ok("rm", "-f", "box")
    run = Path(engine.run_directory())
    run.rename(run.parent / "aside")
    try:
        found, _ = looked(engine)
    finally:
        (run.parent / "aside").rename(run)
    assert set(found) == {"leftovers.zygote"}
    assert f"starts containers for {run}, which is gone" in found["leftovers.zygote"]["Text"]


def test_a_plain_user_is_told_what_needs_root(engine, tmp_path):
    """In a user namespace that maps root away, so that the user may read what the test has made."""
    words = ["unshare", "-U", *engine.words("doctor", "--format", "{{.Code}}")]
    done = subprocess.run(words, capture_output=True, text=True, env=engine.env)
    assert (done.returncode, done.stderr) == (2, "")
    codes = done.stdout.split()
    assert codes.count("user.not-root") == 1
    assert not [code for code in codes if code.startswith(("cgroups", "doctor"))]


def test_a_broken_store_and_a_broken_configuration_hide_nothing_else(engine, ground, tmp_path, greeting):
    engine.ok("create", greeting, "true")
    config = tmp_path / "c.toml"
    config.write_text('[storage]\ndrivr = "x"\ndurability = "never"\n')
    (engine.root / "db.sqlite").write_bytes(b"no database at all" * 1000)
    for name in ("db.sqlite-wal", "db.sqlite-shm"):
        (engine.root / name).unlink(missing_ok=True)
    done = engine("--config", str(config), "--driver", "btrfs", "doctor", "--format", "{{.Severity}} {{.Text}}")
    told = done.stdout.decode().splitlines()
    assert done.returncode == 2
    assert told[:2] == [
        f"error {config}:2: storage.drivr is no setting",
        f"error {config}:3: storage.durability is commit or none, not 'never'",
    ]
    assert told[2].startswith(f"error the database of the store at {engine.root} is damaged")
    assert told[3:] == [f"error driver btrfs: {engine.root}/drivers is on ext4"]


def test_a_store_of_another_version_is_neither_migrated_nor_misread(engine, ground, greeting):
    engine.ok("create", greeting, "true")
    with contextlib.closing(sqlite3.connect(engine.root / "db.sqlite")) as database:
        ours = database.execute("pragma user_version").fetchone()[0]
    for version in (1, 10_000):
        with contextlib.closing(sqlite3.connect(engine.root / "db.sqlite")) as database:
            database.execute(f"pragma user_version = {version}")
        found, _ = looked(engine)
        assert set(found) == {"store.cannot-be-read"}
        assert f"schema {version}" in found["store.cannot-be-read"]["Text"]
        with contextlib.closing(sqlite3.connect(engine.root / "db.sqlite")) as database:
            assert database.execute("pragma user_version").fetchone()[0] == version
            database.execute(f"pragma user_version = {ours}")
    assert looked(engine) == ({}, 0)


def test_a_driver_that_is_gone_and_what_is_left_of_a_store(engine, ground, greeting):
    engine.ok("create", greeting, "true")
    folder = engine.root / "drivers/overlay"
    folder.rename(engine.root / "drivers/aside")
    found, _ = looked(engine)
    assert set(found) == {"back-ends.cannot-be-opened"}
    assert f"there is no overlay store at {folder}" in found["back-ends.cannot-be-opened"]["Text"]
    (engine.root / "drivers/aside").rename(folder)
    (engine.root / "db.sqlite").rename(engine.root / "aside.sqlite")
    found, _ = looked(engine)
    assert set(found) == {"store.no-database"}
    (engine.root / "aside.sqlite").rename(engine.root / "db.sqlite")
    assert looked(engine) == ({}, 0)
