"""What registries say beside what was asked for: warnings, limits of their rate, and nonsense of every kind."""

import contextlib
import hashlib
import os
import random
import socket
import threading
import time
from email.utils import formatdate

import pytest
from cowshed_testing.fake_registry import send

from cowshed.errors import CowshedError, RegistryError
from cowshed.image.manifest import Descriptor
from cowshed.registry import place, transport
from cowshed.registry.client import Client
from cowshed.registry.repository import PUSH, Repository, catalog
from cowshed.registry.searching import search

DATA = b"some bytes" * 1000
BLOB = Descriptor("sha256:" + hashlib.sha256(DATA).hexdigest(), len(DATA), "")


# ------------------------------------------------------------ warnings


def test_a_warning_is_told_once(fake, capsys, monkeypatch):
    monkeypatch.setattr(place, "_told", set())
    said = [
        '299 - "go \\"away\\" soon\x1b[31m"', '299 - "go \\"away\\" soon\x1b[31m"', '110 - "stale"', "nonsense", "299",
        '299 elsewhere "x"', '299 - "unfinished',
    ]  # fmt: skip
    fake.put("latest", {})

    def answer(request, handler):
        handler.send_response(200)
        for each in said:
            handler.send_header("Warning", each)
        handler.send_header("Content-Length", "2")
        handler.end_headers()
        handler.wfile.write(b"{}")
        return True

    fake.answer = answer
    with Client(fake.address, "a/b", {}) as it:
        it.manifest("latest")
        it.manifest("latest")
    told = capsys.readouterr().err
    assert told.count(f'{fake.address} says: go "away" soon') == 1
    assert "stale" not in told
    assert "\x1b" not in told


# ------------------------------------------------------------ limits of the rate


def limited(fake, *waits):
    left = list(waits)

    def answer(request, handler):
        if left:
            wait = left.pop(0)
            send(handler, 429, b'{"errors": [{"message": "too many"}]}', {"Retry-After": wait} if wait else {})
            return True
        return False

    fake.put("latest", {})
    fake.answer = answer


@pytest.fixture
def slept(monkeypatch):
    """Seconds that are waited are only written down."""
    found = []
    monkeypatch.setattr(place.Place, "_sleep", lambda self, seconds: found.append(seconds))
    return found


def asked(fake):
    with Client(fake.address, "a/b", {}, pause=0.5) as it:
        return it.manifest("latest")[0]


def test_it_is_waited_as_long_as_the_registry_says(fake, slept):
    limited(fake, "7", "", "120")
    assert asked(fake) == b"{}"
    assert slept == [7, 1.0, 120]


def test_until_a_date(fake, slept):
    limited(fake, formatdate(time.time() + 60, usegmt=True))
    asked(fake)
    assert 50 < slept[0] <= 60


def test_not_for_hours(fake, slept):
    limited(fake, "21600")
    with pytest.raises(RegistryError, match="wait for 21600 seconds: too many"):
        asked(fake)
    assert slept == []


@pytest.mark.parametrize(
    ("text", "seconds"), [("", None), ("soon", None), ("-3", None), ("9" * 40, None), ("0", 0.0), ("\u0663", None)]
)
def test_what_is_no_time(text, seconds):
    assert place.seconds(text) == seconds


def test_an_error_without_end(fake):
    """Of what an error says no more than a megabyte is read."""
    told = b'{"errors": [{"code": "DENIED", "message": "no"}]}'
    sent = []

    def answer(request, handler):
        handler.send_response(403)
        handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        handler.close_connection = True
        with contextlib.suppress(OSError):
            handler.wfile.write(told + b" " * (1 << 20))
            while True:
                sent.append(handler.wfile.write(b" " * (1 << 20)))
        return True

    fake.answer = answer
    with pytest.raises(RegistryError, match="does not let us have"):
        asked(fake)
    assert len(sent) < 100


# ------------------------------------------------------------ names that lead to this machine


@pytest.fixture
def elsewhere(monkeypatch):
    """*.example is this machine for the resolver, and is taken for another one where a registry is named."""
    real = socket.getaddrinfo

    def resolve(host, *args, **kwargs):
        return real("127.0.0.1" if str(host).endswith(".example") else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(
        transport.Transport, "_local", property(lambda self: set(), lambda self, value: None), raising=False
    )


def test_a_realm_whose_name_leads_here(fake, other, elsewhere):
    """CVE-2026-48978, go-containerregistry #2440: the address decides, at the moment of the connection."""
    realm = f'Bearer realm="http://token.inside.example:{other.port}/token"'
    fake.answer = lambda r, h: send(h, 401, b"", {"WWW-Authenticate": realm}) or True
    with (
        Client(f"registry.inside.example:{fake.port}", "a/b", {"insecure": True}, pause=0.01) as it,
        pytest.raises(RegistryError, match="link"),
    ):
        it.manifest("latest")
    assert other.requests == []


def test_an_upload_whose_place_leads_here(fake, other, elsewhere):
    location = f"http://storage.example:{other.port}/upload"
    fake.answer = lambda r, h: r.method == "POST" and (send(h, 202, b"", {"Location": location}) or True)
    with (
        Repository(f"registry.example:{fake.port}", "a/b", {"insecure": True}, actions=PUSH, pause=0.01) as it,
        pytest.raises(RegistryError, match="link"),
    ):
        it.send(BLOB, lambda at: (DATA[at:],))
    assert other.requests == []


# ------------------------------------------------------------ nonsense


class Raw:
    """Answers every request with bytes that a function makes, and ends the connection."""

    def __init__(self, make):
        self._make = make
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _serve(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                while b"\r\n\r\n" not in connection.recv(1 << 16):
                    pass
                connection.sendall(self._make())


def answer(chance):
    """Something like an HTTP answer, or not at all."""
    status = chance.choice([200, 200, 200, 206, 201, 202, 204, 307, 401, 404, 416, 429, 500, 999, 0, -1])
    names = [
        "Content-Length", "Content-Type", "Content-Range", "Location", "WWW-Authenticate", "Link",
        "Docker-Content-Digest", "Retry-After", "Transfer-Encoding", "Warning", "Range",
        "OCI-Chunk-Min-Length", "ETag", "OCI-Subject", "X",
    ]  # fmt: skip
    values = [
        "0", "5", "-1", "9" * 30, "bytes 0-4/5", "bytes 0-", "bytes=0-0", "chunked", "", "\u00e9\u00ff",
        "/v2/a/b/blobs/uploads/1", "http://127.0.0.1:1/", "//", "http://[", 'Bearer realm="http://127.0.0.1:1/t"',
        'Basic realm="', "Bearer", '</x>; rel="next"', "<>;rel=next", BLOB.digest, "sha256:x", '299 - "hm"', "a" * 5000,
        "application/vnd.oci.image.index.v1+json", "0-9", "{}",
    ]  # fmt: skip
    bodies = [
        b"", b"{}", b"[]", b"null", DATA, DATA[:-1], DATA + b"x", b'{"manifests": [{"digest": 7}]}', b"[" * 5000,
        b'{"errors": [{"code": 1}, 2, null]}', b'{"errors": {}}', b'{"token": 5}', b'{"tags": [1, null, "x"]}',
        b'{"manifests": {}}', bytes(chance.randrange(256) for _ in range(40)), b'{"layers": 1e999}', b'"\\ud800"',
    ]  # fmt: skip
    lines = [f"HTTP/1.1 {status} {chance.choice(['OK', '', 'x' * 200])}"]
    lines += [f"{chance.choice(names)}: {chance.choice(values)}" for _ in range(chance.randrange(6))]
    body = chance.choice(bodies)
    if chance.random() < 0.5:
        lines.append(f"Content-Length: {len(body)}")
    data = "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body
    if chance.random() < 0.2:
        data = data[: chance.randrange(len(data))]
    if chance.random() < 0.2:
        at = chance.randrange(max(len(data), 1))
        data = data[:at] + bytes(chance.randrange(256) for _ in range(3)) + data[at:]
    return data


def everything(address):
    """All that a client asks."""
    with Client(address, "a/b", {}, pause=0) as it:
        yield lambda: it.manifest("latest")
        yield lambda: it.head("latest")
        yield lambda: b"".join(it.blob(BLOB))
        yield lambda: b"".join(it.part(BLOB, 5, 50)[1])
    with Repository(address, "a/b", {}, actions=PUSH, pause=0, whole=100, piece=100) as there:
        yield lambda: there.has(BLOB)
        yield lambda: there.send(BLOB, lambda at: (DATA[at:],), mount=["c/d"])
        yield lambda: there.put_manifest(b'{"subject": {"digest": "sha256:%s"}}' % (b"0" * 64), "x", tag="t")
        yield lambda: there.delete_tag("t")
        yield lambda: there.delete_manifest(BLOB.digest)
        yield lambda: list(there.tags())
        yield lambda: there.referrers(BLOB.digest, "x")
    yield lambda: list(catalog(address, {}, pause=0))
    yield lambda: list(search(address, "x", {}, pause=0))


@pytest.mark.parametrize("seed", [int(os.environ.get("COWSHED_ANSWERS_SEED", "1"))])
def test_whatever_a_server_says_is_an_answer_or_an_error_in_one_line(seed, monkeypatch, slept):
    """Generated answers, thousands of them: each ends in a result or in an error of ours, and never in a crash.
    COWSHED_ANSWERS says how many rounds of thirteen requests."""
    chance = random.Random(seed)
    monkeypatch.setattr(place, "_told", set())
    monkeypatch.setattr(transport, "TIMEOUT", 2.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    fine, errors = 0, []
    with Raw(lambda: answer(chance)) as raw:
        for _ in range(int(os.environ.get("COWSHED_ANSWERS", "100"))):
            for ask in everything(raw.address):
                try:
                    ask()
                    fine += 1
                except CowshedError as error:
                    errors.append(str(error))
    assert fine > 10
    assert len(errors) > 100
    assert [text for text in errors if not text.isprintable()] == []
