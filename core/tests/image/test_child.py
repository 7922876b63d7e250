"""The image that a commit makes: it passes the same checks as one that is pulled."""

import hashlib
import json

import pytest

from cowshed.errors import ImageError
from cowshed.image import manifest as manifests
from cowshed.image.child import child
from cowshed.image.history import history
from cowshed.image.resolve import describe

DIFF = "sha256:" + "d" * 64
BLOB = manifests.Descriptor("sha256:" + "b" * 64, 77, f"{manifests.OCI_LAYER}+gzip")
DOCKER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def base(kinds=(DOCKER,), steps=None, **more):
    layers = tuple(manifests.Descriptor(f"sha256:{n:064x}", n, kind) for n, kind in enumerate(kinds))
    config = {
        "architecture": "arm64", "os": "linux", "variant": "v8", "os.features": ["x"], "container": "old",
        "author": "before", "created": "2020-01-01T00:00:00Z", "config": {"Cmd": ["old"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{n:064x}" for n in range(len(kinds))]},
        "history": [{"created_by": "one"}] if steps is None else steps, **more,
    }  # fmt: skip
    text = json.dumps(config).encode()
    digest = "sha256:" + hashlib.sha256(text).hexdigest()
    parsed = manifests.Manifest(manifests.Descriptor(digest, len(text), manifests.DOCKER_CONFIG), layers)
    return describe(b"{}", manifests.DOCKER_MANIFEST, parsed, text)


def test_one_layer_more():
    image = child(
        base(), {"Cmd": ["new"]}, (BLOB, DIFF), created=1_500_000_000_000_000_001, created_by="sh -c x", author="me",
        comment="why",
    )  # fmt: skip
    config, manifest = json.loads(image.config), json.loads(image.manifest)
    assert image.id == "sha256:" + hashlib.sha256(image.config).hexdigest() == manifest["config"]["digest"]
    assert image.manifest_digest == "sha256:" + hashlib.sha256(image.manifest).hexdigest()
    assert config["rootfs"]["diff_ids"] == ["sha256:" + "0" * 64, DIFF] == list(image.diff_ids)
    assert (config["architecture"], config["variant"], config["os.features"]) == ("arm64", "v8", ["x"])
    assert config["config"] == {"Cmd": ["new"]}
    assert config["author"] == "me"
    assert "container" not in config
    assert config["history"] == [
        {"created_by": "one"},
        {"author": "me", "comment": "why", "created": "2017-07-14T02:40:00.000000001Z", "created_by": "sh -c x"},
    ]
    assert image.created == 1_500_000_000_000_000_000
    assert [each["mediaType"] for each in manifest["layers"]] == [f"{manifests.OCI_LAYER}+gzip"] * 2
    assert manifests.parse_manifest(manifest).layers[-1] == BLOB
    assert manifests.media_type(manifest, manifests.OCI_MANIFEST) == manifests.OCI_MANIFEST
    assert [step.size for step in history(image)] == [77, 0]
    assert image.size == 77


def test_nothing_changed_makes_no_layer():
    image = child(base(), {}, None, created=0)
    assert len(image.diff_ids) == 1
    assert json.loads(image.config)["history"][-1] == {"created": "1970-01-01T00:00:00.000000000Z", "empty_layer": True}


def test_a_history_that_leaves_layers_out_is_filled_up():
    image = child(base(kinds=(DOCKER, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")), {}, (BLOB, DIFF),
                  created=0)  # fmt: skip
    assert len(json.loads(image.config)["history"]) == 3
    assert [step.size for step in history(image)] == [77, 1, 0]
    assert "nondistributable" in json.loads(image.manifest)["layers"][1]["mediaType"]


def test_the_same_things_give_the_same_bytes():
    one, other = (child(base(), {"b": "1", "a": "2"}, (BLOB, DIFF), created=5) for _ in range(2))
    assert (one.config, one.manifest) == (other.config, other.manifest)


def test_an_image_of_too_many_layers_is_not_made():
    with pytest.raises(ImageError, match="513 layers"):
        child(base(kinds=(DOCKER,) * 512), {}, (BLOB, DIFF), created=0)
