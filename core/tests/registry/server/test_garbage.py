"""Garbage collection: what goes, what stays, and what happens meanwhile."""

import json
import os
import threading
import time

import pytest
from cowshed_testing.distribution import INDEX, MANIFEST, Client, descriptor, digest, manifest

from cowshed.errors import StoreError
from cowshed.registry.server import garbage, uploads
from cowshed.registry.server.store import Store

OLD = time.time() - 10 * 86400


def age(served):
    """Let all be from ten days ago."""
    for base, _, names in os.walk(served.store.root):
        for name in names:
            os.utime(f"{base}/{name}", (OLD, OLD))


def there(served):
    """The blobs of the pool."""
    return {f"sha256:{name}" for name in os.listdir(f"{served.store.root}/blobs/sha256")}


def test_what_nobody_refers_to_goes_and_all_else_stays(served):
    ask = served.client
    image = ask.image(tag="v1")
    loose = ask.blob(b"loose")
    untagged = ask.image(tag="", blobs=(b"other config", b"other layer"))
    location = ask("PATCH", ask.begin(), b"x" * 1000)["Location"]
    age(served)
    shown = garbage.collect(served.store, dry_run=True)
    assert loose in there(served)
    assert garbage.collect(served.store) == shown
    assert (shown.links, shown.uploads, shown.blobs, shown.freed) == (1, 1, 1, 1005)
    assert loose not in there(served)
    assert there(served) == {
        image, untagged, *(digest(data) for data in (b"config", b"layer", b"other config", b"other layer"))
    }  # fmt: skip
    assert ask("GET", location).code == "BLOB_UPLOAD_UNKNOWN"
    assert ask("GET", f"/v2/a/b/manifests/{untagged}").status == 200


def test_untagged_ones_go_when_that_is_asked_for(served):
    ask = served.client
    child = ask.image(tag="", blobs=(b"child config",))
    grandchild = ask.image(tag="", blobs=(b"grandchild config",))

    def index(*listed, tag="", **more):
        data = json.dumps({"schemaVersion": 2, "manifests": list(listed), **more}).encode()
        ask("PUT", f"/v2/a/b/manifests/{tag or digest(data)}", data, Content_Type=INDEX)
        return digest(data)

    inner = index(descriptor(grandchild, 1, MANIFEST))
    outer = index(descriptor(child, 1, MANIFEST), descriptor(inner, 1, INDEX), tag="v1")
    signature = ask.image(tag="", blobs=(b"signature",), subject=descriptor(child, 1, MANIFEST))
    second = ask.image(tag="", blobs=(b"signature of it",), subject=descriptor(signature, 1, MANIFEST))
    orphan = ask.image(tag="", blobs=(b"orphan",))
    orphans = ask.image(tag="", blobs=(b"its signature",), subject=descriptor(orphan, 1, MANIFEST))
    age(served)
    before = there(served)
    done = garbage.collect(served.store, untagged=True)
    assert (done.manifests, done.links) == (2, 4)
    assert before - there(served) == {orphan, orphans, digest(b"orphan"), digest(b"its signature")}
    for one in (child, grandchild, inner, outer, signature, second):
        assert ask("GET", f"/v2/a/b/manifests/{one}").status == 200


def test_what_is_young_stays_and_asking_makes_young(served):
    ask = served.client
    asked, again, mounted, old = (ask.blob(data) for data in (b"asked", b"again", b"mounted", b"old"))
    age(served)
    ask("HEAD", f"/v2/a/b/blobs/{asked}")
    ask.blob(b"again")
    assert ask("POST", f"/v2/c/d/blobs/uploads/?mount={mounted}&from=a/b", b"").status == 201
    assert garbage.collect(served.store).links == 1
    assert there(served) == {asked, again, mounted}
    assert old not in there(served)


def test_a_blob_stays_while_one_repository_has_it(served):
    ask = served.client
    ask.image("a")
    ask.image("b")
    assert ask("DELETE", "/v2/a/manifests/latest").status == 202
    age(served)
    assert garbage.collect(served.store, untagged=True).blobs == 0
    assert ask("GET", f"/v2/b/blobs/{digest(b'layer')}").status == 200
    assert ask("GET", f"/v2/a/blobs/{digest(b'layer')}").status == 404


def test_what_other_tools_put_there_is_referred_to(served):
    """An index of another tool lists manifests that index.json does not."""
    ask = served.client
    child = ask.image(tag="")
    data = json.dumps({"schemaVersion": 2, "manifests": [descriptor(child, 1, MANIFEST)]}).encode()
    ask("PUT", "/v2/a/b/manifests/v1", data, Content_Type=INDEX)
    served.store.repository("a/b").change(lambda index: index.entries.pop(child))
    age(served)
    assert garbage.collect(served.store, untagged=True).blobs == 0
    got = ask("GET", f"/v2/a/b/manifests/{child}")
    assert (got.status, got["Content-Type"]) == (200, MANIFEST)


def test_collecting_while_others_push(served):
    wrong = []
    over = threading.Event()

    def push(number):
        client = Client(served.address)
        try:
            for step in range(15):
                client.image("a", f"t{number}-{step}", blobs=(b"c", b"same", f"{number} {step}".encode()))
                client("DELETE", f"/v2/a/manifests/t{number}-{step}")
        except BaseException as error:
            wrong.append(error)
        finally:
            client.close()

    def collect():
        while not over.is_set():
            garbage.collect(served.store, grace=3600, untagged=True)

    collector = threading.Thread(target=collect)
    collector.start()
    threads = [threading.Thread(target=push, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    over.set()
    collector.join(60)
    assert not wrong
    age(served)
    garbage.collect(served.store, untagged=True)
    assert there(served) == set()


def test_an_upload_that_is_collected_before_it_is_locked_begins_anew(served, monkeypatch):
    real, before = uploads.locks.lock_file, []

    def lock(fd, **options):
        if not before:
            before.append(fd)
            assert garbage.collect(served.store, grace=-60).uploads == 1
        return real(fd, **options)

    monkeypatch.setattr(uploads.locks, "lock_file", lock)
    location = served.client.begin()
    assert before
    assert served.client("PUT", f"{location}?digest={digest(b'x')}", b"x").status == 201


def test_a_manifest_that_is_collected_while_it_is_stored_is_stored_again(served, monkeypatch):
    """Between its coming into the pool and its getting a name in the repository; a third time, the client is told."""
    real, left = served.store.publish, [2]

    def publish(path, wanted):
        new = real(path, wanted)
        if left[0]:
            left[0] -= 1
            os.unlink(served.store.pool_path(wanted))
        return new

    data = manifest(served.client.blob(b"config"))
    put = ("PUT", "/v2/a/b/manifests/v1", data)
    monkeypatch.setattr(served.store, "publish", publish)
    assert served.client(*put, Content_Type=MANIFEST).status == 201
    assert served.client("GET", "/v2/a/b/manifests/v1").body == data
    left[0] = 3
    other = data + b" "
    assert served.client("PUT", "/v2/a/b/manifests/v2", other, Content_Type=MANIFEST).status == 503
    assert served.client("PUT", "/v2/a/b/manifests/v2", other, Content_Type=MANIFEST).status == 201


def test_half_written_files_of_the_dead_go(served):
    served.client.image()
    left = f"{served.store.root}/repositories/a+b/index.json.77.new"
    with open(left, "w") as file:
        file.write("{")
    garbage.collect(served.store)
    assert not os.path.exists(left)


def test_a_repository_that_cannot_be_read_keeps_what_it_has(served):
    ask = served.client
    ask.image("a/b")
    ask.image("c/d", blobs=(b"other", b"layer"))
    ask.blob(b"loose", "c/d")
    kept = there(served) - {digest(b"loose")}
    age(served)
    with open(f"{served.store.root}/repositories/a+b/index.json", "w") as file:
        file.write("{")
    done = garbage.collect(served.store, untagged=True)
    (why,) = done.unreadable
    assert "a+b/index.json cannot be understood" in why
    assert (done.links, there(served)) == (1, kept)


def test_a_quota(serving):
    served = serving(quota=10_000)
    ask = served.client
    ask.blob(b"x" * 6000)
    answer = ask("POST", f"/v2/a/b/blobs/uploads/?digest={digest(b'y' * 6000)}", b"y" * 6000)
    assert (answer.status, answer.code) == (403, "DENIED")
    mount = f"/v2/c/d/blobs/uploads/?mount={digest(b'x' * 6000)}&from=a/b"
    assert ask("POST", mount, b"").status == 201, "the same one takes nothing"
    ask("DELETE", f"/v2/c/d/blobs/{digest(b'x' * 6000)}")
    ask("DELETE", f"/v2/a/b/blobs/{digest(b'x' * 6000)}")
    age(served)
    garbage.collect(served.store)
    ask.blob(b"y" * 6000)
    again = Store(served.store.root, quota=10_000)
    assert again._used == 6000


def test_a_manifest_over_the_quota(serving):
    served = serving(quota=5000)
    data = manifest(served.client.blob(b"config"), annotations={"a": "x" * 6000})
    assert served.client("PUT", "/v2/a/b/manifests/v1", data, Content_Type=MANIFEST).code == "DENIED"
    assert served.client("GET", "/v2/a/b/manifests/v1").status == 404


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "letters").mkdir()
    with pytest.raises(StoreError, match="other things"):
        Store(str(tmp_path))
