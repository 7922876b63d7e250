"""A small registry of our own that misbehaves on request: what the real one never does to a client.

It keeps blobs and manifests in memory, takes uploads, and lists; a test hooks into `answer` per path. Every request is
written down.
"""

from __future__ import annotations

import hashlib
import http.server
import itertools
import json
import sys
import threading
import urllib.parse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from cowshed_testing.images import Image

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Request:
    def __init__(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        self.method, self.target, self.body = handler.command, handler.path, body
        self.path, _, query = handler.path.partition("?")
        self.query = urllib.parse.parse_qs(query, keep_blank_values=True)
        self.headers = {k.lower(): v for k, v in handler.headers.items()}
        self.authorization = self.headers.get("authorization")


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that gave up is what some tests are about
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class FakeRegistry:
    """`with FakeRegistry() as fake:` serves on fake.address. `fake.answer` may take over any request: it gets a
    Request and the handler, and returns True if it has answered."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Request] = []
        self.uploads: dict[str, bytearray] = {}
        self.mountable: set[tuple[str, str]] = set()  # (repository, digest)
        self.multiple_tags = False  # whether a manifest can be put under several tags at once
        self.referrers: dict[str, list[dict[str, object]]] | None = None  # None: no such API
        self._numbers = itertools.count(1)
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[bytes, str]] = {}
        self.answer: Callable[[Request, http.server.BaseHTTPRequestHandler], bool] = lambda request, handler: False
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = b"".join(_chunks(self.rfile))
                else:
                    body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = Request(self, body)
                fake.requests.append(request)
                if not fake.answer(request, self):
                    fake._serve(request, self)

            do_POST = do_HEAD = do_PUT = do_PATCH = do_DELETE = do_GET

        self._server = _Server(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._server.daemon_threads = False
        self._server.block_on_close = True
        self.port = self._server.server_address[1]
        self.address = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> FakeRegistry:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._server.server_close()

    def add(self, image: Image, tag: str = "latest") -> None:
        self.blobs.update(image.blobs)
        for key in (tag, image.digest):
            self.manifests[key] = image.manifest, MANIFEST

    def put(self, key: str, value: object, media_type: str = MANIFEST) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.manifests[key] = data, media_type

    def _serve(self, request: Request, handler: http.server.BaseHTTPRequestHandler) -> None:
        kind, name = request.path.split("/")[-2:]
        if request.path == "/v2/":
            send(handler, 200, b"{}")
        elif "/blobs/uploads/" in request.path:
            self._upload(request, handler, name)
        elif kind == "manifests" and request.method in ("PUT", "DELETE"):
            self._change(request, handler, name)
        elif kind == "manifests" and name in self.manifests:
            data, media_type = self.manifests[name]
            headers = {"Content-Type": media_type, "ETag": f'"{_digest(data)}"', "Docker-Content-Digest": _digest(data)}
            send(handler, 200, data, headers)
        elif kind == "blobs" and name in self.blobs:
            data = self.blobs[name]
            if request.method == "DELETE":
                del self.blobs[name]
                send(handler, 202)
                return
            asked = request.headers.get("range")
            if asked and request.method == "GET":
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, end = int(first), min(int(last or len(data)), len(data) - 1)
                headers = {"Content-Range": f"bytes {start}-{end}/{len(data)}"}
                send(handler, 206, data[start : end + 1], headers)
            else:
                send(handler, 200, data)
        elif kind == "tags":
            tags = sorted(key for key in self.manifests if ":" not in key)
            send(handler, 200, json.dumps({"name": "a/b", "tags": tags}).encode())
        elif kind == "referrers" and self.referrers is not None:
            index = {"schemaVersion": 2, "manifests": self.referrers.get(name, [])}
            send(handler, 200, json.dumps(index).encode())
        else:
            body = json.dumps({"errors": [{"code": "UNKNOWN", "message": f"no {kind} here"}]}).encode()
            send(handler, 404, body)

    def _upload(self, request: Request, handler: http.server.BaseHTTPRequestHandler, name: str) -> None:
        base = request.path.partition("/blobs/uploads/")[0] + "/blobs/uploads/"
        if request.method == "POST":
            mount, source = request.query.get("mount", [""])[0], request.query.get("from", [""])[0]
            if (source, mount) in self.mountable:
                send(handler, 201, b"", {"Location": f"{base}../{mount}"})
                return
            name = str(next(self._numbers))
            self.uploads[name] = bytearray()
            send(handler, 202, b"", {"Location": f"{base}{name}?state=1"})
            return
        upload = self.uploads.get(name)
        if upload is None:
            send(handler, 404, b'{"errors": [{"code": "BLOB_UPLOAD_UNKNOWN", "message": "no such upload"}]}')
            return
        where = {"Location": f"{base}{name}?state={len(upload)}"}
        if request.method == "GET":
            send(handler, 204, b"", {**where, "Range": f"0-{max(len(upload) - 1, 0)}"})
        elif request.method == "DELETE":
            del self.uploads[name]
            send(handler, 204)
        elif request.method == "PATCH":
            first = request.headers.get("content-range", f"{len(upload)}-").partition("-")[0]
            if int(first) != len(upload):
                send(handler, 416, b"", {**where, "Range": f"0-{max(len(upload) - 1, 0)}"})
                return
            upload += request.body
            where = {"Location": f"{base}{name}?state={len(upload)}"}
            send(handler, 202, b"", {**where, "Range": f"0-{len(upload) - 1}"})
        else:
            upload += request.body
            wanted = request.query["digest"][0]
            if _digest(bytes(upload), wanted.partition(":")[0]) != wanted:
                send(handler, 400, b'{"errors": [{"code": "DIGEST_INVALID", "message": "another digest"}]}')
                return
            self.blobs[wanted] = bytes(self.uploads.pop(name))
            send(handler, 201, b"", {"Docker-Content-Digest": wanted})

    def _change(self, request: Request, handler: http.server.BaseHTTPRequestHandler, name: str) -> None:
        if request.method == "DELETE":
            if self.manifests.pop(name, None) is None:
                send(handler, 404)
                return
            if ":" in name:  # its tags too
                for key in [k for k, (data, _) in self.manifests.items() if _digest(data) == name]:
                    del self.manifests[key]
            send(handler, 202)
            return
        there = self.manifests.get(name)
        wanted = request.headers.get("if-match")
        if wanted and (there is None or f'"{_digest(there[0])}"' != wanted):
            send(handler, 412)
            return
        digest = _digest(request.body)
        headers = {"Docker-Content-Digest": digest}
        names = {name, digest}
        if self.multiple_tags and (tags := request.query.get("tag")):
            names.update(tags)
            headers["OCI-Tag"] = ", ".join(tags)
        for key in names:
            self.manifests[key] = request.body, request.headers["content-type"]
        subject = json.loads(request.body).get("subject")
        if subject and self.referrers is not None:
            entry = {"mediaType": request.headers["content-type"], "digest": digest, "size": len(request.body)}
            self.referrers.setdefault(subject["digest"], []).append(entry)
            headers["OCI-Subject"] = subject["digest"]
        send(handler, 201, b"", headers)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    """A body that comes in chunks (RFC 9112 section 7.1)."""
    while size := int(file.readline().partition(b";")[0] or b"0", 16):
        yield file.read(size)
        file.readline()
    while file.readline().strip():
        pass


def _digest(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def send(
    handler: http.server.BaseHTTPRequestHandler, status: int, body: bytes = b"", headers: dict[str, str] | None = None,
    *, length: int | None = None,
) -> None:  # fmt: skip
    """Answer; with `length` other than the body's the connection ends after the body."""
    handler.send_response(status)
    for key, value in (headers or {}).items():
        handler.send_header(key, value)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    if handler.command == "HEAD":
        return
    try:
        handler.wfile.write(body)
    except (BrokenPipeError, ConnectionResetError):
        handler.close_connection = True
    if length is not None and length != len(body):
        handler.close_connection = True
