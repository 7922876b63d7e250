"""Images that go between Cowshed, skopeo, podman and docker by way of a registry, each way: Debian's docker-registry,
our own, and a scripted one that cuts our connections. Manifests stay byte for byte what they were."""

import functools
import hashlib
import http.client
import itertools
import json
import os
import subprocess

import pytest
from cowshed_testing import peers
from cowshed_testing.fake_registry import FakeRegistry
from cowshed_testing.images import Image, LayerTar
from cowshed_testing.registry import Ours

from .conftest import COMMAND

ACCEPT = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
PLAIN = {"podman": ["--tls-verify=false"], "docker": []}


@pytest.fixture
def driver():
    """One is enough: nothing here is about them."""
    return "overlay"


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


@pytest.fixture(params=["docker-registry", "ours", "scripted"])
def address(request, tmp_path):
    if request.param == "docker-registry":
        yield request.getfixturevalue("registry").address
    elif request.param == "ours":
        with Ours(COMMAND, str(tmp_path / "registry")) as ours:
            yield ours.address
    else:
        with FakeRegistry() as fake:
            ours = itertools.count()

            def answer(asked, handler):
                if asked.headers.get("user-agent") != "cowshed" or next(ours) % 7 != 5:
                    return False
                handler.close_connection = True
                return True

            fake.answer = answer
            yield fake.address
            assert next(ours) > 12, "connections were cut"


@pytest.fixture
def source(tmp_path):
    """An image, and where its layout is."""
    image = Image(
        [LayerTar().file("a", os.urandom(100_000)).bytes(), LayerTar().file("b", "y").bytes()], {"Cmd": ["a"]}
    )
    image.write_layout(str(tmp_path / "source"), "1")
    return image, f"oci:{tmp_path}/source:1"


def skopeo(*words):
    done = subprocess.run(["skopeo", *words], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def manifest(address, tag):
    """The bytes that the registry has."""
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("GET", f"/v2/team/app/manifests/{tag}", headers={"Accept": ", ".join(ACCEPT)})
        answer = connection.getresponse()
        data = answer.read()
        assert answer.status == 200, data
        return data
    finally:
        connection.close()


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def on(engine, name, tag):
    """Pull what is under a name, and push it on as we have it, under a tag."""
    engine.ok("pull", "-q", name)
    target = f"{name.partition('/')[0]}/team/app:{tag}"
    engine.ok("tag", name, target)
    engine.ok("push", "-q", target)


def test_skopeo_and_we(engine, address, source, tmp_path):
    """Ours is what skopeo reads; what it has pushed goes through our store as it is, in both forms of a manifest."""
    image, layout = source
    name = f"{address}/team/app"
    engine.ok("image", "copy", "-q", layout, "cowshed:mine")
    engine.ok("tag", "mine", f"{name}:ours")
    engine.ok("push", "-q", f"{name}:ours")
    assert manifest(address, "ours") == image.manifest
    skopeo("copy", "--src-tls-verify=false", f"docker://{name}:ours", f"oci:{tmp_path}/read:1")
    assert skopeo("inspect", "--raw", f"oci:{tmp_path}/read:1") == image.manifest
    for form in ("oci", "v2s2"):
        skopeo("copy", "--dest-tls-verify=false", "--format", form, layout, f"docker://{name}:{form}")
        on(engine, f"{name}:{form}", f"{form}-on")
        there = manifest(address, form)
        assert manifest(address, f"{form}-on") == there
        assert f"{name}@{digest(there)}" in engine.ok("image", "inspect", "-f", "{{.RepoDigests}}", f"{name}:{form}")
        assert skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{name}:{form}-on") == there


def test_podman_docker_and_we(engine, address, source, engines):
    """Each gets what we have pushed and pushes it; we get that and push it on; each gets from the other, and by the
    digest that it is to have, what went through our store."""
    image, layout = source
    name = f"{address}/team/app"
    engine.ok("image", "copy", "-q", layout, "cowshed:mine")
    engine.ok("tag", "mine", f"{name}:ours")
    engine.ok("push", "-q", f"{name}:ours")
    there = {}
    for by, call in engines.items():
        call("pull", *PLAIN[by], f"{name}:ours")
        call("tag", f"{name}:ours", f"{name}:{by}")
        call("push", *PLAIN[by], f"{name}:{by}")
        there[by] = manifest(address, by)
        assert json.loads(there[by])["config"]["digest"] == image.id
        call("rmi", "-f", image.id.removeprefix("sha256:"))
        on(engine, f"{name}:{by}", f"{by}-on")
        assert manifest(address, f"{by}-on") == there[by]
        assert f"{name}@{digest(there[by])}" in engine.ok("image", "inspect", "-f", "{{.RepoDigests}}", f"{name}:{by}")
    for by, call in engines.items():
        (other,) = (each for each in engines if each != by)
        call("pull", *PLAIN[by], f"{name}:{other}-on")
        wanted = f"{name}@{digest(there[other])}"
        call("pull", *PLAIN[by], wanted)
        found = call("inspect", "--format", "{{.Id}}", wanted).strip()
        assert found.removeprefix("sha256:") == image.id.removeprefix("sha256:")
        call("rmi", "-f", image.id.removeprefix("sha256:"))


def short(tar):
    """An archive that ends as Go's do, with two empty blocks: podman 4 writes no more of them into zstd:chunked, which
    is then no archive of the layer's diff id."""
    return tar.rstrip(b"\0").ljust(-(-len(tar.rstrip(b"\0")) // 512) * 512 + 1024, b"\0")


def test_layers_that_podman_has_packed_as_zstd_chunked(engine, registry, engines, tmp_path):
    """Frames for the chunks of files, and skippable ones with their table: an archive like others."""
    podman, plain = engines["podman"], PLAIN["podman"]
    layers = [LayerTar().file("a", os.urandom(100_000)).bytes(), LayerTar().file("b", "y").bytes()]
    image = Image([short(layer) for layer in layers])
    name = registry.push(image, "team/chunked")
    podman("pull", *plain, name)
    with Ours(COMMAND, str(tmp_path / "registry")) as ours:  # to the same one podman would push what is there already
        there = f"{ours.address}/team/chunked:1"
        podman("push", *plain, "--compression-format", "zstd:chunked", name, f"docker://{there}")
        engine.ok("pull", "-q", there)
    podman("rmi", "-f", image.id.removeprefix("sha256:"))
    listed = json.loads(engine.ok("manifest", "inspect", there))["layers"]
    assert {layer["mediaType"].rpartition("+")[2] for layer in listed} == {"zstd"}
    assert all(any("zstd-chunked" in key for key in layer["annotations"]) for layer in listed)
    engine.ok("create", "--name", "box", there, "a")
    assert len(engine("cp", "box:/a", "-").stdout) > 100_000


def test_everybody_pulls_and_podman_and_docker_log_in_to_push(tmp_path, engines):
    """Both show a password only to a registry that wants it for everything, so that they need its tokens."""
    Image([LayerTar().file("a", "x").bytes()], {"Cmd": ["a"]}).write_layout(str(tmp_path / "layout"), "1")
    users = str(tmp_path / "users")
    subprocess.run([COMMAND, "registry", "user", users, "alice"], input=b"secret\n", check=True)
    refused = {"podman": 125, "docker": 1}
    with Ours(COMMAND, str(tmp_path / "registry"), "--htpasswd", users, "--anonymous-pull") as ours:
        there = f"{ours.address}/team/app"
        subprocess.run(
            ["skopeo", "copy", "--dest-tls-verify=false", "--dest-creds", "alice:secret", f"oci:{tmp_path}/layout:1",
             f"docker://{there}:1"], check=True, capture_output=True,
        )  # fmt: skip
        for name, engine in engines.items():
            engine("pull", *PLAIN[name], f"{there}:1")
            engine("tag", f"{there}:1", f"{there}:{name}")
            engine("push", *PLAIN[name], f"{there}:{name}", status=refused[name])
            engine("login", *PLAIN[name], "-u", "alice", "-p", "wrong", ours.address, status=refused[name])
            engine("login", *PLAIN[name], "-u", "alice", "-p", "secret", ours.address)
            engine("push", *PLAIN[name], f"{there}:{name}")
            engine("logout", ours.address)
            engine("rmi", "-f", f"{there}:1", f"{there}:{name}")
            engine("pull", *PLAIN[name], f"{there}:{name}")
            engine("rmi", "-f", f"{there}:{name}")
