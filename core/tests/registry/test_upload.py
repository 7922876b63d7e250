"""Pushing blobs: one request or pieces, mounts, breaks, lost sessions, limits; cancelled if it cannot end well."""

import hashlib
import os

import pytest
from cowshed_testing.fake_registry import send

from cowshed.errors import AuthError, RegistryError, Tampered
from cowshed.image.manifest import Descriptor
from cowshed.registry.place import Refused
from cowshed.registry.repository import PUSH, Repository

DATA = os.urandom(3 << 20)
MIB = 1 << 20


def digest(data, algorithm="sha256"):
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


BLOB = Descriptor(digest(DATA), len(DATA), "")


def there(fake, repository="a/b", **options):
    return Repository(fake.address, repository, {}, actions=PUSH, pause=0.01, **options)


def source(at):
    return (DATA[n : n + 100_000] for n in range(at, len(DATA), 100_000))


@pytest.fixture
def path(tmp_path):
    (tmp_path / "blob").write_bytes(DATA)
    return str(tmp_path / "blob")


def said(fake):
    return [r.method for r in fake.requests]


@pytest.mark.parametrize("kind", ["file", "pieces"])
@pytest.mark.parametrize("piece", [64 * MIB, 1 * MIB])
def test_to_the_real_registry_and_back(real, path, kind, piece):
    name = f"test/upload-{kind}-{piece}"
    with Repository(real.address, name, {}, actions=PUSH, whole=piece, piece=piece) as it:
        assert it.send(BLOB, path if kind == "file" else source) == "sent"
        assert it.send(BLOB, path) == "there"
        assert it.has(BLOB)
    from cowshed.registry.client import Client

    with Client(real.address, name, {}) as client:
        assert b"".join(client.blob(BLOB)) == DATA
    with Repository(real.address, f"{name}/other", {}, actions=PUSH) as it:
        assert it.send(BLOB, path, mount=["test/nothing", name]) == "mounted"
        assert it.has(BLOB)


@pytest.mark.parametrize("kind", ["file", "pieces"])
def test_in_one_request(fake, path, kind):
    told = []
    with there(fake) as it:
        assert it.send(BLOB, path if kind == "file" else source, told=told.append) == "sent"
        assert it.send(BLOB, path) == "there"
    assert said(fake) == ["HEAD", "POST", "PUT", "HEAD"]
    assert fake.blobs[BLOB.digest] == DATA
    assert told[-1] == len(DATA)
    assert fake.requests[2].query["state"] == ["1"], "the query of the address is kept"


@pytest.mark.parametrize("kind", ["file", "pieces"])
def test_in_pieces(fake, path, kind):
    with there(fake, whole=MIB, piece=MIB) as it:
        it.send(BLOB, path if kind == "file" else source)
    assert said(fake) == ["HEAD", "POST", "PATCH", "PATCH", "PATCH", "PUT"]
    assert [r.headers["content-range"] for r in fake.requests[2:5]] == [
        "0-1048575", "1048576-2097151", "2097152-3145727",
    ]  # fmt: skip
    assert fake.requests[4].query["state"] == ["2097152"], "each piece goes where the answer to the last one says"
    assert fake.blobs[BLOB.digest] == DATA


def test_pieces_are_as_large_as_the_registry_wants(fake):
    def answer(request, handler):
        if request.method == "POST":
            fake.uploads["x"] = bytearray()
            headers = {"Location": "/v2/a/b/blobs/uploads/x", "OCI-Chunk-Min-Length": "2000000"}
            send(handler, 202, b"", headers)
            return True
        return False

    fake.answer = answer
    with there(fake, whole=MIB, piece=MIB) as it:
        it.send(BLOB, source)
    sizes = [len(r.body) for r in fake.requests if r.method == "PATCH"]
    assert sizes == [len(DATA)], "what would be left is less than that, so that it goes along"
    assert fake.blobs[BLOB.digest] == DATA


def test_an_empty_blob(fake):
    with there(fake) as it:
        it.send(Descriptor(digest(b""), 0, ""), lambda at: ())
    assert fake.blobs[digest(b"")] == b""


def test_sha512(fake):
    blob = Descriptor(digest(DATA, "sha512"), len(DATA), "")
    with there(fake) as it:
        it.send(blob, source)
    assert fake.blobs[blob.digest] == DATA
    assert fake.requests[1].query["digest-algorithm"] == ["sha512"]


def test_a_mount(fake, path):
    fake.mountable.add(("c/d", BLOB.digest))
    with there(fake) as it:
        assert it.send(BLOB, path, mount=["a/b", "x/y", "c/d"]) == "mounted"
    assert [r.query.get("from") for r in fake.requests[1:]] == [["x/y"], ["c/d"]]
    assert fake.blobs == {}


def test_a_mount_that_is_an_upload(fake, path):
    with there(fake) as it:
        assert it.send(BLOB, path, mount=["x/y"]) == "sent"
    assert said(fake) == ["HEAD", "POST", "PUT"], "the session that the registry has begun instead is used"


def broken(fake, *, after, times=1):
    """The registry takes so many bytes of a request with a body and drops the connection, some times."""
    left = [times]

    def answer(request, handler):
        if request.method in ("PUT", "PATCH") and "/uploads/" in request.path and request.body and left[0]:
            left[0] -= 1
            name = request.path.rpartition("/")[2]
            fake.uploads[name] += request.body[:after]
            handler.close_connection = True
            handler.connection.close()
            return True
        return False

    fake.answer = answer


@pytest.mark.parametrize("whole", [64 * MIB, MIB])
@pytest.mark.parametrize("kind", ["file", "pieces"])
def test_it_goes_on_where_it_broke(fake, path, whole, kind):
    broken(fake, after=700_001, times=3)
    with there(fake, whole=whole, piece=MIB) as it:
        it.send(BLOB, path if kind == "file" else source)
    assert fake.blobs[BLOB.digest] == DATA
    starts = [int(r.headers["content-range"].partition("-")[0]) for r in fake.requests if "content-range" in r.headers]
    assert starts == sorted(starts)
    assert 700_001 in starts, "what has come is not sent again"
    assert fake.uploads == {}


def test_it_breaks_for_ever(fake, path):
    broken(fake, after=0, times=100)
    with there(fake) as it, pytest.raises(RegistryError, match="broke"):
        it.send(BLOB, path)
    assert said(fake)[-1] == "DELETE"
    assert fake.uploads == {}, "the session is cancelled"


def test_a_registry_that_is_elsewhere_than_we_think(fake, path):
    """416: it has more than we know of."""

    def answer(request, handler):
        if request.method == "PATCH" and not fake.uploads["1"]:
            fake.uploads["1"] += DATA[:500_000]
        return False

    fake.answer = answer
    with there(fake, whole=0, piece=MIB) as it:
        it.send(BLOB, path)
    assert fake.blobs[BLOB.digest] == DATA
    assert [r.headers.get("content-range", "").partition("-")[0] for r in fake.requests if r.method == "PATCH"][:2] == [
        "0", "500000",
    ]  # fmt: skip


def test_a_registry_that_lost_the_session(fake, path):
    def answer(request, handler):
        if request.method == "PATCH" and "1" in fake.uploads:
            del fake.uploads["1"]
        return False

    fake.answer = answer
    with there(fake, whole=0, piece=MIB) as it:
        it.send(BLOB, path)
    assert fake.blobs[BLOB.digest] == DATA
    assert said(fake).count("POST") == 2


def test_a_proxy_that_limits_bodies(fake, path):
    def answer(request, handler):
        if len(request.body) > MIB:
            send(handler, 413)
            return True
        return False

    fake.answer = answer
    with there(fake) as it:
        it.send(BLOB, path)
    assert fake.blobs[BLOB.digest] == DATA


def test_a_limit_that_cannot_be_met(fake, path):
    fake.answer = lambda r, h: bool(r.body) and (send(h, 413) or True)
    with there(fake) as it, pytest.raises(Refused, match="413") as caught:
        it.send(BLOB, path)
    assert "limits" in caught.value.remedy
    assert fake.uploads == {}


def test_a_server_that_is_ill_for_a_moment(fake, path):
    left = [2]

    def answer(request, handler):
        if request.method == "PUT" and left[0]:
            left[0] -= 1
            fake.uploads["1"] += request.body[:1000]  # although it failed, some of it has come
            send(handler, 500)
            return True
        return False

    fake.answer = answer
    with there(fake) as it:
        it.send(BLOB, path)
    assert fake.blobs[BLOB.digest] == DATA


def test_other_bytes_than_named(fake):
    wrong = Descriptor("sha256:" + "0" * 64, len(DATA), "")
    with there(fake) as it, pytest.raises(Refused, match="another digest"):
        it.send(wrong, source)
    assert fake.uploads == {}


@pytest.mark.parametrize("kind", ["file", "pieces"])
def test_a_source_with_too_few_bytes(fake, tmp_path, kind):
    (tmp_path / "short").write_bytes(b"abc")
    with there(fake) as it, pytest.raises(Tampered, match="3 of 3145728"):
        it.send(BLOB, str(tmp_path / "short") if kind == "file" else lambda at: (b"abc",))


def test_a_blob_of_another_size_is_not_taken_for_it(fake, path):
    fake.blobs[BLOB.digest] = b"short"
    with there(fake) as it, pytest.raises(Tampered, match="5 bytes"):
        it.send(BLOB, path)


def test_a_token_that_ends_within(fake, path):
    """401 in the middle: the token is renewed and the piece sent again."""
    valid = ["T1"]

    def answer(request, handler):
        if request.path == "/token":
            send(handler, 200, b'{"token": "%s"}' % valid[0].encode())
            return True
        if request.method == "PATCH" and len(fake.uploads["1"]) == MIB:
            valid[0] = "T2"
        if request.authorization != f"Bearer {valid[0]}":
            realm = f'Bearer realm="http://{fake.address}/token",scope="repository:a/b:pull,push"'
            send(handler, 401, b"{}", {"WWW-Authenticate": realm})
            return True
        return False

    fake.answer = answer
    with there(fake, whole=0, piece=MIB) as it:
        it.send(BLOB, path, mount=["c/d"])
    assert fake.blobs[BLOB.digest] == DATA
    asked = [r.query["scope"] for r in fake.requests if r.path == "/token"]
    assert asked[0] == ["repository:a/b:pull,push"]
    assert "repository:c/d:pull" in asked[1], "a mount needs both repositories"


def test_no_right_to_push(fake, path):
    fake.answer = lambda r, h: r.method == "POST" and (send(h, 403, b"{}") or True)
    with there(fake) as it, pytest.raises(AuthError):
        it.send(BLOB, path)


def test_a_session_on_another_host_sees_no_credentials(fake, other, path, no_credentials):
    import base64
    import json

    pair = base64.b64encode(b"me:secret").decode()
    (no_credentials / "config.json").write_text(json.dumps({"auths": {fake.address: {"auth": pair}}}))

    def answer(request, handler):
        if request.authorization is None:
            send(handler, 401, b"", {"WWW-Authenticate": "Basic realm=x"})
        elif request.method == "POST":
            send(handler, 202, b"", {"Location": f"http://{other.address}/v2/a/b/blobs/uploads/7"})
        else:
            return False
        return True

    fake.answer = answer
    other.uploads["7"] = bytearray()
    with there(fake) as it:
        it.send(BLOB, path)
    assert other.blobs[BLOB.digest] == DATA
    assert {r.authorization for r in other.requests} == {None}


@pytest.mark.parametrize("location", ["", "ftp://127.0.0.1/x", "http://169.254.169.254/x", "http://me:pw@127.0.0.1/"])
def test_sessions_that_are_not_followed(fake, path, location):
    fake.answer = lambda r, h: r.method == "POST" and (send(h, 202, b"", {"Location": location}) or True)
    with there(fake) as it, pytest.raises(RegistryError):
        it.send(BLOB, path)


def test_an_upload_follows_a_redirect(fake, other, path):
    """Redirects are allowed on every request; this one keeps its method and body."""

    def answer(request, handler):
        if request.method == "PUT" and "/uploads/" in request.path:
            send(
                handler,
                307,
                b"",
                {"Location": f"http://{other.address}/v2/a/b/blobs/uploads/9?{request.target.partition('?')[2]}"},
            )
            return True
        return False

    fake.answer = answer
    other.uploads["9"] = bytearray()
    with there(fake) as it:
        it.send(BLOB, path)
    assert other.blobs[BLOB.digest] == DATA


def test_abort_ends_it_and_cancels_the_session(fake, path):
    import threading

    begun, release = threading.Event(), threading.Event()

    def answer(request, handler):
        if request.method == "PUT":
            begun.set()
            release.wait(20)
            handler.close_connection = True
            return True
        return False

    fake.answer = answer
    try:
        with there(fake) as it:

            def stop():
                assert begun.wait(20)
                it.abort()

            threading.Thread(target=stop).start()
            with pytest.raises(RegistryError, match="cancelled"):
                it.send(BLOB, path)
        assert fake.uploads == {}
    finally:
        release.set()
