"""A registry that fetches from another one."""

import functools
import os
import threading

import pytest
from cowshed_testing.distribution import MANIFEST, Client, descriptor, digest

from cowshed.registry import client
from cowshed.registry.server import upstream
from cowshed.registry.server.journal import Journal
from cowshed.registry.server.message import Gone


@pytest.fixture
def origin(serving):
    return serving("origin")


@pytest.fixture
def through(serving, origin, monkeypatch):
    monkeypatch.setattr(upstream, "Client", functools.partial(client.Client, pause=0.01))
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


LARGE = bytes(range(256)) * 8000
WHERE = f"/v2/a/b/blobs/{digest(LARGE)}"


class Watched:
    """What the other registry is asked for; `cut` ends that many of its answers with blobs after so many bytes."""

    def __init__(self, origin):
        self.asked, self.cut = [], []
        self._inner = origin.service._respond
        origin.service._respond = self

    def __call__(self, request):
        self.asked.append((request.method, request.path, request.headers.get("range", "")))
        answer = self._inner(request)
        if request.method == "GET" and "/blobs/" in request.path and self.cut:
            until = answer.body.offset + self.cut.pop(0)

            def arrived(wanted):
                if wanted > until:
                    raise Gone
                return until

            answer.body.arrived = arrived
        return answer

    def blobs(self):
        """The parts of blobs that were asked for."""
        return [said for method, path, said in self.asked if method == "GET" and "/blobs/" in path]


@pytest.fixture
def watched(origin):
    return Watched(origin)


def at_once(count, work):
    """What `work` gave to so many clients that began together."""
    together = threading.Barrier(count)
    got = []

    def one():
        together.wait(30)
        got.append(work())

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(got) == count
    return got


def get(through, path):
    """The answer to a client of its own; None if it broke off."""
    asking = Client(through.address)
    try:
        return asking("GET", path)
    except (OSError, Client.ended):
        return None
    finally:
        asking.close()


def test_many_who_want_the_same_cost_one_download(origin, through, watched):
    named = origin.client.image(tag="v1", blobs=(b"config", LARGE))
    watched.asked.clear()
    got = at_once(8, lambda: get(through, "/v2/a/b/manifests/v1"))
    assert {answer["Docker-Content-Digest"] for answer in got} == {named}
    assert [method for method, path, _ in watched.asked if "/manifests/" in path] == ["HEAD", "GET"]
    got = at_once(8, lambda: get(through, WHERE))
    assert [answer.body for answer in got] == [LARGE] * 8
    assert watched.blobs() == [""]
    got = at_once(8, lambda: get(through, "/v2/a/b/manifests/none"))
    assert {answer.status for answer in got} == {404}


def test_a_blob_that_came_for_one_repository_does_not_come_again(origin, through, watched):
    for name in ("a/b", "c/d"):
        origin.client.image(name, tag="v1", blobs=(b"config", LARGE))
    origin.client.image("e/f", tag="v1", blobs=(b"other",))
    for name in ("a/b", "c/d", "e/f"):
        through.client("GET", f"/v2/{name}/manifests/v1")
    every = iter(["a/b", "c/d"] * 3)
    got = at_once(6, lambda: get(through, f"/v2/{next(every)}/blobs/{digest(LARGE)}"))
    assert [answer.body for answer in got] == [LARGE] * 6
    for name in ("a/b", "c/d"):
        assert through.client("GET", f"/v2/{name}/blobs/{digest(LARGE)}").body == LARGE
    assert len(watched.blobs()) == 1
    answer = through.client("GET", f"/v2/e/f/blobs/{digest(LARGE)}")
    assert answer.code == "BLOB_UNKNOWN", "nothing says that this repository has it"


def test_a_download_that_breaks_goes_on_where_it_was(origin, through, watched):
    origin.client.image(tag="v1", blobs=(b"config", LARGE))
    through.client("GET", "/v2/a/b/manifests/v1")
    watched.cut = [300_000, 500_000]
    got = at_once(3, lambda: get(through, WHERE))
    assert [answer.body for answer in got] == [LARGE] * 3
    assert watched.blobs() == ["", "bytes=300000-", "bytes=800000-"], "no byte came twice"


def test_a_download_that_cannot_end_leaves_nothing(origin, through, watched):
    """Clients see that it broke off; the next one gets it."""
    origin.client.image(tag="v1", blobs=(b"config", LARGE))
    through.client("GET", "/v2/a/b/manifests/v1")
    watched.cut = [300_000] + [0] * 100
    assert at_once(3, lambda: get(through, WHERE)) == [None] * 3
    assert os.listdir(f"{through.store.root}/uploads/a+b") == []
    watched.cut = []
    assert get(through, WHERE).body == LARGE


def test_what_is_cached_needs_nobody(origin, through):
    origin.client.image(tag="v1", blobs=(b"config", LARGE))
    through.client("GET", "/v2/a/b/manifests/v1")
    through.client("GET", WHERE)
    origin.close()
    got = at_once(4, lambda: get(through, WHERE))
    assert [answer.body for answer in got] == [LARGE] * 4
    assert get(through, "/v2/a/b/manifests/v1").status == 200
    assert get(through, f"/v2/a/b/blobs/{digest(b'config')}") is None, "it never came, and cannot"
    assert os.listdir(f"{through.store.root}/uploads/a+b") == []


def test_a_registry_that_must_not_be_asked(serving, origin, monkeypatch):
    """What cannot even begin ends as what breaks."""
    made = serving("through")
    made.registry.fetch_from(upstream.Upstream(origin.address, {}, made.registry.uploads, Journal(-1)))
    origin.client.image(tag="v1", blobs=(b"config",))
    made.client("GET", "/v2/a/b/manifests/v1")
    made.registry.upstream._settings = {"blocked": True}
    assert get(made, f"/v2/a/b/blobs/{digest(b'config')}") is None
    assert os.listdir(f"{made.store.root}/uploads/a+b") == []
    assert get(made, "/v2/a/b/manifests/other").status == 502


@pytest.mark.parametrize("where", [0, len(LARGE) // 2, len(LARGE) - 1])
def test_wrong_content_never_becomes_whole(origin, through, where):
    """The other registry sends something else of the right length: no client gets the last byte, and nothing stays."""
    origin.client.image(tag="v1", blobs=(b"config", LARGE))
    through.client("GET", "/v2/a/b/manifests/v1")
    path = origin.store.pool_path(digest(LARGE))
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.seek(where)
        file.write(b"?")
    assert at_once(3, lambda: get(through, WHERE)) == [None] * 3
    last = Client(through.address)
    with pytest.raises((OSError, Client.ended)):
        last("GET", WHERE, Range=f"bytes={len(LARGE) - 1}-")
    last.close()
    assert not os.path.exists(through.store.pool_path(digest(LARGE)))
    assert os.listdir(f"{through.store.root}/uploads/a+b") == []
