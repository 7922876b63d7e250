"""Pushing images: what goes, what need not go, what is said, and what is left when it fails."""

import os
import signal
import subprocess
import threading

import pytest
from cowshed_testing.fake_registry import send
from cowshed_testing.images import Image, LayerTar
from cowshed_testing.samples import small

from cowshed.errors import BadUsage, ImageError, NotFound, RegistryError
from cowshed.image import reference
from cowshed.image.push import push, tagged
from cowshed.state import images, places


def pushed(store, name, *, source=None):
    parsed = reference.parse(name)
    row = images.by_name(store.store, reference.parse(source or name).name)
    return push(store.store, parsed, [(parsed.tag, row)], registries=store.registries, progress=store.told)


def tag(store, image, name):
    with store.store.transaction() as tx:
        images.tag(tx, reference.parse(name).name, image.id)


def unlike():
    """An image that no other test has."""
    return Image([LayerTar().file(f"f{n}", os.urandom(50_000 * (n + 1))).bytes() for n in range(3)])


def test_there_and_back(store, real, make_store):
    """The manifest that another store pulls is the same, byte for byte."""
    image = unlike()
    real.push(image, "test/push-source")
    row = store.pull(f"{real.address}/test/push-source").image
    name = f"{real.address}/test/push-target:v1"
    tag(store, row, name)
    (done,) = pushed(store, name)
    assert (done.tag, done.digest, done.size) == ("v1", image.digest, len(image.manifest))
    other = make_store("other")
    assert other.pull(name).image.manifest == image.manifest
    assert sum("Mounted" in step for step in store.told.steps) == 3, "the registry had them in another repository"


def test_what_is_there_is_not_sent(store, fake):
    image = unlike()
    fake.add(image)
    row = store.pull(f"{fake.address}/a/b").image
    tag(store, row, f"{fake.address}/c/d:v1")
    _, *others = [layer[0] for layer in row.blobs]
    for digest in (*others, image.id):
        del fake.blobs[digest]
    fake.mountable.add(("a/b", others[0]))
    fake.requests.clear()
    store.told.steps.clear()
    pushed(store, f"{fake.address}/c/d:v1")
    assert fake.blobs[others[1]] == image.blobs[others[1]]
    assert fake.manifests["v1"][0] == image.manifest
    assert sorted(step.partition(": ")[2] for step in store.told.steps[1:4]) == [
        "Layer already exists", "Mounted", "Pushed",
    ]  # fmt: skip
    assert store.told.steps[4].startswith("sent 1")
    assert "were there" in store.told.steps[4]
    puts = [r.path.rpartition("/")[0] for r in fake.requests if r.method == "PUT"]
    assert puts == ["/v2/c/d/blobs/uploads", "/v2/c/d/blobs/uploads", "/v2/c/d/manifests"]


def test_where_blobs_are_is_remembered(store, fake):
    fake.add(unlike())
    row = store.pull(f"{fake.address}/a/b").image
    digest = row.blobs[0][0]
    assert places.mountable(store.store, fake.address, "c/d", digest) == ["a/b"]
    assert places.mountable(store.store, fake.address, "a/b", digest) == []
    assert places.mountable(store.store, "elsewhere.example", "c/d", digest) == []
    tag(store, row, f"{fake.address}/c/d")
    pushed(store, f"{fake.address}/c/d")
    assert places.mountable(store.store, fake.address, "e/f", digest) == ["c/d", "a/b"]


def test_not_more_than_so_many_places_are_remembered(store, monkeypatch):
    monkeypatch.setattr(places, "_MOST", 10)
    for n in range(8):
        places.remember(store.store, "r.example", f"a/{n}", [f"sha256:{n:063}{m}" for m in range(5)])
    assert store.query("select count(*) from blob_places")[0][0] <= 10
    assert places.mountable(store.store, "r.example", "x", f"sha256:{7:063}0") == ["a/7"]


def test_all_tags(store, fake):
    first, second = unlike(), unlike()
    for image, name in ((first, "1"), (second, "2")):
        fake.add(image, name)
        row = store.pull(f"{fake.address}/a/b:{name}").image
        tag(store, row, f"{fake.address}/c/d:{name}")
        tag(store, row, f"{fake.address}/c/d-e:{name}")
    for key in ("1", "2"):
        del fake.manifests[key]
    parsed = reference.parse(f"{fake.address}/c/d")
    wanted = tagged(store.store, parsed)
    assert [name for name, _ in wanted] == ["1", "2"]
    push(store.store, parsed, wanted, registries={}, progress=store.told)
    assert fake.manifests["1"][0] == first.manifest
    assert fake.manifests["2"][0] == second.manifest
    with pytest.raises(NotFound):
        tagged(store.store, reference.parse(f"{fake.address}/nothing"))


@pytest.mark.parametrize("at_once", [True, False])
def test_tags_of_one_image_go_with_one_manifest(store, fake, at_once):
    """Where the registry takes several tags at once; else one after another."""
    image, other = unlike(), unlike()
    for each, names in ((image, "134"), (other, "2")):
        fake.add(each, "source")
        row = store.pull(f"{fake.address}/a/b:source").image
        for name in names:
            tag(store, row, f"{fake.address}/c/d:{name}")
    fake.multiple_tags = at_once
    fake.requests.clear()
    parsed = reference.parse(f"{fake.address}/c/d")
    done = push(store.store, parsed, tagged(store.store, parsed), registries={}, progress=store.told)
    assert [each.tag for each in done] == ["1", "2", "3", "4"]
    assert [each.digest == image.digest for each in done] == [True, False, True, True]
    assert [fake.manifests[name][0] == image.manifest for name in "1234"] == [True, False, True, True]
    puts = [r.target for r in fake.requests if r.method == "PUT" and "/manifests/" in r.target]
    assert len(puts) == (2 if at_once else 5)


def test_a_blob_that_is_gone(store, fake):
    fake.add(unlike())
    name = f"{fake.address}/a/b"
    row = store.pull(name).image
    digest = row.blobs[1][0]
    os.unlink(f"{store.root}/blobs/sha256/{digest[7:]}")
    pushed(store, name)  # the registry has it
    del fake.blobs[digest]
    with pytest.raises(ImageError, match="is gone"):
        pushed(store, name)
    assert fake.uploads == {}


def test_a_push_that_fails_leaves_no_uploads_and_goes_on_later(store, fake):
    image = unlike()
    fake.add(image)
    name = f"{fake.address}/a/b"
    store.pull(name)
    fake.blobs.clear()
    refused = next(iter(image.blobs))

    def answer(request, handler):
        if request.method == "PUT" and request.query.get("digest") == [refused]:
            send(handler, 400, b'{"errors": [{"message": "I do not like it"}]}')
            return True
        return False

    fake.answer = answer
    with pytest.raises(RegistryError, match="do not like"):
        pushed(store, name)
    assert fake.uploads == {}
    fake.answer = lambda request, handler: False
    pushed(store, name)
    assert set(fake.blobs) == set(image.blobs)


def test_layers_that_must_not_be_passed_on(store, fake):
    """Foreign layers stay where their urls lead (image-spec layer.md, non-distributable layers)."""
    import json

    image = unlike()
    value = json.loads(image.manifest)
    value["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    fake.add(image)
    fake.put("latest", value)
    name = f"{fake.address}/a/b"
    row = store.pull(name).image
    fake.blobs.clear()
    pushed(store, name)
    assert row.blobs[0][0] not in fake.blobs
    assert row.blobs[1][0] in fake.blobs


def test_a_digest_is_no_name_to_push_to(store, fake):
    fake.add(unlike())
    name = f"{fake.address}/a/b"
    digest = store.pull(name).digest
    with pytest.raises(BadUsage, match="digest"):
        pushed(store, f"{name}@{digest}", source=name)


# ---------------------------------------------------------------- the command


def test_what_push_says(fake, cowshed):
    image = small()
    fake.add(image)
    name = f"{fake.address}/a/b"
    cowshed("pull", "-q", name)
    cowshed("tag", name, f"{fake.address}/c/d:v1")
    cowshed("tag", name, f"{fake.address}/c/d:v2")
    done = cowshed("push", f"{fake.address}/c/d:v1")
    assert done.stdout == f"v1: digest: {image.digest} size: {len(image.manifest)}\n"
    said = done.stderr.splitlines()
    assert said[0] == f"The push refers to repository [{fake.address}/c/d]"
    assert all(line.endswith(": Layer already exists") for line in said[1:4])
    assert said[4].startswith("sent 0 B, ")
    done = cowshed("image", "push", "-q", f"{fake.address}/c/d:v1")
    assert (done.stdout, done.stderr) == (f"{fake.address}/c/d:v1\n", "")
    assert len(cowshed.lines("push", "--all-tags", f"{fake.address}/c/d")) == 2
    assert cowshed("push", "-a", "-q", f"{fake.address}/c/d").stdout == f"{fake.address}/c/d\n"
    assert "--all-tags" in cowshed("push", "-a", f"{fake.address}/c/d:v1", status=125).stderr
    assert "no such image" in cowshed("push", f"{fake.address}/c/d:v9", status=125).stderr


def test_an_interrupt_cancels_the_upload(fake, cowshed):
    image = small()
    fake.add(image)
    name = f"{fake.address}/a/b"
    cowshed("pull", "-q", name)
    fake.blobs.clear()
    begun, release = threading.Semaphore(0), threading.Event()

    def answer(request, handler):
        if request.method == "PUT":
            begun.release()
            release.wait(120)  # longer than all below: who is cut off asks again
            handler.close_connection = True
            return True
        return False

    fake.answer = answer
    process = subprocess.Popen(cowshed.words("push", name), env=cowshed.env, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(3):  # of a session that has just been asked for nobody knows yet where it is
            assert begun.acquire(timeout=30)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        release.set()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert fake.uploads == {}


# ---------------------------------------------------------------- with others


def test_between_skopeo_and_us(store, real, make_store, tmp_path):
    """What skopeo pushes is pulled, pushed on, and read by skopeo again: the same manifest, byte for byte."""

    def skopeo(*words):
        return subprocess.run(["skopeo", *words], check=True, capture_output=True, timeout=60).stdout

    image = unlike()
    image.write_layout(str(tmp_path / "in"), "v1")
    name = f"{real.address}/test/skopeo"
    skopeo("copy", "--preserve-digests", "--dest-tls-verify=false", f"oci:{tmp_path}/in:v1", f"docker://{name}:v1")
    row = store.pull(f"{name}:v1").image
    assert row.manifest == image.manifest
    tag(store, row, f"{name}-back:v2")
    pushed(store, f"{name}-back:v2")
    assert skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}-back:v2") == image.manifest
    skopeo("copy", "--src-tls-verify=false", f"docker://{name}-back:v2", f"oci:{tmp_path}/out:v2")
    for digest, data in image.blobs.items():
        assert (tmp_path / "out/blobs/sha256" / digest[7:]).read_bytes() == data
