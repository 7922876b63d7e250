"""`storage dedup`: files that are the same in layers of different images share their blocks, on real file systems."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from cowshed_testing.filesystems import mounted
from cowshed_testing.images import Image, LayerTar

from cowshed_linux import extents

SIZE = 6_000_001  # no multiple of a block
NOISE = os.urandom(SIZE)


@pytest.fixture
def load(tmp_path):
    """load(engine, layers, name): an image that no registry has."""

    def load(engine, layers, name):
        folder = f"{tmp_path}/{name.partition(':')[0]}"
        Image([layer.bytes() for layer in layers]).write_layout(folder, f"example.org/{name}")
        engine.ok("load", "-q", "-i", folder)

    return load


def used(path):
    subprocess.run(["sync", "-f", path], check=True)
    if subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True).stdout.strip() == "btrfs":
        subprocess.run(["btrfs", "filesystem", "sync", path], check=True, stdout=subprocess.DEVNULL)
    status = os.statvfs(path)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def told(engine, *words):
    (row,) = [json.loads(line) for line in engine.ok("storage", "dedup", *words, "--format", "json").splitlines()]
    return row


def where(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return extents.extents(fd)
    finally:
        os.close(fd)


def copies_of_noise(engine):
    """Wherever the driver keeps them."""
    found = [path for path in Path(engine.root, "drivers").rglob("*") if path.is_file()]
    return [path for path in found if path.stat().st_size == SIZE and path.read_bytes() == NOISE]


@pytest.mark.parametrize("place", ["overlay-xfs", "copy-xfs", "btrfs"])
def test_the_same_file_in_two_images(engine_on, tmp_path, place, load):
    with engine_on(place, tmp_path) as engine:
        load(engine, [LayerTar().file("a", NOISE).file("small", "x").hardlink("again", "a")], "one:1")
        load(engine, [LayerTar().file("base", "y"), LayerTar().dir("d").file("d/b", NOISE)], "two:1")
        load(engine, [LayerTar().file("c", NOISE[::-1])], "three:1")
        disk = os.path.dirname(engine.root)
        tree = engine.ok("image", "diff", "example.org/one:1", "example.org/two:1")
        before = used(disk)
        planned = told(engine, "--dry-run")
        assert (planned["Same"], SIZE <= planned["Bytes"] < SIZE + 100_000) == (1, True)
        assert used(disk) > before - 1_000_000
        done = told(engine)
        assert {**done, "Layers": 4} == {**planned, "Layers": 4}
        assert before - used(disk) > SIZE - 500_000
        copies = copies_of_noise(engine)
        assert len(copies) >= 2
        assert len({where(path) for path in copies}) == 1
        again = told(engine)
        assert (again["Same"], again["Bytes"]) == (0, 0)
        assert engine.ok("image", "diff", "example.org/one:1", "example.org/two:1") == tree
        assert engine.ok("storage", "check", "--deep").splitlines()[-1] == "clean"
        # what one of them loses, the other keeps
        engine.ok("rmi", "example.org/one:1")
        assert len([path for path in copies_of_noise(engine) if "/trash/" not in str(path)]) == 1


def test_ext4_cannot(tmp_path, engine_of, load):
    with mounted("ext4", str(tmp_path / "disk")) as disk:
        engine = engine_of(tmp_path, "overlay")
        engine.root = Path(disk, "store")
        load(engine, [LayerTar().file("a", NOISE)], "one:1")
        for words in ((), ("--dry-run",)):
            done = engine("storage", "dedup", *words)
            assert done.returncode == 125
            assert done.stderr.count(b"\n") == 1
            assert b"the file system of driver overlay cannot share blocks between files" in done.stderr
        assert engine.ok("storage", "check").splitlines()[-1] == "clean"


def test_a_driver_without_directories_says_so(engine_on, tmp_path, load):
    with engine_on("loops", tmp_path) as engine:
        load(engine, [LayerTar().file("a", "x")], "one:1")
        done = engine("storage", "dedup")
        assert done.returncode == 125
        assert b"does not keep its layers as directories of one file system" in done.stderr
