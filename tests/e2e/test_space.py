"""`storage df`, `tree` and `why`: what takes the space, what removing something would free, why a layer is kept."""

import json
import subprocess

import pytest
from cowshed_testing.images import Image, LayerTar, busybox_layer


@pytest.fixture(scope="module")
def cousins(registry):
    """Two images that share their lowest layer; each has 2 MB and 3 MB of its own."""
    base, one, other = busybox_layer(), LayerTar(), LayerTar()
    one.file("one", bytes(range(256)) * 8000)
    other.file("other", bytes(range(256)) * 12000)
    return [
        registry.push(Image([base, layer.bytes()]), f"space/{name}") for name, layer in (("one", one), ("other", other))
    ]


@pytest.fixture
def two(engine, cousins):
    """A store with both, and a container that wrote 1 MB on the first."""
    for image in cousins:
        engine.ok("pull", "-q", image)
    engine.one, engine.other = cousins
    engine.ok("run", "--name", "box", engine.one, "dd", "if=/dev/urandom", "of=/data", "bs=1000000", "count=1")
    return engine


def rows(engine, *words):
    return [json.loads(line) for line in engine.ok(*words, "--format", "json").splitlines()]


def taken(engine):
    """What the layers and archives of a store take, as du counts it."""
    where = [f"{engine.root}/drivers", f"{engine.root}/blobs/sha256"]
    lines = subprocess.run(["du", "-s", "-B1", *where], check=True, capture_output=True, text=True).stdout.splitlines()
    return sum(int(line.split()[0]) for line in lines)


def test_the_lines_of_df_add_up_and_tell_what_is_shared(two):
    told = {(row["Type"], row["Name"]): row for row in rows(two, "storage", "df")}
    first, second = (told["image", name] for name in (two.one, two.other))
    box = told["container", "box"]
    assert first["OwnBytes"] >= 2_048_000
    assert second["OwnBytes"] >= 3_072_000
    assert first["SharedBytes"] == second["SharedBytes"] == told["shared", "1 layer, 1 archive"]["OwnBytes"] > 100_000
    assert (first["ReclaimableBytes"], second["ReclaimableBytes"]) == (0, second["OwnBytes"])
    if two.driver == "overlay":
        assert 1_000_000 <= box["OwnBytes"] < 1_100_000
    assert box["ReclaimableBytes"] == box["OwnBytes"]
    assert ("leftover", "") not in told
    # Everything is told once. What is not a layer or an archive, such as the driver's own directories, is small.
    assert abs(sum(row["OwnBytes"] for row in told.values()) - taken(two)) < 200_000


def test_system_df_sums_up_the_same_bytes(two):
    lines = rows(two, "storage", "df")
    docker = {row["Type"]: row for row in rows(two, "system", "df")}
    assert {kind: row["TotalCount"] for kind, row in docker.items()} == {
        "Images": 2, "Archives": 3, "Containers": 1, "Local Volumes": 0,
    }  # fmt: skip
    assert docker["Images"]["Active"] == docker["Containers"]["TotalCount"] == 1
    box = next(row for row in lines if row["Type"] == "container")
    assert docker["Containers"]["Size"] == box["Own"]


def test_df_of_some_tells_what_would_be_freed_and_it_is(two):
    told = rows(two, "storage", "df", two.other)
    assert {row["Type"] for row in told if row["Freed"] == "yes"} == {"layer", "archive"}
    (kept,) = [row for row in told if row["Type"] == "layer" and row["Freed"] == "no"]
    assert kept["KeptBy"] == f"container box, image {two.one}"
    promised = sum(row["SizeBytes"] for row in told if row["Freed"] == "yes")
    assert f"Removing image {two.other} would free " in two.ok("storage", "df", two.other).splitlines()[-1]
    before = taken(two)
    two.ok("rmi", two.other)
    assert abs(before - taken(two) - promised) < 100_000


def test_an_image_goes_only_with_its_containers(two):
    alone = rows(two, "storage", "df", two.one)
    assert {row["Freed"] for row in alone} == {"no"}
    assert {row["KeptBy"] for row in alone if row["Type"] == "archive"} >= {"container box"}
    both = rows(two, "storage", "df", two.one, "box")
    assert [row["Freed"] for row in both].count("no") == 2  # the layer and the archive that the other image has
    everything = rows(two, "storage", "df", two.one, two.other, "box")
    assert {row["Freed"] for row in everything} == {"yes"}


def test_nothing_of_that_name(two):
    for words in (("df", "nothing"), ("tree", "nothing"), ("why", "nothing")):
        done = two("storage", *words)
        assert done.returncode == 125
        assert b"no such container, image or volume: nothing" in done.stderr


def test_a_tree_of_layers_with_names(two):
    base, top, own, other = rows(two, "storage", "tree")
    assert [each["Depth"] for each in (base, top, own, other)] == [0, 1, 2, 1]
    assert (base["Images"], top["Images"], other["Images"]) == ([], [two.one], [two.other])
    assert (own["Container"], own["Kind"], own["Parent"]) == ("box", "active", top["Number"])
    lines = two.ok("storage", "tree").splitlines()
    assert [line.split(base["Driver"])[0].rstrip() for line in lines[1:]] == [
        base["ID"], f"├─ {top['ID']}", f"│  └─ {own['ID']}", f"└─ {other['ID']}",
    ]  # fmt: skip
    assert [row["ID"] for row in rows(two, "storage", "tree", two.other)] == [base["ID"], other["ID"]]


def test_why_a_layer_is_kept(two):
    base, top, own, _ = rows(two, "storage", "tree", "--no-trunc")

    def chains(what):
        return [row["Chain"] for row in rows(two, "storage", "why", what)]

    image = two.ok("image", "inspect", "-f", "{{.Id}}", two.one).strip()[7:19]
    own_id, top_id, base_id = (each["ID"][:12] for each in (own, top, base))
    by_container = ["container box (exited)", f"layer {own_id}, its own"]
    assert chains(own["ID"][:8]) == [by_container]
    assert chains(str(top["Number"])) == [
        [*by_container, f"layer {top_id}"],
        [f"name {two.one}", f"image {image}", "its layer 2 of 2"],
    ]
    assert len(chains(base["ChainID"])) == 3
    assert len(chains(two.other)) == 4  # three of its base, one of its own
    assert base_id in two.ok("storage", "why", base["ID"])
    two.ok("rm", "box")
    assert chains(top["ID"]) == [[f"name {two.one}", f"image {image}", "its layer 2 of 2"]]


def test_looking_changes_nothing_and_works_beside_a_running_container(two):
    two.ok("run", "-d", "--name", "running", two.other, "sleep", "600")
    before = (two.root / "db.sqlite-wal").read_bytes() if (two.root / "db.sqlite-wal").exists() else b""
    told = {row["Name"]: row for row in rows(two, "storage", "df")}
    assert told["running"]["ReclaimableBytes"] == 0
    assert told[two.other]["ReclaimableBytes"] == 0
    (chain,) = [row["Chain"] for row in rows(two, "storage", "why", "running") if len(row["Chain"]) == 2]
    assert chain[0] == "container running (running)"
    two.ok("storage", "tree")
    after = (two.root / "db.sqlite-wal").read_bytes() if (two.root / "db.sqlite-wal").exists() else b""
    assert before == after


@pytest.mark.parametrize("where", ["loops", "btrfs"])
def test_looking_at_drivers_of_other_kinds(engine_on, tmp_path, greeting, where):
    """One that sets devices up to measure its layers, and one whose layers are subvolumes."""
    with engine_on(where, tmp_path) as engine:
        engine.ok(
            "run", "--name", "box", greeting, "dd", "if=/dev/zero", "of=/new", "bs=100000", "count=1", "conv=fsync"
        )  # fmt: skip
        engine.ok("run", "-d", "--name", "running", greeting, "sleep", "600")
        told = {row["Name"]: row for row in rows(engine, "storage", "df")}
        assert told["box"]["Drivers"] == engine.driver
        assert told["box"]["ReclaimableBytes"] == told["box"]["OwnBytes"] > 0
        assert told["running"]["ReclaimableBytes"] == 0
        assert [row["Depth"] for row in rows(engine, "storage", "tree")] == [0, 1, 2, 3, 3]
        freed = rows(engine, "storage", "df", "box")
        assert [row["Freed"] for row in freed].count("yes") == 1
        assert engine("doctor", "--format", "json").returncode == (1 if where == "loops" else 0)
        assert engine.ok("storage", "gc", "--dry-run") == "There is nothing to remove\n"


@pytest.mark.parametrize("driver", ["overlay"])
def test_archives_are_dropped_and_made_again(engine, cousins, tmp_path):
    engine.ok("pull", "-q", cousins[0])
    engine.ok("save", "-q", "-o", tmp_path / "before", cousins[0])
    folder = engine.root / "blobs/sha256"
    there = sorted(path.name for path in folder.iterdir())
    before = taken(engine)
    shown = engine.ok("storage", "gc", "--archives", "--dry-run")
    assert shown.startswith("Would delete Archives that can be made again:\n")
    assert all(f"sha256:{name}" in shown for name in there)
    assert sorted(path.name for path in folder.iterdir()) == there
    assert "Deleted Archives that can be made again:" in engine.ok("storage", "gc", "--archives", "-f")
    assert list(folder.iterdir()) == []
    assert taken(engine) < before
    assert engine.ok("storage", "check", "--deep") == "clean\n"
    assert "There is nothing to remove" in engine.ok("storage", "gc", "--archives", "--dry-run")
    engine.ok("save", "-q", "-o", tmp_path / "after", cousins[0])
    assert (tmp_path / "before").read_bytes() == (tmp_path / "after").read_bytes()
    engine.ok("--driver", "copy", "run", "--rm", cousins[0], "true")
    engine.ok("rmi", cousins[0])
    assert list((engine.root / "blobs/recipes").iterdir()) == []
    assert engine.ok("storage", "check") == "clean\n"


@pytest.mark.parametrize("driver", ["overlay"])
def test_archives_by_policy(engine, cousins, tmp_path):
    (tmp_path / "drop.toml").write_text('[images]\narchives = "drop"\n')
    engine.ok("--config", tmp_path / "drop.toml", "pull", "-q", cousins[0])
    assert list((engine.root / "blobs/sha256").iterdir()) == []
    assert len(list((engine.root / "blobs/recipes").iterdir())) == 2
    engine.ok("pull", "-q", cousins[1])
    assert len(list((engine.root / "blobs/sha256").iterdir())) == 1, "the layer that both have was here"
    engine.ok("storage", "rescue", "--to", tmp_path / "saved")
    engine.ok("rmi", *cousins)
    engine.ok("load", "-q", "-i", tmp_path / "saved/images")
    assert engine.ok("storage", "check", "--deep") == "clean\n"
