"""A small registry of our own that misbehaves on request: what the real one never does to a client.

It serves blobs and manifests from memory; a test hooks into `answer` per path. Every request is written down.
"""

from __future__ import annotations

import http.server
import json
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cowshed_testing.images import Image

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Request:
    def __init__(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        self.method, self.target, self.body = handler.command, handler.path, body
        self.path = handler.path.partition("?")[0]
        self.headers = {k.lower(): v for k, v in handler.headers.items()}
        self.authorization = self.headers.get("authorization")


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that gave up is what some tests are about
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class FakeRegistry:
    """`with FakeRegistry() as fake:` serves on fake.address. `fake.answer` may take over any request: it gets a
    Request and the handler, and returns True if it has answered."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
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
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = Request(self, body)
                fake.requests.append(request)
                if not fake.answer(request, self):
                    fake._serve(request, self)

            do_POST = do_GET

        self._server = _Server(("127.0.0.1", 0), Handler)
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
        if kind == "manifests" and name in self.manifests:
            data, media_type = self.manifests[name]
            send(handler, 200, data, {"Content-Type": media_type})
        elif kind == "blobs" and name in self.blobs:
            data = self.blobs[name]
            asked = request.headers.get("range")
            if asked:
                start = int(asked.removeprefix("bytes=").partition("-")[0])
                send(handler, 206, data[start:], {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})
            else:
                send(handler, 200, data)
        else:
            body = json.dumps({"errors": [{"code": "UNKNOWN", "message": f"no {kind} here"}]}).encode()
            send(handler, 404, body)


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
    try:
        handler.wfile.write(body)
    except (BrokenPipeError, ConnectionResetError):
        handler.close_connection = True
    if length is not None and length != len(body):
        handler.close_connection = True
