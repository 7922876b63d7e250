"""The options of `cowshed registry serve`, `registry user` and `registry gc`, from outside."""

import json
import os
import subprocess

import pytest
from cowshed_testing.certificates import Certificates
from cowshed_testing.distribution import Client, digest
from cowshed_testing.images import Image, LayerTar
from cowshed_testing.registry import Ours

from .conftest import COMMAND, Engine

IMAGE = Image([LayerTar().file("a", "b" * 1000).bytes()], {})


def cowshed(*words, status=0, **options):
    done = subprocess.run([COMMAND, *words], capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def skopeo(*words, status=0):
    done = subprocess.run(["skopeo", *words], capture_output=True, text=True, timeout=120)
    assert (done.returncode != 0) == bool(status), done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("layout"))
    IMAGE.write_layout(folder, "1")
    return f"oci:{folder}:1"


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("users") / "htpasswd")
    for name, secret in (("alice", "old"), ("bob", "other"), ("alice", "secret")):
        cowshed("registry", "user", path, name, input=f"{secret}\n")
    assert os.stat(path).st_mode & 0o777 == 0o600
    return path


@pytest.mark.parametrize("options", [[], ["--anonymous-pull"]])
def test_users(tmp_path, users, layout, options):
    with Ours(COMMAND, str(tmp_path / "r"), "--htpasswd", users, *options) as ours:
        there = f"docker://{ours.address}/team/app:1"
        skopeo("copy", "--dest-tls-verify=false", layout, there, status=1)
        skopeo("copy", "--dest-tls-verify=false", "--dest-creds", "alice:old", layout, there, status=1)
        skopeo("copy", "--dest-tls-verify=false", "--dest-creds", "alice:secret", layout, there)
        for credentials in [["--creds", "bob:other"]] + [[]] * bool(options):
            said = skopeo("inspect", "--tls-verify=false", *credentials, "--raw", there)
            assert said.encode() == IMAGE.manifest
        skopeo("delete", "--tls-verify=false", there, status=1)
        skopeo("delete", "--tls-verify=false", "--creds", "bob:other", there)


def test_everybody_pulls_and_only_users_push(tmp_path, users, layout):
    """Our own client and curl, with and without credentials, beside skopeo above."""
    alice = Engine(tmp_path)
    with Ours(COMMAND, str(tmp_path / "r"), "--htpasswd", users, "--anonymous-pull") as ours:
        there = f"{ours.address}/team/app:1"
        copy = ("image", "copy", layout, f"docker://{there}")
        alice.ok(*copy, status=125)
        alice.ok("login", "-u", "alice", "--password-stdin", ours.address, feed=b"wrong\n", status=125)
        alice.ok("login", "-u", "alice", "--password-stdin", ours.address, feed=b"secret\n")
        alice.ok(*copy)
        alice.ok("logout", ours.address)
        alice.ok("pull", there)
        alice.ok("registry", "delete", "--force", there, status=1)

        def curl(*words):
            done = subprocess.run(
                ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", *words[:-1], f"http://{ours.address}{words[-1]}"],
                capture_output=True, text=True, timeout=60, check=True,
            )  # fmt: skip
            return int(done.stdout)

        as_bob = ("-u", "bob:other")
        assert [curl("/v2/team/app/tags/list"), curl(*as_bob, "/v2/team/app/tags/list")] == [200, 200]
        blob = f"/v2/team/app/blobs/uploads/?digest={digest(b'data')}"
        for credentials, status in (((), 401), (("-u", "bob:secret"), 401), (as_bob, 201)):
            assert curl(*credentials, "-H", "Content-Type: a/b", "--data-binary", "data", blob) == status
            gone = 202 if status == 201 else 401
            assert curl(*credentials, "-X", "DELETE", f"/v2/team/app/blobs/{digest(b'data')}") == gone
        assert curl("-X", "DELETE", *as_bob, "/v2/team/app/manifests/1") == 202


def test_tls(tmp_path, layout):
    made = Certificates(str(tmp_path))
    with Ours(COMMAND, str(tmp_path / "r"), "--tls-certificate", f"{made.folder}/server.crt",
              "--tls-key", f"{made.folder}/server.key") as ours:  # fmt: skip
        there = f"docker://{ours.address}/team/app:1"
        skopeo("copy", layout, there, status=1)
        authorities = tmp_path / "authorities"
        authorities.mkdir()
        os.link(f"{made.folder}/ca.crt", authorities / "ca.crt")
        skopeo("copy", "--dest-cert-dir", str(authorities), layout, there)
        ours.process.send_signal(1)  # SIGHUP: the certificates are read again
        assert skopeo("inspect", "--cert-dir", str(authorities), "--raw", there).encode() == IMAGE.manifest


def test_in_front_of_another(tmp_path, layout):
    with Ours(COMMAND, str(tmp_path / "origin")) as origin:
        origin.push(IMAGE, "team/app", "1")
        with Ours(COMMAND, str(tmp_path / "cache"), "--upstream", origin.address) as cache:
            there = f"docker://{cache.address}/team/app:1"
            skopeo("copy", "--src-tls-verify=false", there, f"oci:{tmp_path}/first:1")
            origin.close()
            skopeo("copy", "--src-tls-verify=false", there, f"oci:{tmp_path}/second:1")
            skopeo("copy", "--dest-tls-verify=false", layout, f"docker://{cache.address}/other:1", status=1)
    assert skopeo("inspect", "--raw", f"oci:{tmp_path}/second:1").encode() == IMAGE.manifest


def test_collecting(tmp_path):
    folder = str(tmp_path / "r")
    with Ours(COMMAND, folder, "--no-delete") as ours:
        ours.push(IMAGE, "team/app", "1")
        client = Client(ours.address)
        loose = client.blob(b"loose", "team/app")
        assert client("DELETE", "/v2/team/app/manifests/1").status == 405
        words = ("registry", "gc", folder, "--grace", "0")
        assert "would remove 0 manifests, 1 blobs" in cowshed(*words, "--dry-run")
        assert client("GET", f"/v2/team/app/blobs/{loose}").status == 200
        assert json.loads(cowshed(*words, "--format", "json")) == {
            "Manifests": 0, "Links": 1, "Uploads": 0, "Blobs": 1, "Freed": 5,
        }  # fmt: skip
        assert client("GET", f"/v2/team/app/blobs/{loose}").status == 404
        assert client("GET", "/v2/team/app/manifests/1").body == IMAGE.manifest
        with open(f"{folder}/repositories/team+app/index.json", "w") as file:
            file.write("{")
        assert "nothing of this repository was removed" in cowshed(*words, status=1)
        client.close()


def test_checking(tmp_path):
    """While it is served: findings a line each, then as objects; the status; what is repaired and pushed again."""
    folder = str(tmp_path / "r")
    layer = json.loads(IMAGE.manifest)["layers"][0]["digest"]
    with Ours(COMMAND, folder) as ours:
        ours.push(IMAGE, "team/app", "1")
        words = ("registry", "check", folder)
        assert cowshed(*words) == "clean\n"
        path = f"{folder}/blobs/{layer.replace(':', '/')}"
        os.chmod(path, 0o644)
        with open(path, "r+b") as file:
            file.write(b"?")
        said = f"blobs/{layer.replace(':', '/')} is damaged: its bytes are not those of its name: move it to damaged/"
        assert told(*words) == (1, f"{said}\n1 findings\n")
        status, text = told(*words, "--rate", "1g", "--format", "json")
        (row,) = [json.loads(line) for line in text.splitlines()]
        assert (status, row["Code"], row["Object"], row["Severity"], row["Outcome"]) == (
            1, "blob.damaged", layer, "error", ""
        )  # fmt: skip
        status, text = told(*words, "--repair")
        first, second, last = text.splitlines()
        assert (status, first, last) == (1, f"done: {said}", "1 findings, 1 repaired")
        assert f"stands on the blob {layer}, which is not here: push the image again" in second
        ours.push(IMAGE, "team/app", "1")
        assert cowshed(*words) == "clean\n"
        os.unlink(f"{folder}/repositories/team+app/blobs/{layer.replace(':', '/')}")
        status, text = told(*words, "--repair")
        assert (status, text.splitlines()[-1]) == (0, "clean, 1 repaired")
    assert cowshed(*words) == "clean\n", "also when nobody serves it"
    assert "no directory of a registry" in cowshed("registry", "check", str(tmp_path), status=125)


def told(*words):
    """(status, output) of a command that may find something."""
    done = subprocess.run([COMMAND, *words], capture_output=True, text=True, timeout=60)
    assert not done.stderr
    return done.returncode, done.stdout


def test_a_log_in_a_file_and_a_quota(tmp_path):
    with Ours(COMMAND, str(tmp_path / "r"), "--log", str(tmp_path / "log"), "--quota", "1k") as ours:
        client = Client(ours.address)
        data = b"x" * 2000
        assert client("POST", f"/v2/a/blobs/uploads/?digest={digest(data)}", data).code == "DENIED"
        client.close()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "request", "stop"]
    assert (lines[1]["status"], lines[1]["received"]) == (403, 2000)


WRONG = {
    "a certificate without a key": (["--tls-certificate", "x"], "belong together"),
    "a certificate that is none": (["--tls-certificate", "/dev/null", "--tls-key", "/dev/null"], "cannot be used"),
    "users that are not there": (["--htpasswd", "/none"], "No such file or directory: cowshed registry user makes"),
    "another registry that is an address": (["--upstream", "https://r.example"], "is HOST[:PORT] of a registry"),
    "tokens for nobody": (["--token"], "needs --htpasswd"),
    "another server without its key": (["--token-realm", "https://tokens.example"], "needs --token-key"),
    "a key without tokens": (["--token-key", "/none"], "belongs to"),
    "reading for nobody who is somebody": (["--anonymous-pull"], "needs --htpasswd or --token-realm"),
    "an address that is none": (["--listen", "here"], "no HOST:PORT"),
    "an address of somebody else": (["--listen", "192.0.2.1:5000"], "cannot be listened on"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_in_a_line(tmp_path, what):
    options, text = WRONG[what]
    said = cowshed("registry", "serve", str(tmp_path / "r"), *options, status=125)
    assert text in said
    assert said.count("\n") == 1


def test_a_name_or_password_that_is_none(tmp_path):
    for name, secret in (("a:b", "x"), ("", "x"), ("a", ""), ("a", "x" * 80)):
        said = cowshed("registry", "user", str(tmp_path / "users"), name, input=f"{secret}\n", status=125)
        assert said.count("\n") == 1
    assert not (tmp_path / "users").exists()
    assert "no directory of a registry" in cowshed("registry", "gc", str(tmp_path), status=125)
