"""A registry that fetches from another one."""

import os
import threading

import pytest
from cowshed_testing.distribution import MANIFEST, Client, descriptor, digest

from cowshed.registry.server import upstream
from cowshed.registry.server.journal import Journal


@pytest.fixture
def origin(serving):
    return serving("origin")


@pytest.fixture
def through(serving, origin):
    made = serving("through")
    made.registry.fetch_from(upstream.Upstream(origin.address, {}, made.registry.uploads, Journal(-1)))
    return made


def test_an_image_comes_through_and_stays(origin, through):
    large = bytes(range(256)) * 8000
    found = origin.client.image(tag="v1", blobs=(b"config", large))
    ask = through.client
    for round_ in range(2):
        answer = ask("GET", "/v2/a/b/manifests/v1")
        assert (answer.status, answer["Docker-Content-Digest"], answer["Content-Type"]) == (200, found, MANIFEST)
        assert ask("GET", f"/v2/a/b/manifests/{found}").body == answer.body
        assert ask("GET", f"/v2/a/b/blobs/{digest(large)}").body == large
        assert ask("GET", f"/v2/a/b/blobs/{digest(b'config')}").body == b"config"
        if not round_:
            origin.close()
    part = ask("GET", f"/v2/a/b/blobs/{digest(large)}", Range="bytes=1000-1999")
    assert (part.status, part.body) == (206, large[1000:2000])


def test_a_part_of_what_is_not_here_yet(origin, through):
    large = bytes(range(256)) * 8000
    origin.client.image(tag="v1", blobs=(b"config", large))
    through.client("GET", "/v2/a/b/manifests/v1")
    part = through.client("GET", f"/v2/a/b/blobs/{digest(large)}", Range="bytes=-10")
    assert (part.status, part.body) == (206, large[-10:])


def test_a_changed_tag_is_noticed(origin, through, monkeypatch):
    first = origin.client.image(tag="v1")
    assert through.client("GET", "/v2/a/b/manifests/v1")["Docker-Content-Digest"] == first
    second = origin.client.image(tag="v1", blobs=(b"other",))
    assert through.client("GET", "/v2/a/b/manifests/v1")["Docker-Content-Digest"] == first, "believed for a minute"
    monkeypatch.setattr(upstream, "_CURRENT", 0.0)
    assert through.client("GET", "/v2/a/b/manifests/v1")["Docker-Content-Digest"] == second
    origin.close()
    assert through.client("GET", "/v2/a/b/manifests/v1")["Docker-Content-Digest"] == second, "served as it is"


def test_what_is_nowhere(origin, through):
    origin.client.image()
    ask = through.client
    assert ask("GET", "/v2/a/b/manifests/none").code == "MANIFEST_UNKNOWN"
    assert ask("GET", f"/v2/a/b/blobs/{digest(b'none')}").code == "BLOB_UNKNOWN"
    assert ask("GET", "/v2/no/such/tags/list").status == 404
    origin.close()
    assert ask("GET", "/v2/a/b/manifests/other").status == 502


def test_tags_and_referrers_are_those_of_there(origin, through):
    subject = origin.client.image(tag="v1")
    about = origin.client.image(tag="", blobs=(b"x",), subject=descriptor(subject, 1, MANIFEST))
    assert through.client("GET", "/v2/a/b/tags/list").json["tags"] == ["v1"]
    found = through.client("GET", f"/v2/a/b/referrers/{subject}").json["manifests"]
    assert [one["digest"] for one in found] == [about]
    assert through.client("GET", f"/v2/a/b/manifests/{about}").status == 200


def test_nothing_is_pushed_or_deleted(through):
    assert through.client("POST", "/v2/a/b/blobs/uploads/", b"").code == "UNSUPPORTED"
    assert through.client("DELETE", "/v2/a/b/manifests/v1").status == 405


def test_many_who_want_the_same_cost_one_download(origin, through, monkeypatch):
    large = bytes(range(256)) * 8000
    origin.client.image(tag="v1", blobs=(b"config", large))
    through.client("GET", "/v2/a/b/manifests/v1")
    begun = []
    inner = upstream.Fetch.run

    def run(self, client):
        begun.append(self)
        inner(self, client)

    monkeypatch.setattr(upstream.Fetch, "run", run)
    got = []

    def pull():
        client = Client(through.address)
        got.append(client("GET", f"/v2/a/b/blobs/{digest(large)}").body)
        client.close()

    threads = [threading.Thread(target=pull) for _ in range(8)]
    with through.registry.upstream._guard:  # nobody finds it finished
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join(30)
    assert got == [large] * 8
    assert len(begun) == 1


def test_wrong_content_never_becomes_whole(origin, through):
    """The other registry sends something else of the right length: no client gets the last byte, and nothing stays."""
    large = bytes(range(256)) * 8000
    origin.client.image(tag="v1", blobs=(b"config", large))
    through.client("GET", "/v2/a/b/manifests/v1")
    path = origin.store.pool_path(digest(large))
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.write(b"wrong")
    with pytest.raises((OSError, Client.ended)):
        through.client("GET", f"/v2/a/b/blobs/{digest(large)}")
    assert not os.path.exists(through.store.pool_path(digest(large)))
    assert os.listdir(f"{through.store.root}/uploads/a+b") == []
