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
    assert cowshed("login", "--get-login", guarded.address).stdout == "me\n"
    cowshed("pull", "-q", name)
    cowshed("push", "-q", name)
    assert cowshed("logout", guarded.address).stdout == f"Removing login credentials for {guarded.address}\n"
    assert cowshed("logout", guarded.address).stdout == f"Not logged in to {guarded.address}\n"
    cowshed("pull", "-q", name, status=125)
    assert "nobody is logged in" in cowshed("login", "--get-login", guarded.address, status=125).stderr
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
    before, fake.answer = fake.answer, lambda r, h: "/tags/" in r.path and (send(h, 404) or True)
    told = cowshed("registry", "tags", f"{fake.address}/a/b", status=125).stderr
    assert told.startswith(f"cowshed: the list of tags of {fake.address}/a/b is not in the registry: ")
    fake.answer = before
    assert cowshed.lines("registry", "catalog", fake.address) == ["a/b", "x/bee"]
    found = cowshed.lines("search", f"{fake.address}/B")
    assert found[0].split() == ["NAME", "DESCRIPTION", "STARS", "OFFICIAL"]
    assert [line.split()[0] for line in found[1:]] == [f"{fake.address}/a/b", f"{fake.address}/x/bee"]
    assert cowshed.lines("search", "--limit", "1", "--format", "{{.Name}}", f"{fake.address}/b") == [
        f"{fake.address}/a/b"
    ]
    assert cowshed.lines("search", "--list-tags", "--format", "{{.Tag}}", f"{fake.address}/a/b") == ["1", "2"]


def results(*names, **more):
    """What a registry answers to a search."""
    return [{"name": name, "description": f"about {name}", "star_count": n, **more} for n, name in enumerate(names)]


def searched(fake, pages):
    """fake answers a search with these pages of results; what it was asked."""
    asked = []

    def answer(request, handler):
        if request.path != "/v1/search":
            return False
        asked.append({key: value[0] for key, value in request.query.items()})
        page = int(request.query["page"][0])
        send(handler, 200, json.dumps({"results": pages[page - 1] if page <= len(pages) else []}).encode())
        return True

    fake.answer = answer
    return asked


def test_search_as_docker_does(fake, cowshed):
    """A registry that can be searched is; the fields have both engines' names."""
    official = {"name": "bee", "description": "\u001b[31mA " + "long " * 20, "star_count": 70, "is_official": True}
    asked = searched(fake, [[*results("a/b", is_automated=True), official, {"name": 7}, "nonsense", None]])
    there = f"{fake.address}/be"
    found = cowshed.lines("search", there)
    assert asked == [{"q": "be", "n": "25", "page": "1"}]
    assert [line.split()[0] for line in found] == ["NAME", f"{fake.address}/a/b", f"{fake.address}/bee"]
    assert found[2].split()[-2:] == ["70", "[OK]"]
    assert "\u2026" in found[2]
    assert "\x1b" not in found[2]
    fields = (
        "{{.Index}} {{.Name}} {{.Stars}}={{.StarCount}} {{.Official}}={{.IsOfficial}} {{.Automated}}={{.IsAutomated}}"
    )
    assert cowshed.lines("search", "--format", fields, there) == [
        f"{fake.address} {fake.address}/a/b 0=0 = [OK]=[OK]", f"{fake.address} {fake.address}/bee 70=70 [OK]=[OK] =",
    ]  # fmt: skip
    whole = "{{.Description}}"
    assert max(map(len, cowshed.lines("search", "--format", whole, there))) > 90
    assert "long long long long long long long long long long" in cowshed("search", "--no-trunc", there).stdout
    for words, names in (
        (["stars=1"], ["bee"]), (["is-official"], ["bee"]), (["is-official=false"], ["a/b"]),
        (["is-automated=true", "stars=1"], []),
    ):  # fmt: skip
        options = [word for each in words for word in ("--filter", each)]
        assert cowshed.lines("search", *options, "--format", "{{.Name}}", there) == [
            f"{fake.address}/{n}" for n in names
        ]
    for wrong in ("stars=x", "is-official=no", "size=1"):
        assert "--filter" in cowshed("search", "--filter", wrong, there, status=125).stderr
    assert "--list-tags" in cowshed("search", "--filter", "stars=1", "--list-tags", there, status=125).stderr


def test_search_goes_on_to_the_next_page_only_where_it_has_to(fake, cowshed):
    names = [f"team/n{n:03}" for n in range(250)]
    asked = searched(fake, [results(*names[n : n + 100]) for n in range(0, 250, 100)])
    wanted = ("search", "--format", "{{.Name}}", "--limit")
    assert len(cowshed.lines(*wanted, "100", f"{fake.address}/n")) == 100
    assert [each["page"] for each in asked] == ["1"]
    found = cowshed.lines(*wanted, "1000", f"{fake.address}/n")
    assert found == [f"{fake.address}/{name}" for name in names]
    endless = searched(fake, [results(*names[:5])] * 100)
    assert len(cowshed.lines(*wanted, "5", f"{fake.address}/n")) == 5
    assert len(cowshed.lines(*wanted, "5", "--filter", "stars=4", f"{fake.address}/n")) == 1
    assert len(endless) == 3, "what comes again is no more"


@pytest.mark.parametrize("said", [(404, b""), (401, b""), (403, b"{}"), (200, b"<html>"), (200, b"[]"), (405, b"")])
def test_a_registry_that_cannot_be_searched(fake, cowshed, said):
    """Its catalog is gone through, where it tells that; else it is said why not."""

    def answer(request, handler):
        if request.path == "/v1/search":
            send(handler, *said)
        elif "_catalog" in request.path:
            send(handler, 200, json.dumps({"repositories": ["a/b", "c/d"]}).encode())
        else:
            return False
        return True

    fake.answer = answer
    assert cowshed.lines("search", "--format", "{{.Name}}", f"{fake.address}/B") == [f"{fake.address}/a/b"]
    assert len(cowshed.lines("search", "--format", "{{.Name}}", f"{fake.address}/")) == 2
    fake.answer = lambda request, handler: send(handler, *said) or True
    assert cowshed("search", f"{fake.address}/b", status=125).stderr.count("\n") == 1


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


def test_delete_a_blob(fake, cowshed):
    image = small()
    fake.add(image)
    name, blob = f"{fake.address}/a/b", next(iter(image.blobs))
    assert "NAME@DIGEST" in cowshed("registry", "delete", "-f", "--blob", f"{name}:latest", status=125).stderr
    assert cowshed.lines("registry", "delete", "-f", "--blob", f"{name}@{blob}") == [f"Deleted: {blob}"]
    assert blob not in fake.blobs
    assert image.digest in fake.manifests
    assert "not in the registry" in cowshed("registry", "delete", "-f", "--blob", f"{name}@{blob}", status=1).stderr


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
