"""What a check of the registry's files finds, and what it mends, while the registry serves them."""

import json
import os
import time
from types import SimpleNamespace

import pytest
from cowshed_testing.distribution import INDEX, MANIFEST, descriptor, digest, manifest

from cowshed.registry.server import scrub, upstream
from cowshed.registry.server.journal import Journal


def found(served):
    return list(scrub.look(served.store))


def codes(served):
    return sorted(one.code for one in found(served))


def mended(served):
    """The codes of what was found, each mended when it came."""
    told = []
    for one in scrub.look(served.store):
        told.append(one.code)
        if one.repair:
            scrub.mend(served.store, one)
    return sorted(told)


def damage(served, wanted, data=b"other"):
    path = served.store.pool_path(wanted)
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.write(data)


LAYER = b"layer of some length"
IMAGE = (b"config", LAYER)


def test_what_fits_is_clean(served):
    ask = served.client
    subject = ask.image("a/b", "v1", IMAGE)
    ask.image("c/d", "v1", IMAGE)
    ask.image("a/b", "", (b"x",), subject=descriptor(subject, 1, MANIFEST))
    ask.blob(b"of no manifest")
    ask.blob(b"of another algorithm", algorithm="sha512")
    ask.begin()
    far = {**descriptor(digest(b"far"), 5), "urls": ["https://layers.example/far"]}
    data = json.dumps({"schemaVersion": 2, "config": descriptor(digest(b"config"), 6), "layers": [far]}).encode()
    assert ask("PUT", "/v2/a/b/manifests/far", data, Content_Type=MANIFEST).status == 201
    assert found(served) == []


def test_a_damaged_blob_is_out_of_reach_until_it_is_pushed_again(served):
    ask = served.client
    for name in ("a/b", "c/d"):
        ask.image(name, "v1", IMAGE)
    wanted = digest(LAYER)
    damage(served, wanted)
    (one, *rest) = found(served)
    assert (one.code, one.object, one.severity, one.repair, rest) == (
        "blob.damaged", wanted, "error", "move it to damaged/", []
    )  # fmt: skip
    assert mended(served) == ["blob.damaged", "blob.missing", "blob.missing"]
    for name in ("a/b", "c/d"):
        assert ask("GET", f"/v2/{name}/blobs/{wanted}").status == 404
        assert ask("GET", f"/v2/{name}/manifests/v1").status == 200
    (kept,) = os.listdir(f"{served.store.root}/damaged")
    with open(f"{served.store.root}/damaged/{kept}", "rb") as file:
        assert (kept, file.read()) == (wanted.replace(":", "-"), b"other" + LAYER[5:])
    ask.image("a/b", "v1", IMAGE)
    assert ask("GET", f"/v2/a/b/blobs/{wanted}").body == LAYER
    assert mended(served) == ["blob.missing"], "the other repository gets it back"
    assert ask("GET", f"/v2/c/d/blobs/{wanted}").body == LAYER
    assert found(served) == []


def test_a_damaged_manifest_takes_its_tags_along(served):
    ask = served.client
    wanted = ask.image("a/b", "v1", IMAGE)
    ask("PUT", f"/v2/a/b/manifests/{wanted}?tag=v2", ask("GET", "/v2/a/b/manifests/v1").body, Content_Type=MANIFEST)
    ask.image("a/b", "other", (b"x",))
    damage(served, wanted, b"{}")
    assert mended(served) == ["blob.damaged", "tag.dangling", "tag.dangling"]
    assert ask("GET", "/v2/a/b/tags/list").json["tags"] == ["other"]
    assert ask("GET", f"/v2/a/b/manifests/{wanted}").status == 404
    assert found(served) == []
    assert ask.image("a/b", "v1", IMAGE) == wanted
    assert ask("GET", "/v2/a/b/manifests/v1")["Docker-Content-Digest"] == wanted


def test_what_the_registry_still_has_is_put_back(served):
    ask = served.client
    first = ask.image("a/b", "v1", IMAGE)
    ask.image("c/d", "v1", IMAGE)
    repository = served.store.repository("a/b")
    for wanted in (first, digest(LAYER)):
        repository.unlink(wanted)
    assert mended(served) == ["tag.dangling"], "of a manifest that is not here nothing is known"
    assert mended(served) == ["blob.missing"]
    assert found(served) == []
    assert ask("GET", "/v2/a/b/manifests/v1")["Docker-Content-Digest"] == first


def test_manifests_that_are_missing_or_none(served):
    ask = served.client
    untagged = ask.image("a/b", "", IMAGE)
    served.store.repository("a/b").unlink(untagged)
    os.unlink(served.store.pool_path(untagged))
    ask.image("c/d", "v1", IMAGE)
    served.store.repository("c/d").change(lambda index: index.entries.update({digest(LAYER): {"mediaType": MANIFEST}}))
    assert codes(served) == ["manifest.invalid", "manifest.missing"]
    assert mended(served) == ["manifest.invalid", "manifest.missing"]
    assert codes(served) == ["manifest.invalid"], "only people know what it was to be"


def test_an_index_may_be_of_parts(served):
    """What of an index is not here is told as a note; what is here is looked into, also if only the index names it."""
    ask = served.client
    child = ask.image("a/b", "", IMAGE)
    listed = [descriptor(child, 1, MANIFEST), descriptor(digest(b"none"), 1, MANIFEST)]
    data = json.dumps({"schemaVersion": 2, "manifests": listed}).encode()
    ask("PUT", "/v2/a/b/manifests/v1", data, Content_Type=INDEX)
    repository = served.store.repository("a/b")
    repository.change(lambda index: index.entries.pop(child))
    repository.unlink(digest(b"config"))
    os.unlink(served.store.pool_path(digest(b"config")))
    assert [(one.code, one.severity) for one in found(served)] == [
        ("manifest.partial", "note"),
        ("blob.missing", "error"),
    ]


def test_a_size_that_a_manifest_has_wrong(served):
    ask = served.client
    ask.image("a/b", "v1", IMAGE)
    data = manifest(digest(b"config"), [digest(LAYER)], [6, 7])
    other = ask.blob(data)
    served.store.repository("a/b").change(lambda index: index.entries.update({other: {"mediaType": MANIFEST}}))
    (one,) = found(served)
    assert (one.code, one.object) == ("blob.size", digest(LAYER))


def test_what_dead_servers_and_clients_left(served):
    ask = served.client
    ask.image("a/b", "v1", IMAGE)
    kept, left = (ask("PATCH", ask.begin(), b"x" * 100)["Location"] for _ in range(2))
    old = time.time() - 2 * 86400
    os.utime(f"{served.store.root}/uploads/a+b/{left.rpartition('/')[2]}", (old, old))
    with open(f"{served.store.root}/repositories/a+b/index.json.7.new", "w") as file:
        file.write("{")
    with open(f"{served.store.root}/blobs/sha256/.temporary", "w") as file:
        file.write("of another tool")
    assert mended(served) == ["blob.stray", "file.left", "upload.left"]
    assert codes(served) == ["blob.stray"]
    assert (ask("GET", kept).status, ask("GET", left).status) == (204, 404)


def test_an_index_that_cannot_be_read_stops_nothing_else(served):
    ask = served.client
    for name in ("a/b", "c/d"):
        ask.image(name, "v1", IMAGE)
    served.store.repository("c/d").unlink(digest(b"config"))
    with open(f"{served.store.root}/repositories/a+b/index.json", "w") as file:
        file.write("{")
    assert codes(served) == ["blob.missing", "repository.unreadable"]


def test_files_of_other_tools_are_read_as_well(served):
    """A repository whose blob is no link to the pool: it is held against its name, and given back from the pool."""
    ask = served.client
    ask.image("a/b", "v1", IMAGE)
    path = served.store.repository("a/b").blob_path(digest(LAYER))
    os.unlink(path)
    with open(path, "wb") as file:
        file.write(LAYER)
    assert found(served) == []
    with open(path, "wb") as file:
        file.write(b"x")
    assert mended(served) == ["blob.damaged", "blob.missing"]
    assert ask("GET", f"/v2/a/b/blobs/{digest(LAYER)}").body == LAYER
    assert found(served) == []


def test_a_blob_that_lies_elsewhere_is_read_there(served, tmp_path):
    """An operator has moved it to another disk, and put a symbolic link in its place."""
    served.client.blob(LAYER)
    path = served.store.pool_path(digest(LAYER))
    os.rename(path, tmp_path / "far")
    os.symlink(tmp_path / "far", path)
    assert found(served) == []
    os.chmod(tmp_path / "far", 0o644)
    (tmp_path / "far").write_bytes(b"x")
    assert set(mended(served)) == {"blob.damaged"}
    assert found(served) == []
    assert not os.path.lexists(path)


def test_a_blob_that_cannot_be_read_is_damaged(served, monkeypatch):
    served.client.image("a/b", "v1", (b"config",))
    wanted = digest(b"config")
    path = served.store.pool_path(wanted)
    inside = os.open(path, os.O_RDONLY)
    real = os.read

    def read(fd, count):
        if os.path.sameopenfile(fd, inside):
            raise OSError(5, "Input/output error")
        return real(fd, count)

    monkeypatch.setattr(scrub.os, "read", read)
    (one,) = [one for one in scrub.look(served.store) if one.code == "blob.damaged"]
    assert (one.object, "it cannot be read: Input/output error" in one.text) == (wanted, True)
    os.close(inside)


def test_a_blob_that_is_removed_meanwhile(served):
    served.client.blob(b"x")
    path = served.store.pool_path(digest(b"x"))
    assert list(scrub.look(served.store, told=lambda text: text.startswith("blob") and os.unlink(path))) == []


def test_what_is_pushed_again_in_the_meantime_stays(served):
    """Between finding and mending the same blob, and a manifest, came again: only the damaged file itself goes."""
    ask = served.client
    named = ask.image("a/b", "v1", IMAGE)
    damage(served, digest(LAYER))
    (one,) = found(served)
    path = served.store.pool_path(digest(LAYER))
    repository = served.store.repository("a/b")
    os.unlink(path)
    repository.unlink(digest(LAYER))
    ask.image("a/b", "v1", IMAGE)
    scrub.mend(served.store, one)
    assert ask("GET", f"/v2/a/b/blobs/{digest(LAYER)}").body == LAYER
    data = ask("GET", f"/v2/a/b/manifests/{named}").body
    repository.unlink(named)
    os.unlink(served.store.pool_path(named))
    (gone,) = found(served)
    ask("PUT", "/v2/a/b/manifests/v2", data, Content_Type=MANIFEST)
    scrub.mend(served.store, gone)
    assert ask("GET", "/v2/a/b/tags/list").json["tags"] == ["v1", "v2"]


def test_who_pushes_what_is_being_moved_aside_is_told_to_push_again(served, monkeypatch):
    """The upload was thrown away because the blob was here already, and then it is not."""
    ask = served.client
    ask.image("a/b", "v1", IMAGE)
    damage(served, digest(LAYER))
    (one,) = found(served)
    real = served.store.publish

    def publish(path, wanted):
        new = real(path, wanted)
        assert not new
        scrub.mend(served.store, one)
        return new

    monkeypatch.setattr(served.store, "publish", publish)
    answer = ask("PUT", f"{ask.begin()}?digest={digest(LAYER)}", LAYER)
    assert (answer.status, answer.code) == (503, "BLOB_UPLOAD_INVALID")
    monkeypatch.undo()
    ask.blob(LAYER)
    assert ask("GET", f"/v2/a/b/blobs/{digest(LAYER)}").body == LAYER


def test_no_more_bytes_in_a_second_than_there_may_be(served, monkeypatch):
    now = [0.0]
    clock = SimpleNamespace(
        time=time.time, monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds)
    )
    monkeypatch.setattr(scrub, "time", clock)
    for number in range(5):
        served.client.blob(b"%d" % number * 1000)
    assert list(scrub.look(served.store, rate=100)) == []
    assert now[0] == pytest.approx(50.0)


def test_what_a_cache_has_not_comes_when_it_is_asked_for(serving):
    origin, through = serving("origin"), serving("through")
    through.store.is_cache_of(origin.address)
    through.registry.fetch_from(upstream.Upstream(origin.address, {}, through.registry.uploads, Journal(-1)))
    named = origin.client.image("a/b", "v1", IMAGE)
    ask = through.client
    ask("GET", "/v2/a/b/manifests/v1")
    assert found(through) == [], "no blob has been asked for so far"
    assert ask("GET", f"/v2/a/b/blobs/{digest(LAYER)}").body == LAYER
    for wanted in (digest(LAYER), named):
        damage(through, wanted)
        assert "blob.damaged" in mended(through)
        assert found(through) == []
    assert ask("GET", f"/v2/a/b/manifests/{named}")["Docker-Content-Digest"] == named
    assert ask("GET", f"/v2/a/b/blobs/{digest(LAYER)}").body == LAYER
    through.store.is_cache_of("")
    assert codes(through) == ["blob.missing"], "nobody brings it any more"
