"""`cowshed registry serve` from outside, with other programs as clients."""

import contextlib
import json
import subprocess

import pytest
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
