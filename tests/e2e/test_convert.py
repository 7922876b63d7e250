"""`storage convert`, `accept`, `rollback`: a store brought from driver to driver, killed on the way, and what stays."""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import tarfile
from pathlib import Path

import pytest
from cowshed_testing import leftovers, plugins
from cowshed_testing.images import Image, LayerTar, busybox_layer
from cowshed_testing.places import NotHere, with_loops, zfs_pool

from cowshed_conformance.backing import file_system
from cowshed_runtime.cgroup.group import Group

# Where a conversion can be killed, and the commands that end it
CONVERT = (
    "convert.begun", "layers.begin.written", "layers.prepare.begin", "layers.prepare.end", "convert.layer.filled",
    "layers.seal.end", "convert.layer.sealed", "convert.verified", "layers.publish.synced", "layers.publish.written",
    "convert.layer.published", "convert.container.written", "convert.container.filled", "convert.container.switched",
)  # fmt: skip
ACCEPT = ("accept.written", "layers.remove.end", "accept.removed", "sweep.intended", "settle.swept", "leave.written",
          "leave.destroyed")  # fmt: skip
ROLLBACK = ("rollback.written", "layers.remove.end", "rollback.removed", "sweep.intended", "settle.swept",
            "leave.written", "leave.destroyed")  # fmt: skip
ONE, TWO, THREE = "example.test/greeting:1", "example.test/odd:1", "example.test/tools:1"
CHANGES = """
    echo new > /new; mkdir -p /deep/er; echo x > /deep/er/file; chmod 4711 /deep/er/file; ln /deep/er/file /deep/again
    rm -r /var; mkdir /var; echo y > /var/y; mv /etc/group /etc/moved; ln -s nowhere /dangling; mkfifo /pipe
    chown 7:8 /deep; echo more >> /etc/passwd; touch -d 2001-01-01 /etc; dd if=/dev/zero of=/sparse bs=1 count=1 seek=1M
"""


def odd() -> Image:
    """What archives have to say in special ways."""
    pax = {"SCHILY.xattr.user.told": "value", "SCHILY.xattr.trusted.kept": "root's"}
    first = (
        LayerTar().dir("odd", 0o2750, uid=7, gid=8).file("odd/file", "1\n" * 3000, 0o4711, pax_headers=pax)
        .hardlink("odd/same", "odd/file").symlink("odd/link", "../bin/sh").file("odd/gone", "2")
        ._add("odd/null", tarfile.CHRTYPE, 0o666, devmajor=1, devminor=3)
        ._add("odd/pipe", tarfile.FIFOTYPE, 0o600).dir("odd/full").file("odd/full/old", "3")
        .file("odd/holes", b"\0" * (4 << 20) + b"end")
    )  # fmt: skip
    second = (
        LayerTar().whiteout("odd/gone").opaque("odd/full").dir("odd/full").file("odd/full/new", "4")
        .file("odd/file", "other\n")
    )  # fmt: skip
    return Image([busybox_layer(), first.bytes(), second.bytes()])


def tools() -> Image:
    layer = LayerTar().dir("opt")
    for n in range(200):
        layer.file(f"opt/tool{n}", f"{n}\n" * 200, 0o755, uid=n)
    return Image([busybox_layer(), layer.bytes()], compression="zstd")


@pytest.fixture(scope="module")
def archives(tmp_path_factory, greeting_image):
    folder = tmp_path_factory.mktemp("images")
    found = {}
    for name, image in ((ONE, greeting_image), (TWO, odd()), (THREE, tools())):
        found[name] = f"{folder}/{len(found)}"
        image.write_layout(found[name], name)
    return found


@pytest.fixture
def store(tmp_path, engine_of):
    """A store of its own with no driver chosen."""
    it = engine_of(tmp_path)
    yield it
    it.close()
    it.assert_clean()


def fill(engine, archives, driver, *, running=("up", "up2")):
    for path in archives.values():
        engine.ok("--driver", driver, "load", "-q", "-i", path)
    run = ("--driver", driver, "run")
    engine.ok(*run, "--name", "changed", "-v", "kept:/data", "-l", "told=yes", ONE, "sh", "-c", CHANGES)
    engine.ok(*run, "--name", "other", TWO, "sh", "-c", "echo + >> /odd/file; rm /odd/full/new; chmod 700 /odd/same")
    engine.ok("--driver", driver, "create", "--name", "fresh", "-e", "WORD=said", THREE, "sh", "-c", "echo $WORD")
    for name in running:
        engine.ok(*run, "-d", "--name", name, ONE, "sh", "-c", "echo x > /mine; sleep 1000")


def tree(engine, name):
    """All that an archive says of a container's files, but for those that are mounted."""
    data = engine("cp", f"{name}:/", "-").stdout
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        for m in opened:
            if m.name.split("/")[0] in ("dev", "proc", "sys"):
                continue
            file = opened.extractfile(m) if m.isreg() else None
            content = hashlib.sha256(file.read()).hexdigest() if file else ""
            attributes = {key: value for key, value in m.pax_headers.items() if key != "path"}
            found[m.name] = (
                m.type,
                m.mode,
                m.uid,
                m.gid,
                m.size,
                m.linkname,
                m.devmajor,
                m.devminor,
                content,
                attributes,
            )
    assert len(found) > 20
    return found


def same(before, now, why=""):
    """Fail with what differs."""
    wrong = [
        f"{key}: {before[key]!r} became {now[key]!r}" for key in ("images", "containers") if before[key] != now[key]
    ]
    for name, wanted in before["trees"].items():
        found = now["trees"].get(name, {})
        wrong += [
            f"{name}: {path}: {wanted.get(path)} became {found.get(path)}"
            for path in sorted(wanted.keys() | found.keys())
            if wanted.get(path) != found.get(path)
        ]
    assert wrong == [], why


def inspected(engine, name):
    """What stays the same of a container."""
    (said,) = json.loads(engine.ok("inspect", name))
    for key in ("Driver", "GraphDriver"):
        said.pop(key, None)
    return said


def state(engine):
    names = engine.names()
    return {
        "images": engine.ok("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"),
        "containers": {name: inspected(engine, name) for name in names if name not in ("up", "up2")},
        "trees": {name: tree(engine, name) for name in names if name not in ("up", "up2")},
    }


def rows(engine, driver):
    with contextlib.closing(sqlite3.connect(f"file:{engine.root}/db.sqlite?mode=ro", uri=True)) as db:
        return db.execute("select * from layers where driver = ? order by number", (driver,)).fetchall()


def drivers_of(engine):
    return sorted(set(engine.ok("inspect", "--format", "{{.Driver}}", *engine.names()).split()))


def clean(engine, *deep):
    assert engine.ok("system", "check", *deep).splitlines()[-1] == "clean"


def files(engine):
    return {str(p.relative_to(engine.root)) for p in Path(engine.root, "drivers").rglob("*")}


def test_there_and_back_with_everything_the_same(store, archives):
    fill(store, archives, "overlay", running=())
    before = state(store)
    for source, target in (("overlay", "copy"), ("copy", "overlay")):
        said = store.ok("storage", "convert", "--to", target, "--all")
        assert f"Converted to {target}: 6 layers, 3 containers" in said
        clean(store, "--deep")
        same(before, state(store))
        assert drivers_of(store) == [target]
        assert set(os.listdir(store.root / "drivers")) == {"overlay", "copy"}
        store.ok("storage", "accept", "-f")
        clean(store, "--deep")
        assert os.listdir(store.root / "drivers") == [target], f"{source} holds nothing any more"
        assert rows(store, source) == []
        same(before, state(store))
    assert store("volume", "rm", "kept").returncode == 1, "its container still has it"
    assert store.ok("start", "-a", "fresh") == "said\n"
    assert store.ok("run", "--rm", "--pull", "never", ONE, "cat", "three") == "three\n"
    assert leftovers.files(str(store.root), store.run_directory()) == []


def test_a_plan_makes_nothing_and_tells_it_all(store, archives):
    fill(store, archives, "overlay", running=("up",))
    before = files(store)
    said = store.ok("storage", "convert", "--to", "copy", "--all", "--plan").splitlines()
    assert [line.split()[:2] for line in said[1:10]] == [
        *[[str(n), "layer"] for n in range(1, 7)], *[[str(n), "container"] for n in range(7, 10)]
    ]  # fmt: skip
    assert any(line.startswith("Space: ") and " free" in line for line in said)
    assert "Left out: container up: it runs: stop it first" in said
    assert files(store) == before
    assert rows(store, "copy") == []
    listed = [json.loads(line) for line in store.ok(
        "storage", "convert", "--to", "copy", "--images", "--plan", "--format", "json").splitlines()]  # fmt: skip
    assert {row["Kind"] for row in listed} == {"layer"}
    assert all(row["From"] == "overlay" and row["How"] in ("copy", "reflink") for row in listed)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "it is not said where to"),
        (("--to", "copy"), "it is not said what to convert"),
        (("--to", "nothing", "--all"), "nothing"),
        (("--to", "copy", "up"), "container up: it runs: stop it first: nothing was begun"),
        (("--to", "copy", "nobody"), "no such image: nobody"),
        (("--to", "copy", "--to-option", "wrong=1", "--all"), "driver copy has no option wrong"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_makes_nothing(store, archives, words, said):
    store.ok("--driver", "overlay", "load", "-q", "-i", archives[ONE])
    store.ok("--driver", "overlay", "run", "-d", "--name", "up", ONE, "sleep", "1000")
    done = store("storage", "convert", *words)
    assert done.returncode == 125
    assert said in done.stderr.decode()
    assert os.listdir(store.root / "drivers") == ["overlay"]
    for verb in ("accept", "rollback"):
        assert b"no conversion waits" in store("storage", verb).stderr


def test_what_runs_is_left_out_and_taken_by_the_next_run_which_takes_only_that(store, archives):
    fill(store, archives, "overlay")
    said = store("storage", "convert", "--to", "copy", "--all")
    assert said.returncode == 0
    assert said.stderr.count(b"left out: container up") == 2
    assert store.ok("exec", "up", "cat", "/mine") == "x\n"
    store.ok("stop", "-t", "0", "up")
    before = tree(store, "up")
    again = store.ok("storage", "convert", "--to", "copy", "--all")
    assert "Converted to copy: 0 layers, 1 containers" in again
    assert tree(store, "up") == before
    assert b"Conversion from overlay to copy" in store("storage", "accept", "-f").stdout
    assert [row[2] for row in rows(store, "overlay") if row[3] == "active"] == ["overlay"], "what runs stays"
    clean(store)
    assert store.ok("exec", "up2", "cat", "/mine") == "x\n"
    store.ok("stop", "-t", "0", "up2")
    assert "Converted to copy: 0 layers, 1 containers" in store.ok("storage", "convert", "--to", "copy", "up2")
    store.ok("storage", "accept", "-f")
    assert os.listdir(store.root / "drivers") == ["copy"]
    clean(store)


def test_rolled_back_all_is_as_it_was(store, archives):
    fill(store, archives, "overlay")
    before, layers, there = state(store), rows(store, "overlay"), files(store)
    store.ok("storage", "convert", "--to", "copy", "--all", "-q")
    store.ok("storage", "rollback", "-f")
    assert rows(store, "overlay") == layers
    assert files(store) == there
    same(before, state(store))
    clean(store, "--deep")
    for name in ("changed", "other"):
        store.ok("start", "-a", name)


def test_work_since_is_not_lost_in_silence(store, archives):
    fill(store, archives, "overlay", running=())
    store.ok("storage", "convert", "--to", "copy", "--all", "-q")
    store.ok("--driver", "copy", "create", "--name", "later", ONE, "cat", "three")
    store.ok("rm", "fresh")
    store.ok("start", "-a", "changed")
    refused = store("storage", "rollback", "-f")
    assert refused.returncode == 125
    assert "container changed has written something since" in refused.stderr.decode()
    assert "Refused: container changed has written" in store("storage", "rollback", "--plan").stdout.decode()
    done = store("storage", "rollback", "-f", "--lossy")
    assert done.returncode == 0, done.stderr
    assert b"container later, made since, stays on driver copy" in done.stderr
    assert sorted(store.names()) == ["changed", "later", "other"]
    assert store.ok("start", "-a", "later") == "three\n"
    clean(store)
    store.ok("rm", "later")
    clean(store)
    # Each container is where it says, and the images' layers of the one that left are not kept.
    assert [row for row in rows(store, "copy") if row[5]] == []


def test_an_image_that_shares_layers_with_others_leaves_them_theirs(store, archives):
    for path in (archives[ONE], archives[TWO]):
        store.ok("--driver", "overlay", "load", "-q", "-i", path)
    theirs = {row[5] for row in rows(store, "overlay")}
    store.ok("storage", "convert", "--to", "copy", "-q", ONE)
    store.ok("storage", "accept", "-f")
    left = [row[5] for row in rows(store, "overlay")]
    assert len(left) == 3, "those of the other image"
    assert None not in left
    assert set(left) < theirs
    assert len(rows(store, "copy")) == 3
    clean(store)
    assert store.ok("--driver", "overlay", "run", "--rm", TWO, "cat", "/odd/full/new") == "4"
    # Back, while an image that came since stands on what was made.
    store.ok("storage", "convert", "--to", "copy", "-q", TWO)
    store.ok("rmi", ONE)
    store.ok("--driver", "copy", "load", "-q", "-i", archives[ONE])
    store.ok("storage", "rollback", "-f")
    assert None not in [row[5] for row in rows(store, "copy")]
    assert store.ok("--driver", "copy", "run", "--rm", ONE, "cat", "three") == "three\n"
    clean(store)


def test_another_conversion_waits_for_the_first(store, archives):
    store.ok("--driver", "overlay", "load", "-q", "-i", archives[ONE])
    store.ok("storage", "convert", "--to", "copy", "--images", "-q")
    refused = store("storage", "convert", "--to", "overlay", "--all")
    assert b"the conversion to copy is not accepted yet" in refused.stderr
    assert store.ok("storage", "convert", "--to", "copy", "--images", "-q").startswith("Converted to copy: 0 layers")
    assert b"the conversion to copy, until" not in store("storage", "why", ONE).stdout
    store.ok("rmi", ONE)
    store.ok("storage", "accept", "-f")
    clean(store)
    assert os.listdir(store.root / "drivers") == []


def test_a_converted_container_is_found_again_without_the_database(store, archives):
    store.ok("--driver", "overlay", "load", "-q", "-i", archives[TWO])
    store.ok("--driver", "overlay", "run", "--name", "other", TWO, "sh", "-c", CHANGES)
    store.ok("storage", "convert", "--to", "copy", "--all", "-q")
    store.ok("storage", "accept", "-f")
    before, layers = tree(store, "other"), rows(store, "copy")
    store.ok("storage", "repair", "--rebuild-database", "--replace-whole", "-f")
    assert tree(store, "other") == before
    assert [row[:5] for row in rows(store, "copy")] == [row[:5] for row in layers]
    clean(store)


def forget(engine, name):
    """Let the database know nothing of a container: its layer is one that only the driver has."""
    (id_,) = (c["Id"] for c in json.loads(engine.ok("inspect", name)))
    with contextlib.closing(sqlite3.connect(f"{engine.root}/db.sqlite")) as db:
        ((number,),) = db.execute("select number from containers where id = ?", (id_,)).fetchall()
        db.execute("delete from containers where number = ?", (number,))
        db.execute("delete from layers where number = ?", (number,))
        db.commit()
    shutil.rmtree(engine.root / "containers" / id_)


def test_a_store_that_holds_what_nobody_knows_is_not_destroyed(store, archives):
    store.ok("--driver", "overlay", "load", "-q", "-i", archives[TWO])
    store.ok("--driver", "overlay", "run", "--name", "lost", TWO, "sh", "-c", "echo precious > /precious")
    forget(store, "lost")
    store.ok("storage", "convert", "--to", "copy", "--images", "-q")
    done = store("storage", "accept", "-f")
    assert done.returncode == 0, done.stderr
    assert b"driver overlay stays: it has 1 layers that nobody knows" in done.stderr
    kept = [path for path in (store.root / "drivers/overlay").rglob("precious") if path.read_text() == "precious\n"]
    assert len(kept) == 1
    # Nor is the store of an earlier life, which a conversion adopts, taken for one that it made.
    with contextlib.closing(sqlite3.connect(f"{store.root}/db.sqlite")) as db:
        db.execute("delete from drivers where name = 'overlay'")
        db.commit()
    store.ok("storage", "convert", "--to", "overlay", "--images", "-q")
    assert sqlite(store, "select fresh from conversion") == [(0,)]
    store.ok("storage", "rollback", "-f")
    assert kept[0].read_text() == "precious\n"
    shutil.rmtree(store.root / "drivers/overlay")
    store("storage", "repair", "-f")


def sqlite(engine, sql):
    with contextlib.closing(sqlite3.connect(f"file:{engine.root}/db.sqlite?mode=ro", uri=True)) as db:
        return db.execute(sql).fetchall()


def test_what_the_twin_of_is_not_there_is_not_let_go(store, archives):
    store.ok("--driver", "overlay", "load", "-q", "-i", archives[TWO])
    for name in ("other", "whole"):
        store.ok("--driver", "overlay", "run", "--name", name, TWO, "sh", "-c", CHANGES)
    before = tree(store, "other")
    store.ok("storage", "convert", "--to", "copy", "--all", "-q")
    ((layer, twin),) = sqlite(
        store,
        "select a.id, b.id from converted join layers a on a.number = layer join layers b on b.number = twin "
        "where container = (select id from containers where name = 'other')",
    )
    (directory,) = (path for path in (store.root / "drivers/copy").rglob(f"*{twin}*") if path.is_dir())
    shutil.rmtree(directory)
    images = sqlite(store, "select count(*) from layers where driver = 'overlay' and chain_id is not null")
    done = store("storage", "accept", "-f")
    assert done.returncode == 0, done.stderr
    assert f"layer {layer} stays on driver overlay: its twin is not in driver copy" in done.stderr.decode()
    active = [row[1] for row in rows(store, "overlay") if row[3] == "active"]
    assert active == [layer], "that of the container whose twin is whole has gone"
    assert images == sqlite(store, "select count(*) from layers where driver = 'overlay' and chain_id is not null")
    store.ok("storage", "rollback", "-f", "--lossy")
    assert tree(store, "other") == before
    clean(store)


def test_nothing_is_rolled_back_to_what_is_not_there(one):
    one.ok("storage", "convert", "--to", "copy", "--all", "-q")
    before = tree(one, "other")
    ((container,), (image,)) = (
        sqlite(one, f"select id from layers join converted on layer = number where container {which} null limit 1")[0]
        for which in ("is not", "is")
    )
    (lost,) = (path for path in (one.root / "drivers/overlay").rglob(f"*{container}*") if path.is_dir())
    lost.rename(one.root / "lost")
    for words in (("-f",), ("-f", "--lossy")):
        done = one("storage", "rollback", *words)
        assert done.returncode == 125
        assert f"container other cannot go back: its layer {container} is not in driver overlay" in done.stderr.decode()
        assert tree(one, "other") == before
    (one.root / "lost").rename(lost)
    (below,) = (path for path in (one.root / "drivers/overlay").rglob(f"*{image}*") if path.is_dir())
    below.rename(one.root / "lost")  # with it no layer of the chain can be mounted
    assert one("storage", "rollback", "-f", "--lossy").returncode == 125
    assert tree(one, "other") == before
    (one.root / "lost").rename(below)
    one.ok("storage", "rollback", "-f")
    assert tree(one, "other") == before
    clean(one)


def lose(engine, *tables):
    """Let the database lose rows of its only container, of which all else is there."""
    with contextlib.closing(sqlite3.connect(f"{engine.root}/db.sqlite")) as db:
        ((number,),) = db.execute("select number from containers").fetchall()
        for table in tables:
            db.execute(f"delete from {table} where number = ?", (number,))
        db.commit()


@pytest.mark.parametrize("tables", [("containers",), ("layers",), ("containers", "layers")])
def test_a_converted_container_whose_rows_are_lost_is_none_that_was_removed(one, tables):
    before, layers = tree(one, "other"), rows(one, "overlay")
    one.ok("storage", "convert", "--to", "copy", "--all", "-q")
    lose(one, *tables)
    found = [json.loads(line) for line in one.ok("storage", "check", "--format", "json", status=1).splitlines()]
    assert [each["Code"] for each in found] == ["layer.lost-row" if "layers" in tables else "container.lost-row"]
    held = files(one)
    for verb in ("accept", "rollback"):
        refused = one("storage", verb, "-f")
        assert refused.returncode == 125
        assert b"lost rows of container other, which was converted: cowshed storage repair" in refused.stderr
    assert files(one) == held
    one.ok("storage", "repair", "-f")
    clean(one)
    one.ok("storage", "rollback", "-f")
    assert rows(one, "overlay") == layers
    assert tree(one, "other") == before
    clean(one)


def test_a_conversion_is_carried_into_a_database_that_is_made_again_though_the_old_one_lost_a_container(one):
    before = tree(one, "other")
    one.ok("storage", "convert", "--to", "copy", "--all", "-q")
    lose(one, "containers", "layers")
    one.ok("storage", "repair", "--rebuild-database", "--replace-whole", "-f")
    one.ok("storage", "rollback", "-f")
    assert tree(one, "other") == before
    clean(one)


@pytest.mark.parametrize("verb", ["accept", "rollback"])
def test_ending_a_conversion_asks_first(one, verb):
    one.ok("storage", "convert", "--to", "copy", "--all", "-q")
    before = rows(one, "overlay"), rows(one, "copy"), state(one)
    for answer, status in ((None, 125), (b"n\n", 0)):
        done = one("storage", verb, feed=answer)
        assert done.returncode == status, done.stderr
        assert b"Are you sure you want to continue? [y/N]" in done.stderr
        assert b"Conversion from overlay to copy: would be" in done.stdout
        assert (rows(one, "overlay"), rows(one, "copy"), state(one)) == before
    assert b"nobody answers: nothing is done: add --force" in one("storage", verb).stderr
    one.ok("storage", verb, feed=b"y\n")
    assert os.listdir(one.root / "drivers") == ["copy" if verb == "accept" else "overlay"]
    clean(one)


def test_nothing_is_let_go_while_the_record_of_a_container_is_old(one):
    one.ok("storage", "convert", "--to", "copy", "--all", "-q")
    (record,) = (one.root / "containers").glob("*/record")
    good = record.read_bytes()
    assert json.loads(good)["driver"] == "copy"
    record.unlink()
    record.mkdir()  # it cannot be written
    layers = rows(one, "overlay")
    done = one("storage", "accept", "-f")
    assert done.returncode == 125
    assert b"records cannot be written" in done.stderr
    assert rows(one, "overlay") == layers
    record.rmdir()
    record.write_bytes(good.replace(b"copy", b"overlay"))
    one.ok("storage", "accept", "-f")
    assert record.read_bytes() == good
    clean(one)


def test_what_is_planned_is_so_until_it_is_done(store, archives):
    """No other command converts, accepts or rolls back between the plan and its first step."""
    store.ok("--driver", "overlay", "load", "-q", "-i", archives[ONE])
    store.ok("storage", "convert", "--to", "copy", "--images", "-q")
    with open(store.root / "locks/convert", "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = store("storage", "convert", "--to", "nothing", "--images")
    assert done.returncode == 125
    assert b"another command converts this store" in done.stderr


def test_a_database_made_again_knows_the_conversion_that_waits(store, archives):
    store.ok("--driver", "overlay", "load", "-q", "-i", archives[TWO])
    store.ok("--driver", "overlay", "run", "--name", "other", TWO, "sh", "-c", CHANGES)
    before, layers = tree(store, "other"), rows(store, "overlay")
    store.ok("storage", "convert", "--to", "copy", "--all", "-q")
    known = sqlite(store, "select * from converted"), sqlite(store, "select target, sources, fresh from conversion")
    refused = store("storage", "repair", "--rebuild-database", "-f")
    assert (refused.returncode, b"is whole" in refused.stderr, b"--replace-whole" in refused.stderr) == (
        125,
        True,
        True,
    )
    words = ("storage", "repair", "--rebuild-database", "-f")
    done = store(*words, "--replace-whole", env={"COWSHED_FAULT": "kill@rebuild.aside"})
    assert done.returncode == -signal.SIGKILL
    assert (store.root / "lost-0.sqlite").exists()
    assert not (store.root / "db.sqlite").exists()
    store.ok(*words)
    assert (
        sqlite(store, "select * from converted"), sqlite(store, "select target, sources, fresh from conversion")
    ) == known  # fmt: skip
    clean(store)
    store.ok("storage", "rollback", "-f")
    assert [row[:5] for row in rows(store, "overlay")] == [row[:5] for row in layers]
    assert tree(store, "other") == before
    clean(store)


def test_a_container_of_which_a_process_is_left_is_not_rolled_back(store, archives):
    """Its monitor was killed, and what it started lives on: as `Held` sees it for all that works on containers."""
    store.ok("--driver", "overlay", "load", "-q", "-i", archives[ONE])
    store.ok("--driver", "overlay", "create", "--name", "other", ONE, "true")
    store.ok("storage", "convert", "--to", "copy", "--all", "-q")
    (id_,) = os.listdir(store.root / "containers")
    with subprocess.Popen(["sleep", "1000"]) as left, control_group(id_, left.pid):
        try:
            done = store("storage", "rollback", "-f")
            assert done.returncode == 125
            assert f"process {left.pid} of container other lives on without its monitor" in done.stderr.decode()
            assert drivers_of(store) == ["copy"]
        finally:
            left.kill()
            left.wait()
    store.ok("storage", "rollback", "-f")
    clean(store)


@contextlib.contextmanager
def control_group(id_, pid):
    """A group as the runtime makes one for a container, with a process in it."""
    folder = next(path for path in Group(id_).directories() if "cpuset" not in path)  # which takes none as it is made
    os.makedirs(folder)
    try:
        Path(folder, "cgroup.procs").write_text(str(pid))
        yield
    finally:
        os.rmdir(folder)


@pytest.fixture
def one(store, archives):
    """A store with one image of several layers and a container, on overlay."""
    store.ok("--driver", "overlay", "load", "-q", "-i", archives[TWO])
    store.ok("--driver", "overlay", "run", "--name", "other", TWO, "sh", "-c", CHANGES)
    return store


def kill(engine, step, *words):
    done = engine(*words, env={"COWSHED_FAULT": f"kill@{step}"})
    assert done.returncode == -signal.SIGKILL, (step, done.stderr)
    clean(engine)


def test_killed_at_every_step_a_conversion_goes_on_where_it_was(one):
    before, layers = state(one), rows(one, "overlay")
    convert = ("storage", "convert", "--to", "copy", "--all", "-q")
    for step in CONVERT:
        kill(one, step, *convert)
        assert rows(one, "overlay") == layers, step
    assert drivers_of(one) == ["copy"], "the last step was the container's"
    assert "Converted to copy: 0 layers, 0 containers" in one.ok(*convert)
    same(before, state(one))
    one.ok("storage", "rollback", "-f")
    assert rows(one, "overlay") == layers
    same(before, state(one))
    clean(one, "--deep")


def test_killed_while_it_accepts_the_next_command_does_the_rest(one):
    before, there, other = state(one), "overlay", "copy"
    for step in ACCEPT:
        one.ok("storage", "convert", "--to", other, "--all", "-q")
        kill(one, step, "storage", "accept", "-f")
        assert os.listdir(one.root / "drivers") == [other], step
        assert rows(one, there) == []
        there, other = other, there
    same(before, state(one))


def test_killed_while_it_rolls_back_the_next_command_does_the_rest(one):
    before, layers = state(one), rows(one, "overlay")
    for step in ROLLBACK:
        one.ok("storage", "convert", "--to", "copy", "--all", "-q")
        kill(one, step, "storage", "rollback", "-f")
        assert os.listdir(one.root / "drivers") == ["overlay"], step
        assert rows(one, "overlay") == layers
    same(before, state(one))


def test_a_disk_that_fails_is_told_and_what_was_done_is_kept(one):
    before, layers = state(one), rows(one, "overlay")
    convert = ("storage", "convert", "--to", "copy", "--all", "-q")
    done = one(*convert, env={"COWSHED_FAULT": "error@convert.layer.filled:2"})
    assert done.returncode == 1
    assert b"not converted: layer " in done.stderr
    assert b"fault injected at convert.layer.filled" in done.stderr
    assert len(rows(one, "copy")) == 1
    assert rows(one, "overlay") == layers
    clean(one)
    assert "Converted to copy: 2 layers, 1 containers" in one.ok(*convert)
    same(before, state(one))


def test_a_limit_that_would_be_lost_is_refused_by_name_and_kept_where_it_can_be(ways, archives):
    engine, _ = ways
    limits = ("--driver", "btrfs", "--driver-option", "quota=simple")
    if not os.path.exists("/sys/fs/btrfs/features/simple_quota"):
        pytest.skip("this kernel has no simple quotas")
    engine.ok(*limits, "load", "-q", "-i", archives[ONE])
    engine.ok(*limits, "create", "--name", "small", "--storage-opt", "size=10m", ONE, "sh", "-c", BIG)
    refused = engine("storage", "convert", "--to", "copy", "--all")
    assert refused.returncode == 125
    assert b"container small: its limit of 10.5 MB, cannot be held by driver copy" in refused.stderr
    assert os.listdir(engine.root / "drivers") == ["btrfs"]
    engine.ok("storage", "convert", "--to", "copy", "--all", "-q", "--lossy")
    engine.ok("storage", "accept", "-f")
    engine.ok("storage", "convert", "--to", "btrfs", "--to-option", "quota=simple", "--all", "-q")
    engine.ok("storage", "accept", "-f")
    size = int(engine.ok("start", "-a", "small").split()[-1])
    assert 0 < size <= 10 << 20, "back where there are limits it has its own again"
    clean(engine)


BIG = "dd if=/dev/zero of=/big bs=64k count=320 2>/dev/null; stat -c %s /big"


def test_a_full_disk_ends_it_and_nothing_is_lost(store, archives, tmp_path):
    with file_system("ext4", str(tmp_path / "fs"), 128 << 20) as system:
        store.root = Path(system.path) / "store"
        store.ok("--driver", "overlay", "load", "-q", "-i", archives[ONE])
        store.ok("--driver", "overlay", "run", "--name", "large", ONE, "sh", "-c",
                 "dd if=/dev/urandom of=/big bs=1M count=20 2>/dev/null")  # fmt: skip
        layers, before = rows(store, "overlay"), tree(store, "large")
        free = os.statvfs(system.path)
        filler = Path(system.path) / "filler"
        with open(filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - (12 << 20))
        refused = store("storage", "convert", "--to", "copy", "--all")
        assert refused.returncode == 125
        assert b" are wanted, and driver copy has " in refused.stderr
        assert os.listdir(store.root / "drivers") == ["overlay"]
        filler.unlink()
        store.ok("storage", "convert", "--to", "copy", "--images", "-q")
        with open(filler, "wb") as file:
            free = os.statvfs(system.path)
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - (8 << 20))
        full = store("storage", "convert", "--to", "copy", "--all")
        assert full.returncode == 125
        assert rows(store, "overlay") == layers
        filler.unlink()
        clean(store)
        assert "0 layers, 1 containers" in store.ok("storage", "convert", "--to", "copy", "--all", "-q")
        assert tree(store, "large") == before
        store.close()


def test_layers_of_several_drivers_become_one_drivers(ways, archives):
    engine, _ = ways
    engine.ok("--driver", "overlay", "load", "-q", "-i", archives[ONE])
    for name in ("overlay", "copy"):
        engine.ok("--driver", name, "run", "--name", f"on-{name}", ONE, "sh", "-c", CHANGES)
    trees = {name: tree(engine, name) for name in engine.names()}
    assert "Converted to btrfs: 3 layers, 2 containers" in engine.ok(
        "storage", "convert", "--to", "btrfs", "--all", "-q"
    )
    engine.ok("storage", "rollback", "-f")
    assert drivers_of(engine) == ["copy", "overlay"]
    engine.ok("storage", "convert", "--to", "btrfs", "--all", "-q")
    assert {name: tree(engine, name) for name in engine.names()} == trees
    engine.ok("storage", "accept", "-f")
    assert os.listdir(engine.root / "drivers") == ["btrfs"]
    clean(engine)


SECOND = """
from cowshed_driver_btrfs import plugin as btrfs

plugin = made(
    "second", options=btrfs.options, probe=btrfs.probe, init=btrfs.init, open=btrfs.open, destroy=btrfs.destroy
)
"""


def test_where_both_know_a_format_layers_are_sent(ways, archives, tmp_path):
    engine, _ = ways
    (tmp_path / "points").mkdir()
    plugins.driver(str(tmp_path / "points"), "second", SECOND)
    engine.command = plugins.launcher(tmp_path / "second", tmp_path / "points")
    engine.ok("--driver", "btrfs", "load", "-q", "-i", archives[TWO])
    engine.ok("--driver", "btrfs", "run", "--name", "other", TWO, "sh", "-c", CHANGES)
    before = state(engine)
    planned = engine.ok("storage", "convert", "--to", "second", "--images", "--plan", "--format", "{{.How}}")
    assert set(planned.split("\n")) == {"send btrfs-send", ""}
    kill(engine, "convert.layer.sent:2", "storage", "convert", "--to", "second", "--all", "-q")
    said = engine.ok("storage", "convert", "--to", "second", "--all", "-q")
    assert "Converted to second: 2 layers, 1 containers" in said
    assert said.splitlines()[0].endswith(" 2 sent"), "also those on the one that was there: it was received too"
    same(before, state(engine))
    engine.ok("storage", "accept", "-f")
    assert os.listdir(engine.root / "drivers") == ["second"]
    same(before, state(engine))
    clean(engine)


FULL = """
from cowshed.cli.main import main
from cowshed.storage.kit.copying import Contents

def full(*words):
    raise OSError(28, "No space left on device")

Contents.copy = full
main()
"""


def test_a_disk_that_is_full_sooner_than_was_thought_ends_it_clean(one):
    layers = rows(one, "overlay")
    words = one.words("storage", "convert", "--to", "copy", "--all", "-q")[1:]
    python = str(Path(one.command).parent / "python")
    done = subprocess.run([python, "-c", FULL, *words], capture_output=True, env=one.env, timeout=120)
    assert done.returncode == 125
    assert b"no space for layer " in done.stderr
    assert b" in driver copy: make room and say the same again" in done.stderr
    assert (rows(one, "copy"), rows(one, "overlay")) == ([], layers)
    clean(one)
    assert "Converted to copy: 3 layers, 1 containers" in one.ok("storage", "convert", "--to", "copy", "--all", "-q")


def told(engine, *words):
    """The verdict of each driver."""
    listed = json.loads(engine.ok(*words, "driver", "why", "--format", "json"))["Drivers"]
    return {driver["Name"]: driver["Verdict"] for driver in listed}


@pytest.fixture
def ways(tmp_path, engine_on):
    """A store on btrfs, where copies share, and the drivers that it can go through on this machine, with options."""
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(engine_on("btrfs", tmp_path))
        engine.driver, engine.options = None, ()
        options = dict.fromkeys(("overlay", "btrfs", "aufs", "copy", "loops"), ())
        with contextlib.suppress(NotHere):
            engine.command = with_loops(tmp_path)
        options["devicemapper"] = ("loop_size=1500M", "layer_size=1200M")
        if "COWSHED_GUEST" in os.environ:
            subprocess.run(["modprobe", "dm_thin_pool"], check=True)
        with contextlib.suppress(NotHere):
            options["zfs"] = (f"dataset={stack.enter_context(zfs_pool(tmp_path))}",)
        verdicts = told(engine)
        for dataset in options.get("zfs", ()):  # without one of its own it has none here
            verdicts["zfs"] = told(engine, "--driver", "zfs", "--driver-option", dataset)["zfs"]
        order = ("btrfs", "zfs", "devicemapper", "aufs", "loops", "copy", "overlay")
        usable = [name for name in order if name in options and verdicts.get(name, "unusable") != "unusable"]
        yield engine, [(name, options[name]) for name in usable]
        engine.close()
        for name in json.loads(engine.ok("info", "--format", "json"))["DriversInUse"]:
            if name in ("zfs", "devicemapper"):
                engine.ok("storage", "convert", "--to", "overlay", "--all", "-q")
                engine.ok("storage", "accept", "-f")


@pytest.mark.slow
def test_a_store_goes_through_every_driver_killed_at_random_on_the_way(ways, archives):
    """Three images, two running and three stopped containers; ten kills."""
    engine, legs = ways
    wanted = {"btrfs", "copy", "overlay"}
    if "COWSHED_GUEST" in os.environ:  # which has what these need, if its kernel has
        modules = {"devicemapper": "dm_thin_pool", "zfs": "zfs"}
        wanted |= {name for name, module in modules.items() if os.path.exists(f"/sys/module/{module}")}
    assert {name for name, _ in legs} >= wanted
    chance = random.Random(int(os.environ.get("COWSHED_CONVERSION_SEED", "9")))
    fill(engine, archives, "overlay")
    before, source, killed = state(engine), "overlay", 0
    each = -(-10 // len(legs))
    for target, options in legs:
        where = []  # it was killed on this leg
        convert = ["storage", "convert", "--to", target, "--all", "-q"]
        convert += [word for pair in options for word in ("--to-option", pair)]
        for step in chance.sample(CONVERT[1:], len(CONVERT) - 1):
            if len(where) < each - 1:
                done = engine(*convert, env={"COWSHED_FAULT": f"kill@{step}:{chance.randint(1, 3)}"}, timeout=600)
                where += [step] * (done.returncode == -signal.SIGKILL)
                clean(engine)
        engine.ok("stop", "-t", "0", "up", "up2")
        engine.ok(*convert)
        assert drivers_of(engine) == [target]
        same(before, state(engine), target)
        engine.ok("start", "up", "up2")
        assert engine.ok("exec", "up", "cat", "/mine") == "x\n"
        step = chance.choice(ACCEPT)
        done = engine("storage", "accept", "-f", env={"COWSHED_FAULT": f"kill@{step}"})
        where += [step] * (done.returncode == -signal.SIGKILL)
        clean(engine)
        assert rows(engine, source) == []
        assert os.listdir(engine.root / "drivers") == [target], f"the bytes of {source} are back"
        same(before, state(engine), target)
        print(f"{source} to {target}: killed at {', '.join(where)}")
        source, killed = target, killed + len(where)
    assert killed >= 10
    for name in ("changed", "other", "fresh"):
        assert engine("start", "-a", name).returncode in (0, 1), "its script meets what it did before"
    assert engine.ok("exec", "up2", "cat", "/mine") == "x\n"
    engine.ok("rm", "-f", *engine.names())
    clean(engine, "--deep")


def test_on_one_file_system_that_can_share_nothing_is_copied(ways, archives):
    engine, _ = ways
    engine.ok("--driver", "overlay", "load", "-q", "-i", archives[TWO])
    engine.ok("--driver", "overlay", "run", "--name", "other", TWO, "sh", "-c", CHANGES)
    for target in ("btrfs", "copy", "overlay"):
        planned = engine.ok("storage", "convert", "--to", target, "--all", "--plan", "--format", "json")
        assert {json.loads(line)["How"] for line in planned.splitlines()} == {"reflink"}
        said = engine.ok("storage", "convert", "--to", target, "--all", "-q")
        assert "; 0B copied, " in said, said
        engine.ok("storage", "accept", "-f")
        clean(engine)
