"""Pulling, listing and deleting, as the distribution specification has it."""

import json
import urllib.parse

import pytest
from cowshed_testing.distribution import INDEX, MANIFEST, descriptor, digest, manifest

from cowshed.registry.server import listings

DATA = b"".join(number.to_bytes(2, "big") for number in range(1024))


def test_the_base(ask):
    answer = ask("GET", "/v2/")
    assert (answer.status, answer["Docker-Distribution-API-Version"]) == (200, "registry/2.0")


def test_a_blob(ask):
    found = ask.blob(DATA)
    for method, body in (("GET", DATA), ("HEAD", b"")):
        answer = ask(method, f"/v2/a/b/blobs/{found}")
        assert (answer.status, answer.body) == (200, body)
        assert (answer["Docker-Content-Digest"], answer["Content-Length"]) == (found, str(len(DATA)))


def test_an_empty_blob(ask):
    found = ask.blob(b"")
    assert ask("GET", f"/v2/a/b/blobs/{found}")["Content-Length"] == "0"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_is_not_there(ask, method):
    ask.image()
    for path in (
        f"a/b/blobs/{digest(b'none')}",
        "a/b/manifests/none",
        f"a/b/manifests/{digest(b'none')}",
        "no/such/manifests/x",
    ):
        assert ask(method, f"/v2/{path}").status == 404
    assert ask("GET", "/v2/no/such/tags/list").code == "NAME_UNKNOWN"


def test_a_manifest(ask):
    found = ask.image(tag="v1")
    for wanted in ("v1", found):
        head, whole = ask("HEAD", f"/v2/a/b/manifests/{wanted}"), ask("GET", f"/v2/a/b/manifests/{wanted}")
        assert (head.status, head.body, whole.status) == (200, b"", 200)
        assert digest(whole.body) == found == head["Docker-Content-Digest"] == whole["Docker-Content-Digest"]
        assert int(head["Content-Length"]) == len(whole.body)
        assert head["Content-Type"] == whole["Content-Type"] == MANIFEST
    assert ask("GET", "/v2/a/b/manifests/v1", If_None_Match=f'"{found}"').status == 304


RANGES = [
    ("bytes=500-1499", 206, DATA[500:1500]), ("bytes=500-", 206, DATA[500:]), ("bytes=-500", 206, DATA[-500:]),
    ("bytes=2000-5000", 206, DATA[2000:]), ("bytes=0-0", 206, DATA[:1]), ("bytes=-9999", 206, DATA),
    ("bytes=500-0", 416, None), ("bytes=5000-", 416, None), ("bytes=-0", 416, None), ("bytes=2048-", 416, None),
    ("bytes=a-b", 200, DATA), ("bytes=0-1,5-6", 200, DATA), ("lines=0-1", 200, DATA), ("bytes=-", 200, DATA),
    ("bytes=" + "9" * 30 + "-", 200, DATA),
]  # fmt: skip


@pytest.mark.parametrize(("said", "status", "body"), RANGES)
def test_a_range(ask, said, status, body):
    answer = ask("GET", f"/v2/a/b/blobs/{ask.blob(DATA)}", Range=said)
    assert answer.status == status
    if status == 206:
        first = DATA.index(body)
        assert answer["Content-Range"] == f"bytes {first}-{first + len(body) - 1}/{len(DATA)}"
    if body is None:
        assert answer["Content-Range"] == f"bytes */{len(DATA)}"
    else:
        assert answer.body == body


@pytest.mark.parametrize(
    "name",
    ["A", "a//b", "a/", "-a", "a_", "a/../b", "a%00b", "a" * 300, "%2e%2e", "a+b", "a..b", "a___b", "a._b", "a-.b"],
)
def test_a_name_that_is_none(ask, name):
    for method, path in (("GET", "tags/list"), ("POST", "blobs/uploads/"), ("GET", "manifests/latest")):
        answer = ask(method, f"/v2/{name}/{path}")
        assert (answer.status, answer.code) == (400, "NAME_INVALID")


def test_the_longest_names_and_tags_and_each_separator(ask):
    for name, tag in (("a.b_c__d-e---f/0.1", "_A.b-c__.."), ("a" * 250, "T" * 128)):
        found = ask.image(name, tag)
        assert ask("GET", f"/v2/{name}/manifests/{tag}")["Docker-Content-Digest"] == found


def test_names_that_look_like_paths_of_the_interface(ask):
    for name in ("a/blobs/uploads", "a/manifests/b", "tags/list", "blobs", "index.json", "a/tags/list"):
        found = ask.image(name)
        assert ask("GET", f"/v2/{name}/manifests/latest")["Docker-Content-Digest"] == found
        assert ask("GET", f"/v2/{name}/tags/list").json["tags"] == ["latest"]


@pytest.mark.parametrize("tag", [".a", "-a", "a" * 129, "a b", "ä"])
def test_a_tag_that_is_none(ask, tag):
    ask.image()
    where = f"/v2/a/b/manifests/{urllib.parse.quote(tag)}"
    assert ask("GET", where).status == 404
    assert ask("PUT", where, manifest(digest(b"config")), Content_Type=MANIFEST).status == 400


def test_pages_of_tags(ask):
    data = manifest(ask.blob(b"config"))
    tags = ["B", "a", "A", "c1", "c10", "c2", "_x"]
    query = "&".join(f"tag={tag}" for tag in tags)
    ask("PUT", f"/v2/a/b/manifests/{digest(data)}?{query}", data, Content_Type=MANIFEST)
    ordered = sorted(tags)
    assert ask("GET", "/v2/a/b/tags/list").json == {"name": "a/b", "tags": ordered}
    found, path = [], "/v2/a/b/tags/list?n=3"
    while path:
        answer = ask("GET", path)
        assert len(answer.json["tags"]) == min(3, len(ordered) - len(found))
        found += answer.json["tags"]
        link = answer.headers.get("Link", "")
        assert not link or link.endswith('; rel="next"')
        path = link[1:].partition(">")[0]
    assert found == ordered
    assert ask("GET", "/v2/a/b/tags/list?last=a").json["tags"] == [tag for tag in ordered if tag > "a"]
    none = ask("GET", "/v2/a/b/tags/list?n=0")
    assert (none.json["tags"], none.headers.get("Link")) == ([], None)
    assert ask("GET", "/v2/a/b/tags/list?n=-1").status == 400


def test_there_is_a_most_of_what_is_listed_at_once(ask, monkeypatch):
    monkeypatch.setattr(listings, "_MOST", 2)
    data = manifest(ask.blob(b"config"))
    ask("PUT", f"/v2/a/b/manifests/{digest(data)}?tag=a&tag=b&tag=c", data, Content_Type=MANIFEST)
    for path in ("/v2/a/b/tags/list", "/v2/a/b/tags/list?n=999999999"):
        answer = ask("GET", path)
        assert (answer.json["tags"], answer["Link"]) == (["a", "b"], '</v2/a/b/tags/list?n=2&last=b>; rel="next"')
    for many in ("9" * 10, "x", "", "1.5"):
        assert ask("GET", f"/v2/a/b/tags/list?n={many}").status == 400


def test_pages_of_repositories(ask):
    for name in ("b", "a/x", "a"):
        ask.image(name)
    first = ask("GET", "/v2/_catalog?n=2")
    assert first.json["repositories"] == ["a", "a/x"]
    assert ask("GET", first["Link"][1:].partition(">")[0]).json["repositories"] == ["b"]


def test_referrers(ask):
    subject = ask.image(tag="v1")
    about = descriptor(subject, 1, MANIFEST)
    by_config = ask.image(tag="", blobs=(b"signature",), subject=about)
    typed = ask.image(
        tag="", blobs=(b"sbom",), subject=about, artifactType="application/x-sbom", annotations={"k": "v"}
    )
    plain = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "subject": about}
    index = json.dumps(plain).encode()
    other = json.dumps({**plain, "artifactType": "application/x-list", "annotations": {"a": "b"}}).encode()
    for data in (index, other):
        assert ask("PUT", f"/v2/a/b/manifests/{digest(data)}", data, Content_Type=INDEX).status == 201
    ask.image(tag="other", blobs=(b"other",))

    answer = ask("GET", f"/v2/a/b/referrers/{subject}")
    assert (answer.status, answer["Content-Type"]) == (200, INDEX)
    assert answer.json["mediaType"] == INDEX
    found = {one["digest"]: one for one in answer.json["manifests"]}
    assert set(found) == {by_config, typed, digest(index), digest(other)}
    assert found[digest(other)] == {
        **descriptor(digest(other), len(other), INDEX), "artifactType": "application/x-list", "annotations": {"a": "b"}
    }  # fmt: skip
    assert found[by_config]["artifactType"] == "application/vnd.oci.image.config.v1+json"
    assert (found[typed]["artifactType"], found[typed]["annotations"]) == ("application/x-sbom", {"k": "v"})
    assert "artifactType" not in found[digest(index)]

    only = ask("GET", f"/v2/a/b/referrers/{subject}?artifactType=application/x-sbom")
    assert only["OCI-Filters-Applied"] == "artifactType"
    assert [one["digest"] for one in only.json["manifests"]] == [typed]


def test_pages_of_referrers(ask):
    subject = ask.image()
    about = descriptor(subject, 1, MANIFEST)
    every = {ask.image(tag="", blobs=(f"{number}".encode(),), subject=about) for number in range(5)}
    found, path = [], f"/v2/a/b/referrers/{subject}?n=2&artifactType=application/vnd.oci.image.config.v1%2Bjson"
    while path:
        answer = ask("GET", path)
        assert answer["OCI-Filters-Applied"] == "artifactType"
        found += [one["digest"] for one in answer.json["manifests"]]
        path = answer.headers.get("Link", "")[1:].partition(">")[0]
    assert len(found) == 5
    assert set(found) == every


def test_large_annotations_do_not_make_a_large_answer(ask):
    subject = ask.image()
    about = descriptor(subject, 1, MANIFEST)
    for number in range(3):
        ask.image(tag="", blobs=(f"{number}".encode(),), subject=about, annotations={"a": "x" * (2 << 20)})
    first = ask("GET", f"/v2/a/b/referrers/{subject}")
    assert len(first.body) < 4 << 20
    assert first["Link"]


def test_referrers_of_what_nobody_refers_to(ask):
    for name in ("a/b", "no/such"):
        answer = ask("GET", f"/v2/{name}/referrers/{digest(b'none')}")
        assert (answer.status, answer.json["manifests"]) == (200, [])
    assert ask("GET", "/v2/a/b/referrers/sha256").status == 400


def test_referrers_that_came_before_their_subject_or_by_the_tag_schema(ask):
    subject = digest(b"later")
    data = manifest(ask.blob(b"config"), subject=descriptor(subject, 5, MANIFEST))
    ask("PUT", f"/v2/a/b/manifests/{digest(data)}", data, Content_Type=MANIFEST)
    listed = [{**descriptor(digest(data), len(data), MANIFEST), "artifactType": "x/y"}]
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}).encode()
    ask("PUT", f"/v2/a/b/manifests/{subject.replace(':', '-')}", index, Content_Type=INDEX)
    found = ask("GET", f"/v2/a/b/referrers/{subject}").json["manifests"]
    assert [one["digest"] for one in found] == [digest(data)]


def test_deleting_a_tag_leaves_the_manifest(ask):
    found = ask.image(tag="v1")
    assert ask("DELETE", "/v2/a/b/manifests/v1").status == 202
    assert ask("GET", "/v2/a/b/manifests/v1").status == 404
    assert ask("GET", f"/v2/a/b/manifests/{found}").status == 200
    assert ask("DELETE", "/v2/a/b/manifests/v1").code == "MANIFEST_UNKNOWN"


def test_deleting_a_manifest_takes_its_tags_along(ask):
    found = ask.image(tag="v1")
    ask.image(tag="v2")
    other = ask.image(tag="v3", blobs=(b"other",))
    assert ask("DELETE", f"/v2/a/b/manifests/{found}").status == 202
    assert ask("GET", "/v2/a/b/tags/list").json["tags"] == ["v3"]
    for wanted in ("v1", "v2", found):
        assert ask("GET", f"/v2/a/b/manifests/{wanted}").status == 404
    assert ask("DELETE", f"/v2/a/b/manifests/{found}").status == 404
    assert ask("GET", "/v2/a/b/manifests/v3")["Docker-Content-Digest"] == other


def test_deleting_in_a_repository_that_is_none(ask):
    for path in (f"manifests/{digest(b'x')}", "manifests/v1", f"blobs/{digest(b'x')}"):
        assert ask("DELETE", f"/v2/no/such/{path}").status == 404


def test_a_deleted_referrer_is_no_longer_listed(ask):
    subject = ask.image()
    about = ask.image(tag="", blobs=(b"x",), subject=descriptor(subject, 1, MANIFEST))
    assert ask("DELETE", f"/v2/a/b/manifests/{about}").status == 202
    assert ask("GET", f"/v2/a/b/referrers/{subject}").json["manifests"] == []


def test_deleting_a_blob(ask):
    found = ask.blob(DATA)
    assert ask("DELETE", f"/v2/a/b/blobs/{found}").status == 202
    for _ in range(2):
        answer = ask("DELETE", f"/v2/a/b/blobs/{found}")
        assert (answer.status, answer.code) == (404, "BLOB_UNKNOWN")


@pytest.mark.parametrize("options", [{"read_only": True}, {"deleting": False}])
def test_what_may_not_be_done(serving, options):
    first = serving()
    found = first.client.image()
    ask = serving(**options).client
    assert ask("GET", "/v2/a/b/manifests/latest")["Docker-Content-Digest"] == found
    for path in ("manifests/latest", f"manifests/{found}", f"blobs/{digest(b'layer')}"):
        answer = ask("DELETE", f"/v2/a/b/{path}")
        assert (answer.status, answer.code) == (405, "UNSUPPORTED")
    assert ask("POST", "/v2/a/b/blobs/uploads/", b"").status == (405 if "read_only" in options else 202)


def test_a_method_that_is_none(ask):
    answer = ask("POST", "/v2/a/b/manifests/x", b"")
    assert (answer.status, answer.code) == (405, "UNSUPPORTED")
    assert "PUT" in answer["Allow"]


def test_the_space_of_a_proxy_is_said_back(ask):
    ask.image()
    assert ask("GET", "/v2/a/b/manifests/latest?ns=registry.example")["OCI-Namespace"] == "registry.example"
