"""`cowshed registry serve` from outside, with other programs as clients."""

import contextlib
import functools
import json
import os
import subprocess

import pytest
from cowshed_testing import peers
from cowshed_testing.distribution import Client, digest
from cowshed_testing.images import Image, LayerTar
from cowshed_testing.registry import Ours

from .conftest import COMMAND


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
        digests[name] = client.whole(f"by/{name}", "1")
        assert digests[name] in said
    config = json.loads(source.manifest)["config"]["digest"]
    for name, engine in engines.items():
        other = "docker" if name == "podman" else "podman"
        engine("pull", *insecure[name], f"{ours.address}/by/{other}@{digests[other]}")
        found = engine("inspect", "--format", "{{.Id}}", f"{ours.address}/by/{other}@{digests[other]}").strip()
        assert found.removeprefix("sha256:") == config.removeprefix("sha256:")
        engine("rmi", "-f", config.removeprefix("sha256:"))
    client.close()
