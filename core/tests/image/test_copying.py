"""image copy between every two places, and indexes that are put together here: byte for byte, with what is attached."""

import itertools
import json
import os
import subprocess
import threading

import pytest
from cowshed_testing.images import Image, LayerTar, digest
from cowshed_testing.samples import small, with_config

from cowshed.errors import BadUsage
from cowshed.image.transports import names

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
LIST = "application/vnd.docker.distribution.manifest.list.v2+json"


def foreign(architecture, variant=None):
    """An image for another machine."""

    def change(config):
        config.update(architecture=architecture)
        if variant:
            config.update(variant=variant)

    return with_config(Image([LayerTar().file(f"for-{architecture}", "x").bytes()]), change)


def signature(subject, number=1):
    """An artifact that is attached to a manifest: its bytes, and its blobs by digest."""
    payload = b"signature %d" % number
    value = {
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.example.signature",
        "config": {"mediaType": EMPTY, "digest": digest(b"{}"), "size": 2},
        "layers": [{"mediaType": "text/plain", "digest": digest(payload), "size": len(payload)}],
        "subject": {"mediaType": MANIFEST, "digest": digest(subject), "size": len(subject)},
    }  # fmt: skip
    return json.dumps(value).encode(), {digest(b"{}"): b"{}", digest(payload): payload}


class Several:
    """An index of three platforms, the nearest for this machine among them, each manifest with something attached."""

    def __init__(self, fake):
        self.images = [small(), foreign("s390x"), foreign("arm", "v7")]
        entries = []
        for image in self.images:
            fake.add(image, f"one-{image.digest[7:19]}")
            config = json.loads(image.blobs[image.id])
            platform = {"os": "linux", "architecture": config["architecture"]}
            if "variant" in config:
                platform["variant"] = config["variant"]
            entries.append(
                {"mediaType": MANIFEST, "digest": image.digest, "size": len(image.manifest), "platform": platform}
            )
        self.index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}, indent=1).encode()
        self.digest = digest(self.index)
        for key in ("several", self.digest):
            fake.put(key, self.index, INDEX)
        fake.referrers = {}
        self.attached = []
        for number, subject in enumerate((self.images[0].manifest, self.index)):
            data, blobs = signature(subject, number)
            fake.blobs.update(blobs)
            fake.put(digest(data), data)
            fake.referrers[digest(subject)] = [{"mediaType": MANIFEST, "digest": digest(data), "size": len(data)}]
            self.attached.append(digest(data))
        self.name = f"{fake.address}/team/several:several"


@pytest.fixture
def several(fake):
    return Several(fake)


def blobs_of(folder):
    return {f"sha256:{name}" for name in os.listdir(f"{folder}/blobs/sha256")}


# ---------------------------------------------------------------- copy


def test_all_there_is_from_registry_to_layout_to_archive_to_registry(several, other, cowshed, tmp_path):
    other.referrers = {}
    words = ("image", "copy", "-q", "--all", "--referrers")
    steps = [f"docker://{several.name}", f"oci:{tmp_path}/layout:x", f"oci-archive:{tmp_path}/file:y",
             f"docker://{other.address}/new/place:z"]  # fmt: skip
    for source, target in itertools.pairwise(steps):
        assert cowshed.lines(*words, source, target) == [several.digest]
    assert other.manifests["z"] == (several.index, INDEX)
    for image in several.images:
        assert other.manifests[image.digest][0] == image.manifest
        assert image.blobs.items() <= other.blobs.items()
    for attached in several.attached:
        assert attached in other.manifests
    listed = json.loads((tmp_path / "layout/index.json").read_bytes())["manifests"]
    assert [entry["digest"] for entry in listed] == [several.digest, *several.attached]
    assert listed[0]["annotations"] == {"org.opencontainers.image.ref.name": "x"}


def test_without_all_this_machines_platform_alone(several, cowshed, tmp_path):
    done = cowshed.lines("image", "copy", "-q", f"docker://{several.name}", f"oci:{tmp_path}/layout")
    assert done == [several.images[0].digest]
    assert blobs_of(tmp_path / "layout") == {*several.images[0].blobs, several.images[0].digest}
    words = ("image", "copy", "-q", "--platform", "linux/arm/v7", f"docker://{several.name}", f"dir:{tmp_path}/flat")
    assert cowshed.lines(*words) == [several.images[2].digest]
    assert (tmp_path / "flat/manifest.json").read_bytes() == several.images[2].manifest


def test_a_directory_with_all_platforms(several, other, cowshed, tmp_path):
    cowshed("image", "copy", "-q", "--all", f"docker://{several.name}", f"dir:{tmp_path}/flat")
    assert (tmp_path / "flat/manifest.json").read_bytes() == several.index
    cowshed("image", "copy", "-q", "--all", f"dir:{tmp_path}/flat", f"docker://{other.address}/a/b:c")
    assert other.manifests["c"][0] == several.index


@pytest.mark.parametrize("kind", ["oci:{}:example.org/a:1", "oci-archive:{}:word", "docker-archive:{}:a/b:1", "dir:{}"])
def test_from_the_store_and_back(fake, cowshed, tmp_path, kind):
    image = small()
    fake.add(image)
    cowshed("pull", "-q", f"{fake.address}/a/b")
    place = kind.format(tmp_path / "place")
    assert cowshed.lines("image", "copy", "-q", f"cowshed:{fake.address}/a/b", place) == [image.digest]
    cowshed("rmi", f"{fake.address}/a/b")
    assert cowshed.lines("image", "copy", "-q", place, "cowshed:local/name:2") == [image.digest]
    (found,) = json.loads(cowshed("image", "inspect", "local/name:2").stdout)
    assert found["Descriptor"]["digest"] == image.digest
    assert cowshed("image", "copy", "-q", place, f"docker://{fake.address}/back:1").returncode == 0
    assert fake.manifests["1"][0] == image.manifest


def test_what_skopeo_copied_and_what_it_reads(real, cowshed, tmp_path):
    image = small()
    name = real.push(image, "copying/one")
    (tmp_path / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    def skopeo(source, target):
        words = ["skopeo", "--policy", f"{tmp_path}/policy.json", "copy", "--src-tls-verify=false",
                 "--dest-tls-verify=false", source, target]  # fmt: skip
        done = subprocess.run(words, capture_output=True)
        assert done.returncode == 0, done.stderr

    skopeo(f"docker://{name}", f"oci:{tmp_path}/theirs:t")
    skopeo(f"docker://{name}", f"docker-archive:{tmp_path}/old:x/y:1")
    assert cowshed.lines("image", "copy", "-q", f"oci:{tmp_path}/theirs:t", f"docker://{real.address}/copying/two:1")
    assert cowshed.lines("image", "copy", "-q", f"docker://{name}", f"oci-archive:{tmp_path}/ours:t") == [image.digest]
    skopeo(f"oci-archive:{tmp_path}/ours:t", f"dir:{tmp_path}/read")
    assert (tmp_path / "read/manifest.json").read_bytes() == image.manifest
    cowshed("image", "copy", "-q", f"docker-archive:{tmp_path}/old", "cowshed:x/old")
    (found,) = json.loads(cowshed("image", "inspect", "x/old").stdout)
    assert found["Id"] == image.id


def test_what_is_there_is_not_sent_again(several, other, cowshed):
    words = ("image", "copy", "--all", f"docker://{several.name}", f"docker://{other.address}/a/b:1")
    cowshed(*words)
    first = sum(request.method == "POST" for request in other.requests)
    said = cowshed(*words).stderr
    assert first > 0
    assert sum(request.method == "POST" for request in other.requests) == first
    assert said.count("already there") == first


@pytest.mark.parametrize("target", ["oci:{}/out", "oci-archive:{}/out", "dir:{}/out", "docker-archive:{}/out"])
def test_a_layer_with_other_bytes_leaves_nothing(fake, cowshed, tmp_path, target):
    image = small()
    fake.add(image)
    key = json.loads(image.manifest)["layers"][-1]["digest"]
    fake.blobs[key] = fake.blobs[key][:-1] + b"!"
    (folder := tmp_path / "folder").mkdir()
    failed = cowshed("image", "copy", f"docker://{fake.address}/a/b", target.format(folder), status=125)
    assert "other bytes" in failed.stderr
    assert os.listdir(folder) == []


def test_other_bytes_get_no_name_in_a_registry(fake, other, cowshed):
    image = small()
    fake.add(image)
    key = json.loads(image.manifest)["layers"][-1]["digest"]
    fake.blobs[key] = fake.blobs[key][:-1] + b"!"
    cowshed("image", "copy", f"docker://{fake.address}/a/b", f"docker://{other.address}/a/b", status=125)
    assert other.manifests == {}
    assert other.uploads == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("example.org/a:1", "no place"), ("oci:", "no place"), ("docker:example.org/a", "no registry"),
        ("containers-storage:a", "another engine"), ("docker-daemon:a:1", "another engine"), ("dir:", "no place"),
    ],
)  # fmt: skip
def test_what_is_no_place(text, said):
    with pytest.raises(BadUsage, match=said):
        names.parse(text)


def test_places():
    assert names.parse("oci:/a/b:c.org/d:1").name == "c.org/d:1"
    assert names.parse("oci-archive:x").name == ""
    assert names.parse("dir:/a:b").path == "/a:b"
    assert names.parse("docker://a.org:5000/b").reference.name == "a.org:5000/b:latest"


@pytest.mark.parametrize(("option", "said"), [("--all", "one platform"), ("--referrers", "nothing that is attached")])
def test_what_the_store_does_not_keep_is_refused(several, cowshed, option, said):
    failed = cowshed("image", "copy", option, f"docker://{several.name}", "cowshed:a", status=125)
    assert said in failed.stderr


def test_a_layout_of_several_images_asks_which(fake, cowshed, tmp_path):
    for tag in ("one", "two"):
        fake.add(small(User=tag), tag)
        cowshed("image", "copy", "-q", f"docker://{fake.address}/a/b:{tag}", f"oci:{tmp_path}/layout:{tag}")
    failed = cowshed("image", "copy", f"oci:{tmp_path}/layout", "cowshed:x", status=125)
    assert "one, two" in failed.stderr
    failed = cowshed("image", "copy", f"oci:{tmp_path}/layout:three", "cowshed:x", status=125)
    assert "no image 'three'" in failed.stderr
    cowshed("image", "copy", "-q", f"oci:{tmp_path}/layout:two", "cowshed:x")
    (found,) = json.loads(cowshed("image", "inspect", "x").stdout)
    assert found["Config"]["User"] == "two"


def test_a_layout_with_something_attached_is_loaded(several, cowshed, tmp_path):
    words = ("--all", "--referrers", f"docker://{several.name}", f"oci:{tmp_path}/layout:example.org/x:1")
    cowshed("image", "copy", "-q", *words)
    assert cowshed.lines("load", "-q", "-i", f"{tmp_path}/layout") == ["Loaded image: example.org/x:1"]


def test_a_type_that_nobody_knows_is_copied(fake, other, cowshed):
    blob = b"model weights"
    value = {
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.example.model",
        "config": {"mediaType": "application/vnd.example.config+json", "digest": digest(b"[]"), "size": 2},
        "layers": [{"mediaType": "application/vnd.example.weights", "digest": digest(blob), "size": len(blob)}],
    }  # fmt: skip
    fake.blobs.update({digest(b"[]"): b"[]", digest(blob): blob})
    fake.put("model", value)
    cowshed("image", "copy", "-q", f"docker://{fake.address}/a/b:model", f"docker://{other.address}/c/d:model")
    assert other.manifests["model"] == fake.manifests["model"]
    assert other.blobs[digest(blob)] == blob


# ---------------------------------------------------------------- manifest


def test_an_index_of_images_from_here_and_from_registries(several, other, cowshed):
    own, arm = several.images[0], several.images[2]
    cowshed("image", "copy", "-q", f"docker://{several.name}", "cowshed:local/own")
    name = f"{other.address}/team/made:1"
    assert cowshed.lines("manifest", "create", name, "local/own") == [f"Created manifest list {name}"]
    remote = f"{several.name.rpartition(':')[0]}:one-{arm.digest[7:19]}"
    assert cowshed.lines("manifest", "add", name, remote) == [arm.digest]
    cowshed("manifest", "annotate", "--os-version", "7", "--annotation", "a=b", name, arm.digest)
    value = json.loads(cowshed("manifest", "inspect", name).stdout)
    assert [entry["digest"] for entry in value["manifests"]] == [own.digest, arm.digest]
    assert value["manifests"][1]["platform"] == {
        "architecture": "arm", "os": "linux", "variant": "v7", "os.version": "7",
    }  # fmt: skip
    assert value["manifests"][1]["annotations"] == {"a": "b"}
    (pushed,) = cowshed.lines("manifest", "push", "-q", name)
    data, kind = other.manifests["1"]
    assert (digest(data), kind) == (pushed, INDEX)
    assert json.loads(data) == value
    assert own.blobs.items() | arm.blobs.items() <= other.blobs.items()
    assert {own.digest, arm.digest} <= other.manifests.keys()
    cowshed("pull", "-q", name)
    assert json.loads(cowshed("manifest", "inspect", f"{name}@{pushed}").stdout) == value


def test_a_list_has_a_life_of_its_own(several, cowshed):
    cowshed("manifest", "create", "--all", "my/list", several.name)
    assert len(json.loads(cowshed("manifest", "inspect", "my/list").stdout)["manifests"]) == 3
    failed = cowshed("manifest", "create", "my/list", status=125)
    assert "--amend" in failed.stderr
    gone = several.images[1].digest
    assert cowshed.lines("manifest", "remove", "my/list", gone) == [gone]
    assert "is not in the list" in cowshed("manifest", "remove", "my/list", gone, status=125).stderr
    cowshed("manifest", "create", "--amend", "my/list", f"{several.name}@{gone}")
    cowshed("manifest", "annotate", "--index", "--annotation", "x=y", "my/list")
    value = json.loads(cowshed("manifest", "inspect", "my/list").stdout)
    assert value["annotations"] == {"x": "y"}
    assert value["manifests"][-1]["digest"] == gone
    cowshed("manifest", "exists", "my/list")
    assert cowshed.lines("manifest", "rm", "my/list") == ["Deleted: my/list:latest"]
    cowshed("manifest", "exists", "my/list", status=1)
    assert "there is no list" in cowshed("manifest", "push", "my/list", status=125).stderr


def test_a_list_in_a_layout_and_as_dockers(several, other, cowshed, tmp_path):
    cowshed("manifest", "create", "--all", "my/list", several.name)
    (done,) = cowshed.lines("manifest", "push", "-q", "my/list", f"oci:{tmp_path}/layout:x")
    assert done in blobs_of(tmp_path / "layout")
    (done,) = cowshed.lines(
        "manifest", "push", "-q", "--format", "v2s2", "--rm", "my/list", f"{other.address}/docker:1"
    )
    assert other.manifests["1"][1] == LIST
    cowshed("manifest", "exists", "my/list", status=1)


def test_what_a_list_does_not_take(several, cowshed, tmp_path):
    cowshed("manifest", "create", "my/list")
    assert "is empty" in cowshed("manifest", "push", "my/list", status=125).stderr
    assert "cannot be in a list" in cowshed("manifest", "add", "my/list", f"oci:{tmp_path}", status=125).stderr
    missing = f"{several.name}-missing"
    assert "is not in the registry" in cowshed("manifest", "add", "my/list", missing, status=125).stderr
    assert json.loads(cowshed("manifest", "inspect", "my/list").stdout)["manifests"] == []
    assert "names a digest" in cowshed("manifest", "create", f"a@{several.digest}", status=125).stderr


def test_inspect_of_an_image_is_its_manifest(several, cowshed):
    shown = cowshed("manifest", "inspect", several.name).stdout
    assert json.loads(shown) == json.loads(several.index)
    shown = cowshed("manifest", "inspect", "--format", "{{.schemaVersion}}", several.name).stdout
    assert shown == "2\n"


# ---------------------------------------------------------------- several blobs at once


def meeting(fake, method, part):
    """Requests of a kind are answered only when four of them are there."""
    barrier = threading.Barrier(4)

    def answer(request, handler):
        if request.method == method and part in request.path:
            barrier.wait(60)
        return False

    fake.answer = answer


def of_three_layers():
    return Image([LayerTar().file(f"f{n}", os.urandom(3000)).bytes() for n in range(3)])


@pytest.mark.parametrize("goal", ["oci:{}/out:one", "dir:{}/out"])
def test_blobs_come_from_a_registry_side_by_side(fake, cowshed, tmp_path, goal):
    image = of_three_layers()
    fake.add(image)
    meeting(fake, "GET", "/blobs/")
    cowshed("image", "copy", f"docker://{fake.address}/a/b:latest", goal.format(tmp_path))
    there = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert set(image.blobs.values()) <= set(there)


def test_blobs_go_to_a_registry_side_by_side(fake, cowshed, tmp_path):
    image = of_three_layers()
    image.write_layout(f"{tmp_path}/layout", "example.org/a:1")
    cowshed("load", "-q", "-i", f"{tmp_path}/layout")
    cowshed("storage", "gc", "-f", "--archives")
    meeting(fake, "POST", "/uploads/")
    cowshed("image", "copy", "cowshed:example.org/a:1", f"docker://{fake.address}/a/b:latest")
    assert fake.blobs == image.blobs
    assert fake.manifests["latest"][0] == image.manifest


def test_the_first_error_ends_what_is_under_way(fake, cowshed, tmp_path):
    """One blob is damaged, and the others keep their readers waiting."""
    image = of_three_layers()
    fake.add(image)
    damaged = json.loads(image.manifest)["layers"][1]["digest"]
    fake.blobs[damaged] = fake.blobs[damaged][:-1] + b"?"
    waiting, over = threading.Semaphore(0), threading.Event()

    def answer(request, handler):
        if "/blobs/" not in request.path:
            return False
        if damaged in request.path:
            return not all(waiting.acquire(timeout=60) for _ in range(3))
        waiting.release()
        return over.wait(60)

    fake.answer = answer
    try:
        done = cowshed("image", "copy", f"docker://{fake.address}/a/b:latest", f"oci:{tmp_path}/out", status=125)
        assert "has other bytes than it is named for" in done.stderr
        assert not over.is_set()
    finally:
        over.set()
    assert not (tmp_path / "out").exists()
