"""`cowshed registry serve` from outside, with other programs as clients."""

import contextlib
import functools
import hashlib
import json
import os
import random
import subprocess
import threading
import time

import pytest
from cowshed_testing import peers
from cowshed_testing.distribution import Client, digest
from cowshed_testing.images import Image, LayerTar
from cowshed_testing.registry import Ours

from .conftest import COMMAND

KILLS = int(os.environ.get("COWSHED_REGISTRY_KILLS", "4"))


@pytest.fixture
def ours(tmp_path):
    with Ours(COMMAND, str(tmp_path / "registry")) as it:
        yield it


def skopeo(*words):
    done = subprocess.run(["skopeo", *words], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_skopeo_pushes_and_pulls(ours, tmp_path):
    source = Image([LayerTar().file("a", "x" * 100_000).bytes(), LayerTar().file("b", "y").bytes()], {})
    ours.push(source, "team/app", "1")
    there = f"docker://{ours.address}/team/app"
    skopeo("copy", "--src-tls-verify=false", f"{there}:1", f"oci:{tmp_path}/out:x")
    skopeo("copy", "--dest-tls-verify=false", f"oci:{tmp_path}/out:x", f"docker://{ours.address}/other/app:2")
    for name in (f"{there}:1", f"docker://{ours.address}/other/app:2"):
        assert skopeo("inspect", "--tls-verify=false", "--raw", name) == source.manifest
    listed = json.loads(skopeo("list-tags", "--tls-verify=false", there))
    assert listed["Tags"] == ["1"]


def test_other_tools_read_and_write_the_directory(ours, tmp_path):
    source = Image([LayerTar().file("a", "b").bytes()], {})
    ours.push(source, "team/app", "1")
    layout = f"oci:{ours.folder}/repositories/team+app"
    assert skopeo("inspect", "--raw", f"{layout}:1") == source.manifest
    skopeo("copy", f"{layout}:1", f"{layout}:2")  # while it is served
    client = Client(ours.address)
    assert client("GET", "/v2/team/app/tags/list").json["tags"] == ["1", "2"]
    assert client("GET", "/v2/team/app/manifests/2").body == source.manifest
    client.close()


def test_a_running_request_is_finished_when_the_registry_is_stopped(ours):
    data = b"x" * 500_000
    first, second = Client(ours.address), Client(ours.address)
    location = first.begin()

    def halves():
        yield data[:1000]
        second("GET", "/v2/")  # what was sent is being received
        ours.process.terminate()
        with contextlib.suppress(OSError, second.ended):  # soon nobody listens, and connections that wait are closed
            while True:
                second("GET", "/v2/")
        yield data[1000:]

    assert first("PUT", f"{location}?digest={digest(data)}", halves()).status == 201
    assert ours.process.wait(30) == 0
    first.close()
    with Ours(COMMAND, ours.folder) as again:
        client = Client(again.address)
        assert client("GET", f"/v2/a/b/blobs/{digest(data)}").body == data
        client.close()


def whole(client, name, tag):
    """The digest of an image all of which is there, as it says."""
    answer = client("GET", f"/v2/{name}/manifests/{tag}")
    assert answer.status == 200, (tag, answer.body)
    assert digest(answer.body) == answer["Docker-Content-Digest"]
    manifest = answer.json
    for one in (manifest["config"], *manifest["layers"]):
        blob = client("GET", f"/v2/{name}/blobs/{one['digest']}")
        assert (blob.status, len(blob.body), digest(blob.body)) == (200, one["size"], one["digest"])
    return digest(answer.body)


COLLECTED = (b"MANIFEST_BLOB_UNKNOWN", b"BLOB_UPLOAD_UNKNOWN", b"while it was")  # what a push may meet without grace


class Pusher(threading.Thread):
    """Pushes images, deletes some of them again, until the registry is gone; `done` and `deleted` are what it was told
    has happened."""

    def __init__(self, address, number, chance):
        super().__init__()
        self.client, self.number, self.chance = Client(address), number, chance
        self.done, self.deleted, self.wrong = {}, set(), None

    def run(self):
        try:
            for step in range(10_000):
                tag = f"t{self.number}-{step}"
                layer = self.chance.randbytes(self.chance.choice((10, 5000, 300_000)))
                self.done[tag] = self.push(tag, layer)
                if self.chance.random() < 0.3:
                    self.client("DELETE", f"/v2/k/{self.number % 2}/manifests/{tag}")
                    self.deleted.add(tag)
        except (OSError, self.client.ended):
            pass
        except BaseException as error:
            self.wrong = error
        finally:
            self.client.close()

    def push(self, tag, layer):
        """One that a collection without a grace period has got in the way of is pushed again."""
        while True:
            try:
                return self.client.image(f"k/{self.number % 2}", tag, blobs=(b"config", layer))
            except AssertionError as error:
                if not any(word in error.args[0] for word in COLLECTED):
                    raise


def test_killed_at_any_moment(tmp_path):
    """kill -9 while images are pushed and deleted, and while garbage is collected without any grace: what was
    acknowledged is there and whole, nothing else is half there, and the next one goes on."""
    chance = random.Random(11)
    folder = str(tmp_path / "registry")
    expected, uncertain = {}, set()
    for turn in range(KILLS):
        with Ours(COMMAND, folder) as ours:
            client, there = Client(ours.address), {}
            for number in range(2):
                found = client("GET", f"/v2/k/{number}/tags/list")
                for tag in found.json["tags"] if found.status == 200 else []:
                    there[tag] = whole(client, f"k/{number}", tag)
                    if chance.random() < 0.7:
                        assert client("DELETE", f"/v2/k/{number}/manifests/{tag}").status == 202
            assert {tag: one for tag, one in there.items() if tag not in uncertain} == expected
            expected = {}
            for number in range(2):
                found = client("GET", f"/v2/k/{number}/tags/list")
                expected.update({tag: there[tag] for tag in (found.json["tags"] if found.status == 200 else [])})
            client.close()
            uncertain = set()
            pushers = [Pusher(ours.address, turn * 4 + number, random.Random(turn * 4 + number)) for number in range(3)]
            for pusher in pushers:
                pusher.start()
            collector = None
            if turn % 2:
                collector = subprocess.Popen(
                    [COMMAND, "registry", "gc", folder, "--grace", "0", "--untagged"], stdout=subprocess.DEVNULL
                )
            time.sleep(chance.random() * 0.6)  # any moment
            ours.process.kill()
            if collector is not None:
                collector.kill() if chance.random() < 0.5 else None
                collector.wait(60)
            for pusher in pushers:
                pusher.join(60)
                assert pusher.wrong is None
                last = {f"t{pusher.number}-{len(pusher.done) - step}" for step in (0, 1)}
                expected.update({t: one for t, one in pusher.done.items() if t not in pusher.deleted | last})
                uncertain |= last
    subprocess.run([COMMAND, "registry", "gc", folder, "--grace", "0", "--untagged"], check=True, capture_output=True)
    files = [f"{base}/{name}" for base, _, names in os.walk(folder) for name in names]
    assert not [path for path in files if path.startswith(f"{folder}/uploads") or path.endswith(".new")]
    pool = [path for path in files if path.startswith(f"{folder}/blobs/")]
    assert all(os.stat(path).st_nlink > 1 for path in pool)
    for path in pool:
        with open(path, "rb") as file:
            assert hashlib.sha256(file.read()).hexdigest() == os.path.basename(path)


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """podman and docker of Debian, each as a function that calls it."""
    if os.geteuid():
        pytest.skip("needs root: it mounts, and starts a daemon")
    tree = peers.available("bookworm")
    if tree is None:
        pytest.skip("podman and docker are not there: tools/peers bookworm")
    made = peers.Peers(tree, tmp_path_factory.mktemp("engines") / "peers")
    try:
        made.start_docker()
        yield {"podman": functools.partial(made.run, "podman"), "docker": made.docker}
    finally:
        made.close()


def test_podman_and_docker_push_and_pull(ours, engines):
    """Each pulls what we were given, pushes it under another name, and gets what the other one pushed. What each says
    of a digest is the digest of the bytes that are here."""
    client = Client(ours.address)
    source = Image([LayerTar().file("a", "x" * 100_000).bytes(), LayerTar().file("b", "y").bytes()], {"Cmd": ["a"]})
    ours.push(source, "source/image", "1")
    insecure = {"podman": ["--tls-verify=false"], "docker": []}
    told = {"podman": ["--digestfile", "/dev/stdout"], "docker": []}
    digests = {}
    for name, engine in engines.items():
        engine("pull", *insecure[name], f"{ours.address}/source/image:1")
        engine("tag", f"{ours.address}/source/image:1", f"{ours.address}/by/{name}:1")
        said = engine("push", *insecure[name], *told[name], f"{ours.address}/by/{name}:1")
        digests[name] = whole(client, f"by/{name}", "1")
        assert digests[name] in said
    config = json.loads(source.manifest)["config"]["digest"]
    for name, engine in engines.items():
        other = "docker" if name == "podman" else "podman"
        engine("pull", *insecure[name], f"{ours.address}/by/{other}@{digests[other]}")
        found = engine("inspect", "--format", "{{.Id}}", f"{ours.address}/by/{other}@{digests[other]}").strip()
        assert found.removeprefix("sha256:") == config.removeprefix("sha256:")
        engine("rmi", "-f", config.removeprefix("sha256:"))
    client.close()
