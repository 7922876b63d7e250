"""Requests, redirects, ranges and limits, against a server that does what real ones never do."""

import base64
import hashlib
import json
import os

import pytest
from cowshed_testing.fake_registry import send

from cowshed.errors import AuthError, RegistryError, Tampered
from cowshed.image.manifest import Descriptor
from cowshed.registry.client import Client, Missing

DATA = os.urandom(3 << 20)


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


BLOB = Descriptor(digest(DATA), len(DATA), "")


def client(fake, **settings):
    return Client(fake.address, "a/b", settings, pause=0.01)


@pytest.fixture
def serving(fake):
    fake.blobs[BLOB.digest] = DATA
    return fake


def read(it, blob=BLOB, offset=0):
    return b"".join(it.blob(blob, offset))


def test_a_blob_and_a_part_of_it(serving):
    with client(serving) as it:
        assert read(it) == DATA
        assert read(it, offset=1_000_001) == DATA[1_000_001:]
    assert serving.requests[1].headers["range"] == "bytes=1000001-"


def test_the_real_registry(real):
    from cowshed_testing.images import Image, LayerTar

    image = Image([LayerTar().file("a", os.urandom(100_000)).bytes()])
    real.push(image, "test/client")
    with Client(real.address, "test/client", {}) as it:
        data, kind = it.manifest("latest")
        assert data == image.manifest
        assert kind.endswith("manifest.v1+json")
        assert it.manifest(image.digest)[0] == image.manifest
        for key, content in image.blobs.items():
            blob = Descriptor(key, len(content), "")
            assert read(it, blob) == content
            assert read(it, blob, 7) == content[7:]
        with pytest.raises(Missing, match="nothing"):
            it.manifest("nothing")
        with pytest.raises(Missing):
            read(it, Descriptor("sha256:" + "0" * 64, 3, ""))


def test_connections_are_kept(serving):
    ports = set()

    def answer(request, handler):
        ports.add(handler.client_address[1])
        return False

    serving.answer = answer
    serving.put("latest", {})
    with client(serving) as it:
        for _ in range(3):
            it.manifest("latest")
            read(it)
    assert len(ports) == 1


def test_a_connection_that_the_server_closed_meanwhile(serving):
    def answer(request, handler):
        handler.close_connection = True  # without saying so
        return False

    serving.answer = answer
    with client(serving) as it:
        assert read(it) == DATA
        assert read(it) == DATA


def test_a_download_that_breaks_goes_on(serving):
    """The server drops the connection after a while, again and again."""

    def answer(request, handler):
        at = int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        headers = {"Content-Range": f"bytes {at}-{len(DATA) - 1}/{len(DATA)}"} if at else {}
        send(handler, 206 if at else 200, DATA[at : at + 500_000], headers, length=len(DATA) - at)
        return True

    serving.answer = answer
    with client(serving) as it:
        assert read(it) == DATA
    assert len(serving.requests) == 7


def test_a_server_without_range_is_read_from_the_start(serving):
    serving.answer = lambda r, h: send(h, 200, DATA) or True
    with client(serving) as it:
        assert read(it, offset=99_999) == DATA[99_999:]


@pytest.mark.parametrize("said", ["bytes 5-9/10", "bytes */10", "nonsense", ""])
def test_another_part_than_was_asked_for(serving, said):
    serving.answer = lambda r, h: send(h, 206, DATA[5:], {"Content-Range": said}) or True
    with client(serving) as it, pytest.raises(RegistryError, match="another part"):
        read(it, offset=100)


@pytest.mark.parametrize("status", [200, 206])
def test_another_size_than_the_manifest_says(serving, status):
    more = DATA + b"x"
    headers = {"Content-Range": f"bytes 9-{len(more) - 1}/{len(more)}"} if status == 206 else {}
    serving.answer = lambda r, h: send(h, status, more[9:] if status == 206 else more, headers) or True
    with client(serving) as it, pytest.raises(Tampered, match="another size"):
        read(it, offset=9)


def test_a_body_without_length_and_without_end(serving):
    """No Content-Length: what is too much is noticed while it comes."""

    def answer(request, handler):
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        try:
            for _ in range(100):
                handler.wfile.write(DATA)
        except OSError:
            pass
        handler.close_connection = True
        return True

    serving.answer = answer
    with client(serving) as it, pytest.raises(Tampered, match="another size"):
        read(it)


def test_a_download_that_never_gets_on(serving):
    serving.answer = lambda r, h: send(h, 200, b"", length=len(DATA)) or True
    with client(serving) as it, pytest.raises(RegistryError, match="broke") as caught:
        read(it)
    assert "goes on" in caught.value.remedy
    assert len(serving.requests) <= 8


def test_a_manifest_without_end(fake):
    fake.put("latest", b" " * (5 << 20))
    with client(fake) as it, pytest.raises(RegistryError, match="more than"):
        it.manifest("latest")


@pytest.mark.parametrize("status", [429, 503])
def test_what_passes_is_asked_again(serving, status):
    left = [2]

    def answer(request, handler):
        if left[0]:
            left[0] -= 1
            send(handler, status, b"", {"Retry-After": "0"})
            return True
        return False

    serving.answer = answer
    with client(serving) as it:
        assert read(it) == DATA


def test_what_does_not_pass(serving):
    serving.answer = lambda r, h: (
        send(h, 503, b'{"errors": [{"code": "X", "message": "over\\u001b[31mloaded"}]}') or True
    )
    with client(serving) as it, pytest.raises(RegistryError, match="503") as caught:
        read(it)
    assert "\x1b" not in str(caught.value), "a server writes no escape sequences to a terminal"


def test_nobody_listens():
    with Client("127.0.0.1:1", "a/b", {}, pause=0.01) as it, pytest.raises(RegistryError, match="refused"):
        it.manifest("latest")


# ------------------------------------------------------------ redirects


def lead(fake, location, status=307):
    def answer(request, handler):
        if "/blobs/" in request.path:
            send(handler, status, b"", {"Location": location})
            return True
        return False

    fake.answer = answer


def test_credentials_do_not_follow_a_redirect(fake, other, no_credentials):
    """CVE-2020-15157: another host, and another port is another host, sees no Authorization."""
    pair = base64.b64encode(b"me:secret").decode()
    (no_credentials / "config.json").write_text(json.dumps({"auths": {fake.address: {"auth": pair}}}))

    def answer(request, handler):
        if request.authorization is None:
            send(handler, 401, b"", {"WWW-Authenticate": "Basic realm=x"})
        else:
            send(handler, 307, b"", {"Location": f"http://{other.address}/elsewhere"})
        return True

    fake.answer = answer
    other.answer = lambda r, h: send(h, 200, DATA) or True
    with client(fake) as it:
        assert read(it) == DATA
    assert fake.requests[-1].authorization
    assert [r.authorization for r in other.requests] == [None]


def test_credentials_do_not_come_back_after_a_detour(fake, other, no_credentials):
    pair = base64.b64encode(b"me:secret").decode()
    (no_credentials / "config.json").write_text(json.dumps({"auths": {fake.address: {"auth": pair}}}))

    def answer(request, handler):
        if request.path == "/back":
            send(handler, 200, DATA)
        elif request.authorization is None:
            send(handler, 401, b"", {"WWW-Authenticate": "Basic realm=x"})
        else:
            send(handler, 302, b"", {"Location": f"http://{other.address}/there"})
        return True

    fake.answer = answer
    other.answer = lambda r, h: send(h, 302, b"", {"Location": f"http://{fake.address}/back"}) or True
    with client(fake) as it:
        assert read(it) == DATA
    assert fake.requests[-1].path == "/back"
    assert fake.requests[-1].authorization is None


@pytest.mark.parametrize(
    "location",
    ["", "ftp://127.0.0.1/", "http://me:pw@127.0.0.1/", "http://169.254.169.254/latest/meta-data", "http://[fe80::1]/"],
)
def test_redirects_that_are_not_followed(fake, location):
    lead(fake, location)
    with client(fake) as it, pytest.raises(RegistryError):
        read(it)
    assert len(fake.requests) == 1 or all("/blobs/" in r.path for r in fake.requests)


def test_a_stranger_does_not_lead_us_to_this_machine(fake, other, monkeypatch):
    """A registry elsewhere must not make us ask what listens here; the address counts, whatever the name."""
    import socket

    lead(fake, f"http://inside.example:{other.port}/secret")
    real = socket.getaddrinfo

    def resolve(host, *args, **kwargs):
        return real("127.0.0.1" if str(host).endswith(".example") else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    # `outside.example` stands for a registry on another machine: we forget that it is on loopback.
    from cowshed.registry import transport

    monkeypatch.setattr(
        transport.Transport, "_local", property(lambda self: set(), lambda self, value: None), raising=False
    )
    with (
        Client(f"outside.example:{fake.port}", "a/b", {"insecure": True}) as it,
        pytest.raises(RegistryError, match="link"),
    ):
        read(it)
    assert other.requests == []


def test_redirects_end(fake):
    lead(fake, f"http://{fake.address}/v2/a/b/blobs/again")
    with client(fake) as it, pytest.raises(RegistryError, match="redirects more than"):
        read(it)


# ------------------------------------------------------------ mirrors


def test_a_mirror_is_asked_first_without_credentials(fake, other, no_credentials):
    pair = base64.b64encode(b"me:secret").decode()
    (no_credentials / "config.json").write_text(json.dumps({"auths": {fake.address: {"auth": pair}}}))
    other.put("latest", {"mirror": True})
    with client(fake, mirrors=[f"http://{other.address}/hub"]) as it:
        assert b"mirror" in it.manifest("latest")[0]
    assert fake.requests == []
    assert other.requests[0].target == f"/v2/hub/a/b/manifests/latest?ns={fake.address.replace(':', '%3A')}"


def test_the_registry_is_asked_if_mirrors_have_nothing(fake, other):
    fake.put("latest", {})
    with client(fake, mirrors=["http://127.0.0.1:1", f"http://{other.address}"]) as it:
        it.manifest("latest")
        it.manifest("latest")
    assert len(other.requests) == 2


def test_the_registry_is_not_asked_without_fallback(fake, other):
    fake.put("latest", {})
    with client(fake, mirrors=[f"http://{other.address}"], fallback=False) as it, pytest.raises(Missing):
        it.manifest("latest")
    assert fake.requests == []


def test_a_mirror_that_wants_a_login_is_passed_over(fake, other):
    fake.put("latest", {})
    other.answer = lambda r, h: send(h, 401, b"", {"WWW-Authenticate": "Basic realm=x"}) or True
    with client(fake, mirrors=[f"http://{other.address}"]) as it:
        it.manifest("latest")
    with client(fake, mirrors=[f"http://{other.address}"], fallback=False) as it, pytest.raises(AuthError):
        it.manifest("latest")


def test_a_mirror_that_breaks_off_is_left(serving, other):
    other.answer = lambda r, h: send(h, 200, DATA[:1000], length=len(DATA)) or True
    with client(serving, mirrors=[f"http://{other.address}"]) as it:
        assert read(it) == DATA


# ------------------------------------------------------------ elsewhere


def test_a_foreign_layer_is_fetched_without_credentials(fake, other, no_credentials):
    pair = base64.b64encode(b"me:secret").decode()
    (no_credentials / "config.json").write_text(json.dumps({"auths": {fake.address: {"auth": pair}}}))
    other.answer = lambda r, h: send(h, 200, DATA) or True

    def answer(request, handler):
        if request.authorization is None:
            send(handler, 401, b"", {"WWW-Authenticate": "Basic realm=x"})
            return True
        return False

    fake.answer = answer
    with client(fake) as it:
        assert read(it, Descriptor(BLOB.digest, BLOB.size, "", (f"http://{other.address}/layer",))) == DATA
    assert other.requests[0].authorization is None


def test_a_proxy_is_used_for_what_is_not_here(fake, monkeypatch):
    fake.put("latest", {})
    monkeypatch.setenv("HTTP_PROXY", f"http://u:p@{fake.address}")
    with Client("registry.example", "a/b", {"insecure": True}) as it:
        it.manifest("latest")
    assert fake.requests[0].target == "http://registry.example/v2/a/b/manifests/latest"
    assert fake.requests[0].headers["proxy-authorization"] == "Basic dTpw"
    assert fake.requests[0].headers["host"] == "registry.example"


def test_abort_ends_a_stalled_download(serving):
    import threading
    import time

    release = threading.Event()

    def answer(request, handler):
        send_head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(DATA)}\r\n\r\n".encode()
        handler.wfile.write(send_head + DATA[:1000])
        release.wait(20)
        handler.close_connection = True
        return True

    serving.answer = answer
    try:
        with client(serving) as it:
            pieces = it.blob(BLOB)
            assert next(pieces) == DATA[:1000]
            threading.Thread(target=lambda: (time.sleep(0.1), it.abort())).start()
            with pytest.raises(RegistryError, match="cancelled"):
                next(pieces)
    finally:
        release.set()
