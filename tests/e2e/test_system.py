"""`system check` tells what does not fit, `system prune` gives space back."""

import contextlib
import os
import shutil
import sqlite3
import subprocess

import pytest


@pytest.fixture
def checked(pulled):
    """A store with a container, which checks clean."""
    pulled.ok("run", "--name", "one", "-v", "/data", pulled.image, "sh", "-c", "echo x > /new")
    assert pulled.ok("system", "check", "--deep") == "clean\n"
    return pulled


def findings(engine, *words):
    done = engine("system", "check", *words)
    assert done.returncode == 1, done
    *told, last = done.stdout.decode().splitlines()
    assert last == f"{len(told)} findings"
    return told


def objects(engine, kind):
    return engine.root / "drivers" / engine.driver / kind


def test_check_sees_a_layer_that_is_gone_and_one_that_nobody_knows(checked):
    (layer,) = os.listdir(objects(checked, "active"))
    os.rename(objects(checked, "active") / layer, objects(checked, "active") / ("f" * 32))
    told = findings(checked)
    assert set(told) == {
        (
            f"driver {checked.driver}: layer {'f' * 32} is writable, and neither the database nor a record knows it: "
            "it may be a container's: cowshed storage rescue takes out what can be read, then storage repair "
            "--remove-layer ID"
        ),
        f"driver {checked.driver}: layer {layer} is missing: forget container one: what was written in it is lost",
    }
    os.rename(objects(checked, "active") / ("f" * 32), objects(checked, "active") / layer)
    assert checked.ok("system", "check") == "clean\n"


def test_prune_removes_a_layer_that_a_power_cut_brought_back(checked):
    (objects(checked, "committed") / ("f" * 32)).mkdir()
    (told,) = findings(checked)
    assert "belongs to no layer" in told
    assert f"Would delete Orphans:\n{checked.driver} {'f' * 32}\n" in checked.ok("storage", "gc", "--dry-run")
    checked.ok("system", "prune", "-f")
    assert checked.ok("system", "check") == "clean\n"
    assert os.listdir(objects(checked, "active")) == os.listdir(objects(checked, "trash")) == []


def lose(engine, *statements):
    with contextlib.closing(sqlite3.connect(engine.root / "db.sqlite", isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


@pytest.mark.parametrize("words", [("storage", "gc", "-f"), ("system", "check"), ("system", "prune", "-f")])
def test_nothing_that_cleans_up_takes_a_layer_that_has_lost_its_row(checked, words):
    """Neither one that a record tells of, nor a writable one that nothing tells of."""
    lose(checked, "delete from layers where number = (select number from containers)")
    (objects(checked, "active") / ("f" * 32)).mkdir()
    done = checked(*words)
    assert b"Traceback" not in done.stderr
    assert len(os.listdir(objects(checked, "active"))) == 2
    assert "layer.lost-row" in checked.ok("storage", "check", "--format", "{{.Code}}", status=1)
    checked("storage", "repair", "-f")
    assert os.listdir(objects(checked, "active")).count("f" * 32) == 1, "nothing may remove it"
    (objects(checked, "active") / ("f" * 32)).rmdir()
    assert checked.ok("system", "check") == "clean\n"
    checked.ok("start", "-a", "one")
    assert checked.ok("cp", "one:/new", "-")


@pytest.mark.parametrize("lost", ["images", "image_blobs"])
@pytest.mark.parametrize("words", [("storage", "gc", "-f"), ("system", "check"), ("system", "prune", "-f")])
def test_nothing_that_cleans_up_takes_the_archives_of_an_image_that_has_lost_its_rows(checked, words, lost):
    tables = ("tags", "chains", "image_blobs", "images") if lost == "images" else ("image_blobs",)
    lose(checked, *(f"delete from {table}" for table in tables))
    before = sorted(os.listdir(checked.root / "blobs/sha256"))
    assert "Archives" not in checked.ok("storage", "gc", "--dry-run")
    checked(*words)
    assert sorted(os.listdir(checked.root / "blobs/sha256")) == before
    if lost == "images":  # nothing can tell then what an archive is of
        lose(checked, "delete from loose_blobs")
        record = next((checked.root / "records/images").iterdir())
        kept = record.read_bytes()
        record.write_bytes(b"")
        checked(*words)
        assert sorted(os.listdir(checked.root / "blobs/sha256")) == before
        record.write_bytes(kept)
    assert checked.ok("storage", "repair", "-f").splitlines()[-1] == "clean"
    assert checked.ok("storage", "check", "--deep") == "clean\n"


@pytest.mark.parametrize("record", [True, False])
def test_a_container_stays_whose_driver_is_away(checked, record):
    """And of which the database has lost everything: nobody knows then whose it is."""
    (container,) = os.listdir(checked.root / "containers")
    if not record:
        (checked.root / "containers" / container / "record").unlink()
    lose(checked, "delete from volume_users", *(f"delete from {t}" for t in ("containers", "layers", "drivers")))
    store = checked.root / "drivers" / checked.driver
    shutil.move(store, f"{checked.root}.away")
    for words in (("storage", "repair", "-f"), ("system", "check"), ("storage", "gc", "-f"), ("system", "prune", "-f")):
        checked(*words)
    assert os.listdir(checked.root / "containers") == [container]
    assert os.listdir(checked.root / "records/drivers") == [checked.driver]
    codes = checked.ok("storage", "check", "--format", "{{.Code}}", status=1).split()
    assert {"container.folder", "driver.unknown"} <= {*codes}
    shutil.move(f"{checked.root}.away", store)
    if record:
        assert (
            checked.ok("storage", "repair", "--rebuild-database", "--replace-whole", "-f").splitlines()[-1] == "clean"
        )
        assert checked.names() == ["one"]
    else:
        checked("storage", "repair", "-f")
        assert os.listdir(checked.root / "containers") == [container]
        assert len(os.listdir(objects(checked, "active"))) == 1


@contextlib.contextmanager
def asked(engine):
    """A repair that has shown its plan and waits for an answer, which is yes at the end of the block. Its output."""
    told = []
    process = engine.spawn(
        "storage", "repair", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        while not process.stderr.readline().startswith("WARNING! This will do"):
            assert process.poll() is None
        yield told
        told.append(process.communicate("y\n", timeout=60)[0])
    finally:
        process.kill()
        process.communicate()


def test_a_container_is_not_forgotten_whose_layer_has_come_back(checked):
    (layer,) = os.listdir(objects(checked, "active"))
    os.rename(objects(checked, "active") / layer, checked.root / "away")
    with asked(checked) as told:
        os.rename(checked.root / "away", objects(checked, "active") / layer)
    assert f"failed: layer.missing {layer}" in told[0]
    assert checked.names() == ["one"]
    assert checked.ok("cp", "one:/new", "-")
    assert checked.ok("system", "check") == "clean\n"


def test_a_layer_that_two_repairs_take_for_what_it_is_stays_that(checked):
    lose(checked, "update layers set kind = 'committed' where number = (select number from containers)")
    with asked(checked):
        assert checked.ok("storage", "repair", "-f").splitlines()[-1] == "clean"
    assert checked.ok("system", "check") == "clean\n"
    assert checked.ok("cp", "one:/new", "-")


def test_what_is_mounted_by_now_is_not_unmounted(checked, tmp_path):
    """At the place where a layer was when the plan was made."""
    (layer,) = os.listdir(objects(checked, "active"))
    point = tmp_path / "point"
    point.mkdir()
    subprocess.run(["mount", "--bind", objects(checked, "active") / layer, point], check=True)
    try:
        with asked(checked) as told:
            subprocess.run(["umount", point], check=True)
            subprocess.run(["mount", "-t", "tmpfs", "other", point], check=True)
        assert os.path.ismount(point)
        assert "done: mount.stale" in told[0]
    finally:
        subprocess.run(["umount", point], check=True)


def test_a_repair_that_nobody_answers_fails(checked):
    os.unlink(checked.root / "locks/gc")
    done = checked("storage", "repair")
    assert done.returncode != 0
    assert b"add --force" in done.stderr
    assert not (checked.root / "locks/gc").exists()


def test_check_sees_blobs_that_are_gone_cut_or_damaged(checked):
    folder = checked.root / "blobs" / "sha256"
    one, two, three = sorted(os.listdir(folder), key=lambda name: os.path.getsize(folder / name))
    os.unlink(folder / one)
    os.truncate(folder / two, 10)
    with open(folder / three, "r+b") as f:
        f.seek(100)
        f.write(b"other")
    told = findings(checked)
    assert len(told) == 2
    assert f"blob sha256:{one[:12]} is missing" in " ".join(told)
    assert f"blob sha256:{two[:12]} has 10 bytes" in " ".join(told)
    told = findings(checked, "--deep")
    assert {f"blob sha256:{name[:12]}" in " ".join(told) for name in (one, two, three)} == {True}
    assert any(f"blob sha256:{three[:12]} is damaged" in text for text in told)
    for name in (two, three):
        os.unlink(folder / name)
    checked.ok("pull", "-q", checked.image)
    assert checked.ok("system", "check", "--deep") == "clean\n"


def test_a_damaged_archive_that_cannot_be_fetched_stays(checked):
    checked.ok("tag", checked.image, "127.0.0.1:1/gone:1")
    checked.ok("untag", checked.image)
    blob = next((checked.root / "blobs/sha256").iterdir())
    with open(blob, "r+b") as file:
        file.seek(40)
        file.write(b"other")
    damaged = blob.read_bytes()
    told = checked.ok("storage", "repair", "--deep", "-f", status=1)
    assert f"failed: blob.damaged sha256:{blob.name}" in told
    assert blob.read_bytes() == damaged
    assert os.listdir(checked.root / "blobs/partial") == []


def test_check_sees_folders_of_nobody_and_a_configuration_that_is_gone(checked):
    (container,) = os.listdir(checked.root / "containers")
    os.unlink(checked.root / "containers" / container / "config.json")
    os.mkdir(checked.root / "containers" / "stranger")
    os.mkdir(checked.root / "volumes" / "stranger")
    assert findings(checked) == [
        "containers/stranger belongs to no container: delete it",
        "container one: its configuration is missing: make it again from what was asked for",
        "volumes/stranger belongs to no volume: write it down as a volume",
    ]
    checked.ok("rm", "one")
    for folder in ("containers", "volumes"):
        os.rmdir(checked.root / folder / "stranger")
    assert checked.ok("system", "check") == "clean\n"


def test_check_goes_on_when_a_driver_cannot_be_opened(checked):
    store = checked.root / "drivers" / checked.driver
    shutil.move(store, f"{store}.away")
    told, other = findings(checked)
    assert told.startswith(f"driver {checked.driver}: cannot be opened: ")
    assert other.startswith(f"drivers/{checked.driver}.away is of no driver that the database knows")
    shutil.move(f"{store}.away", store)
    assert checked.ok("system", "check") == "clean\n"


def test_check_removes_what_dead_commands_left_and_nothing_else(checked):
    """A broken download and a removal that was not finished are nobody's fault: no finding, and gone afterwards."""
    partial = checked.root / "blobs" / "partial" / ("0" * 8 + "-" + "1" * 64)
    partial.write_bytes(b"x")
    (objects(checked, "trash") / ("e" * 32 + ".active")).mkdir()
    assert checked.ok("system", "check") == "clean\n"
    assert not partial.exists()
    assert os.listdir(objects(checked, "trash")) == []
    assert checked.names() == ["one"]


def test_df_tells_what_would_come_back(checked):
    def told():
        lines = checked.ok("system", "df", "--format", "{{.Type}}|{{.TotalCount}}|{{.Active}}|{{.Reclaimable}}")
        return {line.split("|")[0]: line.split("|")[1:] for line in lines.splitlines()}

    before = told()
    assert {kind: counts[:2] for kind, counts in before.items()} == {
        "Images": ["1", "1"], "Archives": ["3", "3"], "Containers": ["1", "0"], "Local Volumes": ["1", "1"],
    }  # fmt: skip
    assert before["Images"][2].startswith("0B"), "a container stands on them"
    assert before["Containers"][2].endswith("(100%)")
    checked.ok("rm", "-v", "one")
    after = told()
    assert [after[kind][1] for kind in ("Images", "Archives")] == ["0", "0"]
    assert after["Images"][2].endswith("(100%)")
    assert after["Archives"][2].endswith("(100%)")
    assert after["Local Volumes"] == ["0", "0", "0B"]


def test_prune_asks_and_removes_what_does_not_run(checked):
    checked.ok("run", "-d", "--name", "up", checked.image, "sleep", "1000")
    done = checked("system", "prune", feed=b"n\n")
    assert (done.returncode, b"WARNING" in done.stderr, done.stdout) == (0, True, b"")
    assert sorted(checked.names()) == ["one", "up"]
    assert "Deleted Containers:" in checked.ok("system", "prune", "-f", "--volumes")
    assert checked.names() == ["up"]
    assert os.listdir(checked.root / "volumes") == []
    assert checked.ok("images", "-q")
    checked.ok("rm", "-f", "up")
    assert "deleted: sha256:" in checked.ok("system", "prune", "-af")
    assert checked.ok("images", "-q") == ""
    assert os.listdir(objects(checked, "committed")) == os.listdir(checked.root / "blobs" / "sha256") == []
