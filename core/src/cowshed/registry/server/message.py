"""Requests and answers of HTTP/1.1 (RFC 9112): reading with limits, bodies by length or in chunks, ranges.

Nothing here is lenient where that could let two programs see different requests in one stream of bytes: a length that
is said twice or beside chunks, a line that is folded, a space before a colon are refused.
"""

from __future__ import annotations

import re
import time
import urllib.parse

from cowshed.registry.server.refusals import Malformed, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Socket(Protocol):
        """What of a socket is used: plain ones and those of TLS have it."""

        def recv(self, count: int, /) -> bytes: ...
        def recv_into(self, buffer: memoryview, /) -> int: ...
        def sendall(self, data: bytes | memoryview, /) -> None: ...


HEAD_LIMIT = 32 << 10  # bytes of a request line and headers
HEAD_SECONDS = 30.0  # that they may take
_LINE_LIMIT = 8 << 10
_TRAILER_LIMIT = 8 << 10
_SLOWEST = 64 << 10  # bytes that must come in each _PERIOD
_PERIOD = 60.0
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_REQUEST = re.compile(rb"([A-Z]{1,20}) ([!-~]{1,8192}) HTTP/1\.([01])").fullmatch
_SIZE = re.compile(rb"[0-9a-fA-F]{1,15}").fullmatch
_CONTROLS = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII).fullmatch
_CONTENT_RANGE = re.compile(r"(?:bytes )?(\d{1,18})-(\d{1,18})(?:/\S+)?", re.ASCII).fullmatch


class Gone(Exception):
    """The client has closed the connection, or sends nothing."""


class Input:
    """The bytes that come from one connection."""

    def __init__(self, sock: Socket) -> None:
        self._socket = sock
        self._kept = bytearray()  # read, but of what comes next
        self.began = time.monotonic()

    @property
    def waits(self) -> bool:
        """Whether bytes of the next request are here."""
        return bool(self._kept)

    def head(self) -> bytes | None:
        """A request line and headers, without the empty line; None if the client has ended. Gone, Malformed."""
        end = 0.0
        while True:
            while self._kept[:2] == b"\r\n":
                del self._kept[:2]  # an empty line before a request: RFC 9112, 2.2
            at = self._kept.find(b"\r\n\r\n")
            if 0 <= at <= HEAD_LIMIT:
                head = bytes(self._kept[:at])
                del self._kept[: at + 4]
                return head
            if self._kept and not 65 <= self._kept[0] <= 90 and self._kept != b"\r":
                raise Malformed(400, "this is no HTTP: the registry speaks no TLS")  # which clients try first
            if len(self._kept) > HEAD_LIMIT:
                raise Malformed(431, "the headers are too long")
            piece = self._receive(16 << 10)
            now = time.monotonic()
            if not end:
                self.began, end = now, now + HEAD_SECONDS
            elif now > end:
                raise Malformed(408, "the request takes too long")
            if not piece:
                if self._kept:
                    raise Gone
                return None
            self._kept += piece

    def into(self, buffer: memoryview) -> int:
        """Fill some of buffer. Gone."""
        if self._kept:
            count = min(len(buffer), len(self._kept))
            buffer[:count] = self._kept[:count]
            del self._kept[:count]
            return count
        try:
            count = self._socket.recv_into(buffer)
        except OSError:
            raise Gone from None
        if not count:
            raise Gone
        return count

    def line(self) -> bytes:
        """One line without its end. Gone, Malformed."""
        while (at := self._kept.find(b"\r\n")) < 0:
            if len(self._kept) > _LINE_LIMIT:
                raise Malformed(400, "a line is too long")
            piece = self._receive(_LINE_LIMIT)
            if not piece:
                raise Gone
            self._kept += piece
        found = bytes(self._kept[:at])
        del self._kept[: at + 2]
        return found

    def _receive(self, count: int) -> bytes:
        try:
            return self._socket.recv(count)
        except OSError:
            raise Gone from None


class Body:
    """The body of a request. length: -1 for chunks. go: says 100 Continue, before the first byte is read."""

    def __init__(self, source: Input, length: int, go: Callable[[], None] | None) -> None:
        self.length = length
        self._source, self._go = source, go
        self._left = max(length, 0)
        self._chunked = self._first = length < 0
        self._since, self._received = 0.0, 0

    def left(self) -> int:
        """Bytes that are certainly still to come."""
        return self._left

    @property
    def over(self) -> bool:
        return not self._left and not self._chunked

    @property
    def unasked(self) -> bool:
        """Whether the client waits to be told that it may send."""
        return self._go is not None and not self.over

    def read_into(self, buffer: memoryview) -> int:
        """Some bytes, 0 at the end. Gone, Malformed."""
        if self.over:
            return 0
        if self._go is not None:
            self._go()
            self._go = None
        if not self._left and not self._next_chunk():
            return 0
        count = self._source.into(buffer[: self._left])
        self._left -= count
        self._pace(count)
        return count

    def read(self, limit: int) -> bytes:
        """All of it. Refusal with status 413 if it has more than limit bytes; Gone, Malformed."""
        too_large = Refusal("SIZE_INVALID", f"the body has more than {limit} bytes", status=413)
        if self.length > limit:
            raise too_large
        found = bytearray()
        buffer = memoryview(bytearray(min(64 << 10, self._left or (64 << 10))))
        while count := self.read_into(buffer):
            found += buffer[:count]
            if len(found) > limit:
                raise too_large
        return bytes(found)

    def skip(self, limit: int) -> bool:
        """Read what is left, if it is not more than limit bytes; whether it is over. Gone, Malformed."""
        if self._left > limit or self.unasked:
            return self.over
        buffer = memoryview(bytearray(16 << 10))
        while limit > 0 and (count := self.read_into(buffer)):
            limit -= count
        return self.over

    def _next_chunk(self) -> bool:
        """Read the head of a chunk; False if it was the last."""
        if not self._first and self._source.line():
            raise Malformed(400, "a chunk is longer than it said")
        self._first = False
        size = self._source.line().partition(b";")[0].strip(b" \t")
        if not _SIZE(size):
            raise Malformed(400, "a chunk has no size")
        self._left = int(size, 16)
        if not self._left:
            self._chunked = False
            seen = 0
            while line := self._source.line():
                seen += len(line)
                if seen > _TRAILER_LIMIT:
                    raise Malformed(431, "the trailers are too long")
        return self._chunked

    def _pace(self, count: int) -> None:
        now = time.monotonic()
        self._since = self._since or now
        self._received += count
        if now - self._since > _PERIOD:
            if self._received < _SLOWEST:
                raise Gone
            self._since, self._received = now, 0


class Request:
    """One request: its head, and its body to read."""

    def __init__(
        self, method: str, target: str, minor: int, headers: dict[str, str], source: Input, go: Callable[[], None]
    ) -> None:
        self.method, self.headers = method, headers
        path, _, query = target.partition("?")
        self.path = urllib.parse.unquote(path)
        self.target = target
        self.query = dict(pairs := urllib.parse.parse_qsl(query, keep_blank_values=True, max_num_fields=200))
        self._pairs = pairs
        wanted = {one.strip().lower() for one in headers.get("connection", "").split(",")}
        self.keep = "close" not in wanted if minor else "keep-alive" in wanted
        expects = minor and headers.get("expect", "").lower() == "100-continue"
        self.body = Body(source, _length(headers, minor), go if expects else None)
        self.user = ""

    def all(self, key: str) -> list[str]:
        """Every value of a parameter of the query."""
        return [value for name, value in self._pairs if name == key]

    def content_range(self) -> tuple[int, int] | None:
        """(first, last) of Content-Range, as clients of registries write it; None without one. Refusal."""
        said = self.headers.get("content-range")
        if said is None:
            return None
        match = _CONTENT_RANGE(said.strip())
        if match is None or int(match[2]) < int(match[1]):
            raise Refusal("BLOB_UPLOAD_INVALID", "Content-Range is not FIRST-LAST", status=416)
        return int(match[1]), int(match[2])


class File:
    """Bytes of an open file, for an answer that closes it. arrived: waits until so many bytes of a file that is still
    being written are there, and says how many there are."""

    def __init__(self, fd: int, offset: int, count: int, arrived: Callable[[int], int] | None = None) -> None:
        self.fd, self.offset, self.count, self.arrived = fd, offset, count, arrived


class Answer:
    """What is sent back. length: of a body that is not sent, for HEAD."""

    def __init__(
        self,
        status: int,
        headers: list[tuple[str, str]] | None = None,
        body: bytes | File = b"",
        *,
        kind: str = "application/json",
    ) -> None:
        self.status, self.headers, self.body, self.kind = status, headers or [], body, kind

    @property
    def length(self) -> int:
        return self.body.count if isinstance(self.body, File) else len(self.body)

    def close(self) -> None:
        if isinstance(self.body, File):
            import os

            os.close(self.body.fd)


def parse(head: bytes, source: Input, go: Callable[[], None]) -> Request:
    """A request from its head. Malformed."""
    first, *lines = head.split(b"\r\n")
    match = _REQUEST(first)
    if match is None:
        raise Malformed(414 if len(first) > _LINE_LIMIT else 400, "this is no request of HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN(name) or _CONTROLS(value):
            raise Malformed(400, "a header is malformed")
        key, text = name.decode("ascii").lower(), value.strip(b" \t").decode("latin-1")
        if key in headers:
            if key in ("content-length", "transfer-encoding", "host", "content-range", "authorization"):
                raise Malformed(400, f"{key} is said twice")
            text = f"{headers[key]}, {text}"
        headers[key] = text
    target = match[2].decode("ascii")
    if not target.startswith("/"):  # a request to a proxy: the whole URL
        rest = urllib.parse.urlsplit(target)
        if rest.scheme not in ("http", "https") or not rest.path.startswith("/"):
            raise Malformed(400, "the target of the request is no path")
        target = rest.path + (f"?{rest.query}" if rest.query else "")
    minor = int(match[3])
    if minor and "host" not in headers:
        raise Malformed(400, "there is no header Host")
    try:
        return Request(match[1].decode("ascii"), target, minor, headers, source, go)
    except ValueError:
        raise Malformed(400, "the query has too many parameters") from None


def _length(headers: dict[str, str], minor: int) -> int:
    coding = headers.get("transfer-encoding")
    said = headers.get("content-length")
    if coding is not None:
        if coding.lower() != "chunked" or not minor:
            raise Malformed(501, "no transfer coding but chunked is understood")
        if said is not None:
            raise Malformed(400, "a length is said beside chunks")
        return -1
    if said is None:
        return 0
    if not (said.isascii() and said.isdigit() and len(said) < 19):
        raise Malformed(400, "Content-Length is no number")
    return int(said)


def byte_range(said: str, size: int) -> tuple[int, int] | None:
    """(offset, count) of one range of so many bytes, None if the whole is to be sent (RFC 9110, 14.2: what is malformed
    or has several ranges may be ignored). Refusal with status 416 if there are no such bytes."""
    match = _RANGE(said.strip())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        count = min(int(match[2]), size)
        first, last = size - count, size - 1
    else:
        first, last = int(match[1]), min(int(match[2]), size - 1) if match[2] else size - 1
    if first > last or first >= size:
        raise Refusal(
            "SIZE_INVALID", f"there are {size} bytes", status=416, headers=(("Content-Range", f"bytes */{size}"),)
        )
    return first, last - first + 1
