"""What containers need of a driver, on each beside overlay and copy that this machine can have; the others are shown as
not run, with the reason. `loops` stands for drivers that set a device up for the moment of a mount (devicemapper)."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cowshed_testing import leftovers
from cowshed_testing.images import Image, LayerTar, busybox_layer

from cowshed_linux import mount

DRIVERS = ("btrfs", "loops", "devicemapper", "zfs", "aufs")
IMAGE, HASTY = "example.test/greeting:1", "example.test/hasty:1"
# Where a driver and the engine are in the middle of something
STEPS = (
    ("run", "layers.prepare.begin"),
    ("run", "layers.prepare.end"),
    ("run", "activate.done"),
    ("run", "start.mounted"),
    ("run", "remove.intended"),
    ("run", "layers.remove.end"),
    ("commit", "layers.snapshot.written"),
    ("commit", "layers.snapshot.done"),
    ("commit", "commit.packed"),
    ("rmi", "sweep.intended"),
)


@pytest.fixture(scope="module", params=DRIVERS)
def house(request, tmp_path_factory, engine_on, greeting_image):
    """One store with the image for all tests of a driver."""
    folder = tmp_path_factory.mktemp(request.param)
    with engine_on(request.param, folder) as engine:
        engine.archive = f"{folder}/image"
        greeting_image.write_layout(engine.archive, IMAGE)
        engine.ok("load", "-q", "-i", engine.archive)
        yield engine


def until(what, seconds=20):
    deadline = time.monotonic() + seconds * float(os.environ.get("COWSHED_TEST_SLOWDOWN", "1"))
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def on(engine, driver):
    """The same store, with containers on another driver."""
    kept, engine.driver, engine.options = (engine.driver, engine.options), driver, ()
    try:
        yield engine
    finally:
        engine.driver, engine.options = kept


def clean(engine):
    assert engine.ok("system", "check").splitlines()[-1] == "clean"


def test_a_container_is_made_started_entered_stopped_and_removed(house):
    house.ok("run", "-d", "--name", "life", IMAGE, "sh", "-c", "echo 1 > /mine; sleep 1000")
    until(lambda: house("exec", "life", "test", "-s", "/mine").returncode == 0)
    assert house.ok("exec", "life", "cat", "/mine", "three") == "1\nthree\n"
    assert house("exec", "life", "cat", "two").returncode == 1, "a whiteout hides it"
    assert house("run", "--rm", IMAGE, "cat", "/mine").returncode == 1, "it is of one container only"
    assert house("rm", "life").returncode == 1
    house.ok("stop", "-t", "0", "life")
    house.ok("start", "life")
    until(lambda: house("exec", "life", "test", "-s", "/mine").returncode == 0)
    assert int(json.loads(house.ok("ps", "-s", "--format", "json", "-f", "name=life"))["Size"].split()[0] != "")
    house.ok("rm", "-f", "life")
    clean(house)
    if house.driver == "loops":
        for command in ("df", "check"):
            assert b"driver loops: its layers are images, for tests: use overlay" in house("system", command).stderr


WORK = """
    echo new > new; mkdir -p deep/er; echo x > deep/er/file; rm one; chmod 600 three; ln three four
    mv /etc/group /etc/moved; rm -r /var; ln -s nowhere dangling; mkfifo pipe; echo more >> /etc/passwd
    touch -d 2001-01-01 /etc; mkdir /usr/bin/empty; : > "strange
name"
"""


def test_what_changed_is_told_as_by_the_oracle_and_becomes_an_image(house, tmp_path):
    told = {}
    for driver in (house.driver, "copy"):
        with on(house, driver) if driver == "copy" else contextlib.nullcontext():
            house.ok("run", "--name", f"on-{driver}", IMAGE, "sh", "-c", WORK)
        told[driver] = house.ok("diff", "--check", f"on-{driver}")
    assert told[house.driver] == told["copy"]
    assert "A /srv/deep/er/file" in told["copy"].splitlines()
    house.ok("commit", f"on-{house.driver}", "test/changed")
    for driver in (house.driver, "copy"):
        with on(house, driver) if driver == "copy" else contextlib.nullcontext():
            assert house.ok("run", "--rm", "test/changed", "sh", "-c", "cat new deep/er/file four; ls /") == (
                "new\nx\nthree\nbin\ndev\netc\nhome\nproc\nroot\nsrv\nsys\ntmp\nusr\n"
            )
    assert house.ok("diff", f"on-{house.driver}") == told["copy"], "looking at it changes nothing"
    house.ok("cp", f"on-{house.driver}:/srv/deep", str(tmp_path))
    assert (tmp_path / "deep/er/file").read_text() == "x\n"
    house.ok("rm", "-f", *house.names())
    house.ok("rmi", "test/changed")
    clean(house)


def test_a_running_container_is_looked_at_without_hindrance(house, tmp_path):
    house.ok("run", "-d", "--name", "busy", IMAGE, "sh", "-c",
             "mkdir /w; i=0; while :; do i=$((i+1)); echo $i > /w/a; cp /w/a /w/b; done")  # fmt: skip
    until(lambda: house("exec", "busy", "test", "-s", "/w/b").returncode == 0)
    said = house("--log-level", "info", "commit", "busy", "test/busy")
    assert said.returncode == 0, said.stderr
    a, b = (house.ok("run", "--rm", "test/busy", "cat", f"/w/{name}").strip() for name in "ab")
    assert not a or not b or int(a) - int(b) in (0, 1), "of one moment; either may just have been emptied"
    if house.driver == "loops":
        assert b"is read from a snapshot (crash consistency, paused)" in said.stderr
    assert "A /w/a" in house.ok("diff", "busy").splitlines()
    (tmp_path / "given").write_text("given")
    house.ok("cp", str(tmp_path / "given"), "busy:/w/given")
    assert house.ok("exec", "busy", "cat", "/w/given") == "given"
    first = house.ok("exec", "busy", "cat", "/w/b")
    until(lambda: house.ok("exec", "busy", "cat", "/w/b") != first)
    house.ok("rm", "-f", "busy")
    house.ok("rmi", "test/busy")
    clean(house)


def test_two_drivers_in_one_store_and_one_that_is_gone_stops_only_its_own(house):
    house.ok("create", "--name", "mine", IMAGE, "cat", "three")
    with on(house, "copy"):
        house.ok("create", "--name", "theirs", IMAGE, "cat", "three")
    names = house.names()
    assert {"mine", "theirs"} <= set(names)
    for name in ("mine", "theirs"):
        assert house.ok("start", "-a", name) == "three\n", "each on the driver that it was made on"
    folder = house.root / "drivers" / house.driver
    folder.rename(f"{folder}.away")
    try:
        assert house.names() == names
        sizes = house("ps", "-a", "-s", "--format", "{{.Names}} {{.Size}}")
        assert "mine ?" in sizes.stdout.decode().splitlines()
        with on(house, "copy"):
            assert house.ok("start", "-a", "theirs") == "three\n"
            assert house.ok("run", "--rm", IMAGE, "cat", "three") == "three\n"
            checked = house("system", "check")
            assert checked.returncode == 1
            assert f"driver {folder.name}: cannot be opened: " in checked.stdout.decode()
            house.ok("system", "df")
            for words in (("start", "mine"), ("rm", "mine"), ("diff", "mine")):
                refused = house(*words)
                assert refused.returncode in (1, 125)
                assert folder.name in refused.stderr.decode(), "which driver it is that is gone"
            house.ok("rm", "theirs")
            house.ok("system", "prune", "-f")
            assert "mine" in house.names()
    finally:
        Path(f"{folder}.away").rename(folder)
    assert house.ok("start", "-a", "mine") == "three\n"
    house.ok("rm", "mine")
    with on(house, "copy"):
        house.ok("system", "prune", "-f")
    clean(house)


def test_killed_while_the_driver_is_at_work(house, tmp_path):
    house.ok("run", "-d", "--name", "up", IMAGE, "sh", "-c", "echo x > /new; sleep 1000")
    passed = 0
    for command, step in STEPS:
        house.ok("load", "-q", "-i", house.archive)
        house.ok("tag", IMAGE, "test/second")
        words = {
            "run": ("run", "--rm", IMAGE, "true"),
            "commit": ("commit", "up", "test/committed"),
            "rmi": ("rmi", "test/committed"),
        }[command]
        if command == "rmi":
            house.ok("commit", "up", "test/committed")
            house.ok("run", "--rm", "test/committed", "true")
        done = house(*words, env={"COWSHED_FAULT": f"kill@{step}"})
        if done.returncode == 0:
            continue  # a driver without that ability
        assert done.returncode == -signal.SIGKILL, (step, done.stderr)
        passed += 1
        assert house.ok("run", "--rm", IMAGE, "cat", "three") == "three\n"
        house("rmi", "test/committed")
        assert house.ok("exec", "up", "cat", "/new") == "x\n"
        clean(house)
    assert passed >= 5
    house.ok("rm", "-f", "up")
    house.ok("rmi", "test/second")
    clean(house)


@pytest.fixture
def next_boot(tmp_path):
    """Lets the kernel's number of the boot be another one in this mount namespace."""
    there = "/proc/sys/kernel/random/boot_id"
    old = Path(there).read_text()

    def boot():
        (tmp_path / "boot_id").write_text(f"{old[:-5]}{(int(old[-5:].strip(), 16) + 1) % 0x10000:04x}\n")
        mount.mount(str(tmp_path / "boot_id"), there, None, mount.BIND)

    yield boot
    with contextlib.suppress(OSError):
        mount.unmount(there)


def test_after_a_reboot_containers_are_as_they_were(house, next_boot, tmp_path):
    """Mounts, devices, processes, control groups and the run directory are gone, and another boot has begun. A layer
    that was not made durable is not trusted then, but made again from its archive."""
    hasty = Image([busybox_layer(), LayerTar().file("hasty", "1\n").bytes()])
    hasty.write_layout(f"{tmp_path}/hasty", HASTY)
    (tmp_path / "config").write_text('[storage]\ndurability = "none"\n')
    house.ok("load", "-q", "-i", f"{tmp_path}/hasty", env={"COWSHED_CONFIG": f"{tmp_path}/config"})
    house.ok("run", "-d", "--name", "up", IMAGE, "sh", "-c", "echo x > /new; sync; sleep 1000")
    until(lambda: house("exec", "up", "test", "-s", "/new").returncode == 0)
    house.ok("create", "--name", "made", IMAGE, "cat", "three")
    ids = set(house.ok("ps", "-aq", "--no-trunc").split())
    kill(house.processes())  # first those that would clean up
    kill({pid for group in leftovers.groups(ids) for pid in members(group)})
    until(lambda: house.processes() == [] and not leftovers.mounts(str(house.root)))
    for group in leftovers.groups(ids):
        until(lambda group=group: members(group) == [])
        os.rmdir(group)
    shutil.rmtree(house.run_root)
    devices_gone(house)
    next_boot()
    listed = {row["Names"]: row["State"] for row in map(json.loads, house.ok(
        "ps", "-a", "--format", "json").splitlines())}  # fmt: skip
    assert listed == {"up": "exited", "made": "created"}
    assert house.ok("start", "-a", "made") == "three\n"
    house.ok("start", "up")
    assert house.ok("exec", "up", "cat", "/new") == "x\n"
    assert house.ok("run", "--rm", IMAGE, "cat", "three") == "three\n"
    suspect = house("system", "check")
    assert suspect.returncode == 1
    assert b"was written in an earlier boot and never made durable" in suspect.stdout
    assert house.ok("run", "--rm", HASTY, "cat", "/hasty") == "1\n"
    clean(house)
    house.ok("rm", "-f", *house.names())
    house.ok("rmi", HASTY)
    clean(house)


def members(group):
    """The processes of a control group; of one that several hierarchies have, each is told of in each."""
    return [int(pid) for pid in Path(group, "cgroup.procs").read_text().split()]


def kill(pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def devices_gone(house):
    """What the kernel forgets at a reboot of a driver's devices."""
    if house.driver == "devicemapper":
        listed = subprocess.run(["dmsetup", "ls"], capture_output=True, text=True, check=True).stdout
        names = [line.split()[0] for line in listed.splitlines() if line.startswith("cowshed")]
        for name in sorted(names, key=len, reverse=True):
            subprocess.run(["dmsetup", "remove", name], check=True)
        subprocess.run(["losetup", "-D"], check=True)
    elif house.driver == "zfs":
        pool = house.options[1].partition("=")[2]
        folder = str(house.root.parent.parent)
        subprocess.run(["zpool", "export", pool], check=True)
        subprocess.run(["zpool", "import", "-d", folder, pool], check=True)
