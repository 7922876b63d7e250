"""Pulling as it should go: from a real registry and from one of ours, every form of image, names, platforms, mirrors,
credentials, proxies, several at once."""

import base64
import gzip
import hashlib
import json
import os
import sys
import threading

import pytest
from backports import zstd
from cowshed_testing.fake_registry import send
from cowshed_testing.images import ARCHITECTURE, Image, LayerTar, digest
from cowshed_testing.indexes import INDEX, index_of, of
from cowshed_testing.samples import SMALL, changed, small
from cowshed_testing.store import Store

from cowshed.errors import AuthError, BadUsage, ImageError, NotFound, RegistryError, Tampered
from cowshed.image import platform
from cowshed.state import images

LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"


@pytest.mark.parametrize("driver", ["overlay", "copy"])
@pytest.mark.parametrize("compression", ["gzip", "zstd", ""])
def test_from_a_real_registry(real, make_store, driver, compression):
    store = make_store("more", driver)
    image = small(compression)
    name = real.push(image, f"test/real-{compression or 'plain'}")
    pulled = store.pull(name)
    assert (pulled.image.id, pulled.digest, pulled.new) == (image.id, image.digest, True)
    assert store.tree(pulled.image) == SMALL
    assert images.names(store.store, image.id) == [name]
    assert sorted(os.listdir(f"{store.root}/blobs/sha256")) == sorted(d[7:] for d in image.blobs if d != image.id)
    assert os.listdir(f"{store.root}/blobs/partial") == []
    assert store.query("select count(*) from leases") == [(0,)]


def test_by_digest_and_by_both(real, store):
    image = small()
    name = real.push(image, "test/digest").rpartition(":")[0]
    for text in (f"{name}@{image.digest}", f"{name}:latest@{image.digest}"):
        assert store.pull(text).image.id == image.id
    assert images.names(store.store, image.id) == [f"{name}@{image.digest}"]


def test_a_tag_that_moved(fake, store):
    first, second = small(), small(WorkingDir="/srv")
    name = f"{fake.address}/a/b:latest"
    fake.add(first)
    store.pull(name)
    fake.add(second)
    pulled = store.pull(name)
    assert pulled.new
    assert pulled.image.id == second.id
    assert images.names(store.store, first.id) == []
    assert images.names(store.store, second.id) == [name]
    assert len(store.query("select 1 from layers")) == 3  # the same ones


def test_policies(fake, store):
    image = small()
    fake.add(image)
    name = f"{fake.address}/a/b"
    with pytest.raises(NotFound, match="no such image"):
        store.pull(name, policy="never")
    assert fake.requests == []
    assert store.pull(name, policy="missing").image.id == image.id
    count = len(fake.requests)
    assert store.pull(name, policy="missing").image.id == image.id
    assert store.pull(name, policy="never").image.id == image.id
    assert len(fake.requests) == count
    with pytest.raises(BadUsage, match="policy"):
        store.pull(name, policy="sometimes")


def test_docker_schema_2(fake, store):
    image = small()
    kinds = {"config": "application/vnd.docker.container.image.v1+json",
             "layer": "application/vnd.docker.image.rootfs.diff.tar.gzip"}  # fmt: skip

    def change(manifest):
        manifest["mediaType"] = DOCKER
        manifest["config"]["mediaType"] = kinds["config"]
        for layer in manifest["layers"]:
            layer["mediaType"] = kinds["layer"]

    changed(image, change)
    fake.blobs.update(image.blobs)
    fake.put("latest", image.manifest, DOCKER)
    pulled = store.pull(f"{fake.address}/a/b")
    assert store.tree(pulled.image) == SMALL
    assert pulled.image.media_type == DOCKER


def test_layers_of_several_members_and_frames(fake, store):
    """Concatenated gzip members and zstd frames are one layer; some clients stop at the end of the first."""
    tar = LayerTar().file("a", os.urandom(50_000)).file("b", "last").bytes()
    for kind, pack in (("gzip", lambda d: gzip.compress(d)), ("zstd", zstd.compress)):
        image = Image([tar], {"Labels": {"kind": kind}}, compression=kind)
        packed = pack(tar[:20_000]) + pack(tar[20_000:])

        def change(manifest, packed=packed):
            manifest["layers"][0].update(digest=digest(packed), size=len(packed))

        changed(image, change)
        image.blobs[digest(packed)] = packed
        fake.add(image, kind)
        assert store.tree(store.pull(f"{fake.address}/a/b:{kind}").image)["b"] == b"last"


def test_one_layer_twice_and_no_layer_and_an_empty_one(fake, store):
    one = LayerTar().file("a", "x").bytes()
    fake.add(Image([one, LayerTar().whiteout("a").bytes(), one]), "twice")
    pulled = store.pull(f"{fake.address}/a/b:twice")
    assert store.tree(pulled.image) == {"a": b"x"}
    assert sum(r.path.endswith(digest(gzip.compress(one, 1, mtime=0))) for r in fake.requests) == 1
    fake.add(Image([]), "none")
    pulled = store.pull(f"{fake.address}/a/b:none")
    assert pulled.image.chain_ids == ()
    fake.add(Image([LayerTar().bytes()]), "empty")
    assert store.tree(store.pull(f"{fake.address}/a/b:empty").image) == {}


def test_a_layer_that_is_called_gzip_and_is_plain(fake, store):
    """Old images do that; it is said, and the diff id still has to fit. The other way round is refused."""
    image = changed(
        small(""), lambda m: [layer.update(mediaType=layer["mediaType"] + "+gzip") for layer in m["layers"]]
    )
    fake.add(image)
    assert store.tree(store.pull(f"{fake.address}/a/b").image) == SMALL
    assert len(store.told.warnings) == 3


# ---------------------------------------------------------------- indexes and platforms


@pytest.mark.parametrize("kind", [INDEX, LIST])
def test_the_machines_own_platform_and_a_named_one(fake, store, kind):
    mine, arm, foreign = of(ARCHITECTURE), of("arm", "v7"), of("s390x")
    data = index_of(
        fake,
        [
            ("unknown/unknown", of("unknown")),
            ("linux/s390x", foreign),
            ("linux/arm/v7", arm),
            (f"linux/{ARCHITECTURE}", mine),
        ],
        kind,
    )
    name = f"{fake.address}/a/b"
    pulled = store.pull(name)
    assert pulled.image.id == mine.id
    assert pulled.digest == digest(data)
    assert images.digests(store.store) == {f"{name}:latest": digest(data)}
    for each in (digest(data), mine.digest):
        assert images.by_digest(store.store, each).id == mine.id
    assert store.pull(name, platform=platform.parse("linux/arm")).image.id == arm.id
    assert store.pull(name, platform=platform.parse("s390x")).image.id == foreign.id
    assert store.pull(f"{name}@{digest(data)}").image.id == mine.id
    with pytest.raises(ImageError, match=r"nothing for linux/riscv64; it is there for linux/s390x, linux/arm"):
        store.pull(name, platform=platform.parse("linux/riscv64"))


def test_a_platform_asked_of_an_image_without_an_index(fake, store):
    fake.add(of("s390x"))
    name = f"{fake.address}/a/b"
    with pytest.raises(ImageError, match="for linux/s390x only"):
        store.pull(name, platform=platform.parse("linux/amd64"))
    assert store.query("select count(*) from images") == [(0,)]
    store.pull(name)
    assert "this machine is" in store.told.warnings[0]
    fake.add(of(ARCHITECTURE, os_="windows"))
    with pytest.raises(ImageError, match="only Linux images"):
        store.pull(name)


def test_an_index_in_an_index_and_no_end_of_them(fake, store):
    inner = index_of(fake, [(f"linux/{ARCHITECTURE}", of(ARCHITECTURE))])
    data, size = digest(inner), len(inner)
    for depth in range(1, 5):
        outer = {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [{"mediaType": INDEX, "digest": data, "size": size}],
        }
        text = json.dumps(outer).encode()
        data, size = digest(text), len(text)
        fake.put(data, text, INDEX)
        fake.put(f"deep{depth}", text, INDEX)
    store.pull(f"{fake.address}/a/b:deep2")
    with pytest.raises(ImageError, match="more than 4 deep"):
        store.pull(f"{fake.address}/a/b:deep4")


# ---------------------------------------------------------------- where it comes from


def test_a_mirror_with_and_without_fallback(fake, other, store):
    image = small()
    fake.add(image)
    store.registries = {fake.address: {"mirrors": [{"url": f"http://{other.address}"}]}}
    assert store.pull(f"{fake.address}/a/b").image.id == image.id
    assert other.requests
    store.registries = {fake.address: {"mirrors": [f"http://{other.address}"], "fallback": False}}
    asked = len(fake.requests)
    with pytest.raises(NotFound, match="not in the registry"):
        store.pull(f"{fake.address}/a/b")
    assert len(fake.requests) == asked
    other.add(image)
    assert store.pull(f"{fake.address}/a/b").image.id == image.id
    assert images.names(store.store, image.id) == [f"{fake.address}/a/b:latest"]


def test_a_mirror_that_lies(fake, other, store):
    """Tampered content of a mirror is not believed: the digest is that of the name, and the error says so."""
    image = small()
    fake.add(image)
    other.add(image)
    other.manifests[image.digest] = small(WorkingDir="/x").manifest, "application/vnd.oci.image.manifest.v1+json"
    store.registries = {fake.address: {"mirrors": [f"http://{other.address}"]}}
    with pytest.raises(ImageError, match="does not have the digest"):
        store.pull(f"{fake.address}/a/b@{image.digest}")


def test_basic_and_bearer(fake, other, store, no_credentials):
    image = small()
    fake.add(image)
    pair = base64.b64encode(b"me:secret").decode()

    def basic(request, handler):
        if request.authorization == f"Basic {pair}":
            return False
        send(handler, 401, b"", {"WWW-Authenticate": "Basic realm=x"})
        return True

    fake.answer = basic
    with pytest.raises(AuthError, match=r"does not let us|no credentials"):
        store.pull(f"{fake.address}/a/b")
    (no_credentials / "config.json").write_text(json.dumps({"auths": {fake.address: {"auth": pair}}}))
    assert store.pull(f"{fake.address}/a/b").image.id == image.id

    def bearer(request, handler):
        if request.path == "/token":
            send(handler, 200, json.dumps({"token": "t0ken", "expires_in": 300}).encode())
        elif request.authorization == "Bearer t0ken":
            return False
        else:
            challenge = f'Bearer realm="http://{fake.address}/token",service="s",scope="repository:a/b:pull"'
            send(handler, 401, b"", {"WWW-Authenticate": challenge})
        return True

    fake.answer = bearer
    with_other = small(WorkingDir="/other")
    fake.add(with_other)
    assert store.pull(f"{fake.address}/a/b").image.id == with_other.id


def test_through_a_proxy(fake, other, store, monkeypatch):
    """Plain HTTP through a proxy of the environment: it gets the whole address; NO_PROXY goes around it."""
    image = small()
    other.add(image)
    seen = []

    def answer(request, handler):
        seen.append(request.target)
        return False

    other.answer = answer
    monkeypatch.setenv("HTTP_PROXY", f"http://{other.address}")
    monkeypatch.setenv("http_proxy", f"http://{other.address}")
    store.registries = {"registry.invalid": {"insecure": True}}
    assert store.pull("registry.invalid/a/b").image.id == image.id
    assert all(target.startswith("http://registry.invalid/v2/a/b/") for target in seen)
    monkeypatch.setenv("NO_PROXY", "registry.invalid")
    monkeypatch.setenv("no_proxy", "registry.invalid")
    with pytest.raises(RegistryError, match="cannot be reached"):
        store.pull("registry.invalid/a/b:other")


def test_a_connection_that_breaks_within_a_layer_goes_on(fake, store):
    """In one pull, by Range, without starting again."""
    data = os.urandom(3 << 20)
    image = Image([LayerTar().file("big", data).bytes()], compression="")
    fake.add(image)
    blob = next(d for d in image.blobs if d != image.id)
    cuts = [1 << 20, 1 << 20]

    def answer(request, handler):
        if not request.path.endswith(blob) or not cuts:
            return False
        cuts.pop()
        start = int(request.headers.get("range", "bytes=0-")[6:].partition("-")[0])
        part = image.blobs[blob][start : start + (1 << 20)]
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(image.blobs[blob]) - 1}/{len(image.blobs[blob])}")
        handler.send_header("Content-Length", str(len(image.blobs[blob]) - start))
        handler.end_headers()
        handler.wfile.write(part)
        handler.close_connection = True
        return True

    fake.answer = answer
    assert store.tree(store.pull(f"{fake.address}/a/b").image) == {"big": data}
    ranges = [r.headers.get("range") for r in fake.requests if r.path.endswith(blob)]
    assert ranges == [None, f"bytes={1 << 20}-", f"bytes={2 << 20}-"]


def test_layers_come_side_by_side(fake, store):
    """While the first layer is held back, the others are asked for."""
    image = Image([LayerTar().file(f"f{n}", os.urandom(1000)).bytes() for n in range(4)])
    fake.add(image)
    first = next(iter(image.blobs))
    asked = threading.Semaphore(0)

    def answer(request, handler):
        if "/blobs/" in request.path and not request.path.endswith(image.id):
            if request.path.endswith(first):
                for _ in range(3):
                    assert asked.acquire(timeout=20)
            else:
                asked.release()
        return False

    fake.answer = answer
    assert len(store.tree(store.pull(f"{fake.address}/a/b").image)) == 4


def test_several_pulls_of_one_image_at_once(fake, tmp_path):
    """Each in a process's place: a store object and connection of its own. One makes the layers, the others wait."""
    image = small()
    fake.add(image)
    results = []

    def work():
        store = Store(tmp_path / "shared")
        try:
            results.append(store.pull(f"{fake.address}/a/b").image.id)
        finally:
            store.close()

    (tmp_path / "shared").mkdir()
    work()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [image.id] * 5


def test_a_layer_to_stand_on_that_goes_meanwhile(fake, store, monkeypatch):
    """Another command removes the lower layers between our look and our claim: they are made again."""
    base = Image([LayerTar().file("low", "1").bytes()])
    fake.add(base, "base")
    row = store.pull(f"{fake.address}/a/b:base").image
    image = Image([LayerTar().file("low", "1").bytes(), LayerTar().file("high", "2").bytes()])
    fake.add(image)
    reserve, asked = store.layers.reserve_chain, []

    def meanwhile(parent, count):
        asked.append(count)
        if len(asked) == 1:
            with store.store.transaction() as tx:
                images.delete(tx, row.id)
            store.layers.remove_unreferenced()
        return reserve(parent, count)

    monkeypatch.setattr(store.layers, "reserve_chain", meanwhile)
    assert store.tree(store.pull(f"{fake.address}/a/b").image) == {"low": b"1", "high": b"2"}
    assert asked == [1, 2]


def test_sha512(fake, store):
    """A manifest may name its blobs by SHA-512."""
    image = Image([LayerTar().file("a", "x").bytes()])
    blob = next(d for d in image.blobs if d != image.id)
    long = "sha512:" + hashlib.sha512(image.blobs[blob]).hexdigest()
    image.blobs[long] = image.blobs.pop(blob)
    changed(image, lambda m: m["layers"][0].update(digest=long))
    fake.add(image)
    assert store.tree(store.pull(f"{fake.address}/a/b").image) == {"a": b"x"}
    assert os.listdir(f"{store.root}/blobs/sha512") == [long[7:]]


def by_blake3(fake):
    """An image whose layer is named by BLAKE3 (image-spec, Registered algorithms); that name."""
    blake3 = pytest.importorskip("blake3")
    image = Image([LayerTar().file("a", "x").bytes()])
    blob = next(d for d in image.blobs if d != image.id)
    named = "blake3:" + blake3.blake3(image.blobs[blob]).hexdigest()
    image.blobs[named] = image.blobs.pop(blob)
    changed(image, lambda m: m["layers"][0].update(digest=named))
    fake.add(image)
    return named


def test_blake3(fake, store):
    named = by_blake3(fake)
    assert store.tree(store.pull(f"{fake.address}/a/b").image) == {"a": b"x"}
    assert os.listdir(f"{store.root}/blobs/blake3") == [named[7:]]
    fake.blobs[named] = fake.blobs[named][:-1] + b"?"
    os.unlink(f"{store.root}/blobs/blake3/{named[7:]}")
    with pytest.raises(Tampered):
        store.pull(f"{fake.address}/a/b")


def test_blake3_without_its_package(fake, store, monkeypatch):
    by_blake3(fake)
    monkeypatch.setitem(sys.modules, "blake3", None)
    with pytest.raises(ImageError, match="named by blake3 cannot be verified here") as told:
        store.pull(f"{fake.address}/a/b")
    assert "cowshed[blake3]" in told.value.remedy
