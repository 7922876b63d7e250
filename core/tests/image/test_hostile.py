"""Registries and images that are broken or mean harm: one line that says what is wrong, nothing left behind, and the
next pull works."""

import base64
import gzip
import json
import os
import subprocess

import pytest
from cowshed_testing.fake_registry import MANIFEST, send
from cowshed_testing.images import Image, LayerTar, digest
from cowshed_testing.samples import SMALL, changed, small, with_config
from cowshed_testing.store import Store

from cowshed.errors import CowshedError, ImageError, NoSpace, NotFound, RegistryError, Tampered

INDEX = "application/vnd.oci.image.index.v1+json"


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Repetitions without the pauses between them."""
    import time

    from cowshed.registry import client

    class Time:
        monotonic = time.monotonic

        @staticmethod
        def sleep(seconds):
            time.sleep(min(seconds, 0.001))

    monkeypatch.setattr(client, "time", Time)


@pytest.fixture
def fails(fake, store):
    """fails(image, error, match): the pull fails so, leaves nothing, and a sound image can be pulled after it."""

    def check(image, error, match, **options):
        if image is not None:
            fake.add(image)
        before = store.contents()
        with pytest.raises(error, match=match) as caught:
            store.pull(f"{fake.address}/a/b", **options)
        assert isinstance(caught.value, CowshedError)
        assert "\n" not in str(caught.value)
        assert store.contents() == before
        fake.answer = lambda request, handler: False
        fake.add(small(User="sound"))
        assert store.tree(store.pull(f"{fake.address}/a/b").image) == SMALL

    return check


def layers_of(image):
    return [layer["digest"] for layer in json.loads(image.manifest)["layers"]]


# ---------------------------------------------------------------- bytes that are not what they are named


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_tampered_layer(fails, which):
    image = small()
    name = layers_of(image)[which]
    data = bytearray(image.blobs[name])
    data[-1] ^= 1
    image.blobs[name] = bytes(data)
    fails(image, Tampered, "came with other bytes|its gzip data is")


def test_a_tampered_layer_that_is_still_a_sound_archive(fails):
    """The whole archive applies before its digest is known to be wrong: it must not stay."""
    image = small("")
    name = layers_of(image)[1]
    image.blobs[name] = image.blobs[name].replace(b"3" * 5000, b"4" * 5000)
    fails(image, Tampered, "came with other bytes|unpacks to")


def test_a_tampered_configuration(fails):
    image = small()
    image.blobs[image.id] = image.blobs[image.id].replace(b"/bin", b"/nib")
    fails(image, Tampered, "configuration does not have the digest")


def test_a_tampered_manifest(fake, fails):
    image, other = small(), small(User="other")
    index = {
        "schemaVersion": 2,
        "manifests": [{"mediaType": MANIFEST, "digest": image.digest, "size": len(image.manifest)}],
    }
    fake.put("latest", index, INDEX)
    fake.blobs.update(image.blobs)
    fake.manifests[image.digest] = other.manifest[: len(image.manifest)].ljust(len(image.manifest)), MANIFEST
    fails(None, Tampered, "manifest does not have the digest|has .* bytes, its index says")


def test_a_wrong_diff_id(fails):
    def change(config):
        config["rootfs"]["diff_ids"][2] = "sha256:" + "0" * 64

    fails(with_config(small(), change), Tampered, r"layer 3 of 3: it unpacks to sha256:\w+, the image says sha256:0000")


@pytest.mark.parametrize("by", [-1, 1, -100])
def test_a_size_that_is_not_the_blobs(fails, by):
    """Verified before the digest; one peer accepts it."""
    fails(changed(small(), lambda m: m["layers"][1].update(size=m["layers"][1]["size"] + by)), Tampered, "another size")


def test_a_configuration_of_another_size(fails):
    fails(changed(small(), lambda m: m["config"].update(size=m["config"]["size"] + 1)), Tampered, "another size")


def test_a_layer_without_an_announced_size_that_does_not_end(fake, fails):
    image = small()
    name = layers_of(image)[1]

    def answer(request, handler):
        if not request.path.endswith(name):
            return False
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            for _ in range(1000):
                handler.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")
        except OSError:
            handler.close_connection = True
        return True

    fake.answer = answer
    fails(image, Tampered, "another size|came with other")


@pytest.mark.parametrize("at", [0, 50])
def test_a_layer_that_is_cut_short_each_time(fake, fails, at):
    image = small()
    name = layers_of(image)[1]

    def answer(request, handler):
        if not request.path.endswith(name):
            return False
        send(handler, 200, image.blobs[name][:at], length=len(image.blobs[name]))
        return True

    fake.answer = answer
    fails(image, RegistryError, "broke")


def test_a_layer_that_is_missing(fake, fails):
    image = small()
    fake.add(image)
    del fake.blobs[layers_of(image)[2]]
    fails(None, NotFound, "not in the registry")


def test_a_registry_that_fails(fake, fails):
    fake.add(small())
    fake.answer = lambda request, handler: "/blobs/" in request.path and (send(handler, 500, b"no") or True)
    fails(None, RegistryError, "status 500")


def test_a_registry_that_is_not_there(store):
    from cowshed_testing.registry import free_port

    with pytest.raises(RegistryError, match=r"cannot be reached at 127\.0\.0\.1"):
        store.pull(f"127.0.0.1:{free_port()}/a/b")


# ---------------------------------------------------------------- layers that are none


def layer_image(packed, kind="gzip", tar=b""):
    image = Image([tar or LayerTar().bytes()], compression="")
    media_type = "application/vnd.oci.image.layer.v1.tar" + (f"+{kind}" if kind else "")
    image.blobs[digest(packed)] = packed
    return changed(
        image, lambda m: m["layers"][0].update(digest=digest(packed), size=len(packed), mediaType=media_type)
    )


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (layer_image(gzip.compress(LayerTar().file("a", "x" * 9000).bytes())[:-20]), "gzip data is cut short"),
        (layer_image(gzip.compress(LayerTar().file("a", "x").bytes()) + b"trailing"), "behind its gzip data"),
        (layer_image(LayerTar().bytes(), "zstd"), "called zstd by its manifest"),
        (layer_image(gzip.compress(LayerTar().bytes()), ""), "called uncompressed by its manifest and is gzip"),
        (layer_image(b"\x28\xb5\x2f\xfd" + bytes(50), "zstd"), "zstd data is"),
        (layer_image(gzip.compress(LayerTar().file("a", "x" * 9000).bytes()[:4000])), "archive is cut short"),
        (layer_image(gzip.compress(b"\x01" * 2000)), "number that is none"),
        (layer_image(gzip.compress(b"x" + LayerTar().file("a").bytes()[1:])), "wrong checksum"),
        (layer_image(gzip.compress(LayerTar().file(".wh.").bytes())), "whiteout"),
        (
            layer_image(gzip.compress(LayerTar().symlink("l", "/tmp").hardlink("h", "l/x").bytes())),
            "cannot be unpacked|leads nowhere",
        ),
    ],
)
def test_layers_that_cannot_be_applied(fails, image, match):
    fails(image, ImageError, f"^layer 1 of 1: .*({match})")


def test_a_full_disk(fake, tmp_path):
    """On a small file system of its own: typed, everything taken back, and the space can be used again."""
    target = tmp_path / "small"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", target], check=True)
    try:
        store = Store(target, "copy")
        try:
            before = store.contents()
            for image in (
                Image([LayerTar().file("ones", b"1" * (60 << 20)).bytes()]),  # fits as a blob, not as a layer
                Image([LayerTar().file("noise", os.urandom(30 << 20)).bytes()]),  # not even as a blob
            ):
                fake.add(image)
                with pytest.raises(NoSpace, match=r"no space to unpack 'ones'|are free"):
                    store.pull(f"{fake.address}/a/b")
                assert store.contents() == before
            fake.add(small())
            assert store.tree(store.pull(f"{fake.address}/a/b").image) == SMALL
        finally:
            store.close()
    finally:
        subprocess.run(["umount", "-l", target], check=True)


# ---------------------------------------------------------------- documents


def put_config(**more):
    return with_config(small(), lambda config: config["config"].update(more))


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (changed(small(), lambda m: m.update(manifests=[])), "CVE-2021-41190"),
        (changed(small(), lambda m: m.update(mediaType=INDEX)), "does not look like it|calls itself"),
        (changed(small(), lambda m: m.update(mediaType="text/html")), "unknown type 'text/html'"),
        (changed(small(), lambda m: m.update(schemaVersion=1)), "schema 1"),
        (changed(small(), lambda m: m.pop("layers")), "does not look|no list of layers|neither"),
        (changed(small(), lambda m: m.update(layers=m["layers"] * 200)), "600 layers; 512 are allowed"),
        (changed(small(), lambda m: m["layers"].pop()), "2 layers and 3 diff ids"),
        (changed(small(), lambda m: m["layers"][0].update(size=-1)), "size '-1'"),
        (changed(small(), lambda m: m["layers"][0].update(size="12")), "size '12'"),
        (changed(small(), lambda m: m["layers"][0].update(size=1 << 70)), "are free|allowed"),
        (changed(small(), lambda m: m["layers"][0].update(digest="sha256:../../../../etc/x")), "no digest"),
        (changed(small(), lambda m: m["layers"][0].update(digest="md5:" + "0" * 32)), "no digest"),
        (changed(small(), lambda m: m["layers"][0].update(digest=7)), "digest is '7'"),
        (changed(small(), lambda m: m["layers"][0].update(mediaType="application/x-squashfs")), "unknown type"),
        (changed(small(), lambda m: m["config"].update(mediaType="application/vnd.x.model")), "no container image"),
        (changed(small(), lambda m: m["config"].update(size=1 << 30)), "configuration has 1073741824 bytes"),
        (changed(small(), lambda m: m.update(config=None)), "no descriptor"),
        (with_config(small(), lambda c: c.pop("rootfs")), "rootfs.type"),
        (with_config(small(), lambda c: c["rootfs"].update(type="squash")), "rootfs.type"),
        (with_config(small(), lambda c: c["rootfs"].update(diff_ids=["sha256:../x"] * 3)), "diff id"),
        (with_config(small(), lambda c: c.update(config=[])), "no object"),
        (with_config(small(), lambda c: c.update(history={})), "history"),
        (put_config(Env=["PATH"]), "Env that is not"),
        (put_config(Env=["=x"]), "Env that is not"),
        (put_config(User=7), "User that is not"),
        (put_config(Entrypoint=[1]), "Entrypoint that is not"),
        (put_config(Labels={"a": 1}), "Labels that is not"),
        (put_config(WorkingDir="/a\0b"), "WorkingDir that is not"),
    ],
)
def test_documents_that_are_wrong(fails, image, match):
    """CVE-2021-41190 (two shapes), CVE-2024-3727 (digest as a path), CVE-2026-57231 (Env without a value)."""
    fails(image, CowshedError, match)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "not JSON"),
        (b"<html>", "not JSON"),
        (b"[]", "no JSON object"),
        (b'{"a":' * 100_000, "not JSON"),
        (b"{" + b" " * (4 << 20) + b"}", "more than 4194304 bytes"),
        (b'{"schemaVersion": 2}', "neither one nor an index|does not look|no list of layers"),
    ],
)
def test_manifests_that_are_none(fake, fails, data, match):
    fake.put("latest", data)
    fails(None, CowshedError, match)


def test_an_index_of_too_many_and_of_itself(fake, fails):
    entry = {"mediaType": MANIFEST, "digest": "sha256:" + "1" * 64, "size": 5}
    fake.put("latest", {"schemaVersion": 2, "manifests": [entry] * 5000}, INDEX)
    fails(None, ImageError, "5000 entries")


def test_an_index_whose_entry_is_too_large(fake, fails):
    entry = {"mediaType": MANIFEST, "digest": "sha256:" + "1" * 64, "size": 1 << 40}
    fake.put("latest", {"schemaVersion": 2, "manifests": [entry]}, INDEX)
    fails(None, ImageError, "manifest has 1099511627776 bytes")


def test_by_digest_and_something_else_comes(fake, store):
    image, other = small(), small(User="x")
    fake.add(other)
    fake.manifests[image.digest] = other.manifest, MANIFEST
    before = store.contents()
    with pytest.raises(Tampered, match="the manifest does not have the digest"):
        store.pull(f"{fake.address}/a/b@{image.digest}")
    assert store.contents() == before


# ---------------------------------------------------------------- where it leads


def test_layers_elsewhere_get_no_credentials(fake, other, store, no_credentials):
    """Descriptor `urls` (CVE-2020-15157 class): asked without Authorization, if the registry has no such blob."""
    image = small()
    pair = base64.b64encode(b"me:secret").decode()
    (no_credentials / "config.json").write_text(json.dumps({"auths": {fake.address: {"auth": pair}}}))
    name = layers_of(image)[0]
    changed(image, lambda m: m["layers"][0].update(urls=[f"http://{other.address}/kept/{name}"]))
    fake.add(image)
    data = fake.blobs.pop(name)
    other.answer = lambda request, handler: send(handler, 200, data) or True

    def answer(request, handler):
        if request.authorization is None:
            send(handler, 401, b"", {"WWW-Authenticate": "Basic realm=x"})
            return True
        return False

    fake.answer = answer
    assert store.tree(store.pull(f"{fake.address}/a/b").image) == SMALL
    assert [r.authorization for r in other.requests] == [None]


def test_s18_an_image_that_claims_the_layers_of_another_changes_nothing_of_it(fake, store, make_store):
    """CVE-2024-24557: a history and diff ids are claims. What has a chain id here was unpacked and held to it; what
    a liar sends under them is never unpacked as theirs."""
    victim = small()
    fake.add(victim, "victim")
    store.pull(f"{fake.address}/a/b:victim")
    evil = LayerTar().file("d/one", "evil").bytes()
    packed = gzip.compress(evil)
    liar = changed(small(User="liar"), lambda m: m["layers"][0].update(digest=digest(packed), size=len(packed)))
    liar.blobs[digest(packed)] = packed
    fake.add(liar, "liar")
    pulled = store.pull(f"{fake.address}/a/b:liar").image
    assert store.tree(pulled) == SMALL
    other = make_store("more")
    with pytest.raises(Tampered, match="unpacks to"):
        other.pull(f"{fake.address}/a/b:liar")
    assert other.tree(other.pull(f"{fake.address}/a/b:victim").image) == SMALL


def test_what_lies_behind_gzip_is_taken_if_the_configuration_says_so(fake, cowshed, tmp_path):
    tar = LayerTar().file("a", "x").bytes()
    packed = gzip.compress(tar) + b"trailing"
    image = layer_image(packed, tar=tar)
    fake.add(image)
    name = f"{fake.address}/a/b"
    refused = cowshed("pull", name, status=125).stderr
    assert "something lies behind its gzip data: build the image again, or take it as it is: [images] " in refused
    (tmp_path / "c.toml").write_text('[images]\ntrailing = "ignore"\n')
    cowshed("--config", f"{tmp_path}/c.toml", "pull", "-q", name)
    assert cowshed("storage", "check", "--deep").stdout.splitlines()[-1] == "clean"
    cowshed("image", "copy", "-q", f"cowshed:{name}", f"dir:{tmp_path}/out")
    assert (tmp_path / "out" / digest(packed)[7:]).read_bytes() == packed
    cowshed("storage", "gc", "-f", "--archives")
    assert (tmp_path / "store/blobs/sha256" / digest(packed)[7:]).read_bytes() == packed
