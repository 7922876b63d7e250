"""Pulls that break: whole in the end, and nothing that has come is fetched again, by this process or a later one."""

import os
import random
import signal
import subprocess
import threading
import time

import pytest
from cowshed_testing.fake_registry import send
from cowshed_testing.images import Image, LayerTar
from cowshed_testing.passing import Passing

from cowshed.errors import RegistryError
from cowshed.image import incoming, segments
from cowshed.registry import client


def large(sizes):
    """An image whose layers have these sizes, packed by nothing, so that they have them in the registry too."""
    return Image([LayerTar().file(f"f{n}", os.urandom(size)).bytes() for n, size in enumerate(sizes)], compression="")


@pytest.fixture
def quick(monkeypatch):
    """No pauses, and parts of blobs that are not so large."""
    monkeypatch.setattr(client.Client.__init__, "__kwdefaults__", {"pause": 0.001})
    monkeypatch.setattr(segments, "SIZE", 100_000)
    monkeypatch.setattr(incoming, "LARGE", 200_000)
    monkeypatch.setattr(incoming, "_SLOW", 0.01)


@pytest.fixture(params=["scripted", "docker-registry", "ours"])
def there(request):
    """(the registry's address, a function that puts an image into it under a tag of test/cut)."""
    if request.param == "scripted":
        other = request.getfixturevalue("other")
        return other.address, other.add
    registry = request.getfixturevalue({"docker-registry": "real"}.get(request.param, request.param))
    return registry.address, lambda image, tag: registry.push(image, "test/cut", tag)


@pytest.mark.parametrize("seed", range(int(os.environ.get("COWSHED_CUTS", "1"))))
def test_five_of_a_hundred_connections_are_cut(fake, store, quick, there, seed):
    """Whatever is asked: a request is not answered, or an answer ends somewhere. COWSHED_CUTS: how many sequences."""
    address, put = there
    passing = Passing(fake, address, share=0.05, seed=seed)
    for n in range(4):
        image = large([50_000, 700_000, 1_500_000, 900_000])
        put(image, f"v{n}")
        pulled = store.pull(f"{fake.address}/test/cut:v{n}")
        assert (pulled.image.id, pulled.image.manifest) == (image.id, image.manifest)
        sizes = {digest: len(data) for digest, data in image.blobs.items()}
        assert {digest: passing.sent[digest] for digest in sizes} == sizes, "no byte that has come is fetched again"
        tree = store.tree(pulled.image)
        assert sorted(map(len, tree.values())) == [50_000, 700_000, 900_000, 1_500_000]
    assert passing.cut > 1
    assert not [f for f in store.contents()[0] if "partial/" in f]


def test_pulls_that_fail_go_on_from_each_other(fake, make_store, quick, there, monkeypatch):
    """Cut so often that pulls fail: each goes on from what the ones before have left, in a store that is opened anew.
    (One layer by one connection: what is on its way to others when a pull is given up does not arrive.)"""
    monkeypatch.setattr(incoming, "WORTH", 1)  # as a rule less than a megabyte is not kept for another pull
    monkeypatch.setattr(incoming, "LARGE", 1 << 30)
    address, put = there
    passing = Passing(fake, address)
    image = large([3_000_000])
    put(image, "latest")
    failed = 0
    for turn in range(100):
        passing.share, passing.chance = (0.8, random.Random(turn)) if turn < 80 else (0.0, random.Random(turn))
        store = make_store("more")
        try:
            assert store.pull(f"{fake.address}/test/cut").image.id == image.id
            break
        except RegistryError:
            failed += 1
        finally:
            store.close()
    assert failed > 1
    layer = next(digest for digest in image.blobs if digest != image.id)
    assert passing.sent[layer] == len(image.blobs[layer])


def test_finished_layers_stay_when_a_pull_fails(fake, store):
    image = large([2_000_000, 3_000_000, 1_500_000])
    fake.add(image)
    *whole, broken = list(image.blobs)[:3]

    def answer(request, handler):
        if not request.path.endswith(broken):
            return False
        while not all(os.path.exists(f"{store.root}/blobs/sha256/{digest[7:]}") for digest in whole):
            time.sleep(0.01)
        send(handler, 404)
        return True

    fake.answer = answer
    with pytest.raises(RegistryError):
        store.pull(f"{fake.address}/a/b")
    files, rows, _ = store.contents()
    assert not any(rows.values()), "nothing of the image is there"
    assert not [f for f in files if f.startswith("blobs/sha256/")]
    fake.answer = lambda request, handler: False
    fake.requests.clear()
    store.pull(f"{fake.address}/a/b")
    fetched = [r.path.rpartition("/")[2] for r in fake.requests if "/blobs/" in r.path]
    assert set(fetched) <= {broken, image.id}
    assert "5.02 MB were left by an earlier pull" in store.told.steps[-1]
    assert not [f for f in store.contents()[0] if "partial/" in f]


def test_a_killed_pull_goes_on(fake, cowshed):
    """Whatever had come when the process was killed: the finished layer, and what there was of the other."""
    image = large([2_000_000, 6_000_000])
    fake.add(image)
    first, second = list(image.blobs)[:2]
    half, release = threading.Event(), threading.Event()

    def answer(request, handler):
        if not request.path.endswith(second):
            return False
        data = image.blobs[second]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:4_000_000])
        half.set()
        release.wait(20)
        handler.close_connection = True
        return True

    fake.answer = answer
    process = subprocess.Popen(cowshed.words("pull", f"{fake.address}/a/b"), env=cowshed.env, stderr=subprocess.DEVNULL)
    partials = f"{cowshed.root}/blobs/partial"
    try:
        assert half.wait(20)
        whole = f"{cowshed.root}/blobs/sha256/{first[7:]}"
        while not os.path.exists(whole) or not any(
            os.path.getsize(f"{partials}/{name}") == 4_000_000 for name in os.listdir(partials) if second[7:] in name
        ):
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        release.set()
    fake.answer = lambda request, handler: False
    assert cowshed("images", "-q").stdout == ""
    cowshed("system", "check")
    fake.requests.clear()
    done = cowshed("pull", f"{fake.address}/a/b")
    assert "6.01 MB were left by an earlier pull" in done.stderr
    asked = {r.path.rpartition("/")[2]: r.headers.get("range") for r in fake.requests if "/blobs/" in r.path}
    assert first not in asked
    assert asked[second] == "bytes=4000000-"
    assert os.listdir(partials) == []


def test_what_a_broken_pull_left_can_be_pruned(fake, cowshed):
    image = large([2_000_000, 100])
    fake.add(image)
    second = list(image.blobs)[1]
    partials = f"{cowshed.root}/blobs/partial"

    def answer(request, handler):
        if request.path.endswith(second):
            while not os.path.exists(f"{cowshed.root}/blobs/sha256/{next(iter(image.blobs))[7:]}"):
                time.sleep(0.01)
            send(handler, 404)
            return True
        return False

    fake.answer = answer
    cowshed("pull", f"{fake.address}/a/b", status=125)
    assert len(os.listdir(partials)) == 1
    assert "Total reclaimed space: 2.01MB" in cowshed("image", "prune", "-f").stdout
    assert os.listdir(partials) == []
