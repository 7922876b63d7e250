"""Loading images from files: layouts and docker archives as directories, tar files and pipes; damaged and hostile."""

import gzip
import io
import json
import os
import subprocess
import tarfile
import threading
from contextlib import contextmanager, nullcontext, suppress

import pytest
from backports import zstd
from cowshed_testing.images import ARCHITECTURE, Image, LayerTar, docker_archive
from cowshed_testing.samples import SMALL, small, with_config

from cowshed.errors import Conflict, CowshedError, ImageError, NotFound, Tampered
from cowshed.image import platform
from cowshed.image.remove import remove
from cowshed.state import images

NAME = "example.org/app:1"


def tar_of(folder):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in sorted(os.listdir(folder)):
            tar.add(f"{folder}/{name}", name)
    return buffer.getvalue()


@pytest.fixture
def layout(tmp_path):
    def make(image, name=NAME):
        folder = tmp_path / f"layout-{os.urandom(3).hex()}"
        image.write_layout(str(folder), name)
        return folder

    return make


def write(tmp_path, data):
    path = tmp_path / f"archive-{os.urandom(3).hex()}"
    path.write_bytes(data)
    return str(path)


def loaded(store, source, names=("example.org/app:1",)):
    (one,) = store.load(source)
    assert one.names == names
    assert store.tree(one.image) == SMALL
    assert os.listdir(f"{store.root}/blobs/partial") == []
    return one.image


@pytest.mark.parametrize("compression", ["gzip", "zstd", ""])
def test_a_layout_directory(store, layout, compression):
    image = small(compression)
    row = loaded(store, str(layout(image)))
    assert (row.id, row.manifest_digest) == (image.id, image.digest)
    assert sorted(os.listdir(f"{store.root}/blobs/sha256")) == sorted(d[7:] for d in image.blobs if d != image.id)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress], ids=["tar", "gzip", "zstd"])
def test_a_layout_archive(store, layout, tmp_path, pack):
    loaded(store, write(tmp_path, pack(tar_of(layout(small())))))


@pytest.mark.parametrize("links", [False, True])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress], ids=["tar", "gzip", "zstd"])
def test_a_docker_archive(store, tmp_path, pack, links):
    image = small()
    row = loaded(store, write(tmp_path, pack(docker_archive(image, ["example.org/app:1"], links=links))))
    assert row.id == image.id


def test_a_docker_archive_with_one_layer_twice(store, tmp_path):
    layer = LayerTar().file("a", "x").bytes()
    image = Image([layer, LayerTar().whiteout("a").bytes(), layer])
    (one,) = store.load(write(tmp_path, docker_archive(image, [], links=True)))
    assert one.names == ()
    assert store.tree(one.image) == {"a": b"x"}


def test_an_unpacked_docker_archive(store, tmp_path):
    folder = tmp_path / "unpacked"
    folder.mkdir()
    with tarfile.open(fileobj=io.BytesIO(docker_archive(small(), [NAME]))) as tar:
        tar.extractall(folder)
    loaded(store, str(folder))


@contextmanager
def piped(data):
    """A descriptor that cannot seek, as standard input may be."""
    reader, writer = os.pipe()

    def feed():
        with suppress(BrokenPipeError), os.fdopen(writer, "wb") as pipe:
            pipe.write(data)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield reader
    finally:
        os.close(reader)
        thread.join()


@pytest.mark.parametrize("form", [tar_of, lambda folder: docker_archive(small(), [NAME])], ids=["layout", "docker"])
def test_from_a_pipe(store, layout, form):
    with piped(form(layout(small()))) as reader:
        loaded(store, reader)


def test_from_a_descriptor_that_stands_within_a_file(store, layout, tmp_path):
    path = write(tmp_path, b"something else" + tar_of(layout(small())))
    with open(path, "rb") as file:
        file.seek(len(b"something else"))
        loaded(store, file.fileno())


def test_what_skopeo_writes(store, tmp_path, real):
    """Archives of another tool, from a registry that is another one's too."""
    name = real.push(small(), "test/skopeo")
    source = f"docker://{name}"
    copy = ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", source]
    for form, names in (("oci", ("example.org/oci:1",)), ("oci-archive", ("example.org/oci-archive:1",)),
                        ("docker-archive", ("example.org/docker-archive:1",))):  # fmt: skip
        path = f"{tmp_path}/{form}"
        subprocess.run([*copy, f"{form}:{path}:example.org/{form}:1"], check=True, capture_output=True)
        loaded(store, path, names)


def test_of_several_platforms_the_fitting_one(store, layout):
    def foreign(config):
        config["architecture"] = "s390x"

    mine, other = small(), with_config(small(User="s390x"), foreign)
    folder = layout(mine)
    for key, data in {**other.blobs, other.digest: other.manifest}.items():
        (folder / "blobs/sha256" / key[7:]).write_bytes(data)
    index = json.loads((folder / "index.json").read_bytes())
    (first,) = index["manifests"]
    first["platform"] = {"os": "linux", "architecture": ARCHITECTURE}
    index["manifests"].insert(0, {**first, "digest": other.digest, "size": len(other.manifest),
                                  "platform": {"os": "linux", "architecture": "s390x"}})  # fmt: skip
    (folder / "index.json").write_text(json.dumps(index))
    assert loaded(store, str(folder)).id == mine.id
    (one,) = store.load(str(folder), platform=platform.parse("s390x"), replace=True)
    assert one.image.id == other.id


def test_several_images_in_one_archive(store, tmp_path):
    one, two = small(), small(User="two")
    parts = [docker_archive(one, ["a:1", "a:2"]), docker_archive(two, ["b:1"])]
    merged, files = [], {}
    for data in parts:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                content = tar.extractfile(member).read()
                if member.name == "manifest.json":
                    merged += json.loads(content)
                else:
                    files[member.name] = content
    files["manifest.json"] = json.dumps(merged).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    found = store.load(write(tmp_path, buffer.getvalue()))
    assert [each.names for each in found] == [("a:1", "a:2"), ("b:1",)]
    assert images.by_name(store.store, "docker.io/library/a:2").id == one.id


def test_a_name_that_another_image_has(store, layout):
    """CVE-2026-50195: an archive does not decide what a local name means, unless it is let."""
    first, second = small(), small(User="other")
    store.load(str(layout(first)))
    before = store.contents()
    with pytest.raises(Conflict, match=r"example\.org/app:1 is image"):
        store.load(str(layout(second)))
    assert store.contents() == before
    store.load(str(layout(first)))
    store.load(str(layout(second)), replace=True)
    assert images.by_name(store.store, NAME).id == second.id


def test_the_manifest_of_the_registry_stays(fake, store, tmp_path):
    """An image that was pulled and is loaded again from a docker archive keeps its digest and its compressed layers."""
    image = small()
    fake.add(image)
    store.pull(f"{fake.address}/a/b")
    (one,) = store.load(write(tmp_path, docker_archive(image, ["app:1"])))
    assert one.image.manifest_digest == image.digest
    assert images.names(store.store, image.id) == [f"{fake.address}/a/b:latest", "docker.io/library/app:1"]
    assert len(os.listdir(f"{store.root}/blobs/sha256")) == 3


def test_other_archives_of_the_same_layers_take_the_place_of_the_first(store, tmp_path, layout):
    image = small()
    store.load(write(tmp_path, docker_archive(image, ["app:1"])))
    store.load(str(layout(image)))
    assert sorted(os.listdir(f"{store.root}/blobs/sha256")) == sorted(d[7:] for d in image.blobs if d != image.id)


def test_removed_with_all_that_it_brought(store, tmp_path):
    before = store.contents()
    (one,) = store.load(write(tmp_path, docker_archive(small(), ["app:1"])))
    remove(store.store, one.image, "app:1", force=False, layers=lambda name: store.layers, running=lambda row: False)
    assert store.contents() == before


# ---------------------------------------------------------------- damaged and hostile


@pytest.fixture
def fails(store, layout, tmp_path):
    def check(source, error, match, *, feed=False):
        """feed: it is read from a pipe, and so as a whole before anything is made of it."""
        if isinstance(source, bytes) and not feed:
            source = write(tmp_path, source)
        before = store.contents()
        with pytest.raises(error, match=match) as caught, piped(source) if feed else nullcontext(str(source)) as it:
            store.load(it)
        assert isinstance(caught.value, CowshedError)
        assert "\n" not in str(caught.value)
        assert store.contents() == before
        assert os.listdir(f"{store.root}/blobs/partial") == []
        loaded(store, str(layout(small(User="sound"), "sound:1")), ("sound:1",))

    return check


def test_no_archive_at_all(fails, tmp_path):
    fails(b"root:x:0:0:root:/root:/bin/sh\n" * 100, ImageError, "no tar archive")
    fails(b"", ImageError, "holds no images")
    fails(tmp_path / "nowhere", NotFound, "does not exist")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", ImageError, "holds no images")


def test_cut_archives(fails, layout):
    whole = tar_of(layout(small()))
    fails(whole[:3000], ImageError, "cut short|holds no")
    fails(gzip.compress(whole)[:-30], ImageError, "cut short")
    fails(zstd.compress(whole)[:-30], ImageError, "cut short")


@pytest.mark.parametrize("kind", ["directory", "archive", "pipe"])
@pytest.mark.parametrize("how", ["changed", "longer", "missing", "a link out"])
def test_tampered_blobs(fails, layout, tmp_path, how, kind):
    image = small()
    folder = layout(image)
    blob = folder / "blobs/sha256" / json.loads(image.manifest)["layers"][1]["digest"][7:]
    data = bytearray(blob.read_bytes())
    if how == "changed":
        data[-1] ^= 1
        blob.write_bytes(data)
    elif how == "longer":
        blob.write_bytes(data + b"x")
    elif how == "missing":
        blob.unlink()
    else:
        os.rename(blob, tmp_path / "blob")
        os.symlink("../../../blob", blob)
    match = {
        "changed": "has the digest" if kind == "pipe" else "came with other bytes|gzip data is",
        "longer": "has the digest" if kind == "pipe" else "has .* bytes, its manifest says",
    }.get(how, "is missing in the")
    fails(folder if kind == "directory" else tar_of(folder), ImageError, match, feed=kind == "pipe")


def test_a_tampered_configuration_and_layer_of_a_docker_archive(fails):
    image = small()
    data = docker_archive(image, ["a:1"])
    fails(data.replace(b'"/bin', b'"/nib').replace(b":/bin", b":/nib"), Tampered, "has the digest")
    changed = data.replace(b"3" * 512, b"4" * 512)
    fails(changed, Tampered, "came with other bytes")
    fails(changed, Tampered, "layer 2 of 3: it has the digest", feed=True)


def test_a_docker_archive_whose_configuration_says_other_layers(fails):
    """What a layer is said to be is never taken for what it is."""
    image = small()
    diff_ids = json.loads(image.blobs[image.id])["rootfs"]["diff_ids"]

    def exchange(config):
        config["rootfs"]["diff_ids"] = [diff_ids[0], diff_ids[2], diff_ids[1]]

    wrong = with_config(image, exchange)
    fails(docker_archive(wrong, ["a:1"]), Tampered, "came with other bytes")
    fails(docker_archive(wrong, ["a:1"]), Tampered, "it has the digest", feed=True)


def test_only_what_is_wanted_of_a_file_is_read(store, tmp_path, monkeypatch):
    """Nothing is staged of one that is not packed, and what lies beside an image costs nothing."""
    image = small()
    data = docker_archive(image, [NAME])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        first = tar.next()
    beside = tarfile.TarInfo("beside")
    beside.size = 64 << 20
    path = tmp_path / "large.tar"
    with open(path, "wb") as file:
        file.write(beside.tobuf())
        file.seek(beside.size, os.SEEK_CUR)
        file.write(data)
    assert first.name.endswith(".json")
    monkeypatch.setattr("cowshed.image.staging.Staging.add", None)
    came = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *args: came.append(pread(*args)) or came[-1])
    loaded(store, str(path))
    assert sum(map(len, came)) < 1 << 20


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"Layers": ["../../../etc/passwd"] * 3}, "missing in the archive"),
        ({"Config": "../../../etc/passwd"}, "missing in the archive"),
        ({"Layers": [7]}, "list of names"),
        ({"RepoTags": "a:1"}, "list of names"),
        ({"RepoTags": ["UPPER:1"]}, "no name of an image"),
        ({"RepoTags": ["../../x"]}, "no name of an image"),
        ({"Config": None}, "without a configuration"),
        ({"Layers": ["x"] * 600}, "too many layers"),
        ({"Layers": []}, "0 layers and 3 diff ids"),
    ],
)
def test_manifest_json_that_is_wrong(fails, tmp_path, entry, match):
    data = docker_archive(small(), ["a:1"])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as source, tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in source:
            content = source.extractfile(member).read()
            if member.name == "manifest.json":
                content = json.dumps([{**json.loads(content)[0], **entry}]).encode()
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    fails(buffer.getvalue(), CowshedError, match)


def test_links_out_of_a_directory_and_things_that_are_no_files(fails, tmp_path):
    """Names are opened beneath the directory only; a FIFO does not hold us up."""
    secret = tmp_path / "secret"
    secret.write_text('{"imageLayoutVersion": "1.0.0"}')
    folder = tmp_path / "linked"
    folder.mkdir()
    os.symlink(secret, folder / "oci-layout")
    fails(folder, ImageError, "holds no images")
    os.unlink(folder / "oci-layout")
    os.mkfifo(folder / "oci-layout")
    fails(folder, ImageError, "no plain file")


def test_links_in_an_archive_lead_to_members_only(fails, tmp_path):
    (tmp_path / "secret").write_text("[]")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, target in (("manifest.json", str(tmp_path / "secret")), ("oci-layout", "../" * 20 + "etc/passwd"),
                             ("loop", "loop")):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    fails(buffer.getvalue(), ImageError, "holds no images")


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("oci-layout", {"imageLayoutVersion": "2.0.0"}, "version '2.0.0'"),
        ("oci-layout", [], "no JSON object"),
        ("index.json", {"manifests": []}, "holds no image"),
        ("index.json", {"manifests": [{"digest": "sha256:../x", "size": 3}]}, "no digest"),
        ("index.json", {}, "no list of manifests"),
        ("index.json", None, "has no index.json"),
    ],
)
def test_layouts_that_are_wrong(fails, layout, file, content, match):
    folder = layout(small())
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(json.dumps(content))
    fails(folder, ImageError, match)


def test_a_layout_whose_name_is_none(fails, layout):
    fails(layout(small(), "a/UPPER:1"), ImageError, "a name that is none")


def test_a_second_image_that_is_wrong_stops_the_first(fails, layout):
    good, bad = small(), small(User="bad")
    folder = layout(good)
    for key, data in {**bad.blobs, bad.digest: bad.manifest}.items():
        (folder / "blobs/sha256" / key[7:]).write_bytes(data)
    index = json.loads((folder / "index.json").read_bytes())
    index["manifests"].append({"mediaType": index["manifests"][0]["mediaType"], "digest": bad.digest, "size": 1})
    (folder / "index.json").write_text(json.dumps(index))
    fails(folder, Tampered, "manifest has .* bytes, its index says 1")
