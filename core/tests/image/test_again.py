"""Pulling what has been pulled before: the registry is asked what the name stands for, and sends nothing again."""

import os

import pytest
from cowshed_testing.fake_registry import FakeRegistry, send
from cowshed_testing.images import ARCHITECTURE, digest
from cowshed_testing.indexes import INDEX, index_of, of
from cowshed_testing.passing import Passing
from cowshed_testing.samples import SMALL, small

from cowshed.errors import ImageError, NotFound
from cowshed.image import platform
from cowshed.image.progress import Progress
from cowshed.image.pull import pull_all
from cowshed.image.reference import parse
from cowshed.state import images


def asked(fake, since=0):
    return [f"{r.method} {r.path.rpartition('/')[2][:19]}" for r in fake.requests[since:]]


@pytest.fixture
def again(fake, store):
    """A function that pulls once more; what it asked the registry."""

    def pull(name="a/b", **options):
        since = len(fake.requests)
        pulled = store.pull(f"{fake.address}/{name}", **options)
        return pulled, asked(fake, since)

    return pull


def test_a_tag_that_stands_for_the_same(fake, store, again):
    image = small()
    fake.add(image)
    first, requests = again()
    assert first.new
    assert "HEAD latest" not in requests, "a first pull asks no more than it needs"
    pulled, requests = again()
    assert requests == ["HEAD latest"]
    assert (pulled.new, pulled.digest, pulled.image.manifest) == (False, image.digest, image.manifest)
    assert store.tree(pulled.image) == SMALL
    by_digest = f"a/b@{image.digest}"
    assert again(by_digest)[1] == [f"GET {image.digest[:19]}"], "a name that is new here"
    assert again(by_digest)[1] == [f"HEAD {image.digest[:19]}"]


def test_an_index_and_indexes_in_it(fake, store, again):
    mine, other = of(ARCHITECTURE), of("s390x")
    inner = index_of(fake, [("linux/s390x", other), (f"linux/{ARCHITECTURE}", mine)])
    entry = {"mediaType": INDEX, "digest": digest(inner), "size": len(inner)}
    fake.put("latest", {"schemaVersion": 2, "manifests": [entry]}, entry["mediaType"])
    assert again()[0].image.id == mine.id
    pulled, requests = again()
    assert requests == ["HEAD latest"]
    assert (pulled.new, pulled.image.id) == (False, mine.id)
    there = platform.parse("linux/s390x")
    pulled, requests = again(platform=there)
    assert pulled.image.id == other.id
    assert requests[:2] == ["HEAD latest", f"GET {other.digest[:19]}"], "another platform is chosen from what is here"
    assert again(platform=there)[1] == ["HEAD latest"]
    pulled, requests = again()
    assert (pulled.image.id, requests) == (mine.id, ["HEAD latest"])
    assert store.query("select count(*), count(distinct root) from indexes") == [(2, 1)]


def test_all_platforms(fake, store):
    index_of(fake, [("linux/s390x", of("s390x")), (f"linux/{ARCHITECTURE}", of(ARCHITECTURE))])

    def pull():
        name = parse(f"{fake.address}/a/b")
        return pull_all(store.layers, name, registries={}, durability="none", progress=Progress(), gate=None)

    first, since = pull(), len(fake.requests)
    assert [each.image.id for each in pull()] == [each.image.id for each in first]
    assert asked(fake, since) == ["HEAD latest"]


def test_a_tag_that_moved(fake, store, again):
    first, second, third = small(), small(WorkingDir="/srv"), small(WorkingDir="/tmp")
    for image, tag in ((first, "latest"), (second, "other")):
        fake.add(image, tag)
        store.pull(f"{fake.address}/a/b:{tag}")
    fake.add(second)
    pulled, requests = again()
    assert (pulled.new, pulled.image.id, requests) == (True, second.id, ["HEAD latest"]), "what it is now is here"
    fake.add(third)
    pulled, requests = again()
    assert (pulled.image.id, requests[:2]) == (third.id, ["HEAD latest", "GET latest"])
    del fake.manifests["latest"]
    with pytest.raises(NotFound):
        again()
    assert images.by_name(store.store, f"{fake.address}/a/b:latest").id == third.id


def refused(status, headers=None):
    return lambda request, handler: request.method == "HEAD" and (send(handler, status, b"", headers) or True)


def cut(request, handler):
    if request.method == "HEAD":
        handler.close_connection = True
        return True
    return False


@pytest.mark.parametrize(
    "answer",
    [*map(refused, (400, 401, 403, 404, 405, 500, 501, 503)), cut, refused(200), refused(204)]
    + [refused(200, {"Docker-Content-Digest": said}) for said in (
        "", "sha256:", "latest", "sha256:../../x", "md5:" + "0" * 32, "sha256:" + "A" * 64, "sha512:" + "0" * 128)],
)  # fmt: skip
def test_head_is_refused_or_tells_nothing(fake, again, answer):
    """Then the manifest is fetched, as ever."""
    image = small()
    fake.add(image)
    again()
    fake.answer = answer
    pulled, requests = again()
    assert (pulled.image.id, pulled.new) == (image.id, False)
    assert requests == ["HEAD latest", "GET latest"]


def test_head_tells_what_is_not_so(fake, store, again):
    """A digest that nothing here has is not believed, whatever comes then; one of what is here means just that."""
    first, second = small(), small(WorkingDir="/srv")
    fake.add(first)
    again()
    fake.answer = refused(200, {"Docker-Content-Digest": second.digest})
    assert again()[0].image.id == first.id
    fake.add(second)
    fake.answer = refused(200, {"Docker-Content-Digest": "sha256:" + "0" * 64})
    assert again()[0].image.id == second.id
    layer = next(iter(second.blobs))
    fake.answer = refused(200, {"Docker-Content-Digest": layer})
    assert again()[0].image.id == second.id, "the digest of a layer is not that of a manifest"


def test_what_head_tells_of_a_digest_has_to_be_that(fake, again):
    first, second = small(), small(WorkingDir="/srv")
    fake.add(first, "1")
    fake.add(second, "2")
    for name in ("a/b:1", "a/b:2", f"a/b@{first.digest}"):
        again(name)
    fake.answer = refused(200, {"Docker-Content-Digest": second.digest})
    assert again(f"a/b@{first.digest}")[0].image.id == first.id


def test_what_is_here_in_another_repository_is_not_taken_for_there(fake, other, store):
    """A name has to be confirmed by its own registry before it stands for something here."""
    image = small()
    fake.add(image)
    store.pull(f"{fake.address}/a/b")
    for name in (f"{other.address}/a/b", f"{other.address}/a/b@{image.digest}"):
        with pytest.raises(NotFound):
            store.pull(name)


def test_layers_that_are_gone_come_again(fake, store, again):
    image = small()
    fake.add(image)
    row = again()[0].image
    gone = row.blobs[-1][0]
    os.unlink(f"{store.root}/blobs/sha256/{gone[7:]}")
    pulled, requests = again()
    assert requests == ["HEAD latest", f"GET {gone[:19]}"]
    assert store.tree(pulled.image) == SMALL


@pytest.mark.parametrize("table", ["images set manifest = x'7b7d'", "indexes set document = x'7b7d'"])
def test_what_is_damaged_here_is_fetched(fake, store, again, table):
    index_of(fake, [(f"linux/{ARCHITECTURE}", of(ARCHITECTURE))])
    again()
    with store.store.transaction() as tx:
        tx.execute(f"update {table}")
    pulled, requests = again()
    assert [r for r in requests if r.startswith("GET sha256")] or "GET latest" in requests
    assert images.by_name(store.store, f"{fake.address}/a/b:latest").manifest == pulled.image.manifest != b"{}"


def test_an_index_goes_with_the_last_name_that_stands_for_it(fake, store, again):
    for n in range(3):
        index_of(fake, [(f"linux/{ARCHITECTURE}", of(ARCHITECTURE, f"v{n + 1}"))], annotations={"n": str(n)})
        again()
    assert store.query("select count(*) from indexes") == [(1,)]


def test_a_platform_that_the_index_does_not_have(fake, again):
    index_of(fake, [(f"linux/{ARCHITECTURE}", of(ARCHITECTURE))])
    again()
    with pytest.raises(ImageError, match="nothing for linux/s390x"):
        again(platform=platform.parse("linux/s390x"))


def test_a_mirror_is_asked_first(fake, other, store):
    image = small()
    other.add(image)
    store.registries = {fake.address: {"mirrors": [f"http://{other.address}"]}}
    store.pull(f"{fake.address}/a/b")
    since = len(other.requests)
    assert not store.pull(f"{fake.address}/a/b").new
    assert (asked(fake), asked(other, since)) == ([], ["HEAD latest"])
    other.answer = refused(405)
    fake.add(image)
    store.pull(f"{fake.address}/a/b")
    assert asked(fake) == ["HEAD latest"], "what a mirror does not tell, the registry may"


@pytest.mark.parametrize("kind", ["real", "ours"])
def test_real_registries(request, store, kind):
    there = request.getfixturevalue(kind)
    image, newer = small(Labels={"of": kind}), small(Labels={"of": kind, "newer": "yes"})
    there.push(image, "test/again")
    with FakeRegistry() as between:
        passing = Passing(between, there.address)
        name = f"{between.address}/test/again"
        assert store.pull(name).image.id == image.id
        passing.asked.clear()
        assert not store.pull(name).new
        assert passing.asked == [("HEAD", "/v2/test/again/manifests/latest")]
        there.push(newer, "test/again")
        assert store.pull(name).image.id == newer.id
