"""Pulls that break: whole in the end, and nothing that has come is fetched again, by this process or a later one."""

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter

import pytest
from cowshed_testing.fake_registry import send
from cowshed_testing.images import Image, LayerTar

from cowshed.errors import RegistryError
from cowshed.image import incoming, segments
from cowshed.registry import client


def large(sizes):
    """An image whose layers have these sizes, packed by nothing, so that they have them in the registry too."""
    return Image([LayerTar().file(f"f{n}", os.urandom(size)).bytes() for n, size in enumerate(sizes)], compression="")


class Cutting:
    """Serves blobs of a fake registry, and cuts a share of the connections at a random moment. `sent` counts the bytes
    of each blob that have gone out; a connection is ended so that what has gone out arrives."""

    def __init__(self, fake, share, seed):
        self.fake, self.share, self.chance = fake, share, random.Random(seed)
        self.sent = Counter()
        self.cut = 0
        self.guard = threading.Lock()
        fake.answer = self

    def __call__(self, request, handler):
        with self.guard:
            cut, where = self.chance.random() < self.share, self.chance.random()
        data = self.fake.blobs.get(request.path.rpartition("/")[2])
        if cut and data is None:
            self.cut += 1
            handler.close_connection = True  # no answer at all
            return True
        if data is None:
            return False
        first, _, last = request.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(first), int(last or len(data) - 1) + 1
        headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"} if "range" in request.headers else {}
        part = data[start:end]
        if cut:
            self.cut += 1
            part = part[: int(where * len(part))]
        with self.guard:
            self.sent[request.path.rpartition("/")[2]] += len(part)
        send(handler, 206 if headers else 200, part, headers, length=end - start)
        return True


@pytest.fixture
def quick(monkeypatch):
    """No pauses, and parts of blobs that are not so large."""
    monkeypatch.setattr(client.Client.__init__, "__kwdefaults__", {"pause": 0.001})
    monkeypatch.setattr(segments, "SIZE", 100_000)
    monkeypatch.setattr(incoming, "LARGE", 200_000)
    monkeypatch.setattr(incoming, "_SLOW", 0.01)


@pytest.mark.parametrize("seed", range(2))
def test_five_of_a_hundred_connections_are_cut(fake, store, quick, seed):
    cutting = Cutting(fake, 0.05, seed)
    for n in range(3):
        image = large([50_000, 700_000, 1_500_000, 900_000])
        fake.add(image, f"v{n}")
        assert store.pull(f"{fake.address}/a/b:v{n}").image.id == image.id
    assert cutting.cut > 1
    layers = {d: size for d, size in cutting.sent.items() if size > 10_000}
    assert len(layers) == 12
    assert layers == {d: len(fake.blobs[d]) for d in layers}, "no byte that has come is fetched again"


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
