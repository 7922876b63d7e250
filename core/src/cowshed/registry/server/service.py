"""Listening: a thread for each connection, no more of them than there may be, and a graceful stop."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import ssl
import threading
import time

from cowshed.errors import ConfigError
from cowshed.registry.server.connection import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cowshed.registry.server.connection import Responder
    from cowshed.registry.server.journal import Journal

_HANDSHAKE = 10.0  # seconds
_TICK = 1.0


class Service:
    """A listening socket. `run` serves until `stop`; from the main thread SIGTERM and SIGINT stop it."""

    def __init__(
        self, address: str, respond: Responder, journal: Journal, *, tls: Callable[[], ssl.SSLContext] | None = None,
        most: int = 512, patience: float = 30.0,
    ) -> None:  # fmt: skip
        """address: HOST:PORT, port 0 for any. tls: makes the context, again after SIGHUP. most: connections; patience:
        seconds that running requests are waited for at the end. ConfigError, OSError."""
        self._respond, self._journal, self._make_tls, self._most, self._patience = respond, journal, tls, most, patience
        self._tls = tls() if tls is not None else None
        self._socket = _listen(address)
        self._guard = threading.Lock()
        self._open: dict[Connection, threading.Thread] = {}
        self._wake, self._poke = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._heard, self._ring = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)  # of signals
        self._ring_before: int | None = None
        self._stopping = False
        host, port = self._socket.getsockname()[:2]
        self.url = f"{'https' if self._tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

    def handle_signals(self) -> None:
        """SIGTERM, SIGINT: stop; again: at once. SIGHUP: read certificates again. Only in the main thread."""
        signal.signal(signal.SIGTERM, self._signalled)
        signal.signal(signal.SIGINT, self._signalled)
        signal.signal(signal.SIGHUP, self._reload)
        # A signal that comes just before poll(2) waits, or to another thread, does not end it
        self._ring_before = signal.set_wakeup_fd(self._ring, warn_on_full_buffer=False)

    def run(self) -> None:
        """Serve until `stop`, and until running requests are answered."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        poll.register(self._heard, select.POLLIN)
        try:
            while not self._stopping:
                for fd, _ in poll.poll():
                    if fd == self._socket.fileno():
                        self._accept()
                    elif fd == self._heard:
                        os.read(fd, 64)
        finally:
            self._socket.close()
            self._finish()
            if self._ring_before is not None:
                signal.set_wakeup_fd(self._ring_before)
            for fd in (self._wake, self._poke, self._heard, self._ring):
                os.close(fd)

    def stop(self) -> None:
        """From any thread: take no more connections, answer what is asked, end."""
        if self._stopping:
            self._patience = 0.0
        self._stopping = True
        with contextlib.suppress(OSError):
            os.write(self._poke, b"x")

    def _signalled(self, number: int, frame: object) -> None:
        self.stop()

    def _reload(self, number: int, frame: object) -> None:
        if self._make_tls is not None:
            try:
                self._tls = self._make_tls()
            except (OSError, ConfigError) as error:
                self._journal.failure(f"the certificates were not read again: {error}")

    def _accept(self) -> None:
        try:
            sock, peer = self._socket.accept()
        except OSError:
            time.sleep(0.05)  # no descriptors, or the client has gone: others go on meanwhile
            return
        with self._guard:
            full = len(self._open) >= self._most
            idle = [one for one in self._open if one.idle_since] if full else []
        if full:
            if idle:
                min(idle, key=lambda one: one.idle_since).stop()
            else:
                _turn_away(sock)
                return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=self._serve, args=(sock, f"{peer[0]}:{peer[1]}"), daemon=True).start()

    def _serve(self, sock: socket.socket, peer: str) -> None:
        if self._tls is not None:
            sock.settimeout(_HANDSHAKE)
            try:
                sock = self._tls.wrap_socket(sock, server_side=True)
            except OSError:
                sock.close()
                return
        connection = Connection(sock, peer, self._respond, self._journal, self._wake)
        with self._guard:
            self._open[connection] = threading.current_thread()
        if self._stopping:
            connection.end()
        try:
            connection.serve()
        finally:
            with self._guard:
                del self._open[connection]

    def _finish(self) -> None:
        with self._guard:
            rest = dict(self._open)
        for connection in rest:
            connection.end()
        end = time.monotonic() + self._patience
        for thread in rest.values():
            while thread.is_alive() and time.monotonic() < end and self._patience:
                thread.join(min(_TICK, max(end - time.monotonic(), 0)))
        for connection, thread in rest.items():
            if thread.is_alive():
                connection.abort()
                thread.join(_TICK)


def context(certificate: str, key: str, clients: str = "") -> ssl.SSLContext:
    """TLS with a certificate chain and its key; with `clients` only for those with a certificate of that authority.
    ConfigError."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        made.load_cert_chain(certificate, key)
        if clients:
            made.load_verify_locations(clients)
            made.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the certificate {certificate} cannot be used: {error}") from None
    return made


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{address!r} is no HOST:PORT")
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, int(port)))
        made.listen(1024)
        made.setblocking(False)
    except OSError as error:
        made.close()
        raise ConfigError(f"{address} cannot be listened on: {error.strerror or error}") from None
    return made


def _turn_away(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.settimeout(1.0)
        sock.sendall(
            b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
    sock.close()
