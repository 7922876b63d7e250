"""Saving images: what is written is what others read, the same each time, whole or not there."""

import bz2
import gzip
import json
import lzma
import os
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest
from backports import zstd
from cowshed_testing.images import Image, LayerTar
from cowshed_testing.samples import SMALL, small

from cowshed.errors import BadUsage, Conflict, ImageError, NotFound, Tampered
from cowshed.image import progress
from cowshed.image.save import FORMATS, chosen, save
from cowshed.image.transports.files import DirectoryFiles
from cowshed.state import images

NAME = "example.org/team/app:1"


def write(store, output, kind="docker-archive", words=(NAME,)):
    roots = chosen(store.store, words, find(store))
    save(store.store, roots, str(output), kind, progress=progress.Progress())


def find(store):
    def one(word):
        found = images.by_name(store.store, word)
        return found if found is not None else images.by_id(store.store, word)

    return one


@pytest.fixture
def app(store, tmp_path):
    """An image in the store under NAME; what it was made from."""
    image = small()
    image.write_layout(f"{tmp_path}/source", NAME)
    store.load(f"{tmp_path}/source")
    return image


@pytest.mark.parametrize("kind", FORMATS)
def test_saved_and_loaded_again_it_is_the_same(app, store, make_store, tmp_path, kind):
    write(store, tmp_path / "out", kind)
    other = make_store("more")
    (loaded,) = other.load(f"{tmp_path}/out")
    assert loaded.image.manifest == app.manifest
    assert other.tree(loaded.image) == SMALL
    assert loaded.names == (() if kind == "docker-dir" else (NAME,))


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_the_same_bytes_each_time(app, store, make_store, tmp_path, kind):
    write(store, tmp_path / "one", kind)
    other = make_store("more", "copy")
    other.load(f"{tmp_path}/one")
    write(other, tmp_path / "two", kind)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_what_docker_25_writes(app, store, tmp_path):
    write(store, tmp_path / "out")
    with tarfile.open(tmp_path / "out") as tar:
        names = tar.getnames()
        (entry,) = json.load(tar.extractfile("manifest.json"))
        (listed,) = json.load(tar.extractfile("index.json"))["manifests"]
        assert json.load(tar.extractfile("oci-layout")) == {"imageLayoutVersion": "1.0.0"}
        assert {member.mtime for member in tar} == {0}
    assert entry["Config"] == f"blobs/sha256/{app.id[7:]}"
    assert entry["RepoTags"] == [NAME]
    assert set(entry["Layers"]) < set(names)
    assert listed["digest"] == app.digest
    assert listed["annotations"] == {
        "io.containerd.image.name": NAME,
        "org.opencontainers.image.ref.name": "1",
    }


@pytest.mark.parametrize(
    ("kind", "source"), [("docker-archive", "docker-archive:{}"), ("oci-archive", "oci-archive:{}"),
                         ("oci-dir", "oci:{}"), ("docker-dir", "dir:{}")],
)  # fmt: skip
def test_what_skopeo_reads(app, store, tmp_path, kind, source):
    write(store, tmp_path / "out", kind)
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    words = ["skopeo", "--policy", str(policy), "copy", source.format(tmp_path / "out"), f"dir:{tmp_path}/read"]
    done = subprocess.run(words, capture_output=True)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "read/manifest.json").read_bytes())
    assert manifest["config"]["digest"] == app.id
    if kind != "docker-archive":  # of which skopeo makes docker's schema 2 out of configuration and layers
        assert (tmp_path / "read/manifest.json").read_bytes() == app.manifest


def test_several_images_with_shared_layers(store, make_store, tmp_path):
    shared = LayerTar().file("shared", b"x" * 5000).bytes()
    made = [Image([shared, LayerTar().file("own", str(n)).bytes()]) for n in range(3)]
    for n, image in enumerate(made):
        image.write_layout(f"{tmp_path}/{n}", f"example.org/several:{n}")
        store.load(f"{tmp_path}/{n}")
    words = ["example.org/several:0", "example.org/several:1", made[2].id]
    write(store, tmp_path / "out", words=words)
    with tarfile.open(tmp_path / "out") as tar:
        names = tar.getnames()
    assert len(names) == len(set(names))
    other = make_store("more")
    loaded = other.load(f"{tmp_path}/out")
    assert [each.image.id for each in loaded] == [image.id for image in made]
    assert [each.names for each in loaded] == [(words[0],), (words[1],), ()]


def test_two_names_of_one_image(app, store, make_store, tmp_path):
    with store.store.transaction() as tx:
        images.tag(tx, "example.org/team/app:2", app.id)
    write(store, tmp_path / "out", words=[NAME, "example.org/team/app:2"])
    loaded = make_store("more").load(f"{tmp_path}/out")
    assert {name for each in loaded for name in each.names} == {NAME, "example.org/team/app:2"}


def test_a_name_that_is_a_digest_is_not_written(app, store, make_store, tmp_path):
    """docker takes no such name from an archive."""
    name = f"example.org/team/app@{app.digest}"
    with store.store.transaction() as tx:
        images.tag(tx, name, app.id)
    write(store, tmp_path / "out", words=[name])
    with tarfile.open(tmp_path / "out") as tar:
        assert json.load(tar.extractfile("manifest.json"))[0]["RepoTags"] is None
    (loaded,) = make_store("more").load(f"{tmp_path}/out")
    assert loaded.names == ()


def test_to_a_pipe(app, store, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = []
    thread = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_bytes()))
    thread.start()
    write(store, tmp_path / "pipe")
    thread.join()
    write(store, tmp_path / "file")
    assert found == [(tmp_path / "file").read_bytes()]


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress, lzma.compress, bz2.compress])
def test_packed_archives_are_loaded(app, store, make_store, tmp_path, pack):
    write(store, tmp_path / "out")
    (tmp_path / "packed").write_bytes(pack((tmp_path / "out").read_bytes()))
    (loaded,) = make_store("more").load(f"{tmp_path}/packed")
    assert loaded.image.manifest == app.manifest


@pytest.mark.parametrize("pack", [lzma.compress, bz2.compress])
def test_packed_archives_that_are_cut_or_damaged(app, store, tmp_path, pack):
    write(store, tmp_path / "out")
    data = bytearray(pack((tmp_path / "out").read_bytes()))
    (tmp_path / "cut").write_bytes(data[: len(data) // 2])
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "damaged").write_bytes(data)
    for name in ("cut", "damaged"):
        with pytest.raises(ImageError):
            store.load(f"{tmp_path}/{name}")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("damage", ["gone", "other bytes"])
def test_a_damaged_blob_leaves_nothing(app, store, tmp_path, kind, damage):
    (folder := tmp_path / "target").mkdir()
    path = next(p for d in app.blobs if (p := Path(f"{store.root}/blobs/sha256/{d[7:]}")).exists())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    if damage == "other bytes":
        path.write_bytes(data)
    with pytest.raises(Tampered if damage == "other bytes" else ImageError):
        write(store, folder / "out", kind)
    assert os.listdir(folder) == []


def test_a_directory_that_has_other_images_keeps_them(app, store, tmp_path):
    other = Image([LayerTar().file("other").bytes()])
    other.write_layout(f"{tmp_path}/out", "example.org/other:1")
    write(store, tmp_path / "out", "oci-dir")
    write(store, tmp_path / "out", "oci-dir")  # once more changes nothing
    listed = json.loads((tmp_path / "out/index.json").read_bytes())["manifests"]
    assert [entry["digest"] for entry in listed] == [other.digest, app.digest]


def test_what_is_no_place_to_write_to(app, store, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Conflict):
        write(store, tmp_path / "file", "oci-dir")
    with pytest.raises(NotFound):
        write(store, tmp_path / "none/out")
    with pytest.raises(BadUsage, match="directory"):
        write(store, tmp_path, "oci-archive")
    with pytest.raises(BadUsage, match="is a directory"):
        write(store, "-", "oci-dir")
    with pytest.raises(NotFound):
        write(store, tmp_path / "out", words=["ffffffffffff"])


def test_memory_does_not_grow_with_the_image(store, tmp_path):
    """A layer of 64 MB that does not shrink is written with less than 8 MB more than was in use."""
    import tracemalloc

    image = Image([LayerTar().file("large", os.urandom(64 << 20)).bytes()], compression="")
    image.write_layout(f"{tmp_path}/source", NAME)
    del image
    store.load(f"{tmp_path}/source")
    tracemalloc.start()
    try:
        write(store, tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert (tmp_path / "out").stat().st_size > 64 << 20


def test_directories_that_two_threads_make_at_once_are_taken_away(tmp_path, monkeypatch):
    """What is in one is taken away before it, whichever of them came first."""
    below, mkdir = threading.Event(), os.mkdir

    def slow(path):
        mkdir(path)
        if path.endswith("/b/c"):
            below.set()
        elif path.endswith("/b"):
            below.wait(0.5)  # the other would get as far as that

    def put_and_fail(files):
        threads = [threading.Thread(target=files.put, args=(f"a/b/c/{n}", 1, [b"x"])) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        raise ImageError("the end")

    monkeypatch.setattr(os, "mkdir", slow)
    with pytest.raises(ImageError), DirectoryFiles(f"{tmp_path}/out") as files:
        put_and_fail(files)
    assert not (tmp_path / "out").exists()
