"""HTTP/1.1 on one connection: request after request, until one side has had enough."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from ssl import SSLSocket

from cowshed.errors import CowshedError
from cowshed.registry.server import message
from cowshed.registry.server.message import Answer, File, Gone, Input, Request
from cowshed.registry.server.refusals import Malformed, Refusal
from cowshed.registry.server.store import no_space

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cowshed.registry.server.journal import Journal

    Responder = Callable[[Request], Answer]

IDLE = 75.0  # seconds that a connection without a request is kept
BUSY = 60.0  # seconds without a byte in the middle of a request or an answer
_SKIP = 1 << 20  # bytes of a body that nobody wants that are read, so that the connection can go on
_LINGER = 2.0  # seconds that a client has to read an answer before its connection is reset
_PIECE = 128 << 10  # bytes that are read at once where the kernel cannot send by itself
_SEND = 1 << 30
_REASONS = {
    100: "Continue", 200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 206: "Partial Content",
    304: "Not Modified", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 408: "Request Timeout", 409: "Conflict", 411: "Length Required",
    412: "Precondition Failed", 413: "Content Too Large", 414: "URI Too Long", 416: "Range Not Satisfiable",
    429: "Too Many Requests", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
    501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable", 507: "Insufficient Storage",
}  # fmt: skip


class Connection:
    """One connection. `serve` runs in a thread of its own; `stop` may be called from another. over: a descriptor that
    can be read when no more requests are to be waited for."""

    def __init__(
        self, sock: socket.socket | SSLSocket, peer: str, respond: Responder, journal: Journal, over: int
    ) -> None:
        self._socket, self._peer, self._respond, self._journal, self._over = sock, peer, respond, journal, over
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)
        self._poll.register(over, select.POLLIN)
        self._input = Input(sock)
        self._answering = False
        self._stopping = False
        self.idle_since = time.monotonic()  # 0: a request is being answered

    def serve(self) -> None:
        """Answer until the connection ends, and close it."""
        try:
            self._limit(BUSY)
            while self._asked():
                if not self._one():
                    self._linger()
                    break
        except (Gone, OSError):
            pass  # the client has gone: nobody is there to be told
        finally:
            self._socket.close()

    def end(self) -> None:
        """Answer no more requests than the one that runs, or is here already."""
        self._stopping = True

    def stop(self) -> None:
        """End when the running request is answered; at once if there is none, even if one is on its way."""
        self._stopping = True
        if not self._answering:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RD)

    def abort(self) -> None:
        """End at once."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _asked(self) -> bool:
        """Wait for a request, until it has been too long or nobody is to wait any more."""
        if self._input.waits or (isinstance(self._socket, SSLSocket) and self._socket.pending()):
            return True
        return any(fd != self._over for fd, _ in self._poll.poll(IDLE * 1000))

    def _one(self) -> bool:
        """Answer one request; whether there may be another."""
        request, broken = None, False
        try:
            head = self._input.head()
            if head is None:
                return False
            self._answering, self.idle_since = True, 0.0
            request = message.parse(head, self._input, self._go_on)
            answer = self._answer(request)
        except Malformed as error:
            answer, broken = _refused(Refusal("UNSUPPORTED", str(error), status=error.status)), True
            if request is None:
                self._send(answer, head_only=False, keep=False)
                self._journal.request(self._peer, "", "-", "-", error.status, 0, 0, self._input.began, str(error))
                return False
        keep = request.keep and not self._stopping and not broken
        sent = 0
        why = ""
        try:
            if not request.body.over:
                keep = keep and not request.body.unasked and request.body.skip(_SKIP)
            sent = self._send(answer, head_only=request.method == "HEAD", keep=keep)
        except (Gone, OSError, Malformed) as error:
            why, keep = f"connection lost: {error}".rstrip(": "), False
        finally:
            answer.close()
        self._journal.request(
            self._peer, request.user, request.method, request.target, answer.status, request.body.length, sent,
            self._input.began, why,
        )  # fmt: skip
        self._answering, self.idle_since = False, time.monotonic()
        return keep

    def _answer(self, request: Request) -> Answer:
        try:
            return self._respond(request)
        except Refusal as error:
            return _refused(error)
        except Gone:
            self._journal.request(
                self._peer, request.user, request.method, request.target, 0, request.body.length, 0,
                self._input.began, "the client went away while it sent",
            )  # fmt: skip
            raise
        except OSError as error:
            if no_space(error):
                return _refused(Refusal("DENIED", "the disk of the registry is full", status=507))
            self._journal.failure(f"{request.method} {request.path}: {error}")
        except CowshedError as error:
            self._journal.failure(f"{request.method} {request.path}: {error}")
        except Malformed:
            raise
        except Exception as error:
            self._journal.failure(f"{request.method} {request.path}: {type(error).__name__}: {error}")
        return _refused(Refusal("UNSUPPORTED", "the registry could not do it; its log says why", status=500))

    def _go_on(self) -> None:
        self._socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _send(self, answer: Answer, *, head_only: bool, keep: bool) -> int:
        """Send it; the bytes of its body."""
        lines = [f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in answer.headers]
        if answer.status != 204:
            lines.append(f"Content-Length: {answer.length}")
            if answer.length:
                lines.append(f"Content-Type: {answer.kind}")
        lines.append("Docker-Distribution-API-Version: registry/2.0")
        lines.append("X-Content-Type-Options: nosniff")
        if not keep:
            lines.append("Connection: close")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
        if head_only or answer.status == 204:
            self._socket.sendall(head)
            return 0
        if isinstance(answer.body, File):
            self._send_file(head, answer.body)
        else:
            self._socket.sendall(head + answer.body)
        return answer.length

    def _send_file(self, head: bytes, body: File) -> None:
        plain = not isinstance(self._socket, SSLSocket)
        if plain:
            self._socket.sendall(head, socket.MSG_MORE if body.count else 0)
        else:
            self._socket.sendall(head)
        at, left = body.offset, body.count
        while left:
            there = left
            if body.arrived is not None:
                there = min(left, body.arrived(at + 1) - at)
            count = self._pass(body.fd, at, there) if plain else self._copy(body.fd, at, there)
            at, left = at + count, left - count

    def _pass(self, fd: int, at: int, count: int) -> int:
        sent = os.sendfile(self._socket.fileno(), fd, at, min(count, _SEND))
        if not sent:
            raise Gone("the file is shorter than it was")
        return sent

    def _copy(self, fd: int, at: int, count: int) -> int:
        piece = os.pread(fd, min(count, _PIECE), at)
        if not piece:
            raise Gone("the file is shorter than it was")
        self._socket.sendall(piece)
        return len(piece)

    def _linger(self) -> None:
        """Let the client read the last answer: closing with bytes unread would reset the connection before that."""
        self._socket.shutdown(socket.SHUT_WR)
        self._limit(_LINGER)
        end = time.monotonic() + _LINGER
        while time.monotonic() < end and self._socket.recv(16 << 10):
            pass

    def _limit(self, seconds: float) -> None:
        """The kernel ends calls that wait for longer (socket(7)): the interpreter would poll before each."""
        value = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def _refused(error: Refusal) -> Answer:
    return Answer(error.status, list(error.headers), error.body())
