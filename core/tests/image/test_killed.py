"""SIGKILL at random moments of pull and push: nothing wrong is ever there, and the next attempt succeeds.

COWSHED_KILLS says how often (2); COWSHED_KILLS_SEED which moments.
"""

import json
import os
import random
import signal
import subprocess
import time

import pytest
from cowshed_testing.images import Image, LayerTar

KILLS = int(os.environ.get("COWSHED_KILLS", "2"))


@pytest.fixture
def chance():
    return random.Random(int(os.environ.get("COWSHED_KILLS_SEED", "1")))


def killed(cowshed, chance, longest, *words):
    """Run a command and kill it at some moment within `longest` seconds, if it has not ended by then."""
    process = subprocess.Popen(
        cowshed.words(*words), env=cowshed.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(chance.uniform(0.05, longest))
    process.send_signal(signal.SIGKILL)
    process.wait()


def built():
    return Image([LayerTar().file(f"f{n}", os.urandom(1_500_000)).bytes() for n in range(4)], compression="")


def took(cowshed, *words):
    since = time.monotonic()
    cowshed(*words)
    return time.monotonic() - since


def test_push(fake, cowshed, chance):
    image = built()
    fake.add(image)
    name = f"{fake.address}/a/b:latest"
    cowshed("pull", "-q", name)
    fake.blobs.clear()
    fake.manifests.clear()
    longest = took(cowshed, "push", "-q", name)
    for _ in range(KILLS):
        fake.blobs.clear()
        fake.manifests.clear()
        killed(cowshed, chance, longest, "push", name)
        if "latest" in fake.manifests:
            named = json.loads(fake.manifests["latest"][0])
            assert {d["digest"] for d in (named["config"], *named["layers"])} <= set(fake.blobs)
        for digest, data in list(fake.blobs.items()):
            assert image.blobs[digest] == data
        cowshed("push", "-q", name)
        assert fake.manifests["latest"][0] == image.manifest
        assert fake.blobs == image.blobs
    assert json.loads(cowshed("system", "check", "--format", "json").stdout or "[]") == []


def test_pull(fake, cowshed, chance):
    image = built()
    fake.add(image)
    name = f"{fake.address}/a/b:latest"
    longest = took(cowshed, "pull", "-q", name)
    cowshed("rmi", name)
    for _ in range(KILLS):
        killed(cowshed, chance, longest, "pull", name)
        there = cowshed.lines("images", "-q", "--no-trunc")
        assert there in ([], [image.id])
        cowshed("pull", "-q", name)
        assert cowshed.lines("images", "-q", "--no-trunc") == [image.id]
        assert os.listdir(f"{cowshed.root}/blobs/partial") == []
        cowshed("rmi", name)
        assert os.listdir(f"{cowshed.root}/blobs/sha256") == []
    assert json.loads(cowshed("system", "check", "--format", "json").stdout or "[]") == []
