"""`storage check` changes nothing, is harmless while commands run, can be interrupted and goes on; `storage rescue`
takes out what can be read."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

CHECKS = int(os.environ.get("COWSHED_CHECKS", "8"))


@pytest.fixture
def used(pulled):
    """A store with a container that has run, with a volume."""
    pulled.ok("run", "--name", "one", "-v", "data:/data", pulled.image, "sh", "-c", "echo x > /new; echo y > /data/z")
    return pulled


def state(root):
    """Every file of a store but what SQLite keeps beside its database: (mode, owner, size, time of change)."""
    found = {}
    for folder, folders, names in os.walk(root):
        for name in (*names, *folders):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if not name.startswith("db.sqlite-"):
                found[path] = (status.st_mode, status.st_uid, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found


def test_a_check_changes_nothing(used):
    (used.root / "blobs/partial/new.1.0").write_bytes(b"x")
    (used.root / "blobs/sha256" / ("a" * 64)).write_bytes(b"x")
    used("storage", "check")
    before = state(used.root)
    done = used("storage", "check", "--format", "{{.Code}} {{.Severity}}")
    assert (done.returncode, sorted(done.stdout.decode().splitlines())) == (
        1, ["blob.left warning", "blob.unlisted warning"],
    )  # fmt: skip
    assert used("storage", "repair", "--dry-run").returncode == 0
    assert state(used.root) == before
    refused = used("storage", "repair", feed=b"n\n")
    assert (refused.returncode, b"WARNING! This will do 2 steps" in refused.stderr) == (0, True)
    assert state(used.root) == before
    assert used("storage", "repair", feed=b"y\n").stdout.splitlines()[-1] == b"clean"
    assert used.ok("storage", "check") == "clean\n"


def test_a_finding_is_data(used):
    os.unlink(used.root / "locks/gc")
    (told,) = [json.loads(line) for line in used.ok("storage", "check", "--format", "json", status=1).splitlines()]
    assert told == {
        "Code": "file.missing", "Kind": "file", "Object": "locks/gc", "Driver": "", "Severity": "warning",
        "Text": "the lock file locks/gc is missing", "Repair": "make it again", "Remedy": "",
    }  # fmt: skip
    assert "SEVERITY" in used.ok("storage", "check", "--format", "table", status=1).splitlines()[0]
    assert b"add --deep" in used("storage", "check", "--continue").stderr


@pytest.mark.parametrize("driver", ["overlay"])
def test_checks_beside_commands_report_nothing(used):
    """Whatever another command is at just now is no finding."""
    used.ok("run", "-d", "--name", "up", used.image, "sleep", "1000")
    ended, problems = threading.Event(), []

    def busy(number):
        n = 0
        while not ended.is_set():
            n += 1
            name = f"busy{number}x{n}"
            for words in (
                ("run", "--rm", "-v", "/data", used.image, "true"), ("create", "--name", name, used.image, "true"),
                ("commit", name, f"test/{name}"), ("tag", used.image, f"test/other{name}"), ("exec", "up", "true"),
                ("rm", name), ("untag", used.image, f"test/other{name}"), ("rmi", f"test/{name}"),
            ):  # fmt: skip
                done = used(*words)
                if done.returncode:
                    problems.append((words, done))

    threads = [threading.Thread(target=busy, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    try:
        for n in range(CHECKS):
            done = used("storage", "check", *(["--deep"] if n % 4 == 3 else []))
            assert (done.returncode, done.stdout) == (0, b"clean\n"), done
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert problems == []
    assert used.ok("storage", "check", "--deep") == "clean\n"


@pytest.mark.parametrize("driver", ["overlay"])
def test_a_deep_check_that_is_interrupted_says_how_far_and_goes_on(used):
    folder = used.root / "blobs/sha256"
    large = folder / ("f" * 64)  # the last of them, and it takes some seconds
    with open(large, "wb") as file:
        file.truncate(8 << 30)
    process = used.spawn("storage", "check", "--deep", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while str(large) not in opened(process.pid):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted: 3 blobs and 0 layers are verified: cowshed storage check --deep --continue" in err
    large.unlink()
    known = json.loads((used.root / "cache/check.json").read_bytes())
    assert sorted(known["blob"]) == sorted(f"sha256:{name}" for name in os.listdir(folder))
    damaged = folder / sorted(os.listdir(folder))[0]
    status = os.stat(damaged)
    with open(damaged, "r+b") as file:  # which --continue does not see: it has been verified, and its time is the same
        file.write(b"xx")
    os.utime(damaged, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert used("storage", "check", "--deep", "--continue").stdout.splitlines()[-1] == b"clean"
    assert not (used.root / "cache/check.json").exists()
    assert b"is damaged" in used("storage", "check", "--deep").stdout


def opened(pid):
    """What a process has open, but for what it opens or closes just now."""
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(fd))
        except FileNotFoundError:
            continue
    return found


def names_in(path):
    with tarfile.open(path) as archive:
        return {member.name.removeprefix("./").rstrip("/") for member in archive}


@pytest.mark.parametrize("lost", ["nothing", "database", "blob"])
def test_everything_is_rescued_from_a_read_only_disk(used, engine_of, tmp_path, lost):
    if lost == "database":
        for suffix in ("", "-wal", "-shm"):
            Path(f"{used.root}/db.sqlite{suffix}").unlink(missing_ok=True)
    if lost == "blob":
        sizes = {path: path.stat().st_size for path in (used.root / "blobs/sha256").iterdir()}
        min(sizes, key=sizes.get).unlink()
    before = state(used.root)
    subprocess.run(["mount", "--bind", used.root, used.root], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", used.root], check=True)
        saved = tmp_path / "saved"
        told = used.ok("storage", "rescue", "--to", str(saved)).splitlines()
    finally:
        subprocess.run(["umount", used.root], check=True)
    assert state(used.root) == before
    assert sorted(line.split()[0] for line in told) == ["container", "image", "volume"]
    assert all(line.endswith(": saved") for line in told)
    assert {"new", "srv/three", "bin/busybox"} <= names_in(saved / "containers/one.tar")
    assert names_in(saved / "volumes/data.tar") >= {"z"}
    about = json.loads((saved / "containers/one.json").read_bytes())
    assert about["record"]["name"] == "one"
    assert about["configuration"]["process"]["args"][0] == "sh"
    for blob in (saved / "images/blobs/sha256").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    other = engine_of(tmp_path / "other", used.driver)
    try:
        other.ok("load", "-q", "-i", str(saved / "images"))
        assert other.ok("run", "--rm", used.image, "cat", "/srv/three") == "three\n"
        assert other.ok("run", "--rm", used.image, "ls", "/srv").split() == ["one", "three"]
        same = (
            other.ok("images", "-q", "--no-trunc") == used.ok("images", "-q", "--no-trunc")
            if lost != "database"
            else None
        )
        assert same in (lost == "nothing", None)
    finally:
        other.close()
    refused = used("storage", "rescue", "--to", str(saved))
    assert (refused.returncode, b"is not empty" in refused.stderr) == (125, True)


def test_what_the_database_has_lost_is_rescued_too(used, tmp_path):
    """A container and a volume without rows, and a layer that nothing tells of."""
    used.ok("run", "--name", "two", used.image, "sh", "-c", "echo lost > /found")
    ids = {name: used.ok("inspect", "--format", "{{.Id}}", name).strip() for name in ("one", "two")}
    with contextlib.closing(sqlite3.connect(used.root / "db.sqlite")) as db:
        for table in ("volume_users", "volumes", "containers"):
            db.execute(f"delete from {table}")
        db.execute("delete from layers where kind = 'active'")
        db.commit()
    (used.root / "containers" / ids["two"] / "record").unlink()
    before = state(used.root)
    saved = tmp_path / "saved"
    told = used.ok("storage", "rescue", "--to", str(saved), status=1).splitlines()
    assert state(used.root) == before
    assert {"container one: saved", "volume data: saved"} < set(told)
    assert f"container {ids['two']}: its layer is not known" in "\n".join(told)
    assert {"new", "srv/three", "bin/busybox"} <= names_in(saved / "containers/one.tar")
    assert names_in(saved / "volumes/data.tar") >= {"z"}
    assert json.loads((saved / f"containers/{ids['two']}.json").read_bytes())["configuration"]
    (layer,) = (saved / "layers").iterdir()
    assert f"layer {layer.name.split('.')[1]}: saved" in told
    assert "found" in names_in(layer)
    assert not list(saved.rglob("*.part"))


@pytest.mark.parametrize("driver", ["overlay"])
def test_a_file_that_was_not_saved_whole_does_not_look_so(used, tmp_path):
    saved = tmp_path / "saved"
    (tmp_path / "full.py").write_text(
        "import cowshed.layers.archive as archive\n"
        "from cowshed.cli.main import main\n"
        "real = archive.stream\n"
        "def cut(*words):\n"
        "    yield next(iter(real(*words)))\n"
        "    raise OSError(5, 'Input/output error')\n"
        "archive.stream = cut\n"
        "main()\n"
    )
    words = used.words("storage", "rescue", "--to", str(saved))[1:]
    python = str(Path(used.command).parent / "python")
    done = subprocess.run([python, tmp_path / "full.py", *words], capture_output=True, env=used.env, timeout=60)
    assert done.returncode == 1, done
    assert b"container one: [Errno 5] Input/output error" in done.stdout
    assert {path.name for path in (saved / "containers").iterdir()} == {"one.json", "one.tar.part"}
    assert [path.name for path in (saved / "volumes").iterdir()] == ["data.tar.part"]


@pytest.mark.parametrize("driver", ["overlay"])
def test_a_database_is_not_made_again_while_a_container_runs(used):
    used.ok("run", "-d", "--name", "up", used.image, "sleep", "1000")
    done = used("storage", "repair", "--rebuild-database", "-f")
    assert (done.returncode, b"container up runs" in done.stderr) == (125, True), done
    assert used.ok("exec", "up", "cat", "three") == "three\n"
    assert used.ok("storage", "check") == "clean\n"
    assert not [name for name in os.listdir(used.root) if name.startswith("lost-")]


@pytest.mark.parametrize("driver", ["overlay"])
def test_what_runs_is_seen_without_its_record(used):
    used.ok("run", "-d", "--name", "up", used.image, "sleep", "1000")
    for record in (used.root / "containers").glob("*/record"):
        record.unlink()
    done = used("storage", "repair", "--rebuild-database", "--replace-whole", "-f")
    assert (done.returncode, b" runs" in done.stderr) == (125, True), done
    assert used.ok("exec", "up", "cat", "three") == "three\n"
    assert used.ok("storage", "repair", "-f").splitlines()[-1] == "clean"


REBUILD = ("storage", "repair", "--rebuild-database", "--replace-whole", "-f")


@pytest.mark.parametrize("driver", ["overlay"])
def test_killed_while_a_database_is_made_again_the_old_one_is_there(used):
    """The new one is filled beside it; between two renames there is none, and it can be made again."""
    before = database(used)
    for n, step in enumerate(("rebuild.filled", "rebuild.aside")):
        done = used(*REBUILD, env={"COWSHED_FAULT": f"kill@{step}"})
        assert done.returncode == -signal.SIGKILL
        assert (used.root / "lost-0.sqlite").exists() == bool(n)
        assert (used.root / "db.sqlite").exists() != bool(n)
        if not n:
            assert database(used) == before
            assert used.ok("storage", "check") == "clean\n"
    # Nor is the new one deleted when that fails instead.
    assert (used.root / "rebuild.new/whole.sqlite").exists()
    assert used(*REBUILD, env={"COWSHED_FAULT": "error@rebuild.aside"}).returncode == 125
    assert (used.root / "rebuild.new/whole.sqlite").exists()
    done = used.ok(*REBUILD)
    assert "found: 1 drivers, 1 images, 3 layers, 1 containers, 1 volumes" in done
    assert done.splitlines()[-1] == "clean"
    assert not (used.root / "rebuild.new").exists()
    assert database(used, "lost-0") == before
    assert database(used) == before


def database(engine, name="db"):
    with contextlib.closing(sqlite3.connect(f"file:{engine.root}/{name}.sqlite?mode=ro", uri=True)) as db:
        return [
            db.execute(f"select {columns} from {table} order by 1").fetchall()
            for table, columns in (
                ("layers", "number, id, driver, kind, parent, chain_id, diff_id, data"), ("drivers", "name, store"),
                ("containers", "number, id, name, image_id, driver, config"), ("images", "id, manifest"), ("tags", "*"),
            )
        ]  # fmt: skip


@pytest.mark.parametrize("driver", ["overlay"])
def test_a_driver_whose_disk_is_missing_is_not_forgotten_in_silence(used):
    before = database(used)
    place = used.root / "drivers/overlay"
    place.rename(used.root / "elsewhere")
    place.mkdir()  # as the mount point of a disk that is not mounted
    refused = used(*REBUILD)
    assert (refused.returncode, b"driver overlay has a record and nothing at " in refused.stderr) == (125, True), (
        refused
    )
    assert not list(used.root.glob("lost-*"))
    assert database(used) == before
    told = used.ok(*REBUILD, "--without-missing", status=1)
    assert "lost: driver overlay has a record and nothing at " in told
    assert "found: 0 drivers, 1 images, 0 layers, 0 containers, 1 volumes" in told
    place.rmdir()
    (used.root / "elsewhere").rename(place)
    # The identity is the one that the record tells: another store in its place is not taken for it.
    record = used.root / "records/drivers/overlay"
    good = record.read_bytes()
    record.write_bytes(json.dumps({**json.loads(good), "store": "f" * 32}).encode())
    refused = used(*REBUILD)
    assert (refused.returncode, b"driver overlay cannot tell what it holds" in refused.stderr) == (125, True), refused
    record.write_bytes(good)
    assert "found: 1 drivers, 1 images, 3 layers, 1 containers, 1 volumes" in used.ok(*REBUILD)
    assert database(used) == before


@pytest.mark.parametrize("driver", ["overlay"])
def test_a_record_of_nonsense_loses_only_what_it_tells_of(used):
    used.ok("create", "--name", "two", used.image, "true")
    (record,) = (
        path for path in (used.root / "containers").glob("*/record") if json.loads(path.read_bytes())["name"] == "two"
    )
    good = json.loads(record.read_bytes())
    for wrong in ({"created": "never"}, {"number": 1 << 70}, {"labels": 7}, {"config": {"mounts": [1]}}):
        record.write_bytes(json.dumps({**good, **wrong}).encode())
        told = used.ok(*REBUILD, status=1)
        assert f"lost: the record of container {record.parent.name[:12]} is damaged: " in told or (
            "lost: container two cannot be written down: its layer is not known" in told
        ), wrong
        assert "found: 1 drivers, 1 images, 3 layers, 1 containers, 1 volumes" in told
    record.write_bytes(json.dumps({**good, "name": "one"}).encode())
    told = used.ok(*REBUILD, status=1)
    assert "lost: container one cannot be written down: one is container " in told
    record.write_bytes(json.dumps(good).encode())
    assert "found: 1 drivers, 1 images, 3 layers, 2 containers, 1 volumes" in used.ok(*REBUILD)
    assert used.ok("start", "-a", "two") == ""


@pytest.mark.parametrize("driver", ["overlay"])
def test_lists_are_found_again(used):
    for name in ("test/list", "test/gone", f"test/{'long' * 50}"):
        used.ok("manifest", "create", name, used.image)
    used.ok("manifest", "rm", "test/gone")
    names = ("test/list", f"test/{'long' * 50}")
    before = [used.ok("manifest", "inspect", name) for name in names]
    used.ok(*REBUILD)
    assert [used.ok("manifest", "inspect", name) for name in names] == before
    assert used("manifest", "exists", "test/gone").returncode == 1
    assert used.ok("storage", "check", "--deep") == "clean\n"
    (record, *_) = (used.root / "records/lists").iterdir()
    record.write_bytes(record.read_bytes()[:-9])
    assert f"lost: the record of list {record.name[:12]} is damaged" in used.ok(*REBUILD, status=1)
    used.ok("storage", "repair", "-f")
    assert used.ok("storage", "check") == "clean\n"


@pytest.mark.parametrize("driver", ["overlay"])
def test_what_no_record_tells_of_is_told_to_be_lost(used):
    """The names that the database alone knows; what an image's record is needed for can be pulled again."""
    (container,) = os.listdir(used.root / "containers")
    os.unlink(used.root / "containers" / container / "record")
    shutil.rmtree(used.root / "records/images")
    for suffix in ("", "-wal", "-shm"):
        Path(f"{used.root}/db.sqlite{suffix}").unlink(missing_ok=True)
    told = used.ok("storage", "repair", "--rebuild-database", "-f", status=1)
    assert f"lost: containers/{container} has no record: what was asked for it is lost" in told
    assert "found: 1 drivers, 0 images, 3 layers, 0 containers, 1 volumes" in told
    # What the container has written is rubbish to nobody: rescue takes it out.
    used.ok("storage", "repair", "-f", status=1)
    assert used.ok("run", "--rm", "-v", "data:/data", used.image, "cat", "three", "/data/z") == "three\ny\n"
    codes = used.ok("storage", "check", "--deep", "--format", "{{.Code}} {{.Repair}}", status=1).splitlines()
    assert sorted(codes) == ["container.folder ", "layer.unknown "], "what was written in it is there and stays"
    assert os.listdir(used.root / "containers") == [container]
    (layer,) = (used.root / "drivers" / used.driver / "active").iterdir()
    assert container.startswith(layer.name)
    # After that it goes, for those who name it.
    wrong = used("storage", "repair", "-f", "--remove-layer", "nothing")
    assert (wrong.returncode, b"no check finds an unknown layer nothing" in wrong.stderr) == (125, True)
    words = ("storage", "repair", "--remove-layer", layer.name[:10])
    assert "delete it: what was written in it is lost" in used.ok(*words, "--dry-run")
    used.ok(*words, feed=b"n\n")
    assert layer.exists()
    assert used.ok(*words, feed=b"y\n").splitlines()[-1] == "clean"
    assert not layer.exists()
    assert os.listdir(used.root / "containers") == []


@pytest.mark.parametrize("driver", ["overlay"])
def test_a_layer_without_its_container_goes_for_those_who_name_it(used):
    (container,) = os.listdir(used.root / "containers")
    (layer,) = (used.root / "drivers" / used.driver / "active").iterdir()
    shutil.rmtree(used.root / "containers" / container)
    with contextlib.closing(sqlite3.connect(f"{used.root}/db.sqlite")) as db:
        db.execute("delete from volume_users")
        db.execute("delete from containers")
        db.commit()
    told = used("storage", "repair", "-f").stdout.decode()
    assert f"layer {layer.name} is writable and of no container" in told
    assert layer.exists()
    done = used.ok("storage", "repair", "-f", "--remove-layer", layer.name)
    assert done.splitlines()[-1] == "clean"
    assert not layer.exists()
