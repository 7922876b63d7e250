"""Manifests put and deleted, tags, referrers by the API and by the fallback tag, listings."""

import hashlib
import json
import os

import pytest
from cowshed_testing.fake_registry import MANIFEST, send

from cowshed.errors import RegistryError, Tampered
from cowshed.image.manifest import Descriptor
from cowshed.registry.place import Missing, Refused
from cowshed.registry.repository import DELETE, PUSH, Repository, catalog, next_page

SUBJECT = "sha256:" + "a" * 64
FALLBACK = "sha256-" + "a" * 64


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def manifest(**fields):
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "layers": [], **fields}).encode()


def there(fake, repository="a/b", actions=PUSH, **settings):
    return Repository(fake.address, repository, settings, actions=actions, pause=0.01)


def artifact(kind, subject=SUBJECT, **more):
    return manifest(
        artifactType=kind, subject={"mediaType": MANIFEST, "digest": subject, "size": 1},
        config={"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(b"{}"), "size": 2}, **more,
    )  # fmt: skip


def test_the_real_registry(real):
    config = os.urandom(100)
    with Repository(real.address, "test/repository", {}, actions=DELETE) as it:
        blob = Descriptor(digest(config), len(config), "application/vnd.oci.image.config.v1+json")
        it.send(blob, lambda at: (config[at:],))
        data = manifest(config={"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size})
        named = it.put_manifest(data, MANIFEST, tag="one", more_tags=["two", "three"])
        assert named == digest(data)
        assert it.manifest("two")[:2] == (data, MANIFEST)
        assert it.head("three").digest == named
        assert it.head("four") is None
        assert it.blob(blob) == config
        assert sorted(it.tags()) == ["one", "three", "two"]
        # 2.8 has no referrers API: the fallback tag is written and read
        signature = artifact("x/sig", named, annotations={"a": "b"})
        it.send(Descriptor(digest(b"{}"), 2, ""), lambda at: (b"{}",))
        it.put_manifest(signature, MANIFEST)
        (entry,) = it.referrers(named)
        assert entry["digest"] == digest(signature)
        assert entry["annotations"] == {"a": "b"}
        assert it.referrers(named, "x/sig") == [entry]
        assert it.referrers(named, "x/other") == []
        it.delete_manifest(digest(signature))
        assert it.referrers(named) == []
        with pytest.raises(Missing):
            it.delete_manifest(SUBJECT)
    assert "test/repository" in list(catalog(real.address, {}))


def test_several_tags_in_one_request(fake):
    fake.multiple_tags = True
    with there(fake) as it:
        data = manifest()
        it.put_manifest(data, MANIFEST, tag="1", more_tags=["1.2", "1"])
    assert [r.method for r in fake.requests] == ["PUT"]
    assert fake.requests[0].query["tag"] == ["1", "1.2"]
    assert set(fake.manifests) == {"1", "1.2", digest(data)}


def test_several_tags_one_by_one(fake):
    with there(fake) as it:
        it.put_manifest(manifest(), MANIFEST, tag="1", more_tags=["1.2"])
    assert [r.method for r in fake.requests] == ["PUT"] * 3
    assert {"1", "1.2"} < set(fake.manifests)


def test_the_digest_alone(fake):
    with there(fake) as it:
        named = it.put_manifest(manifest(), MANIFEST)
    assert set(fake.manifests) == {named}


def test_a_registry_that_calls_it_something_else(fake):
    fake.answer = lambda r, h: send(h, 201, b"", {"Docker-Content-Digest": SUBJECT}) or True
    with there(fake) as it, pytest.raises(Tampered, match="instead of"):
        it.put_manifest(manifest(), MANIFEST, tag="1")


def test_a_manifest_by_digest_is_verified(fake):
    fake.put(SUBJECT, manifest())
    with there(fake) as it, pytest.raises(Tampered):
        it.manifest(SUBJECT)


@pytest.mark.parametrize("status", [400, 405])
def test_a_registry_that_does_not_delete(fake, status):
    fake.answer = lambda r, h: r.method == "DELETE" and (send(h, status) or True)
    with there(fake, actions=DELETE) as it, pytest.raises(Refused, match=str(status)) as caught:
        it.delete_tag("1")
    assert (caught.value.answered, caught.value.status) == (status, 125)


def test_a_blob_is_deleted(fake):
    name = digest(b"data")
    fake.blobs[name] = b"data"
    with there(fake, actions=DELETE) as it:
        it.delete_blob(name)
        with pytest.raises(Missing):
            it.delete_blob(name)
    assert fake.blobs == {}


def test_a_tag_is_deleted_and_its_manifest_stays(fake):
    with there(fake, actions=DELETE) as it:
        named = it.put_manifest(manifest(), MANIFEST, tag="1")
        it.delete_tag("1")
        assert set(fake.manifests) == {named}
        with pytest.raises(Missing):
            it.delete_tag("1")


# ------------------------------------------------------------ referrers


def test_referrers_by_the_api(fake):
    fake.referrers = {}
    with there(fake) as it:
        it.put_manifest(artifact("x/sig"), MANIFEST)
        assert FALLBACK not in fake.manifests
        assert [e["digest"] for e in it.referrers(SUBJECT)] == [digest(artifact("x/sig"))]
        assert it.referrers("sha256:" + "b" * 64) == []


def test_the_registry_may_filter_or_not(fake):
    entries = [{"digest": SUBJECT, "artifactType": kind} for kind in ("x/sig", "x/sbom")]
    fake.referrers = {SUBJECT: entries}
    with there(fake) as it:
        assert it.referrers(SUBJECT, "x/sbom") == entries[1:]
    assert fake.requests[-1].query["artifactType"] == ["x/sbom"]


def test_referrers_come_in_pages(fake):
    def answer(request, handler):
        if "/referrers/" not in request.path:
            return False
        page = int(request.query.get("page", ["0"])[0])
        headers = {"Link": f'<{request.path}?page={page + 1}>; rel="next"'} if page < 3 else {}
        send(handler, 200, json.dumps({"manifests": [{"digest": f"sha256:{page:064}"}]}).encode(), headers)
        return True

    fake.answer = answer
    with there(fake) as it:
        assert len(it.referrers(SUBJECT)) == 4


def test_what_cosign_writes_into_the_fallback_index(fake):
    """Its entries have the type of the empty configuration; the type is in the manifest."""
    bundle = artifact("application/vnd.dev.sigstore.bundle.v0.3+json")
    fake.put(digest(bundle), bundle)
    entry = {
        "mediaType": MANIFEST, "digest": digest(bundle), "size": len(bundle),
        "artifactType": "application/vnd.oci.empty.v1+json",
    }  # fmt: skip
    gone = {**entry, "digest": "sha256:" + "0" * 64}
    fake.put(FALLBACK, {"schemaVersion": 2, "manifests": [entry, gone]})
    with there(fake) as it:
        (found,) = it.referrers(SUBJECT, "application/vnd.dev.sigstore.bundle.v0.3+json")
    assert found["digest"] == digest(bundle)


def test_two_write_the_fallback_index_at_once(fake):
    """Another signs between our reading and our writing: the entity tag tells, and both are there."""
    first, second = artifact("x/first"), artifact("x/second")
    with there(fake) as it:
        it.put_manifest(first, MANIFEST)
        left = [1]

        def answer(request, handler):
            if request.method == "PUT" and request.path.endswith(FALLBACK) and left[0]:
                left[0] = 0
                fake.put(FALLBACK, {"manifests": [{"digest": digest(first)}, {"digest": "sha256:" + "c" * 64}]})
            return False

        fake.answer = answer
        it.put_manifest(second, MANIFEST)
    listed = json.loads(fake.manifests[FALLBACK][0])["manifests"]
    assert [e["digest"] for e in listed] == [digest(first), "sha256:" + "c" * 64, digest(second)]


def test_a_manifest_that_goes_leaves_the_fallback_index(fake):
    with there(fake, actions=DELETE) as it:
        for kind in ("x/a", "x/b"):
            it.put_manifest(artifact(kind), MANIFEST)
        it.delete_manifest(digest(artifact("x/a")))
        assert [e["artifactType"] for e in it.referrers(SUBJECT)] == ["x/b"]


# ------------------------------------------------------------ listings


def listing(fake, where, link):
    def answer(request, handler):
        if where in request.path:
            page = int(request.query.get("last", ["0"])[0])
            value = {"tags": [f"t{page}", 7, None], "repositories": [f"r{page}"]}
            send(handler, 200, json.dumps(value).encode(), {"Link": link(page)} if link(page) else {})
            return True
        return False

    fake.answer = answer


def test_tags_in_pages(fake):
    listing(fake, "/tags/list", lambda n: f'</v2/a/b/tags/list?last={n + 1}&n=1>; rel="next"' if n < 3 else "")
    with there(fake) as it:
        assert list(it.tags()) == ["t0", "t1", "t2", "t3"]


def test_the_catalog_in_pages(fake):
    listing(fake, "/_catalog", lambda n: f'<_catalog?last={n + 1}>; rel="next"' if n < 2 else "")
    assert list(catalog(fake.address, {}, pause=0.01)) == ["r0", "r1", "r2"]


def test_a_listing_that_turns_in_circles(fake):
    listing(fake, "/tags/list", lambda n: '</v2/a/b/tags/list?last=1>; rel="next"')
    with there(fake) as it, pytest.raises(RegistryError, match="trusted"):
        list(it.tags())


def test_a_listing_that_goes_on_elsewhere(fake, other):
    listing(fake, "/tags/list", lambda n: f'<http://{other.address}/v2/a/b/tags/list>; rel="next"')
    with there(fake) as it, pytest.raises(RegistryError, match="trusted"):
        list(it.tags())
    assert other.requests == []


@pytest.mark.parametrize("body", [b"", b"[]", b"nonsense", b"[" * 100_000, b'{"tags": 7}', b'{"tags": null}'])
def test_what_is_no_listing(fake, body):
    fake.answer = lambda r, h: send(h, 200, body) or True
    with there(fake) as it:
        if body.startswith(b"{"):
            assert list(it.tags()) == []
        else:
            with pytest.raises(RegistryError, match="JSON"):
                list(it.tags())


@pytest.mark.parametrize(
    ("links", "target"),
    [
        ([], ""), (['</a?n=1>; rel="next"'], "/a?n=1"), (["</a>; rel=next"], "/a"), (["</a>"], ""),
        (['</p>; rel="prev", </n>; rel="next"'], "/n"), (['</p>; rel="prev"', '</n>;rel="next"'], "/n"),
        (["nonsense", "<", "<>", ">"], ""),
    ],
)  # fmt: skip
def test_links(links, target):
    assert next_page(links) == target
