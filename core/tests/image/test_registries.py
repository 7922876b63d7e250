"""login, logout, search and the commands that look into a registry or delete there, from outside."""

import base64
import json

import pytest
from cowshed_testing.fake_registry import send
from cowshed_testing.samples import small

PAIR = base64.b64encode(b"me:secret").decode()


@pytest.fixture
def guarded(fake):
    def answer(request, handler):
        if request.authorization == f"Basic {PAIR}":
            if request.path == "/v2/":
                send(handler, 200, b"{}")
                return True
            return False
        send(handler, 401, b"", {"WWW-Authenticate": "Basic realm=x"})
        return True

    fake.answer = answer
    return fake


def test_login_and_logout(guarded, cowshed, no_credentials):
    guarded.add(small())
    name = f"{guarded.address}/a/b"
    assert f"cowshed login {guarded.address}" in cowshed("pull", "-q", name, status=125).stderr
    wrong = cowshed("login", "-u", "me", "--password-stdin", guarded.address, input="wrong\n", status=125)
    assert "wrong" in wrong.stderr
    assert "--password-stdin" in cowshed("login", "-u", "me", guarded.address, input="", status=125).stderr
    assert not (no_credentials / "config.json").exists()
    done = cowshed("login", "--username", "me", "--password-stdin", guarded.address, input="secret\n")
    assert done.stdout == "Login Succeeded\n"
    assert "unencrypted" in done.stderr
    assert "secret" not in done.stdout + done.stderr
    cowshed("pull", "-q", name)
    cowshed("push", "-q", name)
    assert cowshed("logout", guarded.address).stdout == f"Removing login credentials for {guarded.address}\n"
    assert cowshed("logout", guarded.address).stdout == f"Not logged in to {guarded.address}\n"
    cowshed("pull", "-q", name, status=125)
    cowshed("login", "-u", "me", "-p", "secret", guarded.address)
    assert guarded.address in cowshed("logout", "--all").stdout


def test_tags_catalog_and_search(fake, cowshed):
    for tag in ("1", "2"):
        fake.add(small(), tag)

    def answer(request, handler):
        if "_catalog" in request.path:
            send(handler, 200, json.dumps({"repositories": ["a/b", "a/c\u001b[31m", "x/bee"]}).encode())
            return True
        return False

    fake.answer = answer
    assert cowshed.lines("registry", "tags", f"{fake.address}/a/b") == ["1", "2"]
    assert cowshed.lines("registry", "catalog", fake.address) == ["a/b", "x/bee"]
    found = cowshed.lines("search", f"{fake.address}/B")
    assert found[0].split() == ["NAME", "DESCRIPTION", "STARS", "OFFICIAL"]
    assert [line.split()[0] for line in found[1:]] == [f"{fake.address}/a/b", f"{fake.address}/x/bee"]
    assert cowshed.lines("search", "--limit", "1", "--format", "{{.Name}}", f"{fake.address}/b") == [
        f"{fake.address}/a/b"
    ]
    assert cowshed.lines("search", "--list-tags", "--format", "{{.Tag}}", f"{fake.address}/a/b") == ["1", "2"]


def test_delete(fake, cowshed):
    image = small()
    for tag in ("1", "2"):
        fake.add(image, tag)
    name = f"{fake.address}/a/b"
    assert "neither" in cowshed("registry", "delete", name, status=125).stderr
    assert cowshed("registry", "delete", f"{name}:1", input="n\n").stdout == ""
    assert cowshed.lines("registry", "delete", "-f", f"{name}:1") == [f"Untagged: {name}:1"]
    assert "2" in fake.manifests
    assert cowshed.lines("registry", "delete", "-f", f"{name}@{image.digest}") == [f"Deleted: {image.digest}"]
    assert fake.manifests == {}
    gone = cowshed("registry", "delete", "-f", f"{name}:2", status=1)
    assert "is not in the registry" in gone.stderr
    fake.add(image, "3")
    fake.answer = lambda r, h: r.method == "DELETE" and r.path.endswith("/3") and (send(h, 405) or True)
    assert "--manifest" in cowshed("registry", "delete", "-f", f"{name}:3", status=1).stderr
    assert cowshed.lines("registry", "delete", "-f", "--manifest", f"{name}:3") == [f"Deleted: {image.digest}"]


def test_referrers(fake, cowshed):
    image = small()
    fake.add(image)
    entry = {"digest": "sha256:" + "1" * 64, "artifactType": "x/sig", "size": 700, "mediaType": "m"}
    fake.referrers = {image.digest: [entry]}
    found = cowshed.lines("registry", "referrers", f"{fake.address}/a/b")
    assert found[0].split() == ["DIGEST", "TYPE", "SIZE"]
    assert found[1].split() == [entry["digest"], "x/sig", "700B"]
    wanted = ("--artifact-type", "x/other", "--format", "{{.Digest}}")
    assert cowshed.lines("registry", "referrers", *wanted, f"{fake.address}/a/b@{image.digest}") == []


def test_short_names_can_be_forbidden(cowshed, tmp_path):
    """No name is made whole behind the user's back where the configuration forbids it."""
    (tmp_path / "config.toml").write_text('[registries."docker.io"]\nshort_names = false\n')
    cowshed.env["COWSHED_CONFIG"] = str(tmp_path / "config.toml")
    for words in (["pull", "busybox"], ["run", "--pull", "always", "busybox"], ["create", "team/app"]):
        failed = cowshed(*words, status=125)
        assert "no short names: write the whole name, as docker.io/" in failed.stderr
    assert "short_names" not in cowshed("config", "check", str(tmp_path / "config.toml")).stderr
