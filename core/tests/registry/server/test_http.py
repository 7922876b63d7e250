"""What comes over the wire: limits, what is malformed, and noise."""

import contextlib
import json
import os
import random
import signal
import socket
import ssl
import threading

import pytest
from cowshed_testing.distribution import Client, digest

from cowshed.registry.server import connection, message, refusals
from cowshed.registry.server.access import Access
from cowshed.registry.server.journal import Journal
from cowshed.registry.server.registry import Registry
from cowshed.registry.server.service import Service, context
from cowshed.registry.server.store import Store

ROUNDS = int(os.environ.get("COWSHED_REGISTRY_FUZZ", "300"))
HOST = b"Host: x\r\n"


def exchange(address, data, *, end=True):
    """All that is answered to raw bytes."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(data)
            if end:
                sock.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(65536):
                answer += piece
        return answer


def status(answer):
    return int(answer.split(b" ", 2)[1])


MALFORMED = {
    "no request": (b"hello\r\n\r\n", 400),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "another protocol": (b"GET / HTTP/2.0\r\n\r\n", 400),
    "a method in small letters": (b"get / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "no host": (b"GET /v2/ HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /v2/ HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
    "a folded header": (b"GET /v2/ HTTP/1.1\r\n" + HOST + b"A: b\r\n c\r\n\r\n", 400),
    "a space before the colon": (b"GET /v2/ HTTP/1.1\r\n" + HOST + b"A : b\r\n\r\n", 400),
    "a bare line feed": (b"GET /v2/ HTTP/1.1\r\n" + HOST + b"A: b\nC: d\r\n\r\n", 400),
    "two lengths": (b"PUT /v2/ HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
    "a length beside chunks": (
        b"PUT /v2/ HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400,
    ),
    "a length with a sign": (b"PUT /v2/ HTTP/1.1\r\n" + HOST + b"Content-Length: +1\r\n\r\na", 400),
    "a negative length": (b"PUT /v2/ HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", 400),
    "another coding": (b"PUT /v2/ HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    "a header that is too long": (b"GET /v2/ HTTP/1.1\r\n" + HOST + b"A: " + b"x" * 40_000 + b"\r\n\r\n", 431),
    "a header without an end": (b"GET /v2/ HTTP/1.1\r\n" + b"A" * 50_000, 431),
    "a target that is too long": (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
    "too many parameters": (b"GET /v2/?" + b"a=1&" * 300 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "no path": (b"GET * HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a chunk without a size": (
        b"POST /v2/a/blobs/uploads/?digest=sha256:" + b"0" * 64 + b" HTTP/1.1\r\n" + HOST
        + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400,
    ),
    "a chunk that is longer": (
        b"POST /v2/a/blobs/uploads/?digest=sha256:" + b"0" * 64 + b" HTTP/1.1\r\n" + HOST
        + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", 400,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MALFORMED)
def test_what_is_malformed(served, what):
    data, wanted = MALFORMED[what]
    answer = exchange(served.address, data)
    assert status(answer) == wanted
    assert b"Connection: close" in answer
    json.loads(answer.partition(b"\r\n\r\n")[2])
    assert served.client("GET", "/v2/").status == 200


def test_nothing_of_a_refused_request_is_taken_for_another(served):
    smuggled = b"GET /v2/ HTTP/1.1\r\n" + HOST + b"\r\n"
    data = (
        b"PUT /v2/ HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled
    )
    assert exchange(served.address, data).count(b"HTTP/1.1 ") == 1


def test_requests_one_after_another(served):
    one = b"GET /v2/ HTTP/1.1\r\n" + HOST + b"\r\n"
    body = b"POST /v2/ HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc"
    answer = exchange(served.address, one + body + b"\r\n" + one)
    assert [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [200, 405, 200]


def test_http_1_0_and_a_whole_url(served):
    answer = exchange(served.address, b"GET /v2/ HTTP/1.0\r\n\r\n", end=False)
    assert status(answer) == 200
    assert status(exchange(served.address, b"GET http://x/v2/ HTTP/1.1\r\n" + HOST + b"\r\n")) == 200


def test_a_client_that_waits_is_told_to_go_on_or_is_not(served):
    head = b"%s HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 3\r\nContent-Type: a/b\r\n\r\n"
    good = head % (b"POST /v2/a/blobs/uploads/?digest=" + digest(b"abc").encode())
    assert exchange(served.address, good + b"abc").startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201")
    assert exchange(served.address, head % b"POST /v2/A/blobs/uploads/", end=False).startswith(b"HTTP/1.1 400")


def test_what_came_before_a_connection_broke_is_kept(served):
    data = bytes(range(256)) * 100
    location = served.client.begin()
    head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    assert exchange(served.address, head.encode() + data[:9999]) == b""
    there = served.client("GET", location)
    assert there["Range"] == "0-9998"
    answer = served.client("PATCH", location, data[9999:], Content_Range=f"9999-{len(data) - 1}")
    assert answer.status == 202
    assert served.client("PUT", f"{location}?digest={digest(data)}").status == 201


def test_an_upload_goes_on_after_a_restart(serving):
    data = bytes(range(256)) * 100
    first = serving()
    location = first.client.begin()
    first.client("PATCH", location, data[:777])
    first.close()
    second = serving()
    assert second.client("GET", location)["Range"] == "0-776"
    assert second.client("PUT", f"{location}?digest={digest(data)}", data[777:]).status == 201


def test_a_client_that_sends_nothing_is_not_kept(serving, monkeypatch):
    monkeypatch.setattr(connection, "IDLE", 0.05)
    monkeypatch.setattr(connection, "BUSY", 0.05)
    monkeypatch.setattr(message, "HEAD_SECONDS", 0.0)
    address = serving().address
    assert exchange(address, b"", end=False) == b""
    with socket.create_connection(address.split(":"), timeout=20) as sock:
        sock.sendall(b"GET /v2/ ")
        assert sock.recv(100)[:12] in (b"", b"HTTP/1.1 408")


def test_a_body_that_drips_is_given_up(serving, monkeypatch):
    monkeypatch.setattr(message, "_PERIOD", -1.0)
    served = serving()
    location = served.client.begin()
    head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode()
    assert exchange(served.address, head + b"x", end=False) == b""
    assert served.client("GET", location).status == 204


def test_no_more_connections_than_there_may_be(serving):
    served = serving(most=3)
    clients = [Client(served.address) for _ in range(10)]
    for client in clients:  # each closes the one that has been idle for the longest
        assert client("GET", "/v2/").status == 200
    for client in clients:
        client.close()


def test_tls(serving, certificates):
    there = certificates.folder
    served = serving(tls=lambda: context(f"{there}/server.crt", f"{there}/server.key"))
    assert served.service.url.startswith("https://127.0.0.1:")
    data = os.urandom(500_000)
    wanted = digest(data)
    push = f"POST /v2/a/blobs/uploads/?digest={wanted} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    answer = over_tls(
        served.address, push.encode() + data + f"GET /v2/a/blobs/{wanted} HTTP/1.0\r\n\r\n".encode(), there
    )
    assert answer.startswith(b"HTTP/1.1 201")
    assert answer.endswith(data)
    assert exchange(served.address, b"GET /v2/ HTTP/1.1\r\n\r\n") == b""


def test_certificates_of_clients(serving, certificates):
    there = certificates.folder
    served = serving(tls=lambda: context(f"{there}/server.crt", f"{there}/server.key", f"{there}/ca.crt"))
    request = b"GET /v2/ HTTP/1.0\r\n\r\n"
    assert over_tls(served.address, request, there, client=True).startswith(b"HTTP/1.1 200")
    with pytest.raises(OSError, match=r"certificate|reset|EOF"):
        assert over_tls(served.address, request, there) == b"", "answered without a certificate"


def over_tls(address, data, folder, *, client=False):
    trusted = ssl.create_default_context(cafile=f"{folder}/ca.crt")
    if client:
        trusted.load_cert_chain(f"{folder}/client.cert", f"{folder}/client.key")
    with socket.create_connection(address.split(":"), timeout=20) as plain:
        with trusted.wrap_socket(plain, server_hostname="localhost") as sock:
            sock.sendall(data)
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
    return answer


def test_noise(served):
    """Requests that are cut, mixed and mutated: each is answered with what HTTP allows, none with an internal error."""
    chance = random.Random(7)
    found = served.client.image(tag="v1")
    location = served.client.begin()
    seeds = [
        f"GET /v2/a/b/manifests/{found} HTTP/1.1", "GET /v2/a/b/tags/list?n=1&last=v HTTP/1.1",
        f"PUT {location}?digest={digest(b'abc')} HTTP/1.1", "PUT /v2/a/b/manifests/v2?tag=x HTTP/1.1",
        f"POST /v2/c/blobs/uploads/?mount={found}&from=a/b HTTP/1.1", "GET /v2/_catalog HTTP/1.1",
        f"GET /v2/a/b/referrers/{found}?artifactType=a HTTP/1.1", f"PATCH {location} HTTP/1.1",
        f"GET /v2/a/b/blobs/{digest(b'layer')} HTTP/1.1", "GET /token?scope=a:b:c HTTP/1.1",
    ]  # fmt: skip
    headers = [
        "Content-Length: 3", "Content-Range: 0-2", "Range: bytes=1-", "Transfer-Encoding: chunked",
        "Expect: 100-continue", "Content-Type: application/vnd.oci.image.manifest.v1+json", "If-Match: x",
        "Authorization: Basic YTpi",
        "Authorization: Bearer a.b.c", "Connection: keep-alive", "If-None-Match: *", "If-Range: y",
    ]  # fmt: skip
    bodies = [
        b"",
        b"abc",
        b"3\r\nabc\r\n0\r\n\r\n",
        b'{"schemaVersion": 2, "manifests": [{}]}',
        b"\0" * 100,
        b"ffffffff\r\n",
    ]
    for _ in range(ROUNDS):
        lines = [chance.choice(seeds), "Host: x", *chance.sample(headers, chance.randrange(5))]
        data = bytearray("\r\n".join(lines).encode() + b"\r\n\r\n" + chance.choice(bodies))
        for _ in range(chance.choice((0, 0, 1, 3, 20))):
            at = chance.randrange(len(data))
            if chance.random() < 0.5:
                data[at] = chance.randrange(256)
            else:
                data[at : at + chance.randrange(4)] = chance.choice(
                    (b"%2e%2e", b"/", b"\r\n", b":", b"%00", b"99999999999")
                )
        answer = exchange(served.address, bytes(data))
        for part in answer.split(b"HTTP/1.1 ")[1:]:
            assert int(part[:3]) < 500 or int(part[:3]) == 501, (bytes(data), part)
            if int(part[:3]) >= 400 and (body := part.partition(b"\r\n\r\n")[2]):
                _hold_errors(json.loads(body))
    assert served.client("GET", "/v2/a/b/manifests/v1")["Docker-Content-Digest"] == found


CODES = {
    "BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED", "DENIED",
    "UNSUPPORTED", "TOOMANYREQUESTS",
}  # fmt: skip


def _hold_errors(body):
    assert body["errors"]
    for one in body["errors"]:
        assert one["code"] in CODES
        assert isinstance(one["message"], str)
        assert set(one) <= {"code", "message", "detail"}


def test_each_error_has_the_form_and_a_code_of_the_specification(served):
    assert set(refusals.CODES) == CODES
    ask, nothing = served.client, digest(b"none")
    ask.image()
    for code, answer in {
        "BLOB_UNKNOWN": ask("GET", f"/v2/a/b/blobs/{nothing}"),
        "BLOB_UPLOAD_INVALID": ask("PATCH", ask.begin(), b"a", Content_Range="5-5"),
        "BLOB_UPLOAD_UNKNOWN": ask("PATCH", "/v2/a/b/blobs/uploads/none", b"a"),
        "DIGEST_INVALID": ask("GET", "/v2/a/b/blobs/sha256:x"),
        "MANIFEST_INVALID": ask("PUT", "/v2/a/b/manifests/v1", b"{", Content_Type="a/b"),
        "MANIFEST_UNKNOWN": ask("GET", "/v2/a/b/manifests/none"),
        "NAME_INVALID": ask("GET", "/v2/A/tags/list"),
        "NAME_UNKNOWN": ask("GET", "/v2/none/tags/list"),
        "SIZE_INVALID": ask("GET", "/v2/a/b/tags/list?n=x"),
        "UNSUPPORTED": ask("POST", "/v2/_catalog", b""),
    }.items():
        assert (answer.code, answer["Content-Type"]) == (code, "application/json")
        _hold_errors(answer.json)


def test_the_log_tells_each_request_and_what_went_wrong(serving, tmp_path):
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    served = serving(journal=Journal(fd))
    found = served.client.blob(b"x" * 10)
    served.client("GET", f"/v2/a/b/blobs/{found}")
    exchange(served.address, b"nonsense\r\n\r\n")
    with open(f"{served.store.root}/repositories/a+b/index.json", "w") as index:
        index.write("{")
    assert served.client("GET", "/v2/a/b/tags/list").status == 500
    served.close()
    os.close(fd)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    told = [(line.get("method"), line.get("status"), line.get("sent")) for line in lines if line["event"] == "request"]
    assert told[:3] == [("POST", 202, 0), ("PUT", 201, 0), ("GET", 200, 10)]
    assert ("GET", 500) in [one[:2] for one in told]
    (failure,) = [line for line in lines if line["event"] == "failure"]
    assert "index.json cannot be understood" in failure["error"]


def test_many_at_once(served):
    """Clients that push the same and different things into one repository see all of it."""
    wrong = []

    def work(number):
        client = Client(served.address)
        try:
            for step in range(5):
                client.image("a/b", f"t{number}-{step}", blobs=(b"config", b"same", f"{number} {step}".encode()))
        except BaseException as error:
            wrong.append(error)
        finally:
            client.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert len(served.client("GET", "/v2/a/b/tags/list").json["tags"]) == 40


def test_a_stop_does_not_wait_for_idle_connections(serving):
    served = serving()
    assert served.client("GET", "/v2/").status == 200
    served.service._patience = 3600.0
    served.service.stop()
    served._thread.join(60)
    assert not served._thread.is_alive()


def test_a_signal_that_another_thread_gets_ends_it_all_the_same(tmp_path):
    """As one that comes just before the main thread waits: neither ends poll(2)."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    registry = Registry(Store(str(tmp_path / "registry")), Access(None, None))
    service = Service("127.0.0.1:0", registry.respond, Journal(-1))
    ended, late = threading.Event(), []

    def tell():
        with contextlib.closing(Client(service.url.partition("://")[2])) as client:
            client("GET", "/v2/")
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        if not ended.wait(20):
            late.append(True)
            service.stop()

    teller = threading.Thread(target=tell)
    try:
        service.handle_signals()
        teller.start()
        service.run()
    finally:
        ended.set()
        teller.join()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert not late
    assert signal.set_wakeup_fd(-1) == -1, "the bell is taken down"
