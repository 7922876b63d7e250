"""`cowshed bench` on real file systems, and what is left of it, however it ends."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cowshed_testing import plugins
from cowshed_testing.places import with_loops

from cowshed.bench import devices
from cowshed_linux import loops, process

ANYWHERE = ("--quick", "--scale", "0.01", "--rounds", "2", "--seconds", "600")
TINY = (*ANYWHERE, "--size", "192m")
ENDLESS = ("--scale", "0.01", "--rounds", "100000", "--seconds", "100000", "--scenario", "child")
SUBJECTS = ("--subject", "copy@ext4", "--subject", "overlay@ext4")


# Its children are empty: nothing is quicker.
HASTY = """
def open_(*words, **more):
    it = copy.open(*words, **more)
    prepare = it.prepare
    it.prepare = lambda new, options: prepare(type(new)(new.id, new.number, new.kind), options)
    return it


plugin = made("hasty", open=open_)
"""


@pytest.fixture
def engine(engine_of, tmp_path):
    it = engine_of(tmp_path)
    yield it
    it.close()
    it.assert_clean()


@pytest.fixture
def bench(tmp_path):
    """The words of one run, with its images in a folder of the test."""
    (tmp_path / "place").mkdir()

    def words(*more):
        return ("bench", "--place", str(tmp_path / "place"), *more)

    return words


def left(tmp_path):
    """What a run has left, on the disk and in the kernel."""
    found = [str(path) for folder in ("place", "store/bench") for path in (tmp_path / folder).glob("*")]
    ours = "/".join(tmp_path.parts[-2:])  # paths of another mount namespace begin at the root of their mount
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if f"/{ours}/place/" in file.read_text():
                found.append(str(file))
        except OSError:
            continue  # it is not in use any more
    with open("/proc/self/mountinfo") as lines:
        return found + [line for line in lines if str(tmp_path) in line]


def until(fact, what):
    end = time.monotonic() + 60
    while not (found := fact()):
        assert time.monotonic() < end, what
        time.sleep(0.02)
    return found


@pytest.mark.slow
def test_a_tiny_run_has_every_part(engine, bench, tmp_path):
    out = tmp_path / "out"
    scenarios = "child,storm,unpack,build,changes,commit,copy-up,metadata,lookup,density,removal,quota"
    words = bench(*TINY, *SUBJECTS, "--scenario", scenarios, "--out", str(out), "--html")
    done = engine(*words, timeout=280)
    assert done.returncode == 0, done.stderr.decode()
    result = json.loads(out.with_suffix(".json").read_text())
    assert (result["format"], result["format_version"], result["seed"]) == ("cowshed-bench", 1, 1)
    assert [one["name"] for one in result["subjects"]] == ["copy@ext4", "overlay@ext4"]
    assert result["machine"]["kernel"].split()[1] == os.uname().release
    begun = [one["name"] for one in result["scenarios"]]
    assert sorted(begun) == sorted(scenarios.split(","))
    for one in result["scenarios"]:
        assert one["failures"] == {} or one["name"] == "quota", one  # which this kernel may not have on ext4
        for row in one["rows"]:
            assert {"copy@ext4", "overlay@ext4"} <= set(row["figures"]), row["key"]
            for figure in row["figures"].values():
                assert len(figure["samples"]["value"]) == 2
                assert figure["interval"][0] <= figure["median"] <= figure["interval"][1]
    assert out.with_suffix(".html").read_text().startswith("<!doctype html>")
    assert done.stdout.decode().count("WARNING") == len(result["marks"])
    assert left(tmp_path) == []

    again = engine.ok("bench", "--report", str(out.with_suffix(".json")))
    assert again == done.stdout.decode()
    compared = engine.ok("bench", "compare", *[str(out.with_suffix(".json"))] * 2, "--strict")
    assert "slower" not in compared.splitlines()[0]


def test_the_control_and_the_bytes_of_copying_up(engine, bench, tmp_path):
    words = bench(*TINY, "--subject", "overlay@ext4", "--scenario", "W6", "--format", "json")
    result = json.loads(engine.ok(*words))
    (scenario,) = result["scenarios"]
    rows = {row["key"]: row["figures"] for row in scenario["rows"]}
    large = rows[f"copy-up/first/{32 << 20}"]
    assert set(large) == {"overlay@ext4", "bare@ext4"}
    assert large["overlay@ext4"]["written"] >= 32 << 20 > large["bare@ext4"]["written"] > 0
    assert left(tmp_path) == []


def test_bytes_of_a_layer_that_is_a_file_system_of_its_own_are_told(engine_of, bench, tmp_path):
    """They come to the device by way of that file system, which is synced too."""
    engine = engine_of(tmp_path, command=with_loops(tmp_path))
    words = bench(*TINY, "--subject", "loops@ext4", "--scenario", "W6", "--format", "json")
    (scenario,) = json.loads(engine.ok(*words))["scenarios"]
    assert scenario["failures"] == {}
    (first,) = [row["figures"] for row in scenario["rows"] if row["key"] == f"copy-up/first/{1 << 20}"]
    assert first["loops@ext4"]["written"] >= first["bare@ext4"]["written"] > 0
    assert left(tmp_path) == []


def test_what_a_database_writes_is_in_the_layer(engine, bench, tmp_path):
    words = bench(*TINY, "--subject", "copy@ext4", "--scenario", "database", "--format", "json")
    (scenario,) = json.loads(engine.ok(*words))["scenarios"]
    assert scenario["failures"] == {}
    (row,) = [row for row in scenario["rows"] if row["key"] == "database/transaction"]
    assert all(figure["written"] > 0 for figure in row["figures"].values())
    assert not Path("/database").exists()
    assert left(tmp_path) == []


def test_limits_are_measured_where_they_can_be_had(engine, bench, tmp_path):
    words = bench(*TINY, "--subject", "btrfs@btrfs", "--scenario", "quota", "--format", "json")
    (scenario,) = json.loads(engine.ok(*words))["scenarios"]
    if scenario["failures"]:  # Linux before 6.7
        assert "no size limits" in scenario["failures"]["btrfs@btrfs"]
        return
    rows = {row["key"]: row["versus"] for row in scenario["rows"]}
    assert rows["quota/write/with"] == "quota/write/without"
    assert rows["quota/child/with"] == "quota/child/without"


def test_programs_start_ids_are_mapped_and_layers_move(engine, bench, tmp_path):
    words = bench(*TINY, "--subject", "overlay@ext4", "--scenario", "W17,W21,W22", "--format", "json")
    found = json.loads(engine.ok(*words))["scenarios"]
    assert [(one["name"], one["failures"]) for one in found] == [("ready", {}), ("convert", {}), ("ids", {})]
    rows = {row["key"]: row["figures"] for one in found for row in one["rows"]}
    assert rows["ready/cold"]["overlay@ext4"]["read"] > 1 << 20
    assert "bare@ext4" in rows["ready/warm"]
    assert rows["ids/map"]["overlay@ext4"]["written"] < rows["ids/chown"]["overlay@ext4"]["written"]
    assert rows["convert/space/to"]["overlay@ext4"]["median"] > 1 << 20
    assert left(tmp_path) == []


def test_a_directory_of_ones_own_is_as_it_was(engine, bench, tmp_path):
    (tmp_path / "place/mine").write_text("kept")
    words = bench(*ANYWHERE, "--path", str(tmp_path / "place"), "--subject", "copy", "--scenario", "child")
    engine.ok(*words)
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["mine"]
    assert not (tmp_path / "store/bench").exists()


def test_drivers_of_others_take_part_and_a_wrong_one_has_no_figures(engine_of, bench, tmp_path):
    folder = tmp_path / "distributions"
    folder.mkdir()
    plugins.driver(str(folder), "mine", 'plugin = made("mine")')
    plugins.driver(str(folder), "hasty", HASTY)
    engine = engine_of(tmp_path, command=plugins.launcher(tmp_path / "cowshed", folder))
    subjects = ("--subject", "hasty@ext4", "--subject", "mine@ext4,level=2", "--subject", "copy@ext4")
    (scenario,) = json.loads(engine.ok(*bench(*TINY, *subjects, "--scenario", "child", "--format", "json")))[
        "scenarios"
    ]
    assert "entries, and its image has" in scenario["failures"]["hasty@ext4"]
    assert scenario["rows"]
    assert all(set(row["figures"]) == {"copy@ext4", "mine@ext4,level=2"} for row in scenario["rows"])


def started(engine, bench, tmp_path, **options):
    """A run that never ends by itself, when it has its file systems."""
    running = engine.spawn(
        *bench(*ENDLESS, "--size", "64m", *SUBJECTS), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True, **options,
    )  # fmt: skip
    until(lambda: _loops(tmp_path) >= 2, "the run has made no file systems")
    (entry,) = (tmp_path / "store/bench").glob("*.json")
    return running, [pid for pid, _ in json.loads(entry.read_text())["processes"]]


def _loops(tmp_path):
    return sum("backing_file" in line for line in left(tmp_path))


def kill_all(running, tmp_path):
    """End supervisor and worker by SIGKILL, and wait for both: the worker is nobody's child then."""
    known = [each for one in entries(tmp_path) for each in one["processes"]]
    os.killpg(running.pid, signal.SIGKILL)
    running.wait(60)
    until(lambda: not any(process.lives(pid, birth) for pid, birth in known), "the worker goes on")


def test_ctrl_c_leaves_nothing(engine, bench, tmp_path):
    running, _ = started(engine, bench, tmp_path)
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait(60) == 130
    assert left(tmp_path) == []


def test_a_second_ctrl_c_does_not_disturb_the_first(engine, bench, tmp_path):
    running, _ = started(engine, bench, tmp_path)
    for _ in range(3):
        os.killpg(running.pid, signal.SIGINT)
    assert running.wait(60) == 130
    assert left(tmp_path) == []


def test_the_supervisor_cleans_up_after_a_worker_that_is_killed(engine, bench, tmp_path):
    running, (_, worker) = started(engine, bench, tmp_path)
    os.kill(worker, signal.SIGKILL)
    assert running.wait(60) == 128 + signal.SIGKILL
    assert left(tmp_path) == []


def test_a_worker_whose_supervisor_is_killed_ends(engine, bench, tmp_path):
    running, (supervisor, worker) = started(engine, bench, tmp_path)
    birth = process.start_time(worker)
    os.kill(supervisor, signal.SIGKILL)
    running.wait(60)
    until(lambda: not process.lives(worker, birth), "the worker goes on")
    engine.ok("bench", "--clean")
    assert left(tmp_path) == []


def test_what_kill_9_of_all_leaves_is_taken_by_clean(engine, bench, tmp_path):
    running, _ = started(engine, bench, tmp_path)
    kill_all(running, tmp_path)
    assert left(tmp_path) != []
    assert engine.ok("bench", "--clean") == "1 dead runs cleaned up after\n"
    assert left(tmp_path) == []
    assert engine.ok("bench", "--clean") == "0 dead runs cleaned up after\n"


def test_what_kill_9_of_all_leaves_is_taken_by_the_next_run(engine, bench, tmp_path):
    running, _ = started(engine, bench, tmp_path)
    kill_all(running, tmp_path)
    done = engine(*bench(*TINY, "--subject", "copy@ext4", "--scenario", "child"))
    assert done.returncode == 0
    assert b"cleaned up after 1 runs that were killed" in done.stderr
    assert left(tmp_path) == []


def test_what_kill_9_leaves_in_a_directory_of_ones_own_is_taken(engine, tmp_path):
    (tmp_path / "place").mkdir()
    running = engine.spawn(
        "bench", "--path", str(tmp_path / "place"), "--subject", "copy", *ENDLESS, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    until(lambda: list((tmp_path / "place").glob("cowshed-bench-*/*/store/*")), "the run has made no store")
    kill_all(running, tmp_path)
    place, elsewhere = tmp_path / "place", tmp_path / "elsewhere"
    place.rename(elsewhere)  # as a disk that is not mounted now
    place.mkdir()
    done = engine("bench", "--clean")
    assert done.returncode == 1
    assert b"of a run that was killed is not there" in done.stderr
    place.rmdir()
    elsewhere.rename(place)
    assert engine.ok("bench", "--clean") == "1 dead runs cleaned up after\n"
    assert left(tmp_path) == []


def test_clean_leaves_a_living_run_alone(engine, bench, tmp_path):
    running, _ = started(engine, bench, tmp_path)
    assert engine.ok("bench", "--clean") == "0 dead runs cleaned up after\n"
    assert running.poll() is None
    assert _loops(tmp_path) >= 2
    running.terminate()
    assert running.wait(60) == 130
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--scenario", "chlid"), "there is no scenario chlid"),
        (("--subject", "overlay@"), "write DRIVER[@KIND]"),
        (("--subject", "btrfs@ext4", "--quick"), "btrfs cannot be compared here: on ext4: "),
        (("--scale", "-1"), "--scale is a number greater than 0"),
        (("--device", "/dev/null"), "/dev/null is no block device"),
        (("--device", "/dev/null", "--size", "1g"), "--size is for images"),
        (("--html",), "--html needs --out"),
        (("--place", "/nowhere"), "--place /nowhere is no directory"),
        (("--path", "/tmp", "--scenario", "full"), "scenario full fills a file system"),
        (("--quick", "--out", "/nowhere/result"), "/nowhere/result.json"),
    ],
)
def test_what_cannot_be_done_is_one_line(engine, bench, tmp_path, words, said):
    done = engine(*bench(*words))
    assert done.returncode == 125
    line = done.stderr.decode().strip().splitlines()[-1]
    assert line.startswith("cowshed: ")
    assert said in line
    assert left(tmp_path) == []


@pytest.fixture
def disk(tmp_path):
    """An empty block device, opened, and its path."""
    (tmp_path / "disks").mkdir()
    fd = os.open(tmp_path / "disks/disk", os.O_RDWR | os.O_CREAT)
    os.truncate(fd, 2 << 30)
    device = loops.attach(fd)
    os.close(fd)
    yield device, f"/dev/loop{loops.number(device)}"
    os.close(device)


def is_empty(tmp_path, device):
    os.fsync(device)
    with open(tmp_path / "disks/disk", "rb") as file:
        return file.read(1 << 20).strip(b"\0") == b""


def test_a_device_is_used_and_left_empty(engine, tmp_path, disk):
    device, node = disk
    words = ("bench", *ANYWHERE, "--device", node, *SUBJECTS, "--scenario", "child", "--format", "json")
    result = json.loads(engine.ok(*words))
    assert result["size"] == 512 << 20
    assert result["scenarios"][0]["failures"] == {}
    assert is_empty(tmp_path, device)
    for at in (0, (512 << 20) + 1024, (512 << 20) + (64 << 20), (2 << 30) - 8):
        os.pwrite(device, b"mine", at)
        done = engine(*words)
        assert done.returncode == 125
        assert b"holds something" in done.stderr
        os.pwrite(device, bytes(4), at)


def endless_on(engine, tmp_path, device, node):
    """A run on the device that never ends by itself, when it has its file systems, and its entry."""
    running = engine.spawn(
        "bench", "--device", node, *SUBJECTS, *ENDLESS, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    until(
        lambda: sum(len(one["loops"]) for one in entries(tmp_path)) >= 2 and not is_empty(tmp_path, device),
        "the run has made no file systems",
    )
    (entry,) = entries(tmp_path)
    return running, entry


def test_a_device_is_nobody_elses_meanwhile_and_empty_though_the_worker_is_killed(engine, tmp_path, disk):
    device, node = disk
    running, entry = endless_on(engine, tmp_path, device, node)
    with pytest.raises(OSError, match="busy"):
        os.open(node, os.O_RDWR | os.O_EXCL)
    os.kill(entry["processes"][1][0], signal.SIGKILL)
    assert running.wait(60) == 128 + signal.SIGKILL
    assert is_empty(tmp_path, device)


def test_a_device_of_a_dead_run_is_emptied_when_it_is_named(engine, tmp_path, disk):
    device, node = disk
    running, entry = endless_on(engine, tmp_path, device, node)
    kill_all(running, tmp_path)
    for _ in range(2):
        done = engine("bench", "--clean")
        assert done.returncode == 1
        assert f"{node} may hold file systems of a run that was killed: cowshed bench --clean --device" in (
            done.stderr.decode()
        )
    assert not os.path.exists(entry["folder"])
    assert not is_empty(tmp_path, device)
    assert engine.ok("bench", "--clean", "--device", node) == "1 dead runs cleaned up after\n"
    assert is_empty(tmp_path, device)
    assert entries(tmp_path) == []
    os.pwrite(device, b"mine", 0)
    done = engine("bench", "--clean", "--device", node)
    assert (done.returncode, b"no dead run of this store has had" in done.stderr) == (1, True)
    assert os.pread(device, 4, 0) == b"mine"


def test_another_disk_of_the_same_name_is_left_alone(engine, tmp_path, disk):
    device, node = disk
    running, _ = endless_on(engine, tmp_path, device, node)
    kill_all(running, tmp_path)
    (path,) = (tmp_path / "store/bench").glob("*.json")
    entry = json.loads(path.read_text())
    path.write_text(json.dumps(entry | {"identity": entry["identity"] + 1}))
    done = engine("bench", "--clean", "--device", node)
    assert done.returncode == 1
    assert f"whether it is {node} now cannot be told" in done.stderr.decode()
    assert not is_empty(tmp_path, device)


def test_devices_on_files_behind_a_link_are_known(tmp_path, disk):
    (tmp_path / "link").symlink_to("disks")
    name = os.path.basename(disk[1])
    assert devices._lies_below(name, str(tmp_path / "link"))
    assert not devices._lies_below(name, str(tmp_path / "place"))


def entries(tmp_path):
    return [json.loads(path.read_text()) for path in (tmp_path / "store/bench").glob("*.json")]
