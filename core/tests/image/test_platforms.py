"""All platforms of an index at once, indexes within indexes, and what in them is no image."""

import pytest
from cowshed_testing.fake_registry import MANIFEST
from cowshed_testing.images import Image, LayerTar
from cowshed_testing.samples import with_config

from cowshed.errors import ImageError, Tampered
from cowshed.image import platform, reference
from cowshed.image.pull import pull_all
from cowshed.state import images

INDEX = "application/vnd.oci.image.index.v1+json"


def built(architecture, **more):
    image = Image([LayerTar().file("which", architecture).bytes(), LayerTar().file("same", "x").bytes()])
    return with_config(image, lambda config: config.update(architecture=architecture, **more))


def entry(fake, image, **more):
    fake.blobs.update(image.blobs)
    fake.manifests[image.digest] = image.manifest, MANIFEST
    return {"mediaType": MANIFEST, "digest": image.digest, "size": len(image.manifest), **more}


def index(fake, key, entries):
    import json

    from cowshed_testing.images import digest

    data = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    for name in (key, digest(data)):
        fake.manifests[name] = data, INDEX
    return {"mediaType": INDEX, "digest": digest(data), "size": len(data)}


def pull(store, name):
    return pull_all(
        store.layers, reference.parse(name), registries={}, durability="none", progress=store.told, gate=None
    )  # fmt: skip


@pytest.fixture
def here():
    return platform.host().architecture


def test_all_platforms_and_nested_indexes(fake, store, here):
    mine, foreign, deeper = built(here), built("s390x"), built("riscv64")
    nested = index(fake, "nested", [entry(fake, deeper)])
    top = index(fake, "latest", [entry(fake, foreign), nested, entry(fake, mine), entry(fake, mine), nested])
    name = f"{fake.address}/a/b"
    done = pull(store, name)
    assert [each.image.manifest_digest for each in done] == [mine.digest, foreign.digest, deeper.digest]
    assert {each.digest for each in done} == {top["digest"]}
    assert images.by_name(store.store, f"{name}:latest").manifest_digest == mine.digest
    for image in (foreign, deeper):
        assert images.by_name(store.store, f"{name}@{image.digest}").id == image.id
        assert store.tree(images.by_name(store.store, f"{name}@{image.digest}"))["same"] == b"x"
    fake.requests.clear()
    assert len(pull(store, name)) == 3
    assert not [r for r in fake.requests if "/blobs/" in r.path], "all of it is here"


def test_what_is_no_image_is_left_out(fake, store, here):
    mine = built(here)
    attestation = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
                   "config": {"mediaType": "application/vnd.in-toto+json", "digest": mine.id, "size": 1}}  # fmt: skip
    fake.put("x", attestation)
    from cowshed_testing.images import digest

    data = fake.manifests["x"][0]
    fake.manifests[digest(data)] = data, MANIFEST
    other = {"mediaType": MANIFEST, "digest": digest(data), "size": len(data)}
    unknown = {"mediaType": "application/x", "digest": digest(data), "size": len(data)}
    index(fake, "latest", [other, unknown, entry(fake, built("amd64", os="windows")), entry(fake, mine)])
    assert [each.image.id for each in pull(store, f"{fake.address}/a/b")] == [mine.id]
    assert len(store.told.warnings) == 2
    assert "windows/amd64" in store.told.warnings[1]


def test_nothing_for_this_machine(fake, store):
    foreign = built("s390x")
    index(fake, "latest", [entry(fake, foreign)])
    name = f"{fake.address}/a/b"
    pull(store, name)
    assert images.by_name(store.store, f"{name}:latest").id == foreign.id


def test_a_single_image(fake, store, here):
    mine = built(here)
    fake.add(mine)
    assert [each.image.id for each in pull(store, f"{fake.address}/a/b")] == [mine.id]


def test_indexes_without_an_image_and_too_deep(fake, store, here):
    index(fake, "latest", [])
    with pytest.raises(ImageError, match="no image"):
        pull(store, f"{fake.address}/a/b")
    inner = entry(fake, built(here))
    for n in range(6):
        inner = index(fake, f"deep{n}", [inner])
    with pytest.raises(ImageError, match="deep"):
        pull(store, f"{fake.address}/a/b:deep5")


def test_a_tampered_entry_ends_it(fake, store, here):
    mine, foreign = built(here), built("s390x")
    index(fake, "latest", [entry(fake, foreign), entry(fake, mine)])
    fake.manifests[foreign.digest] = foreign.manifest.replace(b"2", b"3", 1), MANIFEST
    with pytest.raises(Tampered):
        pull(store, f"{fake.address}/a/b")


def test_the_command(fake, cowshed, here):
    mine, foreign = built(here), built("s390x")
    index(fake, "latest", [entry(fake, foreign), entry(fake, mine)])
    name = f"{fake.address}/a/b"
    done = cowshed.lines("pull", "--all-platforms", name)
    assert done[1:] == [f"{name}:latest", f"{name}@{foreign.digest}"]
    assert sorted(cowshed.lines("images", "--format", "{{.Platform}}")) == sorted([f"linux/{here}", "linux/s390x"])
    assert "exclude" in cowshed("pull", "--all-platforms", "--platform", "linux/arm", name, status=125).stderr
