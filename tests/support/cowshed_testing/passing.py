"""Between a client and a registry: a fake registry that passes everything on to a real one, writes down what was asked,
and cuts a share of the connections at a random moment."""

from __future__ import annotations

import http.client
import random
import threading
from collections import Counter
from typing import TYPE_CHECKING

from cowshed_testing.fake_registry import send

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler

    from cowshed_testing.fake_registry import FakeRegistry, Request

_OF_A_CONNECTION = ("connection", "content-length", "transfer-encoding", "date", "server")


class Passing:
    """Takes over a fake registry, which then answers what the registry at `address` answers.

    asked: (method, path) of each request. sent: for each blob, by digest, the bytes of it that have gone to clients;
    a connection is ended so that what has gone out arrives. share: of the requests whose connection is cut, those of
    blobs within the answer, others before it.
    """

    def __init__(self, fake: FakeRegistry, address: str, *, share: float = 0.0, seed: int = 0) -> None:
        self.address, self.share, self.chance = address, share, random.Random(seed)
        self.asked: list[tuple[str, str]] = []
        self.sent: Counter[str] = Counter()
        self.cut = 0
        self._guard = threading.Lock()
        fake.answer = self

    def __call__(self, request: Request, handler: BaseHTTPRequestHandler) -> bool:
        with self._guard:
            self.asked.append((request.method, request.path))
            cut, where = self.chance.random() < self.share, self.chance.random()
            self.cut += cut
        folder, _, name = request.path.rpartition("/")
        is_blob = request.method == "GET" and folder.endswith("/blobs")
        if cut and not is_blob:
            handler.close_connection = True
            return True
        status, headers, body, length = self._ask(request)
        if is_blob and status in (200, 206):
            body = body[: int(where * len(body))] if cut else body
            with self._guard:
                self.sent[name] += len(body)
        send(handler, status, body, headers, length=length)
        return True

    def _ask(self, request: Request) -> tuple[int, dict[str, str], bytes, int]:
        connection = http.client.HTTPConnection(self.address, timeout=60)
        try:
            headers = {key: value for key, value in request.headers.items() if key not in _OF_A_CONNECTION}
            connection.request(request.method, request.target, request.body, headers)
            answer = connection.getresponse()
            body = answer.read()
            told = {key: value for key, value in answer.getheaders() if key.lower() not in _OF_A_CONNECTION}
            return answer.status, told, body, int(answer.headers.get("Content-Length") or len(body))
        finally:
            connection.close()
